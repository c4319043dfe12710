"""What nodes shall do, derived from the state alone: the same state gives the same orders.

Besides what runs on it, or shall run, a node keeps the images that lie there for as long as the
pool may go back to them. Of each image there is to be a copy on another node, so that who loses a
node does not lose what was saved on it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from itertools import chain

from onefleet.core import lifecycle
from onefleet.core.ordering import covered, is_claimant
from onefleet.core.overdue import asked_at, within_ms
from onefleet.core.promise import holds
from onefleet.domain.fleet import Node, NodeState
from onefleet.domain.ids import ImageId, Instant, NodeId, WorkId
from onefleet.domain.jobs import Job
from onefleet.domain.serving import Deployment, Model
from onefleet.domain.work import Image, Phase, Want, Work, WorkKind
from onefleet.store.base import State
from onefleet.wire.agent import (
    EngineSpec,
    GangSpec,
    JobSpec,
    NodeOrders,
    Order,
    OrderVerb,
    Source,
)
from onefleet.wire.tickets import door_key, image_name, ticket

#: How long a node's work runs on without hearing from the control plane. Long against a restart
#: of the control plane, short against the patience of a job whose node was lost.
LEASE_MS = 30_000
#: Between asking a process to end and killing it.
JOB_GRACE_MS = 10_000
REPLICA_GRACE_MS = 5_000
#: What a save has at least, however long others were tried before it.
LIMIT_MS_LEAST = 1_000
#: Nodes that each worker's image shall lie on.
COPIES = 2
#: A replica that needs less than this part of a node's memory leaves images their place in it.
MEMORY_PART = 4

_VERBS = {
    Phase.STARTING: OrderVerb.RUN,
    Phase.RUNNING: OrderVerb.RUN,
    Phase.RESTORING: OrderVerb.RUN,
    Phase.SAVING: OrderVerb.SAVE,
    Phase.FROZEN: OrderVerb.FREEZE,
    Phase.STOPPING: OrderVerb.STOP,
}


class OrderBook:
    """The orders of every node, as the state changes. secret: as of `Orders`."""

    def __init__(self, secret: str = "") -> None:
        self._secret = secret
        self._newest: Orders | None = None
        self._known: dict[NodeId, NodeOrders] = {}

    def ticket(self, node_id: NodeId, name: str) -> str:
        """Opens what has this name at the node's door, for the control plane itself."""
        return ticket(door_key(self._secret, node_id), name)

    def of(self, state: State, node_id: NodeId) -> NodeOrders:
        """The node's orders; their generation is that of the state that last changed them."""
        if self._newest is None or self._newest.generation != state.generation:
            self._newest = Orders(state, self._secret)
        fresh = self._newest.of(node_id)
        known = self._known.get(node_id)
        if known is None or known.orders != fresh.orders:
            known = self._known[node_id] = fresh
        return known


