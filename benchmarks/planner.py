"""The planner: how long a decision takes, and how many it takes a second.

A fleet of nodes of eight devices, of which more are wanted than there are, or fewer: then nothing
waits, and jobs move so that what is usually asked for finds a place. The jobs are of all tiers, of
many tenants with reservations, gangs among them. One event at a time: a job ends, a job arrives, or
a suspended one's hold is over; each is followed by passes until there is nothing more to decide.
Latency: CPU time from the event to the last pass, index brought up to date included, as in the
control plane. "Built anew" does the same with an index made from the snapshot for each event.
Devices and jobs are made up; the planner is the one that runs a pool.

    python -m benchmarks.planner --report
    python -m benchmarks.planner --devices 2048 --events 300
    python -m benchmarks.planner --devices 2048 --spares 4
"""

from __future__ import annotations

import random
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace

from benchmarks import tables
from onefleet import collector
from onefleet.core import lifecycle
from onefleet.core.lifecycle import image_id
from onefleet.core.plan import Move, Place, Plan, Suspend, apply_plan
from onefleet.core.planner import Index, plan
from onefleet.core.policy import DEFAULT_POLICY
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import DeviceKind, Node
from onefleet.domain.ids import (
    NO_GENERATION,
    Instant,
    ReservationId,
    TenantId,
    WorkId,
)
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Demand, Image, Phase, Terms, Want, Work, WorkKind
from onefleet.sim.jobs.pool import simulated_node

PER_NODE = 8
LOOKS = 20  # for a job that runs
STEP_MS = 2_000  # between two events
SIZES, WEIGHTS = (1, 2, 4, 8, 16, 64), (50, 15, 12, 18, 4, 1)
TIERS, PARTS = (Tier.PREMIUM, Tier.STANDARD, Tier.BASIC), (30, 40, 30)
#: Of a device, and what a job's owner says that it needs there.
DEVICE_BYTES, MEMORY_BYTES = 80 << 30, 1 << 30
BUDGETS_MS = {2_048: 100, 100_000: 1_000}


