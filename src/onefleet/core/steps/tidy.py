"""Makes room for what is usually asked while nothing waits, by moving jobs, if the gain exceeds
the cost.

What is asked for next may find too little in one piece although enough is free. It would wait for
its patience, and then jobs would move for it (`defragment.py`). So they move before: the gain is
that wait, times how often such a shape is asked for among all that is on record. As soon as each
usual shape finds a place, or would take it from another, nothing moves any more. Premium jobs and
those below their promise are left where they are, and so are those of which nobody knows how much
memory they have: what their move costs is not known.

No more than the policy's `tidy_max` move at once, and none while others move already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import islice

from onefleet.core.index import NOW, Room
from onefleet.core.index.shelves import Shelf, falling, rising
from onefleet.core.ordering import STANDARD, URGENT
from onefleet.core.packing import Ask, Packer
from onefleet.core.packing.defragment import Moves, by_node, make_room
from onefleet.core.scratch import Scratch
from onefleet.core.steps.pieces import MOVES, decisions, order, packer_of, pieces, under_way
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import NodeId, WorkId
from onefleet.domain.work import WHOLE

#: Nodes that are looked at: of those with most free, with least, and with devices held in part, as
#: many each.
NODES_MAX = 32
#: Shapes that are looked at, those whose lack would cost most; those for which moves are searched,
#: and nodes on which they are, in one pass.
SHAPES_MAX = 8
SHAPES_TRIED = 2
NODES_TRIED = (4, 2)


def tidy(this: Scratch, contended: Mapping[DeviceKind, Sequence[WorkId]]) -> None:
    """Decide such moves. contended: what waits for devices."""
    moved = 0
    this.index.settle_rooms()
    for kind in sorted(this.index.fleet.shelves.free) if this.policy.tidy_max else ():
        if not contended.get(kind) and not under_way(this):
            moved += _tidy(this, kind)
    this.report("tidy", f"{moved} works move to make room for what is usually asked")


def _tidy(this: Scratch, kind: DeviceKind) -> int:
    rooms = _rooms(this, kind)
    if len(rooms) < 2:
        return 0
    packer = packer_of(this, rooms, kind)
    free = sum(sum(room.kinds[kind].now) for room in rooms.values())
    usual = _usual(this, kind)
    fitting = [(ask, gain) for ask, gain in usual if packer.fits(ask)]
    wanted = [one for one in usual if one[0].size <= free and one not in fitting][:SHAPES_TRIED]
    known = (p for p in pieces(this, rooms, kind, STANDARD) if _may_move(this, WorkId(p.id)))
    movable = by_node(known) if wanted else {}
    for ask, gain in wanted if movable else ():
        found = make_room(packer, movable, ask, gain=gain, nodes_tried=NODES_TRIED)
        if found is None or len(found.moves) > this.policy.tidy_max:
            continue
        if found.cost + _lost(packer, found, fitting) >= gain:
            continue
        reason = f"{MOVES} {ask.devices} free devices lie together"
        moves = decisions(this, found, reason, None)
        if moves:
            return order(this, moves)
    return 0


def _lost(packer: Packer, found: Moves, fitting: Sequence[tuple[Ask, int]]) -> int:
    """What it costs that, after the moves, some shapes fit no more that did."""
    for move in found.moves:
        for old, new in zip(move.old, move.new, strict=True):
            packer.take(move.ask, new)
            packer.give_back(move.ask, old)
    lost = sum(gain for ask, gain in fitting if not packer.fits(ask))
    for move in reversed(found.moves):
        for old, new in zip(move.old, move.new, strict=True):
            packer.take(move.ask, old)
            packer.give_back(move.ask, new)
    return lost


def _may_move(this: Scratch, work_id: WorkId) -> bool:
    """Whether its owner, or a save of it, has told how much memory it has; and it has time."""
    work, in_haste = this.works[work_id], this.index.roster.level_of(work_id) == URGENT
    return not in_haste and (work.image is not None or work.demand.memory_bytes > 0)


def _usual(this: Scratch, kind: DeviceKind) -> list[tuple[Ask, int]]:
    """What is asked of a node, and in device-milliseconds what the next work would lose on the
    mean if there were no room for that; the most first."""
    counts = this.index.worth(kind).counts
    total = sum(counts.values())
    lost = [
        (ask, this.policy.patience_ms * ask.size * count // (WHOLE * total))
        for ask, count in counts.items()
    ]
    return sorted(lost, key=lambda one: (-one[1], astuple(one[0])))[:SHAPES_MAX]


def _rooms(this: Scratch, kind: DeviceKind) -> dict[str, Room]:
    """The nodes that are looked at, by id."""
    everything = sorted(this.index.fleet.shelves.everything().items())
    shelves = [shelf for _, shelf in everything if shelf.bay.kind is kind]
    most = (node for _, nodes in falling(shelves, NOW, 1) for node in nodes)
    least = (node for _, nodes in rising(shelves, NOW, 1) for node in nodes)
    names = [name for row in (most, least, _shared(shelves)) for name in islice(row, NODES_MAX)]
    return {name: this.index.fleet.rooms[name] for name in sorted(set(names))}


def _shared(shelves: Sequence[Shelf]) -> Iterator[NodeId]:
    return (node for shelf in shelves for node in shelf.shared)
