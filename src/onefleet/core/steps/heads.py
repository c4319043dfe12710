"""What is kept for the heads of the queue, and who may borrow it meanwhile.

The first of a rank that got nothing is the head of its rank. Devices are kept for it until it has
all that it needs. What gives them back on demand may use them until then, because the head ranks
before it and takes them: jobs of lower ranks that can be suspended. Works of its own rank would not
give them back, and the head would never have all at once. So they may not use them after its
patience, if that brings the head its devices soon: if what is in its way ends, or gets above its
level, within minutes. For what is not in sight nothing stands idle; a head that gets nothing for
long goes first at last (`starvation.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, product
from typing import NamedTuple

from onefleet.core.capacity import Capacity, Nodes, Shy, out_of_reach
from onefleet.core.index import SOON, Hold, Home, Kept, Room, gone
from onefleet.core.index.room import MEASURES, workers_in_time, workers_with
from onefleet.core.index.shelves import falling
from onefleet.core.lifecycle import progress_ms
from onefleet.core.ordering import gives_way, reaches_at
from onefleet.core.preemption import Rights
from onefleet.core.scratch import Scratch
from onefleet.domain.fleet import CheckpointMode
from onefleet.domain.ids import Instant, NodeId
from onefleet.domain.work import WHOLE, Demand, Phase, Work

#: Nodes that are looked at for a head's devices beside works of higher ranks.
NODES_TRIED = 256


class Sight(NamedTuple):
    """What a head waits for: works of ranks behind its own leave anyway, those of its own rank if
    they end, or it may take their devices, until then."""

    rank: int
    until: Instant
    rights: Rights


class Heads:
    """Of one pass. firm: what is kept from all, until the rank is through. lent: what may be used
    by who gives it back."""

    def __init__(self, this: Scratch) -> None:
        self._this = this
        self._capacity: Capacity = this.capacity
        self._firm: list[tuple[NodeId, Kept]] = []
        self._lent: list[tuple[NodeId, Kept]] = []
        self._open = False

    def set(self, *, opened: bool) -> None:
        """Let what is lent be used, or keep it."""
        if opened is not self._open:
            self._open = opened
            for node_id, kept in self._lent:
                self._this.index.keep(node_id, kept, -1 if opened else 1)

    def keep(self, work: Work, rank: int, rights: Rights | None) -> bool:
        """Keep devices for the head of a rank. rights: what it may take of its rank; None: it has
        waited for too short a time to keep any from that. Whether any are kept."""
        self.set(opened=False)
        if not self._is_there_any(work, rank):
            return False
        firm = self._target(work, rank, self._sight(rank, rights)) if rights else ()
        target = firm or self._target(work, rank, None)
        kept = self._capacity.keep(work.demand, target, rank) if target else []
        self._firm += [one for one in kept if firm or not self._is_given_back(one[0])]
        self._lent += [one for one in kept if not firm and self._is_given_back(one[0])]
        return bool(target)

    def _is_there_any(self, work: Work, rank: int) -> bool:
        """Whether any device is free, comes free, or is held by works behind the rank."""
        if work.demand.milli < WHOLE:
            return True
        self._this.index.settle_rooms()
        fleet = self._this.index.fleet
        parts = fleet.suiting(work.demand, fleet.spares.are_for(work))
        return any(True for shelves in parts for _ in falling(shelves, gone(rank + 1), 1))

    def lend(self) -> bool:
        """The rank is through: lower ones may borrow what was kept. Whether there is more now."""
        self.set(opened=False)
        given = [one for one in self._firm if self._is_given_back(one[0])]
        self._firm = [one for one in self._firm if not self._is_given_back(one[0])]
        self._lent += given
        return bool(given)

    def _is_given_back(self, node_id: NodeId) -> bool:
        """Whether jobs there are saved from outside: others would lose what they did meanwhile."""
        node = self._this.index.fleet.nodes.get(node_id)
        return node is not None and node.checkpoint_mode is CheckpointMode.CRIU

    # --- where it will fit -------------------------------------------------------------------

    def _sight(self, rank: int, rights: Rights) -> Sight:
        """What the head of a rank waits for without letting others pass."""
        return Sight(rank, Instant(self._this.now + self._this.policy.level_ms), rights)

    def _target(self, work: Work, rank: int, sight: Sight | None) -> Nodes:
        """The node of each worker where it will fit when the jobs there have ended; if that is to
        be in sight, those that are.

        Replicas do not end, so that nodes that they fill are no use. The node with most to give is
        chosen: what is kept there cannot become less, so that the choice stays and the wait ends.
        """
        self._this.index.settle_rooms()
        demand, shy = work.demand, None
        spares = self._this.index.fleet.spares.are_for(work)
        home = self._this.index.roster.home_of(work)
        if home is not None:
            found = self._at_home(demand, home, sight, spares)
            if found is not None or home.kin is None:
                return found or ()
            shy = out_of_reach(demand, home.kin)
        for node_id, workers in self._offers(demand, rank, shy, sight, spares):
            if workers >= demand.workers:
                return (node_id,) * demand.workers
        ranks = list[NodeId]()
        for node_id, workers in self._offers(demand, rank, shy, sight, spares):
            ranks.extend([node_id] * min(workers, demand.workers - len(ranks)))
            if len(ranks) == demand.workers:
                return tuple(ranks)
        return ()

    def _at_home(
        self, demand: Demand, home: Home, sight: Sight | None, spares: bool
    ) -> Nodes | None:
        found = self._capacity.fit_in_time(demand, home, spares=spares)
        if found is None or sight is None:
            return found
        rooms = self._this.index.fleet.rooms
        fits = all(
            self._workers(rooms[node_id], demand, sight) >= found.count(node_id)
            for node_id in dict.fromkeys(found)
        )
        return found if fits else None

    def _offers(
        self, demand: Demand, rank: int, shy: Shy | None, sight: Sight | None, spares: bool
    ) -> Iterator[tuple[NodeId, int]]:
        """How many workers nodes take once their jobs have ended; first those that have the most
        for the rank, whoever of the ranks behind it uses that meanwhile."""
        fleet = self._this.index.fleet
        for node_id in self._nodes(demand, rank, sight, spares):
            room = fleet.rooms[node_id]
            workers = 0 if shy is not None and shy(room) else self._workers(room, demand, sight)
            if workers:
                yield node_id, workers

    def _nodes(
        self, demand: Demand, rank: int, sight: Sight | None, spares: bool
    ) -> Iterator[NodeId]:
        """All, or some that may have the most in sight."""
        parts = self._this.index.fleet.suiting(demand, spares)
        measures = [gone(rank + 1), *([gone(rank)] if sight is not None and rank else ())]
        orders = [
            chain.from_iterable(nodes for _, nodes in falling(shelves, measure, 0))
            for measure, shelves in product(measures, parts)
        ]
        if sight is None:
            return chain(*orders)
        return iter(dict.fromkeys(chain(*(islice(order, NODES_TRIED) for order in orders))))

    def _workers(self, room: Room, demand: Demand, sight: Sight | None) -> int:
        if sight is None:
            return workers_in_time(room, demand)
        holds = self._this.index.fleet.works_on(room.node.id)
        leaving = (hold for hold in holds if self._leaves(hold, sight))
        return workers_with(room, demand, gone(sight.rank + 1), leaving)

    def _leaves(self, hold: Hold, sight: Sight) -> bool:
        """Whether it leaves in sight, besides what is leaving and what can be had to leave."""
        rank = self._this.index.roster.ranks[hold.work.id]
        if hold.there <= SOON or hold.lasting or rank < sight.rank:
            return False
        if rank > sight.rank and hold.there < MEASURES:
            return False
        return self._ends(hold.work, sight) or self._gives_way(hold.work, sight)

    def _ends(self, work: Work, sight: Sight) -> bool:
        """Whether it ends in sight, as far as can be seen: what nobody says the run time of goes on
        for as long as it has run."""
        if work.phase is not Phase.RUNNING:
            return True
        ends_at = Instant(2 * self._this.now - work.phase_since)
        if work.terms.estimate_ms is not None:
            ends_at = Instant(work.phase_since + work.terms.estimate_ms - progress_ms(work))
        return ends_at <= sight.until

    def _gives_way(self, work: Work, sight: Sight) -> bool:
        """Whether its devices may be taken, now or once it is on so high a level, in sight."""
        nodes, roster = self._this.index.fleet.nodes, self._this.index.roster
        level, above = roster.level_of(work.id), max(sight.rights.above, 1)
        taken = sight.rights.take(work.tenant_id, level)
        if not taken:
            if level >= above or roster.rises_at(work.id) > sight.until:
                return False
            if not sight.rights.take(work.tenant_id, above):
                return False
        if not gives_way(work, (nodes.get(slot.node_id) for slot in work.placement)):
            return False
        if taken:
            return True
        rises_at = reaches_at(work, above, self._this.now, self._this.policy)
        return rises_at is not None and rises_at <= sight.until
