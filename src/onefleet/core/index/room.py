"""What one node has left, and what it would have left if others gave way.

A `Room` follows from the node, the works on it and what is kept there for works that wait. What
comes and goes is taken from it and given back, which costs as much as that is large; a new record
of the node has it surveyed anew. That both come to the same is tested.

Seven measures matter of each node. NOW: what is free. SOON: what will be when those have left that
are leaving. And for each rank that may have to give way, last one first, what would be free if all
of it, and of the ranks behind it, had left as well: `gone(rank)`. What leaves is there in the
measures up to some one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from onefleet.core.feasibility import node_memory, suits
from onefleet.core.ordering import BASIC
from onefleet.domain.fleet import Device, DeviceKind, Node
from onefleet.domain.ids import DeviceId, NodeId
from onefleet.domain.work import WHOLE, Demand, Work

NOW, SOON = 0, 1
#: NOW, SOON, and gone(1) to gone(BASIC); what is reserved gives way to nobody.
MEASURES = 2 + BASIC

#: Kind, product, memory of a device, zone: nodes of one class can be looked at together. Devices
#: of a node that are not alike make a class of their own, with memory -1.
Class = tuple[str, str, int, str]


def gone(rank: int) -> int:
    """The measure of what would be free without this rank and all ranks behind it; behind the last
    there is none, which is SOON."""
    return 2 + BASIC - rank


class Hold(NamedTuple):
    """What one work has on one node. there: in how many measures it is there; lasting: a replica
    that stays."""

    work: Work
    devices: Mapping[DeviceId, int]  # with the thousandths that are held
    memory_bytes: int
    there: int
    lasting: bool


class Kept(NamedTuple):
    """Devices and memory that are kept for a work that waits. leaving: of those that are leaving,
    else of the free ones."""

    devices: tuple[DeviceId, ...]
    milli: int
    memory_bytes: int
    leaving: bool


class Bay:
    """The devices of one kind on a node, those without a cordon, by index."""

    __slots__ = ("at", "devices", "key", "kind", "mixed", "product")

    def __init__(self, node: Node, kind: DeviceKind, devices: Sequence[Device]) -> None:
        self.kind = kind
        self.devices = tuple(sorted(devices, key=lambda d: (d.index, d.id)))
        self.at = {device.id: index for index, device in enumerate(self.devices)}
        classes = dict.fromkeys(_class_of(device) for device in self.devices)
        self.mixed = len(classes) > 1
        self.product, size = ("", -1) if self.mixed else next(iter(classes))
        self.key: Class = (kind.value, self.product, size, node.zone)


@dataclass(slots=True)
class Left:
    """What is left of a bay. rows: thousandths of each device, by measure. counts: whole devices,
    by measure. shared: devices that are held in part. stays: by device, the replicas on it that
    stay."""

    bay: Bay
    rows: list[list[int]]
    counts: list[int]
    shared: int
    stays: dict[int, int]

    @classmethod
    def all_of(cls, bay: Bay) -> Left:
        """An empty bay."""
        size = len(bay.devices)
        return cls(bay, [[WHOLE] * size for _ in range(MEASURES)], [size] * MEASURES, 0, {})

    @property
    def now(self) -> list[int]:
        """Thousandths of each device that are free."""
        return self.rows[NOW]

    @property
    def soon(self) -> list[int]:
        """Thousandths of each device that are free once those have left that are leaving."""
        return self.rows[SOON]

    @property
    def lasting(self) -> int:
        """Devices that replicas hold which stay."""
        return len(self.stays)

    def take(self, index: int, milli: int, first: int, end: int) -> None:
        """Take something of a device in the measures from first up to end; less than 0: give."""
        for measure in range(first, end):
            row = self.rows[measure]
            before = row[index]
            after = row[index] = before - milli
            self.counts[measure] += (after >= WHOLE) - (before >= WHOLE)
            if measure == NOW:
                self.shared += (0 < after < WHOLE) - (0 < before < WHOLE)

    def stay(self, index: int, count: int) -> None:
        """So many more replicas stay on a device."""
        left = self.stays.pop(index, 0) + count
        if left:
            self.stays[index] = left


class Shelved(NamedTuple):
    """What of a bay decides where its node stands on its shelf. counts: whole devices that are
    left, by measure; shared: a device is held in part; stirs: something there is leaving."""

    bay: Bay
    counts: tuple[int, ...]
    shared: bool
    stirs: bool


class Room:
    """What a node has left. memory: bytes, by measure."""

    def __init__(self, node: Node, bays: Iterable[Bay]) -> None:
        self.node = node
        self.kinds = {bay.kind: Left.all_of(bay) for bay in bays}
        self.memory = [node.memory_bytes] * MEASURES
        self._leaving = 0
        self._at = {
            device_id: (left, index)
            for left in self.kinds.values()
            for device_id, index in left.bay.at.items()
        }

    @property
    def stirs(self) -> bool:
        """Whether something there is leaving."""
        return self._leaving > 0

    def shelved(self) -> tuple[Shelved, ...]:
        """What its shelves have to know."""
        return tuple(
            Shelved(left.bay, tuple(left.counts), left.shared > 0, self.stirs)
            for left in self.kinds.values()
        )

    def hold(self, hold: Hold, sign: int = 1) -> None:
        """A work came, or left (sign -1)."""
        self._leaving += sign * (hold.there == SOON)
        for measure in range(hold.there):
            self.memory[measure] -= sign * hold.memory_bytes
        for device_id, milli in hold.devices.items():
            found = self._at.get(device_id)
            if found is None:
                continue  # it has a cordon
            left, index = found
            left.take(index, sign * milli, NOW, hold.there)
            if hold.lasting:
                left.stay(index, sign)

    def keep(self, kept: Kept, sign: int = 1) -> None:
        """Something is kept, or not any more (sign -1)."""
        first = SOON if kept.leaving else NOW
        for measure in range(first, MEASURES):
            self.memory[measure] -= sign * kept.memory_bytes
        for device_id in kept.devices:
            left, index = self._at[device_id]
            left.take(index, sign * kept.milli, first, MEASURES)


def bays_of(node: Node) -> tuple[Bay, ...]:
    """The bays of a node, which stay the same as long as its record does."""
    cordoned = dict.fromkeys(cordon.device_id for cordon in node.cordons)
    by_kind: dict[DeviceKind, list[Device]] = {}
    for device in node.devices:
        if device.id not in cordoned:
            by_kind.setdefault(device.kind, []).append(device)
    return tuple(Bay(node, kind, by_kind[kind]) for kind in sorted(by_kind))


def survey(node: Node, bays: Iterable[Bay], holds: Iterable[Hold], kept: Iterable[Kept]) -> Room:
    """Look at a node anew."""
    room = Room(node, bays)
    for hold in holds:
        room.hold(hold)
    for keep in kept:
        room.keep(keep)
    return room


def workers_on(room: Room, demand: Demand, measure: int) -> int:
    """How many workers of the demand the node takes, by this measure.

    Beyond SOON at most that many, where devices differ or are shared.
    """
    left = room.kinds.get(demand.kind)
    if left is None:
        return 0
    if measure <= SOON and (demand.milli < WHOLE or left.bay.mixed):
        fitting = _fitting(left.bay, demand, left.now if measure == NOW else left.soon)
    elif left.bay.mixed or suits(left.bay.devices[0], demand):
        fitting = left.counts[measure]
    else:
        return 0
    return _with_memory(demand, fitting, room.memory[measure])


def workers_in_time(room: Room, demand: Demand) -> int:
    """How many workers the node takes once the jobs there have ended; replicas do not end."""
    left = room.kinds.get(demand.kind)
    if left is None:
        return 0
    suiting = _fitting(left.bay, demand, [WHOLE] * len(left.bay.devices))
    return _with_memory(demand, max(suiting - left.lasting, 0), room.node.memory_bytes)


def workers_with(room: Room, demand: Demand, measure: int, leaving: Iterable[Hold]) -> int:
    """How many workers the node takes by a measure when these have left besides; no more of them
    are looked at than are needed for all workers."""
    left = room.kinds.get(demand.kind)
    if left is None:
        return 0
    row, memory, count = list(left.rows[measure]), room.memory[measure], left.counts[measure]
    for hold in leaving:
        memory += hold.memory_bytes
        for device_id, milli in hold.devices.items():
            index = left.bay.at.get(device_id)
            if index is not None:
                row[index] += milli
                count += 1
        if count >= demand.least:
            workers = _with_memory(demand, _fitting(left.bay, demand, row), memory)
            if workers >= demand.workers:
                return workers
    return _with_memory(demand, _fitting(left.bay, demand, row), memory)


def workers_at_least(demand: Demand, devices: int) -> int:
    """How many workers so many devices take."""
    return devices // demand.devices_min * demand.pack


def pick(bay: Bay, demand: Demand, count: int, row: Sequence[int]) -> list[DeviceId]:
    """The first devices that suit and have enough left in the row, at most `count`.

    A share goes to the device where it fits most tightly.
    """
    devices = bay.devices
    if not bay.mixed and not suits(devices[0], demand):
        return []
    if demand.milli == WHOLE and not bay.mixed:
        return [devices[index].id for index in islice(_free(row), count)]
    found = (
        (amount, index)
        for index, amount in enumerate(row)
        if amount >= demand.milli and (not bay.mixed or suits(devices[index], demand))
    )
    chosen = islice(found if demand.milli == WHOLE else sorted(found), count)
    return [devices[index].id for _, index in chosen]


def _free(row: Sequence[int]) -> Iterator[int]:
    """The indexes of whole devices; faster than looking at each, of thousands."""
    at = -1
    with suppress(ValueError):
        while True:
            at = row.index(WHOLE, at + 1)
            yield at


def amounts(left: Left, demand: Demand) -> dict[int, int]:
    """The different amounts of which a share can be taken now, each with the first such device."""
    bay, found = left.bay, dict[int, int]()
    if not bay.mixed and not suits(bay.devices[0], demand):
        return found
    for index, amount in enumerate(left.now):
        if amount >= demand.milli and (not bay.mixed or suits(bay.devices[index], demand)):
            found.setdefault(amount, index)
    return found


def _fitting(bay: Bay, demand: Demand, row: Sequence[int]) -> int:
    """How many devices suit and have enough left."""
    if not bay.mixed:
        if not suits(bay.devices[0], demand):
            return 0
        return sum(1 for amount in row if amount >= demand.milli)
    return sum(
        1
        for index, amount in enumerate(row)
        if amount >= demand.milli and suits(bay.devices[index], demand)
    )


def _with_memory(demand: Demand, devices: int, memory_bytes: int) -> int:
    workers = workers_at_least(demand, devices)
    needed = node_memory(demand)
    return min(workers, max(memory_bytes, 0) // needed) if needed else workers


def _class_of(device: Device) -> tuple[str, int]:
    """CPU cores share their node's memory, so that their part of it makes no difference."""
    return (device.product, 0 if device.kind is DeviceKind.CPU else device.memory_bytes)


Rooms = dict[NodeId, Room]
