"""The plan linter: every rule that a plan must keep, checked without the planner's own reasoning.

Live and in the simulator each plan passes here before it is committed; a plan that breaks a rule
is a defect of the planner and is never carried out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import assert_never

from onefleet.core import lifecycle
from onefleet.core.feasibility import accepts
from onefleet.core.index import Index
from onefleet.core.index.lines import Under
from onefleet.core.ledger import bucket_of
from onefleet.core.ordering import RESERVED, can_be_resized, gives_way, gives_way_from
from onefleet.core.overdue import back_by, owes
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
    Plan,
    Ready,
    Resize,
    Stop,
    Suspend,
    Thaw,
    applied,
    apply_plan,
)
from onefleet.core.policy import DEFAULT_POLICY, Policy
from onefleet.core.promise import shortfall
from onefleet.core.shares import Shares
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import DeviceKind, Node, NodeState
from onefleet.domain.ids import DeviceId, NodeId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import WHOLE, Demand, Outcome, Phase, Slot, Want, Work, WorkKind


def check_plan(
    snapshot: Snapshot,
    plan: Plan,
    policy: Policy = DEFAULT_POLICY,
    index: Index | None = None,
) -> list[str]:
    """Return one line for each rule that the plan breaks; empty when it is sound.

    index: of this very snapshot, policy and time; None: it is built. It comes back as it was.
    """
    found: list[str] = []
    if plan.parent != snapshot.generation:
        found.append(f"made from generation {plan.parent}, not {snapshot.generation}")
    index = Index.of(snapshot, policy, plan.planned_at) if index is None else index
    mark = index.mark()
    try:
        checker = _Checker(index, plan)
        for decision in plan.decisions:
            found.extend(checker.check(decision))
        found.extend(checker.check_memory())
        found.extend(_misreported(plan, checker.changed))
    finally:
        index.rollback(mark)
    return found


def unexplained(snapshot: Snapshot, plan: Plan) -> list[str]:
    """One line for each work that does not run after the plan and has no reason.

    It asks for all reasons, which takes time with the size of the world.
    """
    works = {**snapshot.works, **{w.id: w for w in apply_plan(snapshot, plan, plan.planned_at)}}
    return [
        f"{work.id} is {work.phase}, and nothing says why"
        for work in works.values()
        if work.phase not in (Phase.RUNNING, Phase.ENDED) and not plan.blockers.get(work.id)
    ]


def _misreported(plan: Plan, changed: Mapping[WorkId, Work]) -> Iterator[str]:
    """What the plan says of the works after it has to be what its decisions make of them."""
    told = {work.id: work for work in plan.works}
    for work_id in {**changed, **told}:
        if changed.get(work_id) != told.get(work_id):
            yield f"{work_id} is not after the plan what the decisions make of it"


class _Checker:
    """Follows the decisions one by one, as an executor would."""

    def __init__(self, index: Index, plan: Plan) -> None:
        self.index = index
        self.plan = plan
        self.works = index.roster.works
        self.nodes = index.fleet.nodes
        self.ranks: Mapping[WorkId, int] | None = None
        self._unders: dict[tuple[Tier, DeviceKind], Under] = {}
        self.touched: dict[WorkId, Decision] = {}
        self.changed: dict[WorkId, Work] = {}
        self.given_on: dict[NodeId, bool] = {}

    def check(self, decision: Decision) -> Iterator[str]:
        if isinstance(decision, Fence):
            yield from self._fence(decision)
            return
        work = self.works.get(decision.work_id)
        if work is None:
            yield f"{decision.work_id} does not exist"
            return
        if not isinstance(decision, Ready | GivePromise):  # they go with any other
            if work.id in self.touched:
                yield f"{work.id} is decided twice"
            self.touched[work.id] = decision
        if isinstance(decision, Place | Thaw) or getattr(decision, "for_work", None) is not None:
            self._ranks()
        yield from self._rules(work, decision)
        try:
            after = applied(work, decision, self.plan.planned_at)
        except lifecycle.IllegalTransition as illegal:
            yield illegal.what
            return
        self.index.put(after)
        self.changed[work.id] = after
        if after.placement != work.placement:
            yield from self._handed_out(after)

    def check_memory(self) -> Iterator[str]:
        """No node may be given more workers than its memory holds, as far as that is known."""
        for node_id in self.given_on:
            node = self.nodes.get(node_id)
            used = sum(hold.memory_bytes for hold in self.index.fleet.works_on(node_id))
            if node is not None and used > node.memory_bytes:
                yield f"{node_id} is given {used} bytes, it has {node.memory_bytes}"

    def _rules(self, work: Work, decision: Decision) -> Iterator[str]:
        """The rules of one kind of decision, besides those of the lifecycle."""
        match decision:
            case Place():
                yield from self._place(work, decision)
            case Thaw(_, placement):
                if work.want is not Want.RUN:
                    yield f"{work.id} is thawed, but its owner wants it {work.want}"
                yield from self._slots(work, placement)
            case Resize(_, placement, _, for_work):
                yield from self._resize(work, placement, for_work)
            case Suspend(_, _, for_work):
                yield from self._suspend(work, for_work)
            case Freeze(_, _, for_work):
                yield from self._freeze(work, for_work)
            case Move():
                yield from self._move(work, decision)
            case Stop():
                yield from self._stop(work, decision)
            case Lose():
                if not any(self._lost(slot.node_id) for slot in work.placement):
                    yield f"{work.id} is given up, but no node of it is lost"
            case DropImage():
                nodes = () if work.image is None else work.image.nodes
                if not any(self._lost(node_id) for node_id in nodes):
                    yield f"the image of {work.id} is given up, but no node of it is lost"
            case Ready():
                if not all(b and b.outcome is Outcome.SUCCEEDED for b in _before(work, self.works)):
                    yield f"{work.id} is readied, but what it comes after has not succeeded"
            case GivePromise():
                missing = shortfall(self.index.book(), work, self.plan.planned_at)
                if missing is not None:
                    yield f"{work.id} is promised what {missing.missing_milli} milli are missing to"
            case Checkpoint() | Fence():
                pass
            case _:  # pragma: no cover - the type checker proves it
                assert_never(decision)

    def _ranks(self) -> Mapping[WorkId, int]:
        """The ranks after what had to happen anyway, before anything is given to anybody."""
        if self.ranks is None:
            self.index.settle()
            self.ranks = dict(self.index.roster.ranks)
        return self.ranks

    def _fence(self, decision: Fence) -> Iterator[str]:
        node = self.nodes.get(decision.node_id)
        if node is None:
            yield f"{decision.node_id} does not exist"
            return
        if self.index.fleet.lease_of(node) > self.plan.planned_at:
            yield f"{node.id} is fenced while its lease runs"
        self.index.put(replace(node, state=NodeState.LOST))

    def _lost(self, node_id: NodeId) -> bool:
        return self.index.fleet.is_absent(node_id)

    def _usable(self, node: Node) -> bool:
        return node.id in self.index.fleet.usable

    # --- what is given -----------------------------------------------------------------------

    def _place(self, work: Work, decision: Place) -> Iterator[str]:
        if work.want is not Want.RUN:
            yield f"{work.id} is placed, but its owner wants it {work.want}"
        if not work.ready:
            yield f"{work.id} is placed before what it comes after has succeeded"
        yield from self._slots(work, decision.placement)
        if not work.stranded:
            yield from self._on_spares(work, [slot.node_id for slot in decision.placement])
        if not decision.restore or work.image is None:
            return
        for rank, slot in enumerate(decision.placement):
            holders = work.image.holders(rank)
            if slot.node_id in holders:
                continue
            if not any(self._fetched(node_id, slot.node_id) for node_id in holders):
                yield f"{work.id}.{rank} is restored on {slot.node_id}, where its image is not"
            home, to = self.nodes.get(holders[0]), self.nodes.get(slot.node_id)
            if not work.move_to and home and to and home.checkpoint_mode is not to.checkpoint_mode:
                yield f"{work.id}.{rank} is restored on {slot.node_id}, which saves in another way"

    def _on_spares(self, work: Work, node_ids: Iterable[NodeId]) -> Iterator[str]:
        """Spares are there for what lost its place by a failure, and for nothing else."""
        if not self.index.fleet.spares.wanted:
            return
        self.index.settle_rooms()
        for node_id in dict.fromkeys(node_ids):
            if node_id in self.index.fleet.spares.now:
                yield f"{work.id} gets {node_id}, which is a spare, but lost nothing by a failure"

    def _fetched(self, home: NodeId, to: NodeId) -> bool:
        """Whether the agent of a node can fetch the image from a node that has it."""
        ends = [self.nodes.get(node_id) for node_id in (home, to)]
        return all(
            node is not None and node.address and node.state is not NodeState.LOST for node in ends
        )

    def _slots(self, work: Work, placement: tuple[Slot, ...]) -> Iterator[str]:
        """As many workers as it has, each with as much as it may have, of the right things."""
        demand = work.demand
        if len(placement) != demand.workers:
            yield f"{work.id} has {demand.workers} workers, {len(placement)} are placed"
        for rank, slot in enumerate(placement):
            if not demand.devices_min <= len(slot.devices) <= demand.devices_max:
                yield (
                    f"{work.id}.{rank} gets {len(slot.devices)} devices, "
                    f"not {demand.devices_min}..{demand.devices_max}"
                )
            if slot.milli != demand.milli:
                yield f"{work.id}.{rank} gets {slot.milli}/1000 of a device, not {demand.milli}"
            yield from self._slot(work, rank, slot)

    def _slot(self, work: Work, rank: int, slot: Slot) -> Iterator[str]:
        node = self.nodes.get(slot.node_id)
        demand = work.demand
        if node is None:
            yield f"{work.id}.{rank} is placed on {slot.node_id}, which does not exist"
            return
        if not self._usable(node):
            yield f"{work.id}.{rank} is placed on {node.id}, which is {node.state} or unleased"
        if demand.zones and node.zone not in demand.zones:
            yield f"{work.id}.{rank} is placed on {node.id}, outside its zones"
        named = {device.id: device for device in node.devices}
        cordoned = [cordon.device_id for cordon in node.cordons]
        for device_id in slot.devices:
            device = named.get(device_id)
            if device is None or device.kind is not demand.kind:
                yield f"{work.id}.{rank} gets {device_id}, no {demand.kind} of {node.id}"
            elif not accepts(demand, device):
                yield f"{work.id}.{rank} gets {device_id}, a {device.product}, which it cannot use"
            if device_id in cordoned and device_id not in _devices(work):
                yield f"{work.id}.{rank} gets {device_id}, which gets no work"
        if demand.memory_bytes and all(held.node_id != node.id for held in work.placement):
            self.given_on[node.id] = True

    def _handed_out(self, work: Work) -> Iterator[str]:
        """A device is held once, in shares that add up to one, or by ranks that take turns."""
        taken: dict[DeviceId, list[int]] = {}
        for rank, slot in enumerate(work.placement):
            holds = self.index.fleet.works_on(slot.node_id)
            for device_id in slot.devices:
                ranks_ = taken.setdefault(device_id, [])
                if ranks_ and not self._take_turns(work.demand, rank, ranks_):
                    yield (
                        f"{device_id} is given to {work.id}.{rank}, "
                        f"but {work.id}.{ranks_[-1]} holds it"
                    )
                ranks_.append(rank)
                others = {h.work.id: h.devices[device_id] for h in holds if device_id in h.devices}
                if others.pop(work.id, 0) + sum(others.values()) > WHOLE:
                    held = ", ".join(sorted(others))
                    yield f"{device_id} is given to {work.id}.{rank}, but {held} holds it"

    @staticmethod
    def _take_turns(demand: Demand, rank: int, others: list[int]) -> bool:
        return demand.milli == WHOLE and rank not in others and len(others) < demand.pack

    # --- what is taken -----------------------------------------------------------------------

    def _resize(
        self, work: Work, placement: tuple[Slot, ...], for_work: WorkId | None
    ) -> Iterator[str]:
        if not work.demand.is_elastic:
            yield f"{work.id} is resized, but has one size only"
        if not can_be_resized(work, self.nodes):
            yield f"{work.id} is resized, but cannot be while it runs"
        yield from self._slots(work, placement)
        if for_work is None:
            return
        if len(_devices(replace(work, placement=placement))) >= len(_devices(work)):
            yield f"{work.id} is resized for {for_work}, but gives nothing up"
        waiting = self.works.get(for_work)
        if waiting is None or not _waits(waiting):
            yield f"{work.id} makes room for {for_work}, which does not wait"
        elif self._ranks()[work.id] < self._ranks()[for_work]:
            yield f"{work.id} makes room for {for_work}, which ranks behind it"

    def _suspend(self, work: Work, for_work: WorkId | None) -> Iterator[str]:
        if work.kind is WorkKind.REPLICA or not work.suspendable:
            yield f"{work.id} is suspended, but cannot be"
        if for_work is not None:
            yield from self._outranked(work, for_work)
        elif work.want is not Want.SUSPEND and not self._saved_from_standing(work):
            yield f"{work.id} is suspended for nobody"

    def _saved_from_standing(self, work: Work) -> bool:
        """Whether it stands still, or shall on a node that is drained."""
        nodes = (self.nodes.get(slot.node_id) for slot in work.placement)
        drained = any(node and node.state is NodeState.DRAINING for node in nodes)
        return work.phase is Phase.FROZEN or (work.want is Want.FREEZE and drained)

    def _freeze(self, work: Work, for_work: WorkId | None) -> Iterator[str]:
        if for_work is None:
            if work.want is not Want.FREEZE:
                yield f"{work.id} is frozen for nobody"
            return
        if not work.suspendable:
            yield f"{work.id} is frozen, but could not be saved if its memory were needed"
        yield from self._outranked(work, for_work)
        waiting = self.works.get(for_work)
        known = work.demand.memory_bytes and waiting and waiting.demand.memory_bytes
        if work.demand.kind is not DeviceKind.CPU or not known:
            yield f"{work.id} is frozen for {for_work}, but its memory would be in the way"

    def _move(self, work: Work, decision: Move) -> Iterator[str]:
        if work.kind is WorkKind.REPLICA or not work.suspendable:
            yield f"{work.id} is moved, but cannot be saved"
        if len(decision.nodes) not in (1, work.demand.workers):
            yield f"{work.id} is moved to {len(decision.nodes)} nodes"
        for node_id in dict.fromkeys(decision.nodes):
            node = self.nodes.get(node_id)
            if node is None or not self._usable(node):
                yield f"{work.id} is moved to {node_id}, which is not usable"
        is_out = _is_on_cordoned(work, self.nodes)
        if decision.stranded and not is_out:
            yield f"{work.id} is moved off a device out of use, but all of its devices are in use"
        if not is_out:
            yield from self._on_spares(work, decision.nodes)
        if decision.for_work is None:
            return
        waiting = self.works.get(decision.for_work)
        if waiting is None or not _waits(waiting):
            yield f"{work.id} moves for {decision.for_work}, which does not wait"
        elif self._ranks()[work.id] < self._ranks()[decision.for_work]:
            yield f"{work.id} moves for {decision.for_work}, which ranks behind it"

    def _stop(self, work: Work, decision: Stop) -> Iterator[str]:
        if decision.for_work is None:
            if (
                work.want is not Want.STOP
                and not _forlorn(work, self.works)
                and not self._evicted(work)
            ):
                yield f"{work.id} is stopped for nobody"
            return
        if work.kind is not WorkKind.REPLICA:
            due, index = None, self.index
            if owes(work) == decision.for_work and self._ranks().get(decision.for_work) == RESERVED:
                reservations, now = index.reservations.values(), self.plan.planned_at
                due = back_by(work, self.works, reservations, index.tenants, now)
            if due is None or due > self.plan.planned_at:
                yield f"{work.id} is stopped for {decision.for_work}, but is not overdue"
            return
        if self._in_the_way(work, decision.for_work):
            return
        yield from self._outranked(work, decision.for_work)
        surplus = self.index.roster.surplus
        replica = surplus.replicas.get(work.id)
        if replica is None or surplus.of(replica.deployment_id) <= 0:
            yield f"{work.id} is stopped for {decision.for_work}, but its deployment needs it"

    def _evicted(self, work: Work) -> bool:
        """Whether it is a replica on a node that drains, or on a device that gets no work."""
        if work.kind is not WorkKind.REPLICA:
            return False
        nodes = [self.nodes.get(slot.node_id) for slot in work.placement]
        drains = any(node is not None and node.state is NodeState.DRAINING for node in nodes)
        return drains or _is_on_cordoned(work, self.nodes)

    def _in_the_way(self, replica: Work, for_work: WorkId) -> bool:
        """Whether it holds what an image of no lower rank needs: then it may be told to move."""
        waiting = self.works.get(for_work)
        if waiting is None or waiting.phase is not Phase.SUSPENDED or waiting.image is None:
            return False
        there = any(slot.node_id in waiting.image.nodes for slot in replica.placement)
        return there and self._ranks()[replica.id] >= self._ranks()[for_work]

    def _outranked(self, victim: Work, for_work: WorkId) -> Iterator[str]:
        waiting = self.works.get(for_work)
        if waiting is None or not _waits(waiting):
            yield f"{victim.id} makes room for {for_work}, which does not wait"
        elif self._ranks()[victim.id] < self._ranks()[for_work]:
            yield f"{victim.id} makes room for {for_work}, which ranks behind it"
        elif self._ranks()[victim.id] == self._ranks()[for_work]:
            level_of = self.index.roster.level_of
            above = gives_way_from(level_of(waiting.id))
            has_more = level_of(victim.id) >= above
            claims = waiting.tenant_id in self._under(waiting).claiming
            is_sheltered = victim.tenant_id in self._under(waiting).sheltered
            may = has_more or not is_sheltered if claims else has_more and not is_sheltered
            nodes = [self.nodes.get(slot.node_id) for slot in victim.placement]
            if not may or not gives_way(victim, nodes):
                yield f"{victim.id} makes room for {for_work}, which does not outrank it"

    def _under(self, work: Work) -> Under:
        bucket = tier, kind = bucket_of(work)
        if bucket not in self._unders:
            self._unders[bucket] = Shares(self.index, tier, self.index.now).under(kind)
        return self._unders[bucket]


def _before(work: Work, works: Mapping[WorkId, Work]) -> list[Work | None]:
    """What it comes after; None for what is not there any more."""
    return [works.get(name) for name in work.terms.after]


def _forlorn(work: Work, works: Mapping[WorkId, Work]) -> bool:
    """Whether it waits for what can never succeed any more."""
    if work.phase is not Phase.PENDING or work.ready:
        return False
    return any(
        b is None or (b.phase is Phase.ENDED and b.outcome is not Outcome.SUCCEEDED)
        for b in _before(work, works)
    )


def _waits(work: Work) -> bool:
    """Whether it needs devices. In one plan it may get them right after others gave way."""
    return work.phase in (Phase.PENDING, Phase.SUSPENDED, Phase.FROZEN)


def _is_on_cordoned(work: Work, nodes: Mapping[NodeId, Node]) -> bool:
    """Whether a device that it holds gets no work any more."""
    on = (nodes.get(slot.node_id) for slot in work.placement)
    cordons = (cordon for node in on if node is not None for cordon in node.cordons)
    return any(cordon.device_id in _devices(work) for cordon in cordons)


def _devices(work: Work) -> dict[DeviceId, int]:
    """The devices that it holds, each with its share."""
    return {device: slot.milli for slot in work.placement for device in slot.devices}
