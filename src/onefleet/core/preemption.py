"""Which running works make room for a waiting one that ranks before them, if that suffices.

Victims go lowest tier first, cheapest loss first. A gang is one victim: it leaves whole. A job is
suspended, which loses nothing; a replica above its deployment's minimum is stopped; one that can
run elsewhere moves out of the way of an image (`Victims.relocate`). Among the ways to make room,
the one wins that touches the lowest tier, then the one that costs least.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from onefleet.core.capacity import Capacity, Extra, node_memory
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot, devices_held
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import DeploymentId, Instant, NodeId, WorkId
from onefleet.domain.work import Demand, Phase, Want, Work, WorkKind


class Victim(NamedTuple):
    """A work that may be moved out of the way. Sorted: the first goes first."""

    tier_order: int  # minus its rank
    loss: int  # device-milliseconds
    younger_first: int  # minus the time since when it runs
    id: WorkId
    work: Work


class Victims:
    """The works that can make room in this pass; shrinks as they are chosen."""

    def __init__(
        self, snapshot: Snapshot, ranks: Mapping[WorkId, int], policy: Policy, now: Instant
    ) -> None:
        self._spare = spare_replicas(snapshot)
        self._owner = {r.id: r.deployment_id for r in snapshot.replicas.values()}
        self._by_node: dict[tuple[DeviceKind, NodeId], list[Victim]] = {}
        self._chosen: dict[WorkId, bool] = {}
        for work in snapshot.works.values():
            if not movable(work, now):
                continue
            loss = loss_device_ms(work, policy)
            victim = Victim(-ranks[work.id], loss, -work.phase_since, work.id, work)
            for node_id in dict.fromkeys(slot.node_id for slot in work.placement):
                self._by_node.setdefault((work.demand.kind, node_id), []).append(victim)
        for victims in self._by_node.values():
            victims.sort()

    def choose(
        self, work: Work, rank: int, image_nodes: Sequence[NodeId] | None, capacity: Capacity
    ) -> tuple[Work, ...]:
        """The cheapest set that makes room for the work, or nothing when no set does.

        What is chosen is gone from here; the caller orders it to leave.
        """
        demand = work.demand
        best: tuple[tuple[int, int, str], list[Victim]] | None = None
        for nodes, suffices in _ways(demand, image_nodes, capacity):
            if best is not None and len(nodes) > 1:
                break  # one node is better than several
            found = self._suffice(demand.kind, nodes, rank, suffices)
            if found is None:
                continue
            key = (max(v.tier_order for v in found), sum(v.loss for v in found), nodes[0])
            if best is None or key < best[0]:
                best = (key, found)
        if best is None:
            return ()
        for victim in best[1]:
            self._chosen[victim.id] = True
            if victim.work.kind is WorkKind.REPLICA:
                self._spare[self._owner[victim.id]] -= 1
        return tuple(victim.work for victim in best[1])

    def relocate(
        self, work: Work, rank: int, image_nodes: Sequence[NodeId], capacity: Capacity
    ) -> Work | None:
        """A replica in the way of an image that could as well run elsewhere; None if none helps.

        Images lie on nodes, and replicas never end: without this, work would wait for ever beside
        free devices. A replica of its own rank may be asked too, because it only moves.
        """
        nodes = tuple(dict.fromkeys(image_nodes))
        movers = [
            victim
            for victim in self._candidates(work.demand.kind, nodes, rank - 1)
            if victim.work.kind is WorkKind.REPLICA
            and capacity.fit(victim.work.demand, None, avoid=nodes) is not None
        ]
        for _, suffices in _ways(work.demand, image_nodes, capacity):
            if movers and suffices(movers):
                self._chosen[movers[0].id] = True
                return movers[0].work
        return None

    def _suffice(
        self,
        kind: DeviceKind,
        nodes: Sequence[NodeId],
        rank: int,
        suffices: Callable[[Sequence[Victim]], bool],
    ) -> list[Victim] | None:
        """The first victims on the nodes that together suffice, without those not needed."""
        allowed: list[Victim] = []
        spare = dict(self._spare)
        for victim in self._candidates(kind, nodes, rank):
            if victim.work.kind is WorkKind.REPLICA:
                owner = self._owner.get(victim.id)
                if owner is None or spare.get(owner, 0) <= 0:
                    continue
                spare[owner] -= 1
            allowed.append(victim)
        if not allowed or not suffices(allowed):
            return None
        counts = range(1, len(allowed) + 1)
        count = 1 + bisect_left(counts, True, key=lambda n: suffices(allowed[:n]))
        taken = allowed[:count]
        for victim in reversed(taken[:-1]):
            fewer = [other for other in taken if other is not victim]
            if suffices(fewer):
                taken = fewer
        return taken

    def _candidates(self, kind: DeviceKind, nodes: Sequence[NodeId], rank: int) -> Iterable[Victim]:
        seen: dict[WorkId, Victim] = {}
        for node_id in nodes:
            for victim in self._by_node.get((kind, node_id), ()):
                if -victim.tier_order > rank and victim.id not in self._chosen:
                    seen[victim.id] = victim
        return seen.values() if len(nodes) == 1 else sorted(seen.values())


def movable(work: Work, now: Instant) -> bool:
    """Whether it may be asked to make room at all, by its own state."""
    if work.want is not Want.RUN:
        return False
    if work.kind is WorkKind.REPLICA:
        return work.phase in (Phase.STARTING, Phase.RUNNING)
    return work.phase is Phase.RUNNING and work.suspendable and work.not_before <= now


def spare_replicas(snapshot: Snapshot) -> dict[DeploymentId, int]:
    """How many of each deployment's running replicas are above its minimum."""
    spare = {d.id: -d.replicas_min for d in snapshot.deployments.values()}
    for replica in snapshot.replicas.values():
        work = snapshot.works.get(replica.id)
        if work is None or work.want is not Want.RUN or replica.deployment_id not in spare:
            continue
        if work.phase in (Phase.STARTING, Phase.RUNNING):
            spare[replica.deployment_id] += 1
    return spare


