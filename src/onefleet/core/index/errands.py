"""What works want besides devices: to be readied, to be promised, to be saved while they run.

Entered and taken out with the works themselves (`roster.py`), so that a pass finds what is to be
done for whom without going over all of them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

from onefleet.core.checkpointing import due_at
from onefleet.core.ordering import can_be_resized
from onefleet.core.policy import Policy
from onefleet.core.promise import Bearer, bears_promise, promise_of
from onefleet.core.snapshot import devices_held
from onefleet.domain.fleet import DeviceKind, Node, NodeState
from onefleet.domain.ids import Instant, NodeId, TenantId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Phase, Want, Work, WorkKind

#: The kind and product of devices that jobs hold which cannot be suspended, and the tenant of
#: premium ones; of the others it does not matter ("").
Fixed = tuple[DeviceKind, str, TenantId]


class Errands:
    """to_ready: works that wait for others, all of which have ended or are not known. to_promise:
    works whose tier promises something that was not promised to them yet, by what that is, oldest
    first. to_checkpoint: running works whose newest image is old. to_move: running jobs that shall
    be elsewhere. to_resize: running elastic jobs that have not the width that they shall have.
    lenders: running elastic jobs that have more than their least, because it was free.
    on_their_way: jobs that are being saved to go on elsewhere; moving: these, and those that were
    saved for that, or are being brought back elsewhere. frozen: works that stand still.
    promised: thousandths of devices that works are promised. fixed: thousandths of devices that
    jobs hold which cannot be suspended."""

    def __init__(
        self, policy: Policy, works: Mapping[WorkId, Work], nodes: Mapping[NodeId, Node]
    ) -> None:
        self.to_ready: dict[WorkId, None] = {}
        self.to_promise: dict[tuple[Bearer, int], list[tuple[Instant, WorkId]]] = {}
        self.to_checkpoint: dict[WorkId, None] = {}
        self.to_move: dict[WorkId, None] = {}
        self.to_resize: dict[WorkId, None] = {}
        self.lenders: dict[WorkId, None] = {}
        self.on_their_way: dict[WorkId, None] = {}
        self.moving: dict[WorkId, None] = {}
        self.frozen: dict[WorkId, None] = {}
        self.promised: dict[Bearer, int] = {}
        self.fixed: dict[Fixed, int] = {}
        self._fixed_by: dict[WorkId, dict[Fixed, int]] = {}
        self._nodes = nodes
        self._policy = policy
        self._works = works
        self._dependents: dict[WorkId, dict[WorkId, None]] = {}

    def enter(self, work: Work, now: Instant) -> None:
        """The work is now like this."""
        if _waits_for_others(work):
            for other in work.terms.after:
                self._dependents.setdefault(other, {})[work.id] = None
            if not any(self._is_ahead(other) for other in work.terms.after):
                self.to_ready[work.id] = None
        if _wants_promise(work):
            insort(self.to_promise.setdefault(promise_of(work), []), (work.submitted_at, work.id))
        if _runs(work) and work.suspendable and (work.move_to or self._is_evicted(work)):
            self.to_move[work.id] = None
        if _runs(work) and work.demand.is_elastic and can_be_resized(work, self._nodes):
            if _has_another_width(work):
                self.to_resize[work.id] = None
            if work.width is None and devices_held(work) > work.demand.least:
                self.lenders[work.id] = None
        if work.phase is Phase.SAVING and work.move_to and work.want is Want.RUN:
            self.on_their_way[work.id] = None
        if _moves(work):
            self.moving[work.id] = None
        if work.phase is Phase.FROZEN:
            self.frozen[work.id] = None
        self._count(work, 1)
        if work.kind is WorkKind.JOB and not work.suspendable and work.placement:
            self._fix(self._fixed_by.setdefault(work.id, self._fixed_of(work)), 1)
        due = self.due(work)
        if due is not None and due <= now:
            self.to_checkpoint[work.id] = None

    def leave(self, work: Work) -> None:
        """The work is no more like this."""
        if _waits_for_others(work):
            for other in work.terms.after:
                dependents = self._dependents[other]
                del dependents[work.id]
                if not dependents:
                    del self._dependents[other]
        self.to_ready.pop(work.id, None)
        if _wants_promise(work):
            key, turn = promise_of(work), (work.submitted_at, work.id)
            line = self.to_promise[key]
            del line[bisect_left(line, turn)]
            if not line:
                del self.to_promise[key]
        self.to_checkpoint.pop(work.id, None)
        self.to_move.pop(work.id, None)
        self.to_resize.pop(work.id, None)
        self.lenders.pop(work.id, None)
        self.on_their_way.pop(work.id, None)
        self.moving.pop(work.id, None)
        self.frozen.pop(work.id, None)
        self._count(work, -1)
        self._fix(self._fixed_by.pop(work.id, {}), -1)

    def dependents(self, work_id: WorkId) -> tuple[WorkId, ...]:
        """Works that wait for this one."""
        return tuple(self._dependents.get(work_id, ()))

    def due(self, work: Work) -> Instant | None:
        """When an image of it should be made while it runs."""
        return due_at(work, self._policy.node_mttf_ms, self._policy.save_cost)

    def _is_evicted(self, work: Work) -> bool:
        """Whether its node is drained, or a device of it gets no work any more."""
        for slot in work.placement:
            node = self._nodes.get(slot.node_id)
            if node is None:
                continue
            if node.state is NodeState.DRAINING:
                return True
            if any(cordon.device_id in slot.devices for cordon in node.cordons):
                return True
        return False

    def _fixed_of(self, work: Work) -> dict[Fixed, int]:
        """What it holds; a device that its ranks take turns on counts once."""
        tenant_id = work.tenant_id if work.tier is Tier.PREMIUM else TenantId("")
        held = {d: (s.node_id, s.milli) for s in work.placement for d in s.devices}
        found: dict[Fixed, int] = {}
        for device_id, (node_id, milli) in held.items():
            node = self._nodes.get(node_id)
            devices = () if node is None else node.devices
            product = next((d.product for d in devices if d.id == device_id), "")
            key = (work.demand.kind, product, tenant_id)
            found[key] = found.get(key, 0) + milli
        return found

    def _fix(self, held: Mapping[Fixed, int], sign: int) -> None:
        for key, milli in held.items():
            left = self.fixed.pop(key, 0) + sign * milli
            if left:
                self.fixed[key] = left

    def _is_ahead(self, work_id: WorkId) -> bool:
        other = self._works.get(work_id)
        return other is not None and other.phase is not Phase.ENDED

    def _count(self, work: Work, sign: int) -> None:
        if not bears_promise(work):
            return
        bearer, milli = promise_of(work)
        left = self.promised.get(bearer, 0) + sign * milli
        if left:
            self.promised[bearer] = left
        else:
            self.promised.pop(bearer, None)


def _waits_for_others(work: Work) -> bool:
    return not work.ready and work.phase is Phase.PENDING and work.want is not Want.STOP


def _moves(work: Work) -> bool:
    """Whether it is on its way to other nodes, or to other devices of its own; what was saved and
    waits for the node that its owner named is not."""
    if work.phase is Phase.RESTORING:
        return work.image is not None and work.ran_on != work.image.nodes
    leaves = work.phase is Phase.SAVING or (work.phase is Phase.SUSPENDED and work.driven)
    return leaves and bool(work.move_to)


def _runs(work: Work) -> bool:
    return work.kind is WorkKind.JOB and work.phase is Phase.RUNNING and work.want is Want.RUN


def _has_another_width(work: Work) -> bool:
    wanted = work.demand.most if work.width is None else work.width
    return devices_held(work) != wanted


def _wants_promise(work: Work) -> bool:
    if work.promised or not work.ready or work.kind is WorkKind.REPLICA:
        return False
    return work.phase is not Phase.ENDED and work.want is Want.RUN
