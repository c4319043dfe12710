"""Elastic work that runs is made narrower or wider, on the nodes where it is, without a save.

Its owner's wish goes first; without one it is as wide as what is free allows while nobody waits
for such devices. The ranks of a gang are dealt to its sets of devices evenly: with fewer sets than
ranks they take turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onefleet.core.capacity import ranks_by_node
from onefleet.core.index.room import pick
from onefleet.core.plan import Resize
from onefleet.core.scratch import Scratch
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import DeviceId, NodeId, WorkId
from onefleet.domain.work import Slot, Work


def resize(this: Scratch, contended: Mapping[DeviceKind, Sequence[WorkId]]) -> None:
    """Bring running elastic works to the width that they shall have, as far as devices suffice."""
    this.index.settle()
    narrower, wider = 0, 0
    for work_id in sorted(this.index.roster.errands.to_resize):
        if work_id in this.touched:
            continue
        work = this.works[work_id]
        held = devices_of(work)
        wanted = work.demand.most if work.width is None else work.width
        if work.width is None and contended.get(work.demand.kind):
            continue
        placement = dealt(this, work, wanted)
        count = len({device for slot in placement for device in slot.devices})
        if count == len(held):
            continue
        told = f"{len(held)} devices become {count}"
        why = "its owner wants it so" if work.width is not None else "they are free"
        this.decide(Resize(work_id, placement, f"{told}: {why}"))
        narrower, wider = narrower + (count < len(held)), wider + (count > len(held))
        this.index.settle()
    this.report("resize", f"{narrower} works made narrower, {wider} wider, while they run")


def devices_of(work: Work) -> dict[DeviceId, NodeId]:
    """The devices that it holds, each once, in the order of its ranks."""
    return {device: slot.node_id for slot in work.placement for device in slot.devices}


def dealt(this: Scratch, work: Work, wanted: int) -> tuple[Slot, ...]:
    """Its placement on so many devices in all, or as many as there are; node by node."""
    by_node = ranks_by_node(slot.node_id for slot in work.placement)
    slots = list(work.placement)
    left, ranks_left = wanted, work.demand.workers
    for node_id, ranks in by_node.items():
        share = left * len(ranks) // ranks_left
        devices = _devices(this, work, node_id, share)
        for number, rank in enumerate(ranks):
            slots[rank] = replace(slots[rank], devices=_of(work, devices, number, len(ranks)))
        left, ranks_left = left - share, ranks_left - len(ranks)
    return tuple(slots)


def _devices(this: Scratch, work: Work, node_id: NodeId, wanted: int) -> list[DeviceId]:
    """So many of a node's devices: those that it has, then free ones; whole sets of them."""
    demand = work.demand
    own = [device for device, node in devices_of(work).items() if node == node_id]
    found = own[:wanted]
    room = this.index.fleet.rooms.get(node_id)
    if len(found) < wanted and room is not None and demand.kind in room.kinds:
        bay = room.kinds[demand.kind]
        found += pick(bay.bay, demand, wanted - len(found), bay.now)
    if demand.workers > 1:
        found = found[: len(found) // demand.devices_min * demand.devices_min]
    return found if len(found) >= demand.devices_min else own


def _of(work: Work, devices: list[DeviceId], number: int, ranks: int) -> tuple[DeviceId, ...]:
    """The devices of one of a node's ranks."""
    demand = work.demand
    if demand.workers == 1:
        return tuple(devices)
    sets = min(len(devices) // demand.devices_min, ranks)
    first = number * sets // ranks * demand.devices_min
    return tuple(devices[first : first + demand.devices_min])
