"""Philly: policies beside bounds.

Rigid gangs on one flat pool, each suspend paid for with a restore. Ratio: mean time from arrival to
end (JCT) over the greatest of the bounds B1 (mean run time), B2 (SRPT on the squashed machine) and
B3 (mean busy times), which hold for any schedule, preempted at no price, by whoever knows all.
Queue: from arrival to the first start. Slowdown: bounded at 10 s. Wasted: devices held without
progress that lasted. † marks policies that know durations: yardsticks, and nothing for a pool.

The second table has tiers: each job is premium with a chance of 20 %, by the seed, and basic else.
Wasted for premium: what saves, restores and lost progress of basic jobs cost that made room for
premium ones; what else is wasted is for turns among jobs of one tier.

    python -m benchmarks.philly --trace .../philly_jobs_82k.csv.gz --seeds 3 --report
    python -m benchmarks.philly --jobs 5000 --devices 64     on an imitation, without a trace
    python -m benchmarks.philly --policy 2d-las --policy fifo
"""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tables
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.bounds import Bounds, bounds
from onefleet.sim.jobs.catalog import BASELINES, ONEFLEET, POLICIES, TIERS
from onefleet.sim.jobs.job import Fleet, Price, Rules, from_trace
from onefleet.sim.jobs.outcome import Outcome
from onefleet.sim.jobs.policy import Clairvoyant, Named
from onefleet.sim.jobs.simulate import simulate

PREMIUM_PART = 0.2
#: Suspend prices that the table of tiers shows: a minute, and Singularity's for its largest model.
TIER_PRICES_S = (60, 141)


@dataclass(frozen=True)
class Task:
    """One simulation."""

    trace: Path | None
    jobs: int
    seed: int
    devices: int
    policy: str
    restore_s: int
    tiers: bool = False


@dataclass(frozen=True)
class Found:
    """What a table shows of one simulation."""

    ratio: float
    jct_s: float
    queue_s: float
    queue_p95_s: float
    jct_p95_s: float
    slowdown: float
    suspends: int
    wasted_h: float
    wasted_part: float
    ceded_part: float
    premium_queue_s: float
    premium_kept: float
    basic_jct_s: float


def run(task: Task) -> Found:
    """Simulate, in whichever process."""
    trace = tables.philly(task.trace, task.jobs, task.seed)
    rng = random.Random(f"{task.seed}/premium")
    jobs = from_trace(
        trace,
        lambda job: Tier.PREMIUM if task.tiers and rng.random() < PREMIUM_PART else Tier.BASIC,
    )
    rules = Rules(Fleet.flat(task.devices), Price(restore_ms=task.restore_s * 1000))
    outcome = simulate(jobs, rules, POLICIES[task.policy], seed=task.seed)
    least: Bounds = bounds(jobs, task.devices)
    return _found(outcome, least)


def _found(outcome: Outcome, least: Bounds) -> Found:
    premium, basic = outcome.of(Tier.PREMIUM), outcome.of(Tier.BASIC)
    return Found(
        ratio=outcome.mean_jct_s * 1000 / least.mean_jct_ms,
        jct_s=outcome.mean_jct_s,
        queue_s=outcome.mean_queue_s,
        queue_p95_s=outcome.queue_s(95),
        jct_p95_s=outcome.jct_s(95),
        slowdown=outcome.mean_bounded_slowdown,
        suspends=outcome.suspends + outcome.kills,
        wasted_h=outcome.wasted_device_hours,
        wasted_part=outcome.wasted_part,
        ceded_part=outcome.ceded_part,
        premium_queue_s=premium.mean_queue_s,
        premium_kept=premium.kept_promises(),
        basic_jct_s=basic.mean_jct_s,
    )


def star(named: Named) -> str:
    return f"{named.name} †" if isinstance(named, Clairvoyant) else named.name


