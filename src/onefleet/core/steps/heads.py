"""What is kept for the heads of the queue, and who may borrow it meanwhile.

The first of a rank that got nothing is the head of its rank. Devices are kept for it until it has
all that it needs. What gives them back on demand may use them until then, because the head ranks
before it and takes them: jobs of lower ranks that can be suspended. Of its own rank nothing may
after the head's patience, or it would never get them. But while works of higher ranks stand in its
way it gains nothing by that, and its own rank may pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from onefleet.core.capacity import Capacity, Nodes, Shy, out_of_reach
from onefleet.core.index import SOON, Hold, Home, Kept, Room, gone
from onefleet.core.index.room import workers_beside, workers_in_time
from onefleet.core.index.shelves import falling
from onefleet.core.scratch import Scratch
from onefleet.domain.fleet import CheckpointMode
from onefleet.domain.ids import NodeId
from onefleet.domain.work import Demand, Work

#: Nodes that are looked at for a head's devices beside works of higher ranks.
NODES_TRIED = 256


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

    def keep(self, work: Work, rank: int, *, late: bool) -> bool:
        """Keep devices for the head of a rank. late: from its own rank as well, if that helps it.
        Whether any are."""
        self.set(opened=False)
        firm = self._target(work, rank) if late else ()
        target = firm or self._target(work, None)
        kept = self._capacity.keep(work.demand, target, rank) if target else []
        self._firm += [one for one in kept if firm or not self._is_given_back(one[0])]
        self._lent += [one for one in kept if not firm and self._is_given_back(one[0])]
        return bool(target)

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

    def _target(self, work: Work, rank: int | None) -> Nodes:
        """The node of each worker where it will fit when the jobs there have ended; if a rank is
        given, while works of higher ranks are still there.

        Replicas do not end, so that nodes that they fill are no use. The node with most to give is
        chosen: what is kept there cannot become less, so that the choice stays and the wait ends.
        """
        self._this.index.settle_rooms()
        demand, shy = work.demand, None
        home = self._this.index.roster.home_of(work)
        if home is not None:
            found = self._at_home(demand, home, rank)
            if found is not None or home.kin is None:
                return found or ()
            shy = out_of_reach(demand, home.kin)
        for node_id, workers in self._offers(demand, shy, rank):
            if workers >= demand.workers:
                return (node_id,) * demand.workers
        ranks = list[NodeId]()
        for node_id, workers in self._offers(demand, shy, rank):
            ranks.extend([node_id] * min(workers, demand.workers - len(ranks)))
            if len(ranks) == demand.workers:
                return tuple(ranks)
        return ()

    def _at_home(self, demand: Demand, home: Home, rank: int | None) -> Nodes | None:
        found = self._capacity.fit_in_time(demand, home)
        if found is None or rank is None:
            return found
        rooms = self._this.index.fleet.rooms
        fits = all(
            self._workers(rooms[node_id], demand, rank) >= found.count(node_id)
            for node_id in dict.fromkeys(found)
        )
        return found if fits else None

    def _offers(
        self, demand: Demand, shy: Shy | None, rank: int | None
    ) -> Iterator[tuple[NodeId, int]]:
        """How many workers nodes take once their jobs have ended; most to give soon first."""
        fleet = self._this.index.fleet
        for node_id in self._nodes(demand, rank):
            room = fleet.rooms[node_id]
            workers = 0 if shy is not None and shy(room) else self._workers(room, demand, rank)
            if workers:
                yield node_id, workers

    def _nodes(self, demand: Demand, rank: int | None) -> Iterator[NodeId]:
        """If a rank is given, those that may have the most without it, and no more than so many."""
        shelves = self._this.index.fleet.shelves.suiting(demand)
        if not rank:
            yield from chain.from_iterable(nodes for _, nodes in falling(shelves, SOON, 0))
            return
        first = falling(shelves, SOON, 0)
        then = falling(shelves, gone(rank), 0)
        found = [
            islice(chain.from_iterable(nodes for _, nodes in order), NODES_TRIED)
            for order in (first, then)
        ]
        yield from dict.fromkeys(chain(*found))

    def _workers(self, room: Room, demand: Demand, rank: int | None) -> int:
        if not rank:
            return workers_in_time(room, demand)
        staying = [h for h in self._this.index.fleet.works_on(room.node.id) if self._stays(h, rank)]
        return workers_beside(room, demand, staying)

    def _stays(self, hold: Hold, rank: int) -> bool:
        """Whether it will be there still when works of a rank and behind it have ended."""
        ranks = self._this.index.roster.ranks
        return hold.lasting or (hold.there > SOON and ranks[hold.work.id] < rank)