class Orders:
    """The orders of all nodes in one state. secret: what the keys of their doors are made from."""

    def __init__(self, state: State, secret: str = "") -> None:
        self.generation = state.generation
        self._state = state
        self._secret = secret
        self._orders: dict[NodeId, list[Order]] = {}
        self._covers: dict[Instant, Mapping[WorkId, None]] = {}
        self._reachable = [n for n in state.nodes.values() if n.address and _is_there(n)]
        for work in state.works.values():
            verb = _VERBS.get(work.phase)
            limit_ms = self._limit_ms(work) if verb is OrderVerb.SAVE else 0
            for rank, slot in enumerate(work.placement):
                assert verb is not None, f"{work.id} is placed in phase {work.phase}"
                self._note(slot.node_id, self._order(work, rank, verb, limit_ms))
            coming = self._coming(work) if work.phase is Phase.SAVING else {}
            for (_, node_id), order in coming.items():
                self._note(node_id, order)
            if work.image is not None and work.phase is not Phase.ENDED:
                for rank in range(len(work.image.nodes)):
                    for node_id, image in self._keepers(work, work.image, rank):
                        if (rank, node_id) not in coming:
                            self._note(node_id, self._keep(work, image, rank, node_id))

    def of(self, node_id: NodeId) -> NodeOrders:
        """Everything that this node shall do; a worker that is not named has no business there."""
        return NodeOrders(
            node_id=node_id,
            generation=self.generation,
            lease_ms=LEASE_MS,
            orders=tuple(self._orders.get(node_id, ())),
            door=door_key(self._secret, node_id),
        )

    def _note(self, node_id: NodeId, order: Order) -> None:
        self._orders.setdefault(node_id, []).append(order)

    # --- what runs -----------------------------------------------------------------------------

    def _order(self, work: Work, rank: int, verb: OrderVerb, limit_ms: int) -> Order:
        job = self._state.jobs.get(work.id)
        slot = work.placement[rank]
        image = work.image.id if work.image else None
        if verb is OrderVerb.SAVE:
            image = lifecycle.image_id(work)
        held = work.phase is Phase.RESTORING or (work.phase is Phase.SAVING and not work.cut)
        brings_back = work.phase is Phase.RESTORING
        return Order(
            work_id=work.id,
            rank=rank,
            epoch=work.epoch,
            verb=verb,
            devices=slot.devices,
            milli=slot.milli,
            image=image,
            keep=tuple(i.id for i in (work.image, work.image_before) if i and i.id != image),
            hold=held and work.demand.workers > 1,
            making=work.making.id if work.making else None,
            sources=self._sources(work.id, work.image, rank, slot.node_id) if brings_back else (),
            limit_ms=limit_ms,
            in_memory=verb is OrderVerb.SAVE and self._is_soon_back(work, slot.node_id),
            grace_ms=JOB_GRACE_MS if job else REPLICA_GRACE_MS,
            job=_job_spec(job, work) if job else None,
            gang=self._gang(work, rank) if work.demand.workers > 1 else None,
            engine=None if job else _engine_spec(self._state, work),
        )

    def _is_soon_back(self, work: Work, node_id: NodeId) -> bool:
        """Whether it is on its way elsewhere; or makes room, on a node that stays, for a replica,
        which goes when the burst of requests is over, and which leaves its image room in memory.
        """
        if work.move_to:
            return True
        last = work.receipts[-1] if work.receipts else None
        if last is None or last.by is None or work.want is not Want.RUN:
            return False
        taker, node = self._state.works.get(last.by), self._state.nodes.get(node_id)
        if taker is None or taker.kind is not WorkKind.REPLICA or node is None:
            return False
        needs = taker.demand.memory_bytes * MEMORY_PART
        return node.state is NodeState.READY and needs <= node.memory_bytes

    def _limit_ms(self, work: Work) -> int:
        """How long its save may take, where a reservation calls in what it has."""
        state, ordered_at = self._state, work.phase_since
        last = work.receipts[-1] if work.receipts else None
        if last is None or last.by is None or last.at != ordered_at:  # not what it is saved for
            return 0
        waiting = state.works.get(last.by)
        if waiting is None or waiting.phase_since > ordered_at:  # it does not wait any more
            return 0
        if waiting.id not in self._covered(ordered_at):
            return 0
        allowed_ms = within_ms(waiting, state.reservations.values(), state.tenants, ordered_at) or 0
        left_ms = asked_at(work, waiting) + allowed_ms - ordered_at
        return max(left_ms, LIMIT_MS_LEAST)

    def _covered(self, at: Instant) -> Mapping[WorkId, None]:
        """The works that reservations cover which are open then. Many are asked at one time."""
        found = self._covers.get(at)
        if found is None:
            open_ = [r for r in self._state.reservations.values() if holds(r, at)]
            claimants = [w for w in self._state.works.values() if is_claimant(w)] if open_ else []
            found = dict.fromkeys(covered(open_, claimants, self._state.tenants))
            self._covers[at] = found
        return found

    def _gang(self, work: Work, rank: int) -> GangSpec:
        """Two agents of one address are on one machine, and so is a gang that lies on both."""
        hosts = [self._host(slot.node_id) for slot in work.placement]
        others = tuple(dict.fromkeys(host for host in hosts if host != hosts[rank]))
        return GangSpec(node=hosts[rank] if others else "", nodes=others, master=hosts[0])

    def _host(self, node_id: NodeId) -> str:
        node = self._state.nodes.get(node_id)
        return node.address.rpartition(":")[0] if node else ""

    # --- where images lie ----------------------------------------------------------------------

    def _keepers(self, work: Work, image: Image, rank: int) -> Iterator[tuple[NodeId, Image]]:
        """The nodes that shall have an image of this rank, with the newest that each shall have;
        not the node that the rank is on."""
        holders = image.holders(rank)
        living = [n for n in holders if (node := self._state.nodes.get(n)) and _is_there(node)]
        wanted = dict.fromkeys(holders, image)
        if len(living) < COPIES and (another := self._another(work, rank, holders)) is not None:
            wanted[another] = image
        if work.image_before is not None:
            for node_id in work.image_before.holders(rank):
                wanted.setdefault(node_id, work.image_before)
        here = work.placement[rank].node_id if work.placement else None
        yield from ((node_id, newest) for node_id, newest in wanted.items() if node_id != here)

    def _another(self, work: Work, rank: int, holders: tuple[NodeId, ...]) -> NodeId | None:
        """Where a further copy shall lie: where it is going to move, else as evenly as the works'
        names are; on a node that could bring it back if there is one, in another zone if so."""
        free = [node for node in self._reachable if node.id not in holders]
        if not free:
            return None
        if work.move_to:
            target = work.move_to[rank % len(work.move_to)]
            if any(node.id == target for node in free):
                return target
        home = self._state.nodes.get(holders[0])
        free = [node for node in free if home is not None and _is_alike(node, home)] or free
        zones = [node.zone for n in holders if (node := self._state.nodes.get(n))]
        apart = [node for node in free if node.zone not in zones] or free
        return apart[zlib.crc32(work.id.encode()) % len(apart)].id

    def _coming(self, work: Work) -> dict[tuple[int, NodeId], Order]:
        """Where it is going to move, its image is fetched while it is made."""
        image, job = lifecycle.image_id(work), self._state.jobs.get(work.id)
        found = {}
        for rank, slot in enumerate(work.placement if work.move_to else ()):
            target = work.move_to[rank % len(work.move_to)]
            sources = self._source(work.id, image, rank, slot.node_id)
            if sources and target != slot.node_id and target in self._state.nodes:
                found[rank, target] = Order(
                    work_id=work.id,
                    rank=rank,
                    epoch=work.epoch,
                    verb=OrderVerb.KEEP,
                    image=image,
                    keep=tuple(i.id for i in (work.image, work.image_before) if i),
                    sources=sources,
                    soon=True,
                    coming=True,
                    grace_ms=JOB_GRACE_MS,
                    job=_job_spec(job, work) if job else None,
                )
        return found

    def _keep(self, work: Work, image: Image, rank: int, node_id: NodeId) -> Order:
        before = work.image_before
        if before is image or (before is not None and node_id not in before.holders(rank)):
            before = None
        job = self._state.jobs.get(work.id)
        return Order(
            work_id=work.id,
            rank=rank,
            epoch=work.epoch,
            verb=OrderVerb.KEEP,
            image=image.id,
            keep=() if before is None else (before.id,),
            sources=self._sources(work.id, image, rank, node_id),
            soon=node_id in work.move_to,
            grace_ms=JOB_GRACE_MS,
            job=_job_spec(job, work) if job else None,
        )

    def _sources(
        self, work_id: WorkId, image: Image | None, rank: int, node_id: NodeId
    ) -> tuple[Source, ...]:
        """Where a node that has not the image of this rank can fetch it."""
        if image is None or node_id in image.holders(rank):
            return ()
        found = (self._source(work_id, image.id, rank, holder) for holder in image.holders(rank))
        return tuple(chain.from_iterable(found))

    def _source(
        self, work_id: WorkId, image: ImageId, rank: int, node_id: NodeId
    ) -> tuple[Source, ...]:
        """This node, if it can be reached."""
        node = self._state.nodes.get(node_id)
        if node is None or not node.address or not _is_there(node):
            return ()
        opens = ticket(door_key(self._secret, node_id), image_name(work_id, rank, image))
        return (Source(node_id=node_id, address=node.address, ticket=opens),)


