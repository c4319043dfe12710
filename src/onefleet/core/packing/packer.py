"""Chooses a place for an ask among thousands of nodes, and keeps up with every change.

    packer = Packer(hosts)                    # once; or from a snapshot
    spot = packer.choose(ask)                 # the best place, or None
    if spot is not None:
        packer.take(ask, spot)                # now it is held
    packer.give_back(ask, spot)               # and free again
    packer.put(host); packer.remove(node)     # a node joined, changed or left

`choose` changes nothing but what the packer has learnt of the demand. A gang is placed rank by
rank with `choose_all`, whole or not at all. Equal nodes are one group; each shape of ask has its
own order over the groups, which is brought up to date only by what changed since it was last used.
So a decision costs what changed, not what exists. What is learnt of demand takes effect in steps:
whenever a quarter more asks were seen, the measure is built anew.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush, heapreplace

from onefleet.core.packing.mix import Mix
from onefleet.core.packing.products import reluctance
from onefleet.core.packing.scores import LeastLoss, Score
from onefleet.core.packing.space import MILLI, Ask, Space, Spot, afters, fits, space_of
from onefleet.core.packing.worth import Worth

#: Orders kept: one a shape of ask; the one not used for the longest time goes first.
ORDERS_MAX = 128

#: Changes remembered beyond eight times the groups; then all orders are built anew.
LOG_MAX = 1 << 16

#: The measure is built anew whenever a quarter more was seen, but after no fewer and no more asks.
LEARN_FIRST = 32
LEARN_LAST = 4096


@dataclass(frozen=True, slots=True)
class Host:
    """A node: what of it is free now. free: thousandths of each device, by index."""

    node: str
    product: str
    cpu_milli: int
    memory: int
    free: tuple[int, ...]


ScoreOf = Callable[[Worth], Score]


@dataclass(slots=True)
class _Room:
    """The live counterpart of a Host."""

    node: str
    product: str
    cpu_milli: int
    memory: int
    free: list[int]

    def space(self) -> Space:
        return space_of(self.product, self.cpu_milli, self.memory, self.free)


#: What choosing a group would cost (first the product's, then the score's), its first node, the
#: group, and the amount free on the device to take.
_Entry = tuple[int, int, str, Space, int]


@dataclass(slots=True)
class _Order:
    """For one ask: the groups it fits into, best first. seen: how much of the log is in it."""

    heap: list[_Entry] = field(default_factory=list)
    seen: int = 0


class Packer:
    """The free part of a fleet. See the module for its use. worth: the measure, if it is known and
    not to be learnt."""

    def __init__(
        self,
        hosts: Iterable[Host] = (),
        *,
        score_of: ScoreOf = LeastLoss,
        mix: Mix | None = None,
        worth: Worth | None = None,
    ) -> None:
        self._rooms: dict[str, _Room] = {}
        self._groups: dict[Space, list[str]] = {}
        self._log: list[Space] = []  # groups that came into being, in order
        self._orders: OrderedDict[Ask, _Order] = OrderedDict()
        self._capacity: dict[str, int] = {}
        self._score_of = score_of
        self._given = worth
        self.mix = Mix() if mix is None else mix
        for host in hosts:
            self.put(host)
        self._adopt_mix()

    # What changes

    def put(self, host: Host) -> None:
        """A node joined, or is now like this."""
        self.remove(host.node)
        room = _Room(host.node, host.product, host.cpu_milli, host.memory, list(host.free))
        self._rooms[host.node] = room
        self._capacity[host.product] = self._capacity.get(host.product, 0) + len(host.free)
        self._enter(room)

    def remove(self, node: str) -> None:
        """The node is not to be used; unknown nodes are fine."""
        room = self._rooms.pop(node, None)
        if room is not None:
            self._capacity[room.product] -= len(room.free)
            self._leave(room)

    def take(self, ask: Ask, spot: Spot) -> None:
        """The spot is held from now on. Raises ValueError if it is not free."""
        room = self._rooms[spot.node]
        if not _is_free(room, ask, spot):
            raise ValueError(f"{spot} is not free for {ask}: {room}")
        self._change(room, ask, spot, -1)

    def give_back(self, ask: Ask, spot: Spot) -> None:
        """The spot is free again; on a node that has been removed, nothing happens.

        Raises ValueError if so much is not held there.
        """
        room = self._rooms.get(spot.node)
        if room is None:
            return
        if not _is_held(room, ask, spot):
            raise ValueError(f"{spot} is not held by {ask}: {room}")
        self._change(room, ask, spot, 1)

    def observe(self, ask: Ask) -> None:
        """Learn that this was asked. Once for each demand, whether or not it could be placed."""
        self.mix.observe(ask)

    # What is asked of it

    def space(self, node: str) -> Space | None:
        """What the node has left."""
        room = self._rooms.get(node)
        return None if room is None else room.space()

    def host(self, node: str) -> Host | None:
        """The node as it is now."""
        room = self._rooms.get(node)
        if room is None:
            return None
        return Host(node, room.product, room.cpu_milli, room.memory, tuple(room.free))

    def groups(self) -> Iterable[tuple[Space, Sequence[str]]]:
        """All spaces there are, each with its nodes in order."""
        return self._groups.items()

    @property
    def worth(self) -> Worth:
        """The measure in use."""
        return self._worth

    def fits(self, ask: Ask) -> bool:
        """Whether it fits anywhere now."""
        return self.choose(ask) is not None

    def choose(self, ask: Ask, avoid: Collection[str] = ()) -> Spot | None:
        """The best place on a node that is not to be avoided; None where there is none."""
        order = self._order(ask)
        passed: list[_Entry] = []
        spot = None
        while order.heap and spot is None:
            reluctant, cost, first, space, amount = order.heap[0]
            nodes = self._groups.get(space)
            if nodes is None:  # the group is no more; if it comes back, the log says so
                heappop(order.heap)
            elif nodes[0] != first:
                heapreplace(order.heap, (reluctant, cost, nodes[0], space, amount))
            elif (node := next((name for name in nodes if name not in avoid), None)) is None:
                passed.append(heappop(order.heap))
            else:
                spot = self._spot(node, ask, amount)
        for entry in passed:
            heappush(order.heap, entry)
        return spot

    def choose_all(self, ask: Ask, workers: int) -> tuple[Spot, ...] | None:
        """A place for each of so many equal workers, or None: whole or not at all. Takes nothing.

        On one node where that has room for all; else each stays with the one before it if it can.
        """
        if workers > 1 and ask.devices and ask.milli == MILLI:
            together = self.choose(_times(ask, workers))
            if together is not None:
                each = range(0, ask.devices * workers, ask.devices)
                devices = (together.devices[at : at + ask.devices] for at in each)
                return tuple(Spot(together.node, some) for some in devices)
        taken: list[Spot] = []
        for _ in range(workers):
            spot = self.choose_on(taken[-1].node, ask) if taken else None
            if spot is None:
                spot = self.choose(ask)
            if spot is None:
                break
            self.take(ask, spot)
            taken.append(spot)
        for spot in reversed(taken):
            self.give_back(ask, spot)
        return tuple(taken) if len(taken) == workers else None

    def choose_on(self, node: str, ask: Ask) -> Spot | None:
        """The best devices on this very node, or None."""
        space = self.space(node)
        if space is None or not fits(space, ask):
            return None
        return self._spot(node, ask, self._best(space, ask)[1])

    # How

    def _order(self, ask: Ask) -> _Order:
        if self.mix.seen >= self._learn_at:
            self._adopt_mix()
        order = self._orders.get(ask)
        if order is None or len(self._log) - order.seen > 4 * len(self._groups):
            order = _Order([self._entry(space, ask) for space in self._groups if fits(space, ask)])
            heapify(order.heap)
            self._orders[ask] = order
            if len(self._orders) > ORDERS_MAX:
                self._orders.popitem(last=False)
        else:
            for space in dict.fromkeys(self._log[order.seen :]):
                if space in self._groups and fits(space, ask):
                    heappush(order.heap, self._entry(space, ask))
            if len(order.heap) > 2 * len(self._groups) + 64:
                live = {entry[3]: entry for entry in order.heap if entry[3] in self._groups}
                order.heap = list(live.values())
                heapify(order.heap)
        order.seen = len(self._log)
        self._orders.move_to_end(ask)
        return order

    def _entry(self, space: Space, ask: Ask) -> _Entry:
        cost, amount = self._best(space, ask)
        reluctant = reluctance(ask, space.product, self._worth.pressure)
        return reluctant, cost, self._groups[space][0], space, amount

    def _best(self, space: Space, ask: Ask) -> tuple[int, int]:
        """The least cost within the space, and the amount free on the device that has it."""
        cost = self._score.cost
        return min((cost(space, ask, after), amount) for amount, after in afters(space, ask))

    def _spot(self, node: str, ask: Ask, amount: int) -> Spot:
        free = self._rooms[node].free
        indexes = [index for index, part in enumerate(free) if part == amount]
        return Spot(node, tuple(indexes[: ask.devices]))

    def _adopt_mix(self) -> None:
        seen = self.mix.seen
        self._learn_at = seen + min(max(seen // 4, LEARN_FIRST), LEARN_LAST)
        self._worth = self._given or Worth(self.mix.counts(), dict(self._capacity))
        self._score = self._score_of(self._worth)
        self._orders.clear()

    def _change(self, room: _Room, ask: Ask, spot: Spot, sign: int) -> None:
        self._leave(room)
        room.cpu_milli += sign * ask.cpu_milli
        room.memory += sign * ask.memory
        for index in spot.devices:
            room.free[index] += sign * ask.milli
        self._enter(room)
        if len(self._log) > LOG_MAX + 8 * len(self._groups):
            self._log.clear()
            self._orders.clear()

    def _enter(self, room: _Room) -> None:
        space = room.space()
        nodes = self._groups.setdefault(space, [])
        insort(nodes, room.node)
        if nodes[0] == room.node:  # a new group, or one with a new first node
            self._log.append(space)

    def _leave(self, room: _Room) -> None:
        space = room.space()
        nodes = self._groups[space]
        del nodes[bisect_left(nodes, room.node)]
        if not nodes:
            del self._groups[space]


def _times(ask: Ask, workers: int) -> Ask:
    """What so many workers ask of one node together."""
    return replace(
        ask,
        cpu_milli=ask.cpu_milli * workers,
        memory=ask.memory * workers,
        devices=ask.devices * workers,
    )


def _is_free(room: _Room, ask: Ask, spot: Spot) -> bool:
    if len(set(spot.devices)) != ask.devices or not fits(room.space(), ask):
        return False
    return all(
        0 <= index < len(room.free) and room.free[index] >= ask.milli for index in spot.devices
    )


def _is_held(room: _Room, ask: Ask, spot: Spot) -> bool:
    if len(set(spot.devices)) != ask.devices:
        return False
    return all(
        0 <= index < len(room.free) and room.free[index] + ask.milli <= MILLI
        for index in spot.devices
    )
