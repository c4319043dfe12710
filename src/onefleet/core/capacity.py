"""Where work fits: the rules of placement, over the index.

A gang lies on one node where it can, the fullest one that takes it (best fit); else in one zone
where it can, and on as few nodes as possible. Of several classes of devices it gets the one on
which it is fastest; of those where it is nearly as fast, the one that is least sought-after
(`index/asked.py`). A share goes to the device, of all nodes, where what it leaves loses the least
of its worth to what else is asked for. Work with an image goes home, rank by rank, or where a copy
of it lies; elsewhere when it may (`index/homes.py`) and home will not be free soon. What is free is
taken; what is leaving can only be waited for, and is kept then, so that nothing later in the queue
takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice

from onefleet.core.feasibility import node_memory
from onefleet.core.index import NOW, SOON, Home, Index, Kept, Kin, Room, gone, is_in_reach
from onefleet.core.index.asked import ask_of
from onefleet.core.index.room import Left, amounts, pick, workers_in_time, workers_on
from onefleet.core.index.shelves import Shelf, falling, rising, stirring
from onefleet.core.ordering import BASIC
from onefleet.core.packing import MILLI, Worth
from onefleet.core.packing.space import space_of
from onefleet.domain.ids import DeviceId, NodeId
from onefleet.domain.work import WHOLE, Demand, Slot

#: The node of each rank.
Nodes = tuple[NodeId, ...]
#: Nodes with devices in part use that are looked at for a share.
SHARED_TRIED = 1_024
#: Thousandths of the greatest speed that are nearly as good.
NEARLY = 800
#: Whether a node is not to be used.
Shy = Callable[[Room], bool]


class Capacity:
    """What fits where. Nothing is changed here but what is kept.

    spares: whether nodes that are kept as spares may be used, where others do not suffice.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.rooms = index.fleet.rooms

    def fit(
        self,
        demand: Demand,
        home: Home | None,
        shy: Shy | None = None,
        *,
        spares: bool = False,
    ) -> Nodes | None:
        """Where it fits whole on what is free now. home: where it must be; None: anywhere."""
        self.index.settle_rooms()
        found = self._fit(demand, home, shy, spares=False)
        if found is None and spares and self.index.fleet.spares.now:
            found = self._fit(demand, home, shy, spares=True)
        return found

    def _fit(
        self, demand: Demand, home: Home | None, shy: Shy | None, *, spares: bool
    ) -> Nodes | None:
        if home is not None:
            found = self._at(demand, home, NOW, spares)
            if found or home.kin is None or self._on(demand, home.nodes, SOON, spares):
                return found
            shy = out_of_reach(demand, home.kin)
        shelves = self.index.fleet.suiting(demand, spares)
        for part in shelves:
            for alike in self._by_class(demand, part):
                found = self._cheapest(demand, alike, shy)
                found = found or self._fullest(demand, alike, shy, whole(demand))
                if found is None and alike is not part:
                    found = self.spread(demand, (alike,), NOW, shy)
                if found is not None:
                    return found
        return self.spread(demand, shelves, NOW, shy)

    def fit_soon(self, demand: Demand, home: Home | None, *, spares: bool = False) -> Nodes | None:
        """Where it will fit when what is leaving has left; for what does not fit now."""
        self.index.settle_rooms()
        shy = None
        if home is not None:
            found = self._at(demand, home, SOON, spares)
            if found or home.kin is None:
                return found
            shy = out_of_reach(demand, home.kin)
        for node_id in stirring(self.index.fleet.shelves.suiting(demand), whole(demand)):
            room = self.rooms[node_id]
            reached = shy is None or not shy(room)
            if reached and workers_on(room, demand, SOON) >= demand.workers:
                return (node_id,) * demand.workers
        return self.spread(demand, self.index.fleet.suiting(demand, spares), SOON, shy)

    def fit_in_time(self, demand: Demand, home: Home, *, spares: bool = False) -> Nodes | None:
        """Where its image is and it will fit when the jobs there have ended; if it cannot go on
        elsewhere, where it would if replicas moved."""
        self.index.settle_rooms()
        there = (home.nodes, *home.copies)
        ways = [w for w in there if all(self.room(node, spares) is not None for node in w)]
        if home.kin is None:
            return ways[0] if ways else None
        return next((nodes for nodes in ways if self._in_time(demand, nodes)), None)

    def spread(
        self,
        demand: Demand,
        shelves: Sequence[Sequence[Shelf]],
        measure: int,
        shy: Shy | None = None,
    ) -> Nodes | None:
        """In one zone if that takes it, and on as few nodes as possible, by a measure of
        `index/room.py`; those of the first shelves first."""
        if demand.workers == 1:
            return None
        zones = sorted({shelf.zone for part in shelves for shelf in part})
        near = (
            [[shelf for shelf in part if shelf.zone == zone] for part in shelves]
            for zone in (zones if len(zones) > 1 else ())
        )
        ways = (self._over(demand, parts, measure, shy) for parts in near)
        found = min((way for way in ways if way), key=lambda way: len(set(way)), default=None)
        return found or self._over(demand, shelves, measure, shy)

    def _over(
        self,
        demand: Demand,
        shelves: Sequence[Sequence[Shelf]],
        measure: int,
        shy: Shy | None,
    ) -> Nodes | None:
        """On as few nodes as possible, in whichever zones."""
        ranks: list[NodeId] = []
        least = demand.devices_min if demand.milli == WHOLE else 0
        for _, nodes in chain.from_iterable(falling(part, measure, least) for part in shelves):
            for node_id in nodes:
                room = self.rooms[node_id]
                if shy is not None and shy(room):
                    continue
                count = workers_on(room, demand, measure)
                ranks.extend([node_id] * min(count, demand.workers - len(ranks)))
                if len(ranks) == demand.workers:
                    return tuple(ranks)
        return None

    def take(self, demand: Demand, nodes: Sequence[NodeId]) -> tuple[Slot, ...]:
        """The devices for it there, as few as it can run on."""
        slots: dict[int, Slot] = {}
        for node_id, ranks in ranks_by_node(nodes).items():
            left = self.rooms[node_id].kinds[demand.kind]
            sets = -(-len(ranks) // demand.pack)
            if _is_one_share(demand):
                worth = self.index.worth(demand.kind)
                *_, index = self._loss(demand, self.rooms[node_id], worth)
                devices = [left.bay.devices[index].id]
            else:
                devices = pick(left.bay, demand, sets * demand.devices_min, left.now)
            for number, rank in enumerate(ranks):
                first = number * sets // len(ranks) * demand.devices_min
                chosen = tuple(devices[first : first + demand.devices_min])
                slots[rank] = Slot(node_id, chosen, demand.milli)
        return tuple(slots[rank] for rank in range(len(nodes)))

    def widen(self, slots: Sequence[Slot], demand: Demand) -> tuple[Slot, ...]:
        """Add free devices to the slots of elastic work, evenly, up to devices_max each."""
        self.index.settle_rooms()
        wider, taken = list(slots), dict[DeviceId, None]()
        for _ in range(demand.devices_max - demand.devices_min):
            for rank, slot in enumerate(wider):
                left = self.rooms[slot.node_id].kinds[demand.kind]
                free = pick(left.bay, demand, len(left.now), left.now)
                more = next((device for device in free if device not in taken), None)
                if more is not None:
                    taken[more] = None
                    wider[rank] = Slot(slot.node_id, (*slot.devices, more), slot.milli)
        return tuple(wider)

    def keep(
        self, demand: Demand, nodes: Sequence[NodeId], rank: int = BASIC
    ) -> list[tuple[NodeId, Kept]]:
        """Keep devices for waiting work, those that are leaving first, last those of works behind
        its rank: nobody else may have these leave for itself. Says which."""
        self.index.settle_rooms()
        kept: list[tuple[NodeId, Kept]] = []
        for node_id, ranks in ranks_by_node(nodes).items():
            room = self.rooms[node_id]
            left = room.kinds.get(demand.kind)
            if left is None:
                continue
            count = -(-len(ranks) // demand.pack) * demand.devices_min
            leaving = [
                soon if now < demand.milli else 0
                for now, soon in zip(left.now, left.soon, strict=True)
            ]
            first = pick(left.bay, demand, count, leaving)
            rest = pick(left.bay, demand, count - len(first), left.now)
            missing = count - len(first) - len(rest)
            halves = _halves(left, demand, first, SOON)
            if missing and rank < BASIC:
                taken = dict.fromkeys((*first, *rest))
                lower = [
                    0 if device.id in taken else milli
                    for device, milli in zip(
                        left.bay.devices, left.rows[gone(rank + 1)], strict=True
                    )
                ]
                behind = pick(left.bay, demand, missing, lower)
                halves += _halves(left, demand, behind, gone(rank + 1))
                first += behind
            memory = node_memory(demand) * len(ranks)
            stirring = min(memory, max(room.memory[SOON] - room.memory[NOW], 0))
            in_part = dict.fromkeys(half.devices[0] for half in halves)
            first = [device_id for device_id in first if device_id not in in_part]
            for found in (
                *halves,
                Kept(tuple(first), demand.milli, stirring, leaving=True),
                Kept(tuple(rest), demand.milli, memory - stirring, leaving=False),
            ):
                if found.devices or found.memory_bytes:
                    kept.append((node_id, found))
                    self.index.keep(node_id, found)
        return kept

    # --- how ---------------------------------------------------------------------------------

    def room(self, node_id: NodeId, spares: bool) -> Room | None:
        """The room of a usable node that is no spare, or may be one."""
        kept = not spares and node_id in self.index.fleet.spares.now
        return None if kept else self.rooms.get(node_id)

    def _at(self, demand: Demand, home: Home, measure: int, spares: bool) -> Nodes | None:
        """At home, else where a copy lies."""
        ways = (home.nodes, *home.copies)
        return next((nodes for nodes in ways if self._on(demand, nodes, measure, spares)), None)

    def _in_time(self, demand: Demand, nodes: Nodes) -> bool:
        found = ranks_by_node(nodes).items()
        return all(workers_in_time(self.rooms[n], demand) >= len(ranks) for n, ranks in found)

    def _on(
        self, demand: Demand, nodes: Sequence[NodeId], measure: int, spares: bool
    ) -> Nodes | None:
        for node_id, ranks in ranks_by_node(nodes).items():
            room = self.room(node_id, spares)
            if room is None or workers_on(room, demand, measure) < len(ranks):
                return None
        return tuple(nodes)

    def _by_class(self, demand: Demand, shelves: Sequence[Shelf]) -> Sequence[Sequence[Shelf]]:
        """The shelves by class of device, first the class that the demand shall have."""
        if len({shelf.bay.product for shelf in shelves}) < 2:
            return (shelves,)
        ask, pressure = ask_of(demand), self.index.worth(demand.kind).pressure
        speeds = [min(ask.speed(device.product) for device in s.bay.devices) for s in shelves]
        found: dict[tuple[int, int], list[Shelf]] = {}
        for shelf, speed in zip(shelves, speeds, strict=True):
            rated = max(speeds) if speed * MILLI >= max(speeds) * NEARLY else speed
            sought = pressure.get(shelf.bay.product, MILLI)
            found.setdefault((-rated, sought), []).append(shelf)
        return [found[key] for key in sorted(found)]

    def _cheapest(self, demand: Demand, shelves: Sequence[Shelf], shy: Shy | None) -> Nodes | None:
        """The node where a share costs the least worth; of equal ones where it fits most tightly,
        and then that with the fewest whole devices left, so that others stay whole."""
        if not _is_one_share(demand):
            return None
        worth = self.index.worth(demand.kind)
        best: tuple[int, int, int, NodeId] | None = None
        shared = islice((n for shelf in shelves for n in shelf.shared), SHARED_TRIED)
        for node_id in chain(shared, self._fullest(demand, shelves, shy, 1) or ()):
            room = self.rooms[node_id]
            if workers_on(room, demand, NOW) and not (shy and shy(room)):
                cost, amount, _ = self._loss(demand, room, worth)
                key = (cost, amount, room.kinds[demand.kind].counts[NOW], node_id)
                best = key if best is None else min(best, key)
        return None if best is None else (best[-1],)

    def _loss(self, demand: Demand, room: Room, worth: Worth) -> tuple[int, int, int]:
        """What a share costs on a node, on a device with how much left, and which, by index."""
        left = room.kinds[demand.kind]
        free, memory = [max(amount, 0) for amount in left.now], max(room.memory[NOW], 0)
        before = worth.loss(space_of(left.bay.product, 0, memory, free))
        found = []
        for amount, index in amounts(left, demand).items():
            free[index] = amount - demand.milli
            after = space_of(left.bay.product, 0, memory - node_memory(demand), free)
            found.append((worth.loss(after) - before, amount, index))
            free[index] = amount
        return min(found)

    def _fullest(
        self, demand: Demand, shelves: Sequence[Shelf], shy: Shy | None, least: int
    ) -> Nodes | None:
        """The node with the fewest free devices, but so many, that takes it whole."""
        for _, nodes in rising(shelves, NOW, least):
            for node_id in nodes:
                room = self.rooms[node_id]
                if workers_on(room, demand, NOW) < demand.workers:
                    continue
                if shy is None or not shy(room):
                    return (node_id,) * demand.workers
        return None


def out_of_reach(demand: Demand, kin: Kin) -> Shy:
    """The nodes that cannot bring back an image for such devices."""
    return lambda room: not is_in_reach(room, kin, demand.kind)


def _halves(left: Left, demand: Demand, devices: Iterable[DeviceId], measure: int) -> list[Kept]:
    """Of devices that will be free by a measure, and are in part already: either part of what is
    kept of them. Else others would take the free part meanwhile, and hold the device."""
    found: list[Kept] = []
    for device_id in devices:
        index = left.bay.at[device_id]
        leaving = min(left.rows[measure][index] - left.now[index], demand.milli)
        if leaving < demand.milli:
            found.append(Kept((device_id,), demand.milli - leaving, 0, leaving=False))
            found.append(Kept((device_id,), leaving, 0, leaving=True))
    return found


def _is_one_share(demand: Demand) -> bool:
    return demand.milli < WHOLE and demand.workers == demand.devices_min == 1


def whole(demand: Demand) -> int:
    """Whole devices that a node must have left for all of it; a share may fit without."""
    return demand.least if demand.milli == WHOLE else 0


def ranks_by_node(nodes: Iterable[NodeId]) -> dict[NodeId, list[int]]:
    """The ranks of each node. nodes: by rank."""
    found: dict[NodeId, list[int]] = {}
    for rank, node_id in enumerate(nodes):
        found.setdefault(node_id, []).append(rank)
    return found
