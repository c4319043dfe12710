"""Which running works make room for a waiting one that ranks before them, if that suffices.

Victims go lowest tier first, cheapest loss first; those of the work's own rank last, the one that
has had the most device time first (`ordering.py`). A gang is one victim: it leaves whole. A job is
suspended, which loses nothing; a replica above its deployment's minimum is stopped; one that can
run elsewhere moves out of the way of an image (`relocate`). Among the ways to make room, the one
wins that touches the lowest tier, then the one that costs least.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from onefleet.core.capacity import Capacity, Shy, out_of_reach, whole
from onefleet.core.index import SOON, Hold, Home, Index, gone
from onefleet.core.index.movable import Scope, Victim
from onefleet.core.index.room import workers_on, workers_with
from onefleet.core.index.shelves import rising
from onefleet.core.ordering import BASIC, RESERVED, STARVED
from onefleet.core.snapshot import devices_held
from onefleet.domain.ids import DeploymentId, NodeId, TenantId, WorkId
from onefleet.domain.work import Demand, Work, WorkKind

#: Nodes whose victims are compared. More would hardly be cheaper, and take as long each.
NODES_COMPARED = 64


class Rights(NamedTuple):
    """What waiting work may take of its own rank, if it takes its `turns` there by now: the devices
    of works from the level `above` on, but not of `sheltered` tenants; or, if it `claims` its
    tenant's part, those of works on any level that are not starved, and of sheltered tenants those
    of works that are so high."""

    turns: bool
    above: int
    claims: bool
    sheltered: Collection[TenantId]

    def take(self, tenant_id: TenantId, level: int) -> bool:
        """Whether they are to a work of its rank, of this tenant and on this level."""
        above = level >= self.above
        if self.claims:
            return above or (tenant_id not in self.sheltered and level != STARVED)
        return above and tenant_id not in self.sheltered


NONE = Rights(turns=False, above=0, claims=False, sheltered=())


class Able(NamedTuple):
    """Who may have to make room: works of ranks from `lowest` on; of the waiting work's own rank
    those that its rights permit, or all (None)."""

    lowest: int
    rank: int
    rights: Rights | None

    def of(self, victims: list[Victim]) -> list[Victim]:
        """Those of them, which are in the order in which they go."""
        if self.rights is None or self.lowest > self.rank:
            return victims[: bisect_left(victims, (1 - self.lowest,))]
        lower, above = (
            bisect_left(victims, (-self.rank,)),
            bisect_left(victims, (-self.rank, 1 - self.rights.above)),
        )
        if self.rights.claims:
            beside = victims[above : bisect_left(victims, (1 - self.rank,))]
            sheltered = self.rights.sheltered
            return victims[:above] + [
                v for v in beside if v.work.tenant_id not in sheltered and v.level_order != -STARVED
            ]
        own = victims[lower:above]
        if self.rights.sheltered:
            own = [v for v in own if v.work.tenant_id not in self.rights.sheltered]
        return victims[:lower] + own


Suffices = Callable[[Sequence[Victim]], bool]


class Victims:
    """Finds who makes room. The caller orders what is chosen to leave."""

    def __init__(self, index: Index, capacity: Capacity) -> None:
        self._index = index
        self._capacity = capacity
        self._excused: dict[WorkId, None] = {}

    def excuse(self, work_id: WorkId) -> None:
        """It has made room already, in another way."""
        self._excused[work_id] = None

    def choose(self, work: Work, rank: int, home: Home | None, rights: Rights) -> tuple[Work, ...]:
        """The cheapest set that makes room for the work, or nothing when no set does.

        home: where the work may go on.
        """
        demand = work.demand
        self._index.settle_rooms()
        spares = self._index.fleet.spares.are_for(work)
        shares_rank = rights.turns and rank > RESERVED  # nobody gives way inside a reservation
        last = rank if shares_rank else rank + 1
        for lowest in range(BASIC, last - 1, -1):  # lowest tiers alone, if that suffices
            able = Able(lowest, rank, rights)
            found: list[Victim] = []
            for nodes in () if home is None else (home.nodes, *home.copies):
                found = found or self._there(demand, nodes, able, spares)
            if not found and (home is None or home.kin is not None):
                shy = None if home is None or home.kin is None else out_of_reach(demand, home.kin)
                found = self._one_node(demand, able, shy)
                found = found or self._several_nodes(demand, able, shy, spares)
            if found:
                return tuple(victim.work for victim in found)
        return ()

    def relocate(self, work: Work, rank: int, nodes: Sequence[NodeId]) -> Work | None:
        """A replica in the way of an image that could as well run elsewhere; None if none helps.

        Images lie on nodes, and replicas never end: without this, work would wait for ever beside
        free devices. A replica of its own rank may be asked too, because it only moves.
        """
        places = dict.fromkeys(nodes)
        if not any(self._lasting(work.demand, node_id) for node_id in places):
            return None
        movers = [
            victim
            for victim in self._candidates(work.demand, tuple(places), Able(rank, rank, None))
            if victim.work.kind is WorkKind.REPLICA
            and self._capacity.fit(victim.work.demand, None, lambda r: r.node.id in places)
        ]
        spares = self._index.fleet.spares.are_for(work)
        if movers and self._suffices_on(work.demand, nodes, spares)(movers):
            return movers[0].work
        return None

    def _lasting(self, demand: Demand, node_id: NodeId) -> int:
        """Devices there that replicas hold which stay."""
        room = self._capacity.rooms.get(node_id)
        return (
            0 if room is None or demand.kind not in room.kinds else room.kinds[demand.kind].lasting
        )

    # --- the ways to make room ---------------------------------------------------------------

    def _there(
        self, demand: Demand, nodes: Sequence[NodeId], able: Able, spares: bool
    ) -> list[Victim]:
        """On these very nodes."""
        candidates = self._candidates(demand, tuple(dict.fromkeys(nodes)), able)
        return self._fewest(candidates, self._suffices_on(demand, nodes, spares))

    def _one_node(self, demand: Demand, able: Able, shy: Shy | None) -> list[Victim]:
        """On the node where it costs least."""
        best: tuple[tuple[int, NodeId], list[Victim]] | None = None
        for node_id in islice(self._promising(demand, able.lowest, shy), NODES_COMPARED):
            suffices = self._suffices_on(demand, (node_id,) * demand.workers, False)
            found = self._fewest(self._candidates(demand, (node_id,), able), suffices)
            if found:
                key = (sum(victim.loss for victim in found), node_id)
                if best is None or key < best[0]:
                    best = (key, found)
        return [] if best is None else best[1]

    def _promising(self, demand: Demand, lowest: int, shy: Shy | None) -> Iterator[NodeId]:
        """Nodes that would take it whole without what may leave, the tightest first."""
        measure = gone(lowest)
        shelves = self._index.fleet.shelves.suiting(demand)
        for _, nodes in rising(shelves, measure, max(whole(demand), 1)):
            for node_id in nodes:
                room = self._capacity.rooms[node_id]
                if shy is not None and shy(room):
                    continue
                if workers_on(room, demand, measure) >= demand.workers:
                    yield node_id

    def _several_nodes(
        self, demand: Demand, able: Able, shy: Shy | None, spares: bool
    ) -> list[Victim]:
        """On as few nodes as a gang needs, those with most to give first."""
        if demand.workers == 1:
            return []
        shelves = self._index.fleet.suiting(demand, spares)
        nodes = self._capacity.spread(demand, shelves, gone(able.lowest), shy)
        return [] if nodes is None else self._there(demand, nodes, able, spares)

    # --- what they are made of ---------------------------------------------------------------

    def _suffices_on(self, demand: Demand, nodes: Sequence[NodeId], spares: bool) -> Suffices:
        """Whether the work fits on the nodes, by rank, once these victims have left."""
        counts: dict[NodeId, int] = {}
        for node_id in nodes:
            counts[node_id] = counts.get(node_id, 0) + 1
        rooms = {node_id: self._capacity.room(node_id, spares) for node_id in counts}

        def suffices(victims: Sequence[Victim]) -> bool:
            for node_id, count in counts.items():
                room = rooms[node_id]
                holds = [hold for v in victims if (hold := self._hold(v.id, node_id)) is not None]
                if room is None or workers_with(room, demand, SOON, holds) < count:
                    return False
            return True

        return suffices

    def _hold(self, work_id: WorkId, node_id: NodeId) -> Hold | None:
        return self._index.fleet.holds.get(node_id, {}).get(work_id)

    def _candidates(self, demand: Demand, nodes: tuple[NodeId, ...], able: Able) -> list[Victim]:
        """Whoever may be moved on these nodes, in the order in which they go."""
        scope = Scope(demand.kind, nodes, able.rank, able.rights is not None)
        movable = self._index.roster.movable.of(scope)
        found = able.of(movable)
        if able.rights is None or not able.rights.claims:
            return found

        def excess(victim: Victim) -> int:
            """How often as many as are needed it holds, in doublings; of its own rank."""
            held = devices_held(victim.work) if victim.tier_order == -able.rank else 0
            return max((held - 1).bit_length() - (demand.least - 1).bit_length(), 0)

        return sorted(found, key=lambda victim: (victim.tier_order, excess(victim), victim))

    def _fewest(self, candidates: Sequence[Victim], suffices: Suffices) -> list[Victim]:
        """The first of them that together suffice, without those not needed; none if none do."""
        surplus: dict[DeploymentId, int] = {}
        allowed: list[Victim] = []
        for victim in candidates:
            if victim.id in self._excused:
                continue
            if victim.work.kind is WorkKind.REPLICA:
                replica = self._index.roster.surplus.replicas.get(victim.id)
                owner = DeploymentId("") if replica is None else replica.deployment_id
                if surplus.setdefault(owner, self._index.roster.surplus.of(owner)) <= 0:
                    continue
                surplus[owner] -= 1
            allowed.append(victim)
        if not allowed or not suffices(allowed):
            return []
        counts = range(1, len(allowed) + 1)
        count = 1 + bisect_left(counts, True, key=lambda n: suffices(allowed[:n]))
        taken = allowed[:count]
        for victim in reversed(taken[:-1]):
            fewer = [other for other in taken if other is not victim]
            if suffices(fewer):
                taken = fewer
        return taken
