"""Failures: the effective training time of a gang of 1,024 devices.

Nodes of 8 fail by chance, so that a gang of 1,024 devices is hit each 7.9 hours on the mean (Meta's
research clusters, arXiv 2410.21680). The gang saves itself at Daly's interval for what a save
costs, and goes back to its last image when a node fails; a spare node takes the place of the lost
one until that is repaired. Effective: the job's length over the time from its start to its end.
Ceiling: the same by Daly's model, which knows no lack of spares.

Costs: from what blob stores take (60 s) down to an image in the memory of another node (1 s).
Simulated, nothing is measured on devices.

    python -m benchmarks.failures --report
    python -m benchmarks.failures --devices 16384 --mttf-h 1.8
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from statistics import mean, stdev

from benchmarks import tables
from onefleet.sim.jobs.catalog import POLICIES
from onefleet.sim.jobs.effective import HOUR_MS, Trial, effective_part
from onefleet.sim.jobs.simulate import simulate

#: What one save costs, and until a failed gang goes on: noticed, restored. Seconds.
COSTS_S = ((60, 60, 180), (60, 30, 60), (10, 30, 60), (10, 10, 20), (1, 10, 20), (1, 5, 5))
PROMISE = 0.97


@dataclass(frozen=True)
class Task:
    """One simulation."""

    trial: Trial
    policy: str
    seed: int


def run(task: Task) -> tuple[float, int, float]:
    """The effective part, the failures of nodes, and the device-hours of progress lost."""
    outcome = simulate(task.trial.jobs(), task.trial.rules(), POLICIES[task.policy], seed=task.seed)
    return effective_part(outcome), outcome.failures, outcome.lost / HOUR_MS


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = tables.parser("failures", seeds=20)
    parser.add_argument("--devices", type=tables.count, default=1024)
    parser.add_argument("--node-size", type=tables.count, default=8)
    parser.add_argument(
        "--mttf-h", type=tables.above_zero, default=7.9, help="of all devices of the gang"
    )
    parser.add_argument("--spares", type=int, default=4, help="nodes")
    parser.add_argument("--repair-h", type=tables.above_zero, default=4.0)
    parser.add_argument("--days", type=tables.above_zero, default=30.0, help="of training")
    parser.add_argument("--policy", choices=sorted(POLICIES), default="onefleet")
    options = parser.parse_args(arguments)
    if options.devices % options.node_size:
        parser.error(f"--devices {options.devices} are no whole nodes of {options.node_size}")
    trials = [
        Trial(
            devices=options.devices,
            node_size=options.node_size,
            spares=options.spares,
            mttf_ms=round(options.mttf_h * HOUR_MS),
            repair_ms=round(options.repair_h * HOUR_MS),
            detect_ms=detect_s * 1000,
            restore_ms=restore_s * 1000,
            checkpoint_ms=save_s * 1000,
            length_ms=round(options.days * 24 * HOUR_MS),
        )
        for save_s, detect_s, restore_s in COSTS_S
    ]
    tasks = [Task(t, options.policy, seed) for t in trials for seed in range(options.seeds)]
    found = list(tables.run_all(tasks, run, options.workers))
    rows = []
    for number, trial in enumerate(trials):
        runs = found[number * options.seeds : (number + 1) * options.seeds]
        parts = [part for part, _, _ in runs]
        kept = mean(parts) >= PROMISE
        rows.append(
            [
                f"{trial.checkpoint_ms // 1000} s",
                f"{trial.detect_ms // 1000} + {trial.restore_ms // 1000} s",
                f"{trial.every_ms / 1000:,.0f} s",
                f"{trial.ceiling():.2%}",
                f"{mean(parts):.2%} ± {stdev(parts) if len(parts) > 1 else 0.0:.2%}",
                f"{min(parts):.2%}",
                f"{mean(failures for _, failures, _ in runs):,.0f}",
                f"{mean(lost for _, _, lost in runs):,.0f}",
                "yes" if kept else "no",
            ]
        )
    headers = (
        "a save", "noticed + restored", "interval", "ceiling", "effective, mean ± deviation",
        "worst seed", "node failures", "lost device-h", f">= {PROMISE:.0%}",
    )  # fmt: skip
    text = (
        f"Workload: one job of {options.days:g} days on {options.devices:,} devices in nodes of "
        f"{options.node_size}, mean time to failure {options.mttf_h:g} h, {options.spares} spare "
        f"nodes, {options.repair_h:g} h to repair one; policy {options.policy}; seeds 0 to "
        f"{options.seeds - 1}.\n\n{tables.markdown(headers, rows)}"
    )
    told = tables.command("failures", arguments)
    tables.report("failures", __doc__ or "", told, text, write=options.report)
    return 0


if __name__ == "__main__":
    tables.exit_with(main)
