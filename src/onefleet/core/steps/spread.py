"""A gang that its owner scaled, and that has not its width on its own nodes, moves to others.

`resize.py` deals its workers to more or fewer of its nodes' devices as it runs, at least one set of
them a node. Where that is too few or too many, workers move: to nodes with free devices, or from
nodes that it gives up, while nobody waits for such devices. Without a wish of its owner it stays:
what it has on a node can be lent at once, and another node only after a save.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice

from onefleet.core.capacity import Nodes, ranks_by_node
from onefleet.core.feasibility import node_memory
from onefleet.core.index import NOW
from onefleet.core.index.homes import is_in_reach, kin_of
from onefleet.core.index.room import workers_on
from onefleet.core.index.shelves import falling
from onefleet.core.ordering import is_saved_from_outside
from onefleet.core.plan import Move
from onefleet.core.scratch import Scratch
from onefleet.core.steps.moves import keep_place
from onefleet.core.steps.resize import devices_of
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import NodeId, WorkId
from onefleet.domain.work import Work

#: Other nodes that are looked at, those with most free devices first.
NODES_TRIED = 64


def spread(this: Scratch, contended: Mapping[DeviceKind, Sequence[WorkId]]) -> None:
    """Decide such moves. contended: what waits for devices."""
    moved = 0
    for work_id in sorted(this.index.roster.errands.to_resize):
        work = this.works[work_id]
        if work.width is None or contended.get(work.demand.kind) or not _may_move(this, work):
            continue
        this.index.settle_rooms()
        nodes = _target(this, work, work.width // work.demand.devices_min)
        if nodes:
            reason = f"moves to have {work.width} devices: its owner wants it so"
            this.decide(Move(work_id, nodes, reason))
            keep_place(this, this.works[work_id])
            moved += 1
    this.report("spread", f"{moved} gangs move to have the width that their owners want")


def _may_move(this: Scratch, work: Work) -> bool:
    if work.demand.pack == 1 or work.id in this.touched or work.saves_failed or work.move_to:
        return False
    nodes = (this.index.fleet.nodes.get(slot.node_id) for slot in work.placement)
    return this.index.roster.is_movable(work) and is_saved_from_outside(nodes)


def _target(this: Scratch, work: Work, wanted: int) -> Nodes:
    """The node of each rank with so many sets of devices in all; empty: there are not so many."""
    each = work.demand.devices_min
    sets: dict[NodeId, int] = {}
    for node_id, there in chain(_own(this, work), _others(this, work)):
        if wanted > 0:
            sets[node_id] = min(there, wanted)
            wanted -= sets[node_id]
    if wanted or sum(sets.values()) * each == len(devices_of(work)):
        return ()
    nodes = _dealt(work, sets)
    return nodes if all(_suffices(this, work, nodes, node_id) for node_id in sets) else ()


def _own(this: Scratch, work: Work) -> Iterator[tuple[NodeId, int]]:
    """Its own nodes, those with most of its workers first, and the sets that it can have there."""
    ranks, held = _ranks(work), list(devices_of(work).values())
    for node_id in sorted(ranks, key=lambda node_id: (-len(ranks[node_id]), node_id)):
        free = _free(this, work, node_id)
        yield node_id, held.count(node_id) // work.demand.devices_min + free


def _others(this: Scratch, work: Work) -> Iterator[tuple[NodeId, int]]:
    """Other nodes that can bring its workers back, and the sets that are free there."""
    fleet, kind, own = this.index.fleet, work.demand.kind, _ranks(work)
    kin = kin_of(tuple(own), fleet, kind)
    if kin is None or not all(node_id in fleet.open for node_id in own):
        return
    rows = (nodes for _, nodes in falling(fleet.shelves.suiting(work.demand), NOW, 1))
    for node_id in islice(chain.from_iterable(rows), NODES_TRIED):
        if node_id not in own and is_in_reach(fleet.rooms[node_id], kin, kind):
            free = _free(this, work, node_id)
            if free:
                yield node_id, free


def _free(this: Scratch, work: Work, node_id: NodeId) -> int:
    room = this.index.fleet.rooms.get(node_id)
    return 0 if room is None else workers_on(room, replace(work.demand, pack=1), NOW)


def _ranks(work: Work) -> dict[NodeId, list[int]]:
    return ranks_by_node(slot.node_id for slot in work.placement)


def _dealt(work: Work, sets: Mapping[NodeId, int]) -> Nodes:
    """Its ranks dealt to the nodes by their sets; as many as can be stay where they are."""
    ranks, nodes = _ranks(work), [slot.node_id for slot in work.placement]
    left, sets_left = work.demand.workers, sum(sets.values())
    counts: dict[NodeId, int] = {}
    for node_id, there in sets.items():
        counts[node_id] = left * there // sets_left
        left, sets_left = left - counts[node_id], sets_left - there
    going = [rank for of, row in ranks.items() for rank in row[counts.get(of, 0) :]]
    for node_id, count in counts.items():
        for _ in range(count - len(ranks.get(node_id, ()))):
            nodes[going.pop()] = node_id
    return tuple(nodes)


def _suffices(this: Scratch, work: Work, nodes: Nodes, node_id: NodeId) -> bool:
    """Whether the node has the memory for the workers that come."""
    come = nodes.count(node_id) - len(_ranks(work).get(node_id, ()))
    room = this.index.fleet.rooms.get(node_id)
    return come <= 0 or (room is not None and come * node_memory(work.demand) <= room.memory[NOW])
