"""Makes room for what is usually asked while nothing waits, by moving jobs, if the gain exceeds
the cost.

What is asked for next may find too little in one piece although enough is free. It would wait for
its patience, and then jobs would move for it (`defragment.py`). So they move before: the gain is
that wait, times how often such a shape is asked for among all that is on record. As soon as each
usual shape finds a place, nothing moves any more. Premium jobs are left where they are, and so are
those of which nobody knows how much memory they have: what their move costs is not known.

No more than the policy's `tidy_max` move at once, and none while others move already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import islice

from onefleet.core.index import NOW, Room
from onefleet.core.index.shelves import Shelf, falling, rising
from onefleet.core.ordering import BEHIND
from onefleet.core.packing import Ask
from onefleet.core.packing.defragment import by_node, make_room
from onefleet.core.scratch import Scratch
from onefleet.core.steps.moves import keep_place
from onefleet.core.steps.pieces import MOVES, decisions, packer_of, pieces, under_way
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import NodeId, WorkId
from onefleet.domain.work import WHOLE, Work

#: Nodes that are looked at: of those with most free, with least, and with devices held in part, as
#: many each.
NODES_MAX = 32
#: Shapes for which room is made, those whose lack would cost most.
SHAPES_MAX = 8


def tidy(this: Scratch, contended: Mapping[DeviceKind, Sequence[WorkId]]) -> None:
    """Decide such moves. contended: what waits for devices."""
    moved = 0
    this.index.settle_rooms()
    for kind in this.index.fleet.shelves.free if this.policy.tidy_max else ():
        if not contended.get(kind) and not under_way(this):
            moved += _tidy(this, kind)
    this.report("tidy", f"{moved} works move to make room for what is usually asked")


def _tidy(this: Scratch, kind: DeviceKind) -> int:
    rooms = _rooms(this, kind)
    packer = packer_of(this, rooms, kind)
    free = sum(sum(room.kinds[kind].now) for room in rooms.values())
    usual = ((ask, gain) for ask, gain in _usual(this, kind) if ask.size <= free)
    wanted = [(ask, gain) for ask, gain in usual if not packer.fits(ask)]
    known = (p for p in pieces(this, rooms, kind, BEHIND) if _is_known(this.works[WorkId(p.id)]))
    movable = by_node(known) if wanted else {}
    for ask, gain in wanted if movable else ():
        found = make_room(packer, movable, ask, gain=gain)
        if found is None or len(found.moves) > this.policy.tidy_max:
            continue
        reason = f"{MOVES} {ask.devices} free devices lie together"
        moves = decisions(this, found, reason, None)
        for move in moves:
            this.decide(move)
            keep_place(this, this.works[move.work_id])
        if moves:
            return len(moves)
    return 0


def _is_known(work: Work) -> bool:
    """Whether its owner, or a save of it, has told how much memory it has."""
    return work.image is not None or work.demand.memory_bytes > 0


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
    shelves = [s for s in this.index.fleet.shelves.everything().values() if s.bay.kind is kind]
    most = (node for _, nodes in falling(shelves, NOW, 1) for node in nodes)
    least = (node for _, nodes in rising(shelves, NOW, 1) for node in nodes)
    names = [name for row in (most, least, _shared(shelves)) for name in islice(row, NODES_MAX)]
    return {name: this.index.fleet.rooms[name] for name in sorted(set(names))}


def _shared(shelves: Sequence[Shelf]) -> Iterator[NodeId]:
    return (node for shelf in shelves for node in shelf.shared)
