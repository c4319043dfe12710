"""What is free while a plan is being made: the planner's scratch copy of the fleet.

Three kinds of devices matter on a usable node: *free* ones, *leaving* ones (their holder is being
saved or stopped, or was just chosen to be), and those held on. A waiting work that free devices
alone do not satisfy gets free and leaving ones *kept* for it: they vanish from here, so that
nothing later in the queue takes them. All of it is derived anew in each pass; nothing is
remembered between passes.

The placement rules: a gang lies on one node where it can, the fullest one that takes it (best
fit); else on as few nodes as possible. Work with an image goes where the image lies, rank by rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onefleet.core.feasibility import suits
from onefleet.core.snapshot import Snapshot, usable
from onefleet.domain.fleet import Device, DeviceKind, Node
from onefleet.domain.ids import DeviceId, Instant, NodeId
from onefleet.domain.work import Demand, Phase, Slot, Work

#: Phases in which what is held comes free soon.
LEAVING = (Phase.SAVING, Phase.STOPPING)

Extra = Mapping[NodeId, tuple[int, int]]  # node -> devices and memory that would come free, too
NO_EXTRA: Extra = {}


@dataclass(slots=True)
class Room:
    """The devices of one node that nobody keeps, and its memory. free is ordered by index."""

    node: Node
    free: dict[DeviceKind, list[Device]] = field(default_factory=dict)
    leaving: dict[DeviceKind, list[Device]] = field(default_factory=dict)
    memory_free: int = 0
    memory_leaving: int = 0

    def count(self, kind: DeviceKind) -> int:
        return len(self.free.get(kind, ()))

    def count_soon(self, kind: DeviceKind) -> int:
        return self.count(kind) + len(self.leaving.get(kind, ()))


class Capacity:
    """Free and leaving devices by node. Changed only by `take`, `keep`, `free_soon`, `widen`."""

    def __init__(self, snapshot: Snapshot, now: Instant) -> None:
        self.rooms: dict[NodeId, Room] = {}
        held: dict[DeviceId, bool] = {}
        memory: dict[NodeId, list[int]] = {}
        for work in snapshot.works.values():
            leaving = work.phase in LEAVING
            for slot in work.placement:
                sums = memory.setdefault(slot.node_id, [0, 0])
                sums[leaving] += node_memory(work.demand)
                for device_id in slot.devices:
                    held[device_id] = leaving
        for node in snapshot.nodes.values():
            if usable(node, now):
                self.rooms[node.id] = _room(node, held, memory.get(node.id, [0, 0]))

    def free_count(self, kind: DeviceKind) -> int:
        """Devices of a kind that are free and kept for nobody."""
        return sum(room.count(kind) for room in self.rooms.values())

    def workers_on(
        self, node_id: NodeId, demand: Demand, *, soon: bool, extra: Extra = NO_EXTRA
    ) -> int:
        """How many workers fit on the node now (soon: when what is leaving has left)."""
        room = self.rooms.get(node_id)
        if room is None:
            return 0
        more, more_memory = extra.get(node_id, (0, 0))
        memory = room.memory_free + more_memory
        if soon:
            memory += room.memory_leaving
        if picky(demand):
            devices = [*room.free.get(demand.kind, ())]
            devices += room.leaving.get(demand.kind, ()) if soon else ()
            count = sum(1 for device in devices if suits(device, demand))
        else:
            count = room.count_soon(demand.kind) if soon else room.count(demand.kind)
        workers = (count + more) // max(demand.devices_min, 1)
        needed = node_memory(demand)
        return min(workers, max(memory, 0) // needed) if needed else workers

    def suiting(self, slot: Slot, demand: Demand) -> int:
        """How many of the slot's devices would suit the demand; 0 on a node that is not usable."""
        room = self.rooms.get(slot.node_id)
        if room is None:
            return 0
        if not picky(demand):
            return len(slot.devices)
        named = {device.id: device for device in room.node.devices}
        return sum(1 for device_id in slot.devices if suits(named[device_id], demand))

    def fit(
        self,
        demand: Demand,
        image_nodes: Sequence[NodeId] | None,
        *,
        soon: bool = False,
        avoid: Sequence[NodeId] = (),
    ) -> tuple[NodeId, ...] | None:
        """The node of each rank, or None when it does not fit whole (on other nodes than avoid)."""
        if image_nodes is not None:
            for node_id, count in _counts(image_nodes).items():
                if self.workers_on(node_id, demand, soon=soon) < count:
                    return None
            return tuple(image_nodes)
        return self.spread(demand, soon=soon, avoid=avoid)

    def spread(
        self,
        demand: Demand,
        *,
        soon: bool,
        extra: Extra = NO_EXTRA,
        avoid: Sequence[NodeId] = (),
    ) -> tuple[NodeId, ...] | None:
        """Like `fit` for work without an image."""
        kind, whole = demand.kind, demand.workers * demand.devices_min
        takes: list[tuple[int, int, int, NodeId]] = []
        best: tuple[int, int, NodeId] | None = None
        for node_id, room in self.rooms.items():
            if node_id in avoid:
                continue
            workers = self.workers_on(node_id, demand, soon=soon, extra=extra)
            if workers == 0:
                continue
            missing = max(whole - room.count(kind), 0)
            key = (missing, room.count_soon(kind) if soon else room.count(kind), node_id)
            if workers >= demand.workers and (best is None or key < best):
                best = key
            takes.append((-workers, *key))
        if best is not None:
            return (best[-1],) * demand.workers
        ranks: list[NodeId] = []
        for negative, _, _, node_id in sorted(takes):
            ranks.extend([node_id] * min(-negative, demand.workers - len(ranks)))
            if len(ranks) == demand.workers:
                return tuple(ranks)
        return None

    def take(self, demand: Demand, ranks: Sequence[NodeId]) -> tuple[Slot, ...]:
        """Hand out free devices, devices_min to each rank."""
        slots = []
        for node_id in ranks:
            room = self.rooms[node_id]
            chosen = _pop(room.free[demand.kind], demand, demand.devices_min)
            room.memory_free -= node_memory(demand)
            slots.append(Slot(node_id, tuple(device.id for device in chosen)))
        return tuple(slots)

    def widen(self, slots: Sequence[Slot], demand: Demand) -> tuple[Slot, ...]:
        """Add free devices to the slots of elastic work, evenly, up to devices_max each."""
        wider = list(slots)
        for _ in range(demand.devices_max - demand.devices_min):
            for rank, slot in enumerate(wider):
                free = self.rooms[slot.node_id].free.get(demand.kind, [])
                for device in _pop(free, demand, 1):
                    wider[rank] = Slot(slot.node_id, (*slot.devices, device.id))
        return tuple(wider)

    def keep(self, demand: Demand, ranks: Iterable[NodeId]) -> int:
        """Keep devices for waiting work, leaving ones first; return how many there were to keep."""
        kept = 0
        for node_id in ranks:
            room = self.rooms[node_id]
            leaving = _pop(room.leaving.get(demand.kind, []), demand, demand.devices_min)
            missing = demand.devices_min - len(leaving)
            kept += len(leaving) + len(_pop(room.free.get(demand.kind, []), demand, missing))
            memory = node_memory(demand)
            from_leaving = min(memory, room.memory_leaving)
            room.memory_leaving -= from_leaving
            room.memory_free -= memory - from_leaving
        return kept

    def free_soon(self, work: Work) -> None:
        """What the work holds is leaving from now on."""
        for slot in work.placement:
            room = self.rooms.get(slot.node_id)
            if room is None:
                continue
            by_id = {device.id: device for device in room.node.devices}
            for device_id in slot.devices:
                device = by_id[device_id]
                room.leaving.setdefault(device.kind, []).append(device)
            room.memory_leaving += node_memory(work.demand)


