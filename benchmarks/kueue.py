"""Kueue's performance workloads: how long they take, and how fast they are decided.

Each cohort is a pool of its queues' nominal quotas, in which a queue may hold at most its nominal
quota and what it may borrow. Time: from the first creation to the last end, virtual; the work bound
is B4 of the cohort that has the most. Kueue's own figure is wall time of its test on a real API
server, where every admission is a few writes and time is lost to them. So that a policy does not
look good by thinking for nothing, "with CPU" adds all CPU time that it took to decide, as if one
process decided for all cohorts while all else stood still. Admitted after: from creation, by class.

Decisions are starts, suspends and kills; a second is one of CPU time inside the policy.

    python -m benchmarks.kueue --report
    python -m benchmarks.kueue --shape baseline --policy first-fit
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks import tables
from onefleet import collector
from onefleet.sim.jobs.bounds import makespan
from onefleet.sim.jobs.catalog import (
    DRF,
    FIFO,
    FIRST_FIT,
    ONEFLEET,
    POLICIES,
    SILOS,
    TIERS_SUSPEND,
)
from onefleet.sim.jobs.cohorts import TIERS, cohort
from onefleet.sim.jobs.job import Job
from onefleet.sim.jobs.simulate import simulate
from onefleet.sim.traces.kueue import SHAPES

CHOSEN = (SILOS, FIFO, FIRST_FIT, DRF, TIERS_SUSPEND, ONEFLEET)


@dataclass(frozen=True)
class Found:
    """One policy on all cohorts of a shape."""

    makespan_s: float
    bound_s: float
    waits_s: dict[str, float]
    decisions: int
    suspends: int
    cpu_s: float
    most_held: int  # by one queue, at one time


class Peak:
    """The most that one team held at one time; give `observe` to the simulator."""

    def __init__(self) -> None:
        self._changes: dict[str, list[tuple[int, int]]] = {}

    def observe(self, job: Job, begin: int, end: int) -> None:
        self._changes.setdefault(job.tenant, []).extend(((begin, job.devices), (end, -job.devices)))

    def most(self) -> int:
        found = 0
        for changes in self._changes.values():
            held = 0
            for _, change in sorted(changes):
                held += change
                found = max(found, held)
        return found


def run(task: tuple[str, str]) -> Found:
    """All cohorts of a shape, which are alike, but for the ties of chance."""
    collector.settle()  # as the control plane does
    shape, named = SHAPES[task[0]], POLICIES[task[1]]
    names = {TIERS[kind.priority]: kind.name for kind in shape.classes}
    waits: dict[str, list[int]] = {kind.name: [] for kind in shape.classes}
    longest = bound = 0
    decisions = suspends = cpu_ns = most = 0
    for number in range(shape.cohorts):
        jobs, rules = cohort(shape, number)
        peak = Peak()
        outcome = simulate(jobs, rules, named, seed=number, observe=peak.observe, measure=True)
        longest = max(longest, outcome.makespan_ms)
        bound = max(bound, makespan(jobs, rules.fleet.devices))
        decisions += outcome.decisions
        suspends += outcome.suspends + outcome.kills
        cpu_ns += outcome.policy_cpu_ns
        most = max(most, peak.most())
        for job in jobs:
            waits[names[job.tier]].append(outcome.started[job.number] - job.arrived)
    means = {name: sum(values) / len(values) / 1000 for name, values in waits.items()}
    return Found(longest / 1e3, bound / 1e3, means, decisions, suspends, cpu_ns / 1e9, most)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = tables.parser("kueue", seeds=None)
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="default: all")
    parser.add_argument("--policy", action="append", choices=sorted(POLICIES))
    options = parser.parse_args(arguments)
    named = [POLICIES[name] for name in options.policy] if options.policy else list(CHOSEN)
    parts = []
    for name in options.shape or list(SHAPES):
        shape = SHAPES[name]
        found = list(tables.run_all([(name, one.name) for one in named], run, options.workers))
        bound_s = found[0].bound_s
        classes = [kind.name for kind in shape.classes]
        published = dict(shape.admitted_after_s)
        rows = [
            [
                "Kueue, as published",
                f"{shape.measured_s:,.1f}",
                f"{shape.measured_s / bound_s:.1f}",
                f"{shape.measured_s / bound_s:.1f}",
                *(f"{published[c]:.1f}" if c in published else "" for c in classes),
                "",
                "",
                f"{shape.workloads / shape.measured_s:,.0f}",
                "",
            ]
        ]
        for one, this in zip(named, found, strict=True):
            rows.append(
                [
                    one.name,
                    f"{this.makespan_s:,.1f}",
                    f"{this.makespan_s / this.bound_s:.2f}",
                    f"{(this.makespan_s + this.cpu_s) / this.bound_s:.2f}",
                    *(f"{this.waits_s[c]:.1f}" for c in classes),
                    f"{this.suspends:,}",
                    f"{this.cpu_s:.2f}",
                    f"{this.decisions / this.cpu_s:,.0f}",
                    f"{this.most_held}",
                ]
            )
        headers = (
            "policy", "time, s", "time / bound", "with CPU / bound",
            *(f"{c} admitted after, s" for c in classes), "suspends", "policy CPU, s",
            "decisions/s", "most held by a queue",
        )  # fmt: skip
        parts.append(
            f"## {name}\n\n{shape.workloads:,} workloads of {shape.cohorts * shape.queues:,} "
            f"queues in {shape.cohorts} cohorts, the generator of Kueue's `{name}` test (no "
            f"chance in it); nominal {shape.nominal}, at most {shape.nominal + shape.borrow} a "
            f"queue. Bound: {bound_s:.1f} s.\n\n{tables.markdown(headers, rows)}"
        )
    parts.append("\n".join(f"* {one.name}: {one.about}" for one in named))
    told = tables.command("kueue", arguments)
    tables.report("kueue", __doc__ or "", told, "\n\n".join(parts), write=options.report)
    return 0


if __name__ == "__main__":
    tables.exit_with(main)
