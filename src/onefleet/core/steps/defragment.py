"""Makes one piece of what is free in pieces, by moving jobs, when the gain exceeds the cost.

What waits for more devices on a node than any has free, while enough are free in all, waits for
luck. Jobs of its rank or behind it may then move to other free devices, so that what they leave and
what is free beside them make one piece (`packing/defragment.py` searches for the cheapest way).
They lose nothing but the time of the move. That is worth while when the wait so far has cost as
much: who waits as long as the way out takes never pays more than twice (as in `index/homes.py`).

A job is moved so at most once in the policy's `move_rest_ms`, and no more than `moves_max` at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from onefleet.core.feasibility import node_memory
from onefleet.core.index import NOW, Home, Room
from onefleet.core.index.asked import ask_of
from onefleet.core.index.homes import is_in_reach, kin_of
from onefleet.core.packing import Ask, Host, Packer, Spot
from onefleet.core.packing.defragment import Moves, Piece, by_node, make_room, move_cost
from onefleet.core.plan import Move, applied
from onefleet.core.scratch import Scratch
from onefleet.core.steps.moves import keep_place
from onefleet.domain.ids import NodeId, WorkId
from onefleet.domain.work import WHOLE, Demand, Work, WorkKind

#: Nodes that are looked at, those with most free devices first: beyond, the search takes too long.
NODES_MAX = 512


def is_worth_a_search(this: Scratch, work: Work, home: Home | None) -> bool:
    """Whether moves could help it: it may start anywhere, and enough is free in pieces."""
    demand = work.demand
    if home is not None or demand.pack > 1 or _under_way(this) >= this.policy.moves_max:
        return False
    shelves = this.index.fleet.shelves.suiting(demand)
    free = sum(count * len(row) for shelf in shelves for count, row in shelf.by[NOW].items())
    return free >= demand.least or demand.milli < WHOLE


def defragment(this: Scratch, work: Work, rank: int) -> int:
    """Decide the moves after which the work fits, if there are any that are worth their cost; how
    many. rank: of the waiting work."""
    moves = _found(this, work, rank)
    mark = this.index.mark()
    for move in moves:
        this.index.put(applied(this.works[move.work_id], move, this.now))
        keep_place(this, this.works[move.work_id])
    fits = bool(moves) and this.capacity.fit_soon(work.demand, None) is not None
    this.index.rollback(mark)
    if not fits:
        return 0
    for move in moves:
        this.decide(move)
        keep_place(this, this.works[move.work_id])
    return len(moves)


def _found(this: Scratch, work: Work, rank: int) -> list[Move]:
    demand = work.demand
    rooms = _rooms(this, demand)
    pieces = list(_pieces(this, rooms, demand, rank))
    if not pieces:
        return []
    packer = Packer(_host(room, demand) for room in rooms.values())
    ask = replace(ask_of(demand), speeds=())
    gain = this.waited_ms(work) * demand.least * demand.milli // WHOLE
    found = make_room(packer, by_node(pieces), ask, demand.workers, gain=gain)
    return [] if found is None else _moves(this, work, found)


def _under_way(this: Scratch) -> int:
    """How many jobs move already, for whatever reason."""
    return len(this.index.roster.errands.on_their_way)


def _rooms(this: Scratch, demand: Demand) -> dict[str, Room]:
    """The nodes that are looked at, by id."""
    shelves = this.index.fleet.shelves.suiting(demand)
    this.index.settle_rooms()
    names = [n for shelf in shelves for row in shelf.by[NOW].values() for n in row]
    rooms = this.index.fleet.rooms
    names.sort(key=lambda name: (-rooms[name].kinds[demand.kind].counts[NOW], name))
    return {name: rooms[name] for name in names[:NODES_MAX]}


def _host(room: Room, demand: Demand) -> Host:
    left = room.kinds[demand.kind]
    free = tuple(max(amount, 0) for amount in left.now)
    return Host(room.node.id, left.bay.product, 0, max(room.memory[NOW], 0), free)


def _pieces(this: Scratch, rooms: dict[str, Room], demand: Demand, rank: int) -> Iterator[Piece]:
    """The jobs that may be moved, with what that costs."""
    names = {
        hold.work.id: None for name in rooms for hold in this.index.fleet.works_on(NodeId(name))
    }
    for name in sorted(names):
        work = this.works[name]
        if work.demand.kind is demand.kind and _may_move(this, work, rank):
            spots = tuple(_spots(rooms, work))
            kin = kin_of(tuple(s.node_id for s in work.placement), this.index.fleet, demand.kind)
            if kin is None or len(spots) < work.demand.workers:
                continue
            products = (kin.product,) if kin.product else ()
            ask = replace(ask_of(work.demand), products=products, speeds=())
            yield Piece(work.id, ask, spots, _cost(this, work, ask))


def _may_move(this: Scratch, work: Work, rank: int) -> bool:
    roster = this.index.roster
    if work.kind is not WorkKind.JOB or work.id in this.touched or not roster.is_movable(work):
        return False
    if work.move_to or work.demand.pack > 1 or roster.ranks[work.id] < rank:
        return False
    least = all(len(slot.devices) == work.demand.devices_min for slot in work.placement)
    return least and this.now - work.phase_since >= this.policy.move_rest_ms


def _spots(rooms: dict[str, Room], work: Work) -> Iterator[Spot]:
    """Where its workers are, of those on nodes that are looked at and on devices in use."""
    for slot in work.placement:
        room = rooms.get(slot.node_id)
        at = {} if room is None else room.kinds[work.demand.kind].bay.at
        if all(device in at for device in slot.devices):
            yield Spot(slot.node_id, tuple(at[device] for device in slot.devices))


def _cost(this: Scratch, work: Work, ask: Ask) -> int:
    """Device-milliseconds: it is saved, its image goes over the network, and it is restored."""
    policy, image = this.policy, work.image
    state = max(0 if image is None else image.size_bytes, node_memory(work.demand))
    state *= work.demand.workers if image is None else 1
    slowest = min(policy.save_bytes_per_ms, policy.move_bytes_per_ms)
    fixed_ms = 2 * policy.save_fixed_ms + policy.move_fixed_ms
    return move_cost(ask, work.demand.workers, state, fixed_ms=fixed_ms, bytes_per_ms=slowest)


def _moves(this: Scratch, work: Work, found: Moves) -> list[Move]:
    """The search's moves as decisions; none if one of them could not be carried out."""
    if not found.moves or len(found.moves) + _under_way(this) > this.policy.moves_max:
        return []
    reason = f"moves so that {work.id} ({work.tier}) finds its devices in one piece"
    decided = [
        Move(WorkId(move.id), tuple(NodeId(spot.node) for spot in move.new), reason, work.id)
        for move in found.moves
    ]
    return decided if all(_is_possible(this, move.work_id, move.nodes) for move in decided) else []


def _is_possible(this: Scratch, work_id: WorkId, to: Sequence[NodeId]) -> bool:
    """Whether each of its workers can be brought back where it goes."""
    fleet, work = this.index.fleet, this.works[work_id]
    homes = tuple(slot.node_id for slot in work.placement)
    kin = kin_of(homes, fleet, work.demand.kind)
    for home, node_id in zip(homes, to, strict=True):
        room = fleet.rooms[node_id]
        if work.demand.zones and room.node.zone not in work.demand.zones:
            return False
        if home == node_id:
            continue
        if home not in fleet.open or kin is None or not is_in_reach(room, kin, work.demand.kind):
            return False
    return True
