"""Shares: how much of a fleet the pool's own planner fills with shares and whole devices.

The GPU pods of openb, without what they ask for beside GPUs, on nodes of 8 GPUs of one class: they
come in a random order, more drawn from them until they ask for 130 % of all GPUs; none leaves, and
one that does not fit is not tried again. Used: GPU thousandths held, in percent of all, as a mean
while arrivals round to 100 %, and at 130 %. The planner decides pass after pass, a pod a pass, and
learns the mix from the works on record; `core/packing`, in the other rows, is measured on openb
itself, with all that its pods ask for (openb.md).

    python -m benchmarks.shares --pods .../openb_pod_list_default.csv.gz --report
    python -m benchmarks.shares --nodes 32                   on an imitation, without a trace
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, pstdev

from benchmarks import tables
from onefleet.core import lifecycle
from onefleet.core.index import Index
from onefleet.core.packing import MILLI, Ask, Host, Packer
from onefleet.core.packing.packer import ScoreOf
from onefleet.core.packing.scores import DevicePacking, Gradient, LeastLoss
from onefleet.core.plan import Place, applied
from onefleet.core.planner import plan
from onefleet.core.policy import DEFAULT_POLICY
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import NO_GENERATION, Instant, TenantId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Demand, Phase, Terms, Want, Work, WorkKind
from onefleet.sim.jobs.pool import simulated_node
from onefleet.sim.packing import FULL_FROM, FULL_TO, arrivals, ask_of, replay
from onefleet.sim.traces import imitate
from onefleet.sim.traces.openb import read_openb_pods

NODE_GPUS = 8
NOW = Instant(0)
NAME = "onefleet"

PACKERS: dict[str, tuple[ScoreOf, str]] = {
    "gpu-packing": (lambda _: DevicePacking(), "GPUs in part use, then free ones of nodes in use"),
    "fragmentation": (Gradient.over, "FGD's measure, of a mix that is learnt"),
    "least-loss": (LeastLoss, "the measure that the planner uses for shares, for all"),
}


def by_planner(nodes: int, asks: Sequence[Ask]) -> tuple[float, float]:
    """Percent used at 100 % and at 130 %, by the planner."""
    fleet = [simulated_node(number, NODE_GPUS) for number in range(nodes)]
    snapshot = Snapshot.of(NO_GENERATION, nodes=fleet, works=())
    index, rng = Index(DEFAULT_POLICY), random.Random(0)
    index.advance(NOW, {})
    for node in fleet:
        index.put(node)
    capacity, arrived, held, full = nodes * NODE_GPUS * MILLI, 0, 0, []
    for number, ask in enumerate(asks):
        work = a_job(number, ask)
        index.put(work)
        placed = [d for d in plan(snapshot, DEFAULT_POLICY, NOW, rng, index).decisions
                  if isinstance(d, Place)]  # fmt: skip
        if placed:
            index.put(lifecycle.apply(applied(work, placed[0], NOW), lifecycle.Started(), NOW))
        else:
            index.remove(Work, work.id)
        arrived, held = arrived + ask.size, held + (ask.size if placed else 0)
        if FULL_FROM <= 100 * arrived / capacity < FULL_TO:
            full.append(100 * held / capacity)
    return mean(full), 100 * held / capacity


def a_job(number: int, ask: Ask) -> Work:
    """A job that asks for so many GPUs, or for a share of one."""
    return Work(
        id=WorkId(f"job-{number:06d}"),
        kind=WorkKind.JOB,
        tenant_id=TenantId("a"),
        tier=Tier.BASIC,
        demand=Demand(DeviceKind.GPU, ask.devices, ask.devices, milli=ask.milli),
        want=Want.RUN,
        phase=Phase.PENDING,
        submitted_at=NOW,
        phase_since=NOW,
        suspendable=False,
        terms=Terms(checkpoint_every_ms=0),
    )


def by_packer(nodes: int, asks: Sequence[Ask], score_of: ScoreOf) -> tuple[float, float]:
    """The same, by `core/packing` with a score."""
    hosts = [Host(f"node-{number:04d}", "", 0, 0, (MILLI,) * NODE_GPUS) for number in range(nodes)]
    found = replay(Packer(hosts, score_of=score_of), asks)
    return found.at_full, found.at_end


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shares")
    parser.add_argument("--pods", type=Path, help="a pod list of openb; else an imitation")
    parser.add_argument("--nodes", type=tables.count, default=128)
    parser.add_argument("--seeds", type=tables.count, default=5)
    parser.add_argument("--report", action="store_true", help="write benchmarks/shares.md")
    options = parser.parse_args(arguments)
    pods = read_openb_pods(options.pods) if options.pods else imitate.openb_pods(0)
    asks = [Ask(0, 0, ask.devices, ask.milli) for ask in map(ask_of, pods) if ask.devices]
    capacity = options.nodes * NODE_GPUS * MILLI
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(options.seeds):
        rng = random.Random(seed)
        order = arrivals(rng.sample(asks, min(len(asks), options.nodes * NODE_GPUS)), capacity, rng)
        for name, (score_of, _) in PACKERS.items():
            found.setdefault(name, []).append(by_packer(options.nodes, order, score_of))
        found.setdefault(NAME, []).append(by_planner(options.nodes, order))
    rows = [
        [name, *(f"{of([one[at] for one in seeds]):.2f}" for at in (0, 1) for of in (mean, pstdev))]
        for name, seeds in sorted(found.items(), key=lambda entry: mean(one[0] for one in entry[1]))
    ]
    headers = ("policy", "used at 100 %", "spread", "at 130 %", "spread")
    named = options.pods.name if options.pods else "an imitation of openb's pods"
    text = (
        f"{named}: {options.nodes} nodes, {options.nodes * NODE_GPUS:,} GPUs; seeds 0 to "
        f"{options.seeds - 1}: mean and standard deviation.\n\n{tables.markdown(headers, rows)}\n\n"
        + "\n".join(f"* {name}: {about}" for name, (_, about) in PACKERS.items())
        + f"\n* {NAME}: the pool's own planner"
    )
    tables.report(
        "shares", __doc__ or "", tables.command("shares", arguments), text, write=options.report
    )
    return 0


if __name__ == "__main__":
    tables.exit_with(main)
