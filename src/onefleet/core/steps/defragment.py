"""Makes one piece of what is free in pieces, by moving jobs, when the gain exceeds the cost.

What waits for more devices on a node than any has free, while enough are free in all, waits for
luck. Jobs of its rank or behind it may then move to other free devices, so that what they leave and
what is free beside them make one piece (`packing/defragment.py` searches for the cheapest way).
They lose nothing but the time of the move. That is worth while when the wait so far has cost as
much: who waits as long as the way out takes never pays more than twice (as in `index/homes.py`).

No more than the policy's `moves_max` move at once.
"""

from __future__ import annotations

from dataclasses import replace

from onefleet.core.index import NOW, Home, Room
from onefleet.core.index.asked import ask_of
from onefleet.core.index.homes import is_in_reach
from onefleet.core.packing.defragment import by_node, make_room
from onefleet.core.plan import Move, applied
from onefleet.core.scratch import Scratch
from onefleet.core.steps.moves import keep_place
from onefleet.core.steps.pieces import MOVES, decisions, order, packer_of, pieces, under_way
from onefleet.domain.work import WHOLE, Demand, Work

#: Nodes that are looked at, those with most free devices first: beyond, the search takes too long.
NODES_MAX = 512


def is_worth_a_search(this: Scratch, work: Work, home: Home | None) -> bool:
    """Whether moves could help it: it is not bound to nodes, and enough is free in pieces."""
    demand, bound = work.demand, home is not None and home.kin is None
    if bound or demand.pack > 1 or under_way(this) >= this.policy.moves_max:
        return False
    shelves = this.index.fleet.shelves.suiting(demand)
    free = sum(count * len(row) for shelf in shelves for count, row in shelf.by[NOW].items())
    return free >= demand.least or demand.milli < WHOLE


def defragment(this: Scratch, work: Work, rank: int, home: Home | None) -> int:
    """Decide the moves after which the work fits, if there are any that are worth their cost; how
    many. rank: of the waiting work; home: where it may go on."""
    moves = _found(this, work, rank, home)
    mark = this.index.mark()
    for move in moves:
        this.index.put(applied(this.works[move.work_id], move, this.now))
        keep_place(this, this.works[move.work_id])
    fits = bool(moves) and this.capacity.fit_soon(work.demand, home) is not None
    this.index.rollback(mark)
    return order(this, moves) if fits else 0


def _found(this: Scratch, work: Work, rank: int, home: Home | None) -> list[Move]:
    demand = work.demand
    rooms = _rooms(this, demand, home)
    movable = list(pieces(this, rooms, demand.kind, rank))
    if not movable:
        return []
    packer = packer_of(this, rooms, demand.kind)
    ask = replace(ask_of(demand), speeds=())
    gain = this.waited_ms(work) * demand.least * demand.milli // WHOLE
    found = make_room(packer, by_node(movable), ask, demand.workers, gain=gain)
    if found is None or len(found.moves) + under_way(this) > this.policy.moves_max:
        return []
    reason = f"{MOVES} {work.id} ({work.tier}) finds its devices in one piece"
    return decisions(this, found, reason, work.id)


def _rooms(this: Scratch, demand: Demand, home: Home | None) -> dict[str, Room]:
    """The nodes that are looked at, by id: those that could take the work."""
    shelves = this.index.fleet.shelves.suiting(demand)
    this.index.settle_rooms()
    names = [n for shelf in shelves for row in shelf.by[NOW].values() for n in row]
    rooms, kin = this.index.fleet.rooms, None if home is None else home.kin
    if kin is not None:
        names = [name for name in names if is_in_reach(rooms[name], kin, demand.kind)]
    names.sort(key=lambda name: (-rooms[name].kinds[demand.kind].counts[NOW], name))
    return {name: rooms[name] for name in names[:NODES_MAX]}
