"""The plan linter: every rule that a plan must keep, checked without the planner's own reasoning.

Live and in the simulator each plan passes here before it is committed; a plan that breaks a rule
is a defect of the planner and is never carried out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onefleet.core import lifecycle
from onefleet.core.ordering import ranks
from onefleet.core.plan import (
    Decision,
    DropImage,
    Fence,
    Lose,
    Place,
    Plan,
    Stop,
    Suspend,
    event_of,
)
from onefleet.core.preemption import spare_replicas
from onefleet.core.snapshot import Snapshot, holders, usable
from onefleet.domain.fleet import DeviceKind, NodeState
from onefleet.domain.ids import DeviceId, NodeId, WorkId
from onefleet.domain.work import Phase, Slot, Want, Work, WorkKind


def check_plan(snapshot: Snapshot, plan: Plan) -> list[str]:
    """Return one line for each rule that the plan breaks; empty when it is sound."""
    found: list[str] = []
    if plan.parent != snapshot.generation:
        found.append(f"made from generation {plan.parent}, not {snapshot.generation}")
    checker = _Checker(snapshot, plan)
    for decision in plan.decisions:
        found.extend(checker.check(decision))
    found.extend(checker.check_memory())
    found.extend(checker.check_blockers())
    return found


class _Checker:
    """Follows the decisions one by one, as an executor would."""

    def __init__(self, snapshot: Snapshot, plan: Plan) -> None:
        self.snapshot = snapshot
        self.plan = plan
        self.works = dict(snapshot.works)
        self.holders: dict[DeviceId, str] = dict(holders(snapshot.works))
        self.spare = spare_replicas(snapshot)
        self.fenced: dict[NodeId, bool] = {}
        self.ranks: dict[WorkId, int] | None = None
        self.touched: dict[WorkId, Decision] = {}
        self.given_on: dict[NodeId, bool] = {}

    def check(self, decision: Decision) -> Iterator[str]:
        if isinstance(decision, Fence):
            yield from self._fence(decision)
            return
        work = self.works.get(decision.work_id)
        if work is None:
            yield f"{decision.work_id} does not exist"
            return
        if work.id in self.touched:
            yield f"{work.id} is decided twice"
        self.touched[work.id] = decision
        if isinstance(decision, Place) or getattr(decision, "for_work", None) is not None:
            self._ranks()
        match decision:
            case Place():
                yield from self._place(work, decision)
            case Suspend():
                yield from self._suspend(work, decision)
            case Stop():
                yield from self._stop(work, decision)
            case Lose():
                if not any(self._lost(slot.node_id) for slot in work.placement):
                    yield f"{work.id} is given up, but no node of it is lost"
            case DropImage():
                nodes = () if work.image is None else work.image.nodes
                if not any(self._lost(node_id) for node_id in nodes):
                    yield f"the image of {work.id} is given up, but no node of it is lost"
        try:
            after = lifecycle.apply(work, event_of(decision), self.plan.planned_at)
        except lifecycle.IllegalTransition as illegal:
            yield illegal.what
            return
        if isinstance(decision, Lose):
            for device_id, holder in tuple(self.holders.items()):
                if holder == work.id:
                    del self.holders[device_id]
        self.works[work.id] = after

    def check_memory(self) -> Iterator[str]:
        """No node may be given more workers than its memory holds, as far as that is known."""
        used: dict[NodeId, int] = {}
        for work in self.works.values():
            if work.demand.kind is DeviceKind.CPU:
                for slot in work.placement:
                    used[slot.node_id] = used.get(slot.node_id, 0) + work.demand.memory_bytes
        for node_id in self.given_on:
            node = self.snapshot.nodes.get(node_id)
            if node is not None and used.get(node_id, 0) > node.memory_bytes:
                yield f"{node_id} is given {used[node_id]} bytes, it has {node.memory_bytes}"

    def check_blockers(self) -> Iterator[str]:
        """Whatever does not run has a reason."""
        for work in self.works.values():
            idle = work.phase not in (Phase.RUNNING, Phase.ENDED)
            if idle and not self.plan.blockers.get(work.id):
                yield f"{work.id} is {work.phase}, and nothing says why"

    def _ranks(self) -> dict[WorkId, int]:
        """The ranks after what had to happen anyway, before anything is given to anybody."""
        if self.ranks is None:
            self.ranks = ranks(replace(self.snapshot, works=self.works))
        return self.ranks

    def _fence(self, decision: Fence) -> Iterator[str]:
        node = self.snapshot.nodes.get(decision.node_id)
        if node is None:
            yield f"{decision.node_id} does not exist"
            return
        if node.lease_expires_at > self.plan.planned_at:
            yield f"{node.id} is fenced while its lease runs"
        self.fenced[node.id] = True

    def _lost(self, node_id: NodeId) -> bool:
        node = self.snapshot.nodes.get(node_id)
        return node is None or node.state is NodeState.LOST or node_id in self.fenced

    def _place(self, work: Work, decision: Place) -> Iterator[str]:
        demand = work.demand
        if work.want is not Want.RUN:
            yield f"{work.id} is placed, but its owner wants it {work.want}"
        if len(decision.placement) != demand.workers:
            yield f"{work.id} has {demand.workers} workers, {len(decision.placement)} are placed"
        for rank, slot in enumerate(decision.placement):
            if not demand.devices_min <= len(slot.devices) <= demand.devices_max:
                yield (
                    f"{work.id}.{rank} gets {len(slot.devices)} devices, "
                    f"not {demand.devices_min}..{demand.devices_max}"
                )
            yield from self._slot(work, rank, slot)
            if (
                decision.restore
                and work.image
                and work.image.nodes[rank : rank + 1] != (slot.node_id,)
            ):
                yield f"{work.id}.{rank} is restored on {slot.node_id}, where its image is not"

    def _slot(self, work: Work, rank: int, slot: Slot) -> Iterator[str]:
        node = self.snapshot.nodes.get(slot.node_id)
        if node is None:
            yield f"{work.id}.{rank} is placed on {slot.node_id}, which does not exist"
            return
        if not usable(node, self.plan.planned_at) or node.id in self.fenced:
            yield f"{work.id}.{rank} is placed on {node.id}, which is {node.state} or unleased"
        kinds = {device.id: device.kind for device in node.devices}
        for device_id in slot.devices:
            if kinds.get(device_id) is not work.demand.kind:
                yield f"{work.id}.{rank} gets {device_id}, no {work.demand.kind} of {node.id}"
            holder = self.holders.get(device_id)
            if holder is not None:
                yield f"{device_id} is given to {work.id}.{rank}, but {holder} holds it"
            self.holders[device_id] = f"{work.id}.{rank}"
        if work.demand.memory_bytes:
            self.given_on[node.id] = True

    def _suspend(self, work: Work, decision: Suspend) -> Iterator[str]:
        if work.kind is WorkKind.REPLICA or not work.suspendable:
            yield f"{work.id} is suspended, but cannot be"
        if decision.for_work is None:
            if work.want is not Want.SUSPEND:
                yield f"{work.id} is suspended for nobody"
        else:
            yield from self._outranked(work, decision.for_work)

    def _stop(self, work: Work, decision: Stop) -> Iterator[str]:
        if decision.for_work is None:
            if work.want is not Want.STOP:
                yield f"{work.id} is stopped for nobody"
            return
        if work.kind is not WorkKind.REPLICA:
            yield f"{work.id} is stopped for {decision.for_work}, but jobs are only suspended"
            return
        if self._in_the_way(work, decision.for_work):
            return
        yield from self._outranked(work, decision.for_work)
        replica = self.snapshot.replicas.get(work.id)
        if replica is None or self.spare.get(replica.deployment_id, 0) <= 0:
            yield f"{work.id} is stopped for {decision.for_work}, but its deployment needs it"
        else:
            self.spare[replica.deployment_id] -= 1

    def _in_the_way(self, replica: Work, for_work: WorkId) -> bool:
        """Whether it holds what an image of no lower rank needs: then it may be told to move."""
        waiting = self.works.get(for_work)
        if waiting is None or waiting.phase is not Phase.SUSPENDED or waiting.image is None:
            return False
        there = any(slot.node_id in waiting.image.nodes for slot in replica.placement)
        return there and self._ranks()[replica.id] >= self._ranks()[for_work]

    def _outranked(self, victim: Work, for_work: WorkId) -> Iterator[str]:
        waiting = self.works.get(for_work)
        if waiting is None or waiting.phase not in (Phase.PENDING, Phase.SUSPENDED):
            yield f"{victim.id} makes room for {for_work}, which does not wait"
        elif self._ranks()[victim.id] <= self._ranks()[for_work]:
            yield f"{victim.id} makes room for {for_work}, which does not outrank it"
