"""What nodes and the jobs on them are to a search for moves (`packing/defragment.py`), and its
moves as decisions.

A job is moved so at most once in the policy's `move_rest_ms`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from onefleet.core.index import NOW, Room
from onefleet.core.index.asked import ask_of
from onefleet.core.index.homes import is_in_reach, kin_of
from onefleet.core.packing import Ask, Host, Packer, Spot
from onefleet.core.packing.defragment import Moves, Piece, move_cost
from onefleet.core.plan import Move
from onefleet.core.scratch import Scratch
from onefleet.core.steps.moves import keep_place
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import NodeId, WorkId
from onefleet.domain.work import Work, WorkKind

#: How the reason of each such move begins.
MOVES = "moves so that"


def packer_of(this: Scratch, rooms: Mapping[str, Room], kind: DeviceKind) -> Packer:
    """What is free on these nodes, measured by what is asked of the fleet."""
    hosts = (_host(room, kind) for room in rooms.values())
    return Packer(hosts, worth=this.index.worth(kind))


def _host(room: Room, kind: DeviceKind) -> Host:
    left = room.kinds[kind]
    free = tuple(max(amount, 0) for amount in left.now)
    return Host(room.node.id, left.bay.product, 0, max(room.memory[NOW], 0), free)


def pieces(
    this: Scratch, rooms: Mapping[str, Room], kind: DeviceKind, rank: int
) -> Iterator[Piece]:
    """The jobs there that may be moved, of this rank and behind it, with what that costs."""
    names = {
        hold.work.id: None for name in rooms for hold in this.index.fleet.works_on(NodeId(name))
    }
    for name in sorted(names):
        work = this.works[name]
        if work.demand.kind is kind and _may_move(this, work, rank):
            spots = tuple(_spots(rooms, work))
            kin = kin_of(tuple(s.node_id for s in work.placement), this.index.fleet, kind)
            if kin is None or len(spots) < work.demand.workers:
                continue
            products = (kin.product,) if kin.product else _no_slower(this, work)
            ask = replace(ask_of(work.demand), products=products, speeds=())
            yield Piece(work.id, ask, spots, _cost(this, work, ask))


def _no_slower(this: Scratch, work: Work) -> tuple[str, ...]:
    """The classes on which it is as fast as where it is; empty: any."""
    of = this.index.fleet.products
    here = {of[slot.node_id].get(work.demand.kind, "") for slot in work.placement}
    speeds = {speed.product: speed.permille for speed in work.demand.speeds}
    least = max((speeds.get(product, 0) for product in here), default=0)
    return tuple(product for product, permille in speeds.items() if permille >= least)


def _may_move(this: Scratch, work: Work, rank: int) -> bool:
    roster = this.index.roster
    if work.kind is not WorkKind.JOB or work.id in this.touched or not roster.is_movable(work):
        return False
    if work.saves_failed or work.move_to or work.demand.pack > 1 or roster.ranks[work.id] < rank:
        return False
    least = all(len(slot.devices) == work.demand.devices_min for slot in work.placement)
    return least and this.now - work.phase_since >= this.policy.move_rest_ms


def _spots(rooms: Mapping[str, Room], work: Work) -> Iterator[Spot]:
    """Where its workers are, of those on nodes that are looked at and on devices in use."""
    for slot in work.placement:
        room = rooms.get(slot.node_id)
        at = {} if room is None else room.kinds[work.demand.kind].bay.at
        if all(device in at for device in slot.devices):
            yield Spot(slot.node_id, tuple(at[device] for device in slot.devices))


def _cost(this: Scratch, work: Work, ask: Ask) -> int:
    """Device-milliseconds: it is saved, its image goes over the network, and it is restored."""
    policy, image = this.policy, work.image
    told = work.demand.memory_bytes * work.demand.workers
    state = max(0 if image is None else image.size_bytes, told)
    slowest = min(policy.save_bytes_per_ms, policy.move_bytes_per_ms)
    fixed_ms = 2 * policy.save_fixed_ms + policy.move_fixed_ms
    return move_cost(ask, work.demand.workers, state, fixed_ms=fixed_ms, bytes_per_ms=slowest)


def under_way(this: Scratch) -> int:
    """How many jobs move already, for whatever reason, until they are back."""
    return len(this.index.roster.errands.moving)


def decisions(this: Scratch, found: Moves, reason: str, for_work: WorkId | None) -> list[Move]:
    """The search's moves as decisions; none if one of them could not be carried out."""
    decided = [
        Move(WorkId(move.id), tuple(NodeId(spot.node) for spot in move.new), reason, for_work)
        for move in found.moves
    ]
    return decided if all(_is_possible(this, move.work_id, move.nodes) for move in decided) else []


def order(this: Scratch, moves: Sequence[Move]) -> int:
    """Decide the moves, each of which has its place kept from now on; how many they are."""
    for move in moves:
        this.decide(move)
        keep_place(this, this.works[move.work_id])
    return len(moves)


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