class Fleet:
    """A pool that obeys at once, and counts what its planner takes."""

    def __init__(self, devices: int, tenants: int, seed: int, spares: int) -> None:
        self.policy = replace(DEFAULT_POLICY, spares=((DeviceKind.GPU, spares),))
        self.rng = random.Random(f"{seed}/planner")
        self.now = Instant(1)
        self.tenants = [TenantId(f"t{number:04d}") for number in range(tenants)]
        self.index = Index(self.policy)
        self.nodes = [_node(number) for number in range(devices // PER_NODE)]
        self.works: dict[WorkId, Work] = {}
        self.names: list[WorkId] = []
        self.count = self.decisions = self.moves = 0
        self.index.advance(self.now, {})
        self.records = [*self.nodes, *_teams(self.tenants, devices)]
        for record in self.records:
            self.index.put(record)

    def fill(self, devices: int) -> None:
        """Submit until so many devices are wanted, and place what fits. All have rested then."""
        wanted = 0
        while wanted < devices:
            wanted += self.submit().demand.most
        for rest_ms in (0, self.policy.move_rest_ms):
            self.now = Instant(self.now + rest_ms)
            for _ in range(20):
                self.pass_time()
                if not self.decide(self.index):
                    break

    def submit(self) -> Work:
        """One more job."""
        size = self.rng.choices(SIZES, WEIGHTS)[0]
        each = min(size, PER_NODE)
        tier = self.rng.choices(TIERS, PARTS)[0]
        self.count += 1
        work = Work(
            id=WorkId(f"j{self.count:07d}"),
            kind=WorkKind.JOB,
            tenant_id=self.rng.choice(self.tenants),
            tier=tier,
            demand=Demand(
                DeviceKind.GPU, each, each, memory_bytes=MEMORY_BYTES, workers=size // each
            ),
            want=Want.RUN,
            phase=Phase.PENDING,
            submitted_at=self.now,
            phase_since=self.now,
            suspendable=True,
            promised=not tier.promise_permille,
            terms=Terms(checkpoint_every_ms=0),
        )
        self.names.append(work.id)
        self.works[work.id] = work
        self.index.put(work)
        return work

    def pass_time(self) -> None:
        self.now = Instant(self.now + STEP_MS)
        self.index.advance(self.now, {})

    def happen(self) -> None:
        """A job that runs ends, or one more is submitted."""
        for _ in range(LOOKS if self.rng.random() < 0.5 else 0):
            at = self.rng.randrange(len(self.names))
            work = self.works[self.names[at]]
            if work.phase is Phase.RUNNING:
                self.names[at] = self.names[-1]
                self.names.pop()
                del self.works[work.id]
                self.index.remove(Work, work.id)
                return
        self.submit()

    def decide(self, index: Index) -> bool:
        """One pass, obeyed at once; whether anything was decided."""
        snapshot = Snapshot.of(NO_GENERATION, nodes=(), works=())
        decided = plan(snapshot, self.policy, self.now, self.rng, index)
        self.decisions += len(decided.decisions)
        self.moves += sum(isinstance(decision, Move) for decision in decided.decisions)
        for work in self.obeyed(decided):
            self.works[work.id] = work
            self.index.put(work)
            if index is not self.index:
                index.put(work)
        return bool(decided.decisions)

    def obeyed(self, decided: Plan) -> Iterator[Work]:
        """What becomes of the works."""
        touched = {getattr(d, "work_id", None): d for d in decided.decisions}
        works = [self.works[name] for name in touched if name is not None]
        before = Snapshot.of(NO_GENERATION, nodes=(), works=works)
        for work in apply_plan(before, decided, self.now):
            match touched[work.id]:
                case Place(_, _, restore):
                    event = lifecycle.Restored() if restore else lifecycle.Started()
                    yield lifecycle.apply(work, event, self.now)
                case Suspend():
                    nodes = tuple(slot.node_id for slot in work.placement)
                    image = Image(image_id(work), nodes, 1, self.now)
                    yield lifecycle.apply(work, lifecycle.Saved(image), self.now)
                case _:
                    yield work

    def anew(self) -> Index:
        """An index made from everything there is."""
        index = Index(self.policy)
        index.advance(self.now, {})
        for record in (*self.records, *self.works.values()):
            index.put(record)
        return index


def _node(number: int) -> Node:
    node = simulated_node(number, PER_NODE)
    return replace(node, devices=tuple(replace(d, memory_bytes=DEVICE_BYTES) for d in node.devices))


def _teams(tenants: list[TenantId], devices: int) -> Iterator[Tenant | Reservation]:
    """Half of all devices are reserved, in equal parts."""
    each = devices // 2 // len(tenants)
    for tenant_id in tenants:
        yield Tenant(tenant_id, None, None, None, Instant(0))
        if each:
            name = ReservationId(f"r-{tenant_id}")
            yield Reservation(name, tenant_id, DeviceKind.GPU, each, Instant(0))


def row(devices: int, wanted: int, options: Namespace) -> list[str]:
    """Measure one fleet. wanted: percent of the devices."""
    fleet, events = Fleet(devices, options.tenants, 0, options.spares), options.events
    fleet.fill(devices * wanted // 100)
    fleet.decisions = fleet.moves = 0
    collector.settle()  # as the control plane does
    took: list[float] = []
    for _ in range(events):
        began = time.process_time()
        fleet.happen()
        fleet.pass_time()
        while fleet.decide(fleet.index):
            pass
        took.append(1e3 * (time.process_time() - began))
    decided, moves, total = fleet.decisions, fleet.moves, sum(took) / 1e3
    anew: list[float] = []
    for _ in range(max(min(events, 500_000 // devices), 3)):
        began = time.process_time()
        fleet.happen()
        fleet.pass_time()
        index = fleet.anew()
        while fleet.decide(index):
            pass
        anew.append(1e3 * (time.process_time() - began))
    took.sort()
    anew.sort()
    waiting = sum(1 for work in fleet.works.values() if not work.placement)
    budget = BUDGETS_MS.get(devices)
    return [
        f"{devices:,}",
        f"{wanted} %",
        f"{len(fleet.works):,}",
        f"{waiting:,}",
        f"{moves:,}",
        f"{took[len(took) // 2]:.1f}",
        f"{took[len(took) * 95 // 100]:.1f}",
        f"{took[-1]:.1f}",
        "-" if budget is None else f"{budget:,}",
        f"{anew[len(anew) // 2]:.1f}",
        f"{anew[len(anew) // 2] / took[len(took) // 2]:.0f} x",
        f"{decided / total:,.0f}",
    ]


HEADERS = (
    "devices", "wanted", "works", "waiting", "moves", "median, ms", "p95, ms", "greatest, ms",
    "budget of p95, ms", "built anew: median, ms", "built anew / kept", "decisions/s",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = tables.parser("planner", seeds=1)
    parser.add_argument("--devices", type=int, nargs="+", default=[64, 2_048, 16_384, 100_000])
    parser.add_argument("--wanted", type=int, nargs="+", default=[110, 80], help="percent of them")
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--events", type=int, default=400)
    parser.add_argument("--spares", type=int, default=0, help="nodes that are kept empty")
    options: Namespace = parser.parse_args(arguments)
    rows = [
        row(devices, wanted, options) for wanted in options.wanted for devices in options.devices
    ]
    spares = f", {options.spares} nodes kept as spares" if options.spares else ""
    text = (
        f"{options.events} events each, {options.tenants} tenants, seed 0{spares}.\n\n"
        + tables.markdown(HEADERS, rows)
    )
    told = tables.command("planner", arguments)
    tables.report("planner", __doc__ or "", told, text, write=options.report)
    return 0


if __name__ == "__main__":
    tables.exit_with(main)
