"""Hot spares: how soon a job runs again that lost its node, in a full pool with a queue.

The shipped scenario `spares` (5 nodes of 2 devices, more work than fits, a gang among it; two nodes
lose power, one after the other) with so many nodes kept as spares, over several seeds. Back after:
from when the pool gave the node up until the job ran again; a node is given up once its lease and
a grace have run out, with spares as without. Ended: when the last job had. Planner and control
plane are those that run a pool; nodes, jobs and their times are simulated.

    python -m benchmarks.spares --report
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from statistics import mean

import msgspec

from benchmarks import tables
from onefleet.domain.errors import InvalidRequest
from onefleet.sim.report import Report, failovers_ms, quantiles
from onefleet.sim.scenario import load
from onefleet.sim.timeline import HeapTimeline
from onefleet.sim.world import World

HEADERS = (
    "spares", "runs", "jobs that lost their node", "back after, median", "mean", "greatest",
    "ended after, mean", "devices held",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    spares: int
    seed: int


def run(task: Task) -> tuple[Report, list[int]]:
    """The report, and the time of each failover in milliseconds."""
    scenario = load("spares")
    fleet = msgspec.structs.replace(scenario.fleet, spares=task.spares)
    expect = msgspec.structs.replace(scenario.expect, failover_ms_max=None, node_losses_min=None)
    world = World(
        msgspec.structs.replace(scenario, fleet=fleet, expect=expect, seed=task.seed),
        HeapTimeline(),
    )
    world.run()
    found, state = world.report("heap", 0), world.control.state
    if not found.ok or state is None:
        told = "; ".join(breach.text for breach in found.violations)
        raise InvalidRequest(
            f"with {task.spares} spares the scenario breaks its rules, seed {task.seed}",
            why=told,
            hint="fewer spares",
        )
    return found, failovers_ms(state.works.values())


def _summary(times: list[int]) -> tuple[float, float, float]:
    """Median, mean and greatest; 0 of nothing."""
    return quantiles(times).p50_ms, mean(times or [0]), max(times, default=0)


def row(spares: int, found: list[tuple[Report, list[int]]]) -> list[str]:
    times = [time for _, failovers in found for time in failovers]
    return [
        str(spares),
        str(len(found)),
        str(len(times)),
        *(f"{ms / 1000:.1f} s" if times else "-" for ms in _summary(times)),
        f"{mean(report.ended_at_ms for report, _ in found) / 1000:.0f} s",
        f"{mean(report.held_permille for report, _ in found) / 10:.0f} %",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = tables.parser("spares", seeds=8)
    parser.add_argument("--spares", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    rows = []
    for spares in options.spares:
        tasks = [Task(spares, seed) for seed in range(options.seeds)]
        rows.append(row(spares, list(tables.run_all(tasks, run, options.workers))))
    text = f"Seeds 0 to {options.seeds - 1}.\n\n" + tables.markdown(HEADERS, rows)
    told = tables.command("spares", arguments)
    tables.report("spares", __doc__ or "", told, text, write=options.report)
    return 0


if __name__ == "__main__":
    tables.exit_with(main)
