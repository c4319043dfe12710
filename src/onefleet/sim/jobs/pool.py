"""The product's own planner as a policy of the job simulator.

It is the very `plan` that the live control plane runs, on an index that follows the desk as it
follows the store there. What a desk says becomes events of the jobs' lifecycles, and what the plan
decides becomes acts at the desk. A job at the desk has neither a duration nor an estimate, so the
planner has none here either.

Saving and starting take what the simulation's rules say; to the planner a job runs from the moment
on that it makes progress. The lease of a node that is out of service has run out; when its jobs are
given up is for the rules to say as well.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import assert_never

from onefleet.core import lifecycle
from onefleet.core.index import Record
from onefleet.core.ledger import forgetting
from onefleet.core.ordering import gives_way_from, level_of, rises_of
from onefleet.core.plan import (
    Checkpoint,
    Decision,
    DropImage,
    Fence,
    Freeze,
    GivePromise,
    Lose,
    Move,
    Place,
    Ready,
    Resize,
    Stop,
    Suspend,
    Thaw,
    describe,
)
from onefleet.core.planner import Index, plan
from onefleet.core.policy import Policy as PoolPolicy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.errors import InternalError
from onefleet.domain.fleet import CheckpointMode, Device, DeviceKind, Node, NodeState
from onefleet.domain.ids import (
    NO_GENERATION,
    DeviceId,
    ImageId,
    Instant,
    NodeId,
    ReservationId,
    TenantId,
    WorkId,
)
from onefleet.domain.tenancy import WEIGHT, Reservation, Tenant
from onefleet.domain.work import Demand, Image, Phase, Terms, Want, Work, WorkKind
from onefleet.sim.jobs.desk import Desk, JobView
from onefleet.sim.jobs.job import Rules

#: Passes at one moment, besides one for each job that waits and may start in it, before it is a
#: defect that they do not come to rest.
PASSES_MAX = 50
#: Levels above its own that a job may get to in one run.
LEVELS_NOTED = 12
_FOR_EVER = Instant(1 << 60)
_BEGIN = Instant(0)
#: Bytes of an image; the rules have its price.
_IMAGE_BYTES = 1


class Pool:
    """Decides as the pool does; see `policy.Policy`."""

    def __init__(self, rules: Rules, policy: PoolPolicy, rng: random.Random) -> None:
        self._rules = rules
        self._policy = policy = replace(policy, lease_grace_ms=_FOR_EVER)
        self._rng = rng
        sizes = rules.fleet.nodes or (rules.fleet.devices,)
        self._sizes = sizes
        self._widest = max(sizes)
        self._flat = rules.fleet.nodes is None
        nodes = [simulated_node(number, size) for number, size in enumerate(sizes)]
        self._nodes = {node.id: number for number, node in enumerate(nodes)}
        self._snapshot = Snapshot.of(NO_GENERATION, nodes=nodes, works=())
        self._index = Index(policy)
        self._index.advance(_BEGIN, {})
        self._tenants = {team.tenant: _tenant(team.tenant, team.weight) for team in rules.teams}
        records: Iterable[Record] = (*nodes, *self._tenants.values(), *_reservations(rules))
        for record in records:
            self._index.put(record)
        self._works: dict[int, Work] = {}
        self._views: dict[WorkId, JobView] = {}
        self._rises: dict[int, list[tuple[Instant, int, int]]] = {}
        self._woken_at = -1
        self._lates: deque[int] = deque()  # when patience ends that began with news, first first

    def decide(self, desk: Desk) -> None:
        """Run passes until there is nothing more to decide now."""
        now = Instant(desk.now)
        self._take_news(desk, now)
        self._index.advance(now, {})
        most = PASSES_MAX + len(desk.waiting)
        for _ in range(most):
            decided = plan(self._snapshot, self._policy, now, self._rng, self._index)
            after = {work.id: work for work in decided.works}
            for decision in decided.decisions:
                self._carry_out(decision, after, desk, now)
            if not decided.decisions:
                break
        else:
            told = ", ".join(describe(decision) for decision in decided.decisions)
            raise InternalError(f"{most} passes at {now} did not come to rest: {told}")
        self._sleep(desk)

    # --- the desk's news --------------------------------------------------------------------------

    def _take_news(self, desk: Desk, now: Instant) -> None:
        for until, nodes in ((now, desk.fell), (_FOR_EVER, desk.rose)):
            for number in nodes:
                node = simulated_node(number, self._sizes[number])
                self._index.put(replace(node, lease_expires_at=until))
        for view in desk.arrived:
            work = _work(view, self._demand(view.devices))
            self._views[work.id] = view
            self._put(view, work)
        for view in desk.returned:
            work = self._works[view.number]
            if view.phase is Phase.SUSPENDED:
                self._put(view, _saved(work, now))
            else:
                if self._rules.checkpoints is not None:
                    work = replace(work, attempts=1)  # it goes on from an image: no fresh start
                self._put(view, lifecycle.apply(work, lifecycle.Lost("its node failed"), now))
        for view in desk.ended:
            work = self._works.pop(view.number)
            del self._views[work.id]
            self._index.remove(Work, work.id)
            tenant = self._tenants.get(view.tenant) or _tenant(view.tenant)
            self._tenants[view.tenant] = tenant = forgetting(tenant, [work], now)
            self._index.put(tenant)

    def _demand(self, devices: int) -> Demand:
        """A gang that no node takes whole is dealt to workers of one size, as large as can be."""
        if devices <= self._widest:
            return Demand(DeviceKind.GPU, devices, devices)
        each = next(n for n in range(self._widest, 0, -1) if devices % n == 0)
        return Demand(DeviceKind.GPU, each, each, workers=devices // each)

    def _put(self, view: JobView, work: Work) -> None:
        self._works[view.number] = work
        self._index.put(work)

    # --- the plan's decisions ---------------------------------------------------------------------

    def _carry_out(
        self, decision: Decision, after: Mapping[WorkId, Work], desk: Desk, now: Instant
    ) -> None:
        if isinstance(decision, Fence | Freeze | Thaw | Resize | Checkpoint):
            raise InternalError(f"the desk cannot do this: {decision}")
        view, work = self._views[decision.work_id], after[decision.work_id]
        match decision:
            case Place():
                self._place(decision, view, work, desk)
            case Suspend() | Move():
                desk.suspend(view, self._whom(decision))
                self._put(view, work if self._rules.price.save_ms else _saved(work, now))
            case Stop() | Lose():
                desk.kill(view, self._whom(decision) if isinstance(decision, Stop) else None)
                self._put(view, lifecycle.apply(work, lifecycle.Lost("made room"), now))
            case Ready() | DropImage() | GivePromise():
                self._put(view, work)
            case _:
                assert_never(decision)

    def _whom(self, decision: Suspend | Move | Stop) -> JobView | None:
        """The job that has the devices thereby."""
        return None if decision.for_work is None else self._views.get(decision.for_work)

    def _place(self, decision: Place, view: JobView, work: Work, desk: Desk) -> None:
        now = Instant(desk.now)
        desk.start(view, () if self._flat else tuple(self._where(decision)))
        price = self._rules.price
        since = Instant(now + (price.restore_ms if decision.restore else price.start_ms))
        event = lifecycle.Restored() if decision.restore else lifecycle.Started()
        work = lifecycle.apply(work, event, since)
        self._put(view, work)
        self._note_rises(view.number, work, now)

    def _where(self, decision: Place) -> Iterator[tuple[int, int]]:
        counts: dict[NodeId, int] = {}
        for slot in decision.placement:
            counts[slot.node_id] = counts.get(slot.node_id, 0) + len(slot.devices)
        for node_id, count in counts.items():
            yield self._nodes[node_id], count

    # --- time -------------------------------------------------------------------------------------

    def _sleep(self, desk: Desk) -> None:
        """Look again when something may be decided though nothing happens."""
        at = min(self._next_times(desk), default=0) if desk.waiting else 0
        if at > desk.now and not desk.now < self._woken_at <= at:
            self._woken_at = at
            desk.wake(at)

    def _next_times(self, desk: Desk) -> Iterator[int]:
        """Those times: a hold or a pause ends, patience does, or a job gets above the level of one
        that waits, which may go before it then."""
        roster = self._index.roster
        if desk.arrived or desk.returned or desk.ended or desk.acts:
            self._lates.append(desk.now + self._policy.patience_ms)
        while self._lates and self._lates[0] <= desk.now:
            self._lates.popleft()
        if self._lates:
            yield self._lates[0]
        due, lowest = roster.next_due(), roster.lines.lowest_level()
        if due is not None:
            yield due
        rises = [] if lowest is None else self._rises.get(gives_way_from(lowest), [])
        while rises:
            at, number, epoch = rises[0]
            work = self._works.get(number)
            if at > desk.now and work and work.epoch == epoch and work.phase is Phase.RUNNING:
                yield at
                break
            heapq.heappop(rises)

    def _note_rises(self, number: int, work: Work, now: Instant) -> None:
        """When a job that begins to run gets to each of the levels above its own."""
        first = level_of(work, now, self._policy) + 1
        levels = range(first, first + LEVELS_NOTED)
        for level, at in zip(levels, rises_of(work, levels, now, self._policy), strict=False):
            heapq.heappush(self._rises.setdefault(level, []), (at, number, work.epoch))


def simulated_node(number: int, size: int) -> Node:
    """A node of so many simulated devices whose lease does not run out."""
    node_id = NodeId(f"n{number:05d}")
    devices = tuple(
        Device(DeviceId(f"{node_id}/gpu{i}"), DeviceKind.GPU, i, "simulated", 0, True)
        for i in range(size)
    )
    return Node(
        id=node_id,
        name=node_id,
        state=NodeState.READY,
        devices=devices,
        memory_bytes=1 << 40,
        checkpoint_mode=CheckpointMode.CRIU,
        checkpoint_reason="",
        lease_expires_at=_FOR_EVER,
        joined_at=_BEGIN,
        address=f"{node_id}:1",
    )


def _tenant(name: str, weight: int = 1) -> Tenant:
    return Tenant(TenantId(name), None, None, None, _BEGIN, weight * WEIGHT)


def _reservations(rules: Rules) -> Iterator[Reservation]:
    for team in rules.teams:
        if team.reserved:
            name = ReservationId(f"r-{team.tenant}")
            yield Reservation(name, TenantId(team.tenant), DeviceKind.GPU, team.reserved, _BEGIN)


def _work(view: JobView, demand: Demand) -> Work:
    return Work(
        id=WorkId(f"j{view.number:06d}"),
        kind=WorkKind.JOB,
        tenant_id=TenantId(view.tenant),
        tier=view.tier,
        demand=demand,
        want=Want.RUN,
        phase=Phase.PENDING,
        submitted_at=Instant(view.arrived),
        phase_since=Instant(view.arrived),
        suspendable=True,
        promised=not view.tier.promise_permille,
        terms=Terms(checkpoint_every_ms=0),  # the simulation's rules say when images are made
    )


def _saved(work: Work, now: Instant) -> Work:
    nodes = tuple(slot.node_id for slot in work.placement)
    image = Image(ImageId(work.id), nodes, _IMAGE_BYTES, now)
    return lifecycle.apply(work, lifecycle.Saved(image), now)
