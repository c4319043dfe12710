"""The Single Pool: teams behind walls, and the same teams with reservations on one pool.

The virtual clusters of the Philly trace are teams. Each has a share of all devices in proportion to
its work (at least its largest gang): as a wall, or as a reservation. A job is premium if it fits
its team's reservation beside the team's other premium jobs, were each run at once; what is above
that is standard (two thirds) or basic, by the seed.

(a) walls: each team has its own devices, and no others. (b) one pool, premium only: what is above
reservations is turned away. (c) one pool, premium, standard and basic: reservations that idle are
lent, and called in again by suspending whoever borrowed them. Utilisation: device time held within
the time in which jobs arrive, that of restores with it. Ceiling: B5, what of it could be useful by
then, were there no restores. As (a) and (c) do the same work, the difference is in the wait:
utilisation while somebody waits, and stranded device time, idle while as many devices were waited
for.

    python -m benchmarks.single_pool --trace .../philly_jobs_82k.csv.gz --seeds 3 --report
    python -m benchmarks.single_pool --jobs 8000 --devices 1000     on an imitation
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import charts, tables
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.bounds import utilisation
from onefleet.sim.jobs.catalog import POLICIES, SILOS
from onefleet.sim.jobs.job import Fleet, Job, Price, Rules
from onefleet.sim.jobs.outcome import Outcome
from onefleet.sim.jobs.simulate import simulate
from onefleet.sim.jobs.teams import reservations, with_tiers
from onefleet.sim.jobs.usage import Demand, Usage

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
BIN_MS = DAY_MS // 2
CASES = {
    "walls": "(a) walls between teams",
    "premium": "(b) one pool, premium only",
    "all": "(c) one pool: premium, standard, basic",
}


@dataclass(frozen=True)
class Task:
    """One simulation."""

    trace: Path | None
    jobs: int
    seed: int
    devices: int
    case: str
    policy: str
    restore_s: int


@dataclass(frozen=True)
class Found:
    """held: the part of the device time in which jobs arrived; series: devices by label and bin."""

    held: float
    ceiling: float
    held_while_waiting: float
    stranded_h: float
    done_jobs: int
    queue_s: dict[Tier, float]
    kept: dict[Tier, float]
    jct_s: float
    suspends: int
    wasted_part: float
    wasted_h: float
    days: tuple[float, ...]
    series: tuple[tuple[str, tuple[float, ...]], ...]


def run(task: Task) -> Found:
    """Simulate one case."""
    trace = tables.philly(task.trace, task.jobs, task.seed)
    teams = reservations(trace, task.devices)
    jobs = with_tiers(trace, teams, task.seed)
    if task.case == "premium":
        chosen = [job for job in jobs if job.tier is Tier.PREMIUM]
        jobs = tuple(replace(job, number=number) for number, job in enumerate(chosen))
    walls = task.case == "walls"
    label = (lambda job: "behind walls") if walls else (lambda job: job.tier.value)
    usage, demand = Usage(trace[0].arrived, BIN_MS, label), Demand()

    def observe(job: Job, begin: int, end: int) -> None:
        usage.observe(job, begin, end)
        demand.observe(job, begin, end)

    rules = Rules(Fleet.flat(task.devices), Price(restore_ms=task.restore_s * 1000), teams)
    named = SILOS if walls else POLICIES[task.policy]
    outcome = simulate(jobs, rules, named, seed=task.seed, observe=observe)
    return _found(outcome, usage, demand, (trace[-1].arrived - trace[0].arrived) // BIN_MS, task)


def _found(outcome: Outcome, usage: Usage, demand: Demand, bins: int, task: Task) -> Found:
    jobs, until = outcome.jobs, usage.begin + bins * BIN_MS
    idleness = demand.idleness(outcome, task.devices, until)
    labels = ("behind walls",) if task.case == "walls" else tuple(tier.value for tier in Tier)
    tiers = [tier for tier in Tier if any(job.tier is tier for job in jobs)]
    return Found(
        held=usage.device_ms(bins) / (task.devices * bins * BIN_MS),
        held_while_waiting=idleness.held / max(task.devices * idleness.waiting_ms, 1),
        stranded_h=idleness.stranded / HOUR_MS,
        ceiling=utilisation(jobs, task.devices, bins * BIN_MS),
        done_jobs=len(jobs),
        queue_s={tier: outcome.of(tier).mean_queue_s for tier in tiers},
        kept={tier: outcome.of(tier).kept_promises() for tier in tiers},
        jct_s=outcome.mean_jct_s,
        suspends=outcome.suspends + outcome.kills,
        wasted_part=outcome.wasted_part,
        wasted_h=outcome.wasted_device_hours,
        days=tuple(number * BIN_MS / DAY_MS for number in range(bins)),
        series=tuple((label, tuple(usage.mean_devices(label, bins))) for label in labels),
    )


def table(runs: dict[str, list[Found]]) -> str:
    """A row a case."""
    rows = []
    for case, found in runs.items():
        first = found[0]
        queues = [f"{first.queue_s[t]:,.0f}" if t in first.queue_s else "-" for t in Tier]
        kept = [
            f"{min(f.kept[t] for f in found):.1%}" if t in first.kept else "-"
            for t in (Tier.PREMIUM, Tier.STANDARD)
        ]
        rows.append(
            [
                CASES[case],
                tables.spread([100 * f.held for f in found], "{:.1f}"),
                f"{100 * first.ceiling:.1f}",
                f"{100 * first.held_while_waiting:.1f}" if case != "premium" else "-",
                f"{first.stranded_h:,.0f}" if case != "premium" else "-",
                f"{first.done_jobs:,}",
                *queues,
                *kept,
                f"{first.jct_s:,.0f}",
                f"{first.suspends:,}",
                f"{first.wasted_h:,.0f}",
                f"{first.wasted_part:.2%}",
            ]
        )
    headers = (
        "case", "utilisation, %", "ceiling, %",
        "while jobs wait, %",
        "stranded device-h", "jobs", "premium queue, s", "standard queue, s",
        "basic queue, s", "premium promises kept", "standard promises kept", "mean JCT, s",
        "suspends", "wasted device-h", "wasted",
    )  # fmt: skip
    return tables.markdown(headers, rows)


def chart(runs: dict[str, list[Found]], options: Namespace, policy: str) -> list[Path]:
    """Draw seed 0 of each case."""
    folder = options.charts
    paths = [folder / f"single_pool.{kind}" for kind in ("png", "svg")]
    panels = []
    for case, found in runs.items():
        first = found[0]
        held = f"{100 * first.held:.1f} % of the device time held"
        if case == "walls":
            held += f"; {first.stranded_h:,.0f} device-hours idle while others waited"
        else:
            held += f"; premium waits {first.queue_s[Tier.PREMIUM]:,.0f} s"
        panels.append(charts.Panel(CASES[case], held, first.days, first.series))
    source = f"{tables.trace_name(options.trace, options.jobs)}; policy {policy}; seed 0; simulated"
    title = f"The same teams, jobs and {options.devices} devices"
    charts.draw_pools(panels, options.devices, title, source, paths)
    return paths


def main(arguments: list[str] | None = None) -> int:
    """Print the table, and draw."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = tables.parser("single_pool", seeds=1)
    tables.trace_options(parser)
    parser.add_argument("--devices", type=tables.count, default=560)
    parser.add_argument("--policy", choices=sorted(POLICIES), default="onefleet")
    parser.add_argument("--restore-s", type=int, default=60, help="what a resume costs")
    parser.add_argument("--charts", type=Path, help="the folder that the charts are drawn to")
    options = parser.parse_args(arguments)
    if options.report:
        options.charts = tables.HERE
    tasks = [
        Task(
            options.trace, options.jobs, seed, options.devices, case, options.policy,
            options.restore_s,
        )
        for case in CASES
        for seed in range(options.seeds)
    ]  # fmt: skip
    found = list(tables.run_all(tasks, run, options.workers))
    runs = {
        case: found[n * options.seeds : (n + 1) * options.seeds] for n, case in enumerate(CASES)
    }
    text = (
        f"Workload: {tables.trace_name(options.trace, options.jobs)}; "
        f"{tables.seeds_name(options.trace, options.seeds)}. {options.devices} devices, restore "
        f"{options.restore_s} s. Policy of (a): {SILOS.name} ({SILOS.about}); of (b) and (c): "
        f"{options.policy} ({POLICIES[options.policy].about}).\n\n{table(runs)}"
    )
    if options.charts:
        paths = chart(runs, options, options.policy)
        text += f"\n\n![The three pools over time]({paths[0].name})"
    told = tables.command("single_pool", arguments)
    tables.report("single_pool", __doc__ or "", told, text, write=options.report)
    return 0


if __name__ == "__main__":
    tables.exit_with(main)