def _is_alike(node: Node, other: Node) -> bool:
    """Whether both save in the same way, on the same products."""
    if node.checkpoint_mode is not other.checkpoint_mode:
        return False
    products = [dict.fromkeys((d.kind, d.product) for d in n.devices) for n in (node, other)]
    return products[0] == products[1]


def _is_there(node: Node) -> bool:
    return node.state is not NodeState.LOST


def _job_spec(job: Job, work: Work) -> JobSpec:
    return JobSpec(
        name=job.name,
        tenant_id=job.tenant_id,
        command=job.command,
        environment=job.environment,
        code=job.code,
        network=job.network,
        workers=work.demand.workers,
        width=work.demand.devices_max,
        index=job.index if job.array else None,
    )


def _engine_spec(state: State, work: Work) -> EngineSpec:
    """The engine of a replica. Its records are removed after its work, so they are there."""
    replica = state.replicas[work.id]
    deployment: Deployment = state.deployments[replica.deployment_id]
    model: Model = state.models[deployment.model_id]
    return EngineSpec(
        engine=deployment.engine,
        model_id=model.id,
        purpose=model.purpose,
        path=model.path,
        revision=model.revision,
        slots=deployment.slots,
        context_length=deployment.context_length,
        served_name=deployment.name,
        options={},
    )