def picky(demand: Demand) -> bool:
    """Whether devices of one kind can differ in whether they suit it."""
    return bool(demand.speeds) or (demand.memory_bytes > 0 and demand.kind is not DeviceKind.CPU)


def node_memory(demand: Demand) -> int:
    """Bytes of the node's memory that one worker takes; other devices bring their own memory."""
    return demand.memory_bytes if demand.kind is DeviceKind.CPU else 0


def _room(node: Node, held: Mapping[DeviceId, bool], memory: Sequence[int]) -> Room:
    room = Room(node, memory_free=node.memory_bytes - sum(memory), memory_leaving=memory[1])
    for device in sorted(node.devices, key=lambda d: (d.index, d.id)):
        leaving = held.get(device.id)
        if leaving is None:
            room.free.setdefault(device.kind, []).append(device)
        elif leaving:
            room.leaving.setdefault(device.kind, []).append(device)
    return room


def _pop(devices: list[Device], demand: Demand, count: int) -> list[Device]:
    """Remove and return the first devices that suit, at most `count`."""
    if not picky(demand):
        chosen = devices[:count]
        del devices[:count]
        return chosen
    chosen = [device for device in devices if suits(device, demand)][:count]
    for device in chosen:
        devices.remove(device)
    return chosen


def _counts(nodes: Iterable[NodeId]) -> dict[NodeId, int]:
    counts: dict[NodeId, int] = {}
    for node_id in nodes:
        counts[node_id] = counts.get(node_id, 0) + 1
    return counts