def policies_table(options: Namespace, named: Sequence[Named]) -> str:
    """One table a size of the fleet."""
    parts = []
    for devices in options.devices:
        tasks = [
            Task(options.trace, options.jobs, seed, devices, one.name, options.restore_s)
            for one in named
            for seed in range(options.seeds)
        ]
        found = list(tables.run_all(tasks, run, options.workers))
        rows = []
        for number, one in enumerate(named):
            runs = found[number * options.seeds : (number + 1) * options.seeds]
            first = runs[0]
            rows.append(
                [
                    star(one),
                    tables.spread([f.ratio for f in runs]),
                    f"{first.jct_s:,.0f}",
                    f"{first.queue_s:,.0f}",
                    f"{first.queue_p95_s:,.0f}",
                    f"{first.jct_p95_s:,.0f}",
                    f"{first.slowdown:,.2f}",
                    f"{first.suspends:,}",
                    f"{first.wasted_h:,.0f}",
                    f"{first.wasted_part:.2%}",
                ]
            )
        rows.sort(key=lambda row: -float(row[1].split(" ")[0]))
        jobs = from_trace(tables.philly(options.trace, options.jobs, 0))
        least = bounds(jobs, devices)
        parts.append(
            f"## {devices} devices\n\n"
            f"Bounds of the mean JCT: B1 {least.b1 / 1000:,.0f} s, B2 {least.b2 / 1000:,.0f} s, "
            f"B3 {least.b3 / 1000:,.0f} s. Restore: {options.restore_s} s.\n\n"
            + tables.markdown(POLICY_HEADERS, rows)
        )
    return "\n\n".join(parts)


POLICY_HEADERS = (
    "policy", "mean JCT / bound", "mean JCT, s", "mean queue, s", "p95 queue, s", "p95 JCT, s",
    "slowdown", "suspends", "wasted device-h", "wasted",
)  # fmt: skip
TIER_HEADERS = (
    "policy", "premium queue, s", "premium promises kept", "basic mean JCT, s",
    "suspends or kills", "wasted device-h", "wasted", "wasted for premium",
)  # fmt: skip


def tiers_table(options: Namespace, named: Sequence[Named]) -> str:
    """Premium beside basic, and three ways to make room."""
    parts = []
    for devices in options.devices:
        cases = [
            (one, price)
            for one in named
            for price in (TIER_PRICES_S if "suspend" in one.name else TIER_PRICES_S[:1])
        ]
        tasks = [
            Task(options.trace, options.jobs, seed, devices, one.name, price, tiers=True)
            for one, price in cases
            for seed in range(options.seeds)
        ]
        found = list(tables.run_all(tasks, run, options.workers))
        rows = []
        for number, (one, price) in enumerate(cases):
            runs = found[number * options.seeds : (number + 1) * options.seeds]
            rows.append(
                [
                    f"{star(one)} ({price} s)" if "suspend" in one.name else star(one),
                    tables.spread([f.premium_queue_s for f in runs], "{:,.0f}"),
                    f"{min(f.premium_kept for f in runs):.1%}",
                    tables.spread([f.basic_jct_s for f in runs], "{:,.0f}"),
                    f"{runs[0].suspends:,}",
                    tables.spread([f.wasted_h for f in runs], "{:,.0f}"),
                    f"{runs[0].wasted_part:.2%}",
                    f"{runs[0].ceded_part:.3%}",
                ]
            )
        parts.append(f"## Tiers at {devices} devices\n\n" + tables.markdown(TIER_HEADERS, rows))
    return "\n\n".join(parts)


def legend(named: Sequence[Named]) -> str:
    return "\n".join(f"* {star(one)}: {one.about}" for one in named)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = tables.parser("philly", seeds=1)
    tables.trace_options(parser)
    parser.add_argument("--devices", type=tables.count, nargs="+", default=[400, 512, 640])
    parser.add_argument("--policy", action="append", choices=sorted(POLICIES), help="default: all")
    parser.add_argument("--restore-s", type=int, default=60, help="what a resume costs")
    options = parser.parse_args(arguments)
    wanted = options.policy or sorted(POLICIES)
    named = [one for one in (*BASELINES, ONEFLEET) if one.name in wanted]
    with_tiers = [one for one in (*TIERS, ONEFLEET) if one.name in wanted]
    parts = [
        f"Workload: {tables.trace_name(options.trace, options.jobs)}; "
        f"{tables.seeds_name(options.trace, options.seeds)}.",
    ]
    if named:
        parts += [policies_table(options, named), legend(named)]
    if with_tiers:
        parts += [tiers_table(options, with_tiers), legend(with_tiers)]
    told = tables.command("philly", arguments)
    tables.report("philly", __doc__ or "", told, "\n\n".join(parts), write=options.report)
    return 0


if __name__ == "__main__":
    tables.exit_with(main)