def loss_device_ms(work: Work, policy: Policy) -> int:
    """Device-milliseconds that it costs to move the work away and bring it back."""
    if work.kind is WorkKind.REPLICA:
        return policy.replica_start_ms * devices_held(work)
    image_bytes = 0 if work.image is None else work.image.size_bytes
    state_bytes = max(image_bytes, work.demand.memory_bytes * work.demand.workers)
    once_ms = policy.save_fixed_ms + state_bytes // max(policy.save_bytes_per_ms, 1)
    return 2 * once_ms * devices_held(work)


def _ways(
    demand: Demand, image_nodes: Sequence[NodeId] | None, capacity: Capacity
) -> Iterable[tuple[Sequence[NodeId], Callable[[Sequence[Victim]], bool]]]:
    """Sets of nodes to make room on, each with the test whether what comes free suffices."""

    def workers_on(node_id: NodeId, victims: Sequence[Victim]) -> int:
        extra = _extra(victims, demand, capacity)
        return capacity.workers_on(node_id, demand, soon=True, extra=extra)

    if image_nodes is not None:
        counts: dict[NodeId, int] = {}
        for node_id in image_nodes:
            counts[node_id] = counts.get(node_id, 0) + 1

        def all_there(victims: Sequence[Victim]) -> bool:
            return all(workers_on(node_id, victims) >= count for node_id, count in counts.items())

        if all(node_id in capacity.rooms for node_id in counts):
            yield tuple(counts), all_there
        return
    for node_id in capacity.rooms:

        def one_node(victims: Sequence[Victim], node_id: NodeId = node_id) -> bool:
            return workers_on(node_id, victims) >= demand.workers

        yield (node_id,), one_node
    if demand.workers > 1:

        def several_nodes(victims: Sequence[Victim]) -> bool:
            extra = _extra(victims, demand, capacity)
            return capacity.spread(demand, soon=True, extra=extra) is not None

        yield tuple(capacity.rooms), several_nodes


def _extra(victims: Iterable[Victim], demand: Demand, capacity: Capacity) -> Extra:
    """What would come free for the demand, by node."""
    extra: dict[NodeId, tuple[int, int]] = {}
    for victim in victims:
        memory = node_memory(victim.work.demand)
        for slot in victim.work.placement:
            devices, bytes_ = extra.get(slot.node_id, (0, 0))
            suiting = capacity.suiting(slot, demand)
            extra[slot.node_id] = (devices + suiting, bytes_ + memory)
    return extra
