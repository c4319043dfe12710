"""The devices of a simulated fleet: which are free, and where a gang goes.

Nodes are kept in a list by how many of their devices are free, so that a place for a gang is found
in a time that depends on a node's size and not on their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from onefleet.domain.errors import InternalError
from onefleet.sim.jobs.job import Fleet

#: Where a gang lies: (node, devices there), or nothing in a flat pool.
Where = tuple[tuple[int, int], ...]


class Room(Protocol):
    """devices: in service. free: of those, held by nobody."""

    devices: int
    free: int

    def fits(self, count: int) -> bool:
        """Whether a gang of so many devices has a place now."""
        ...

    def take(self, count: int, where: Where = ()) -> Where:
        """Hold devices, those of `where` if it names some. The caller made sure that they fit."""
        ...

    def give(self, count: int, where: Where) -> None:
        """Devices that `take` returned are held no more."""
        ...


def room_for(fleet: Fleet) -> Flat | Nodes:
    """An empty fleet."""
    if fleet.nodes is None:
        return Flat(fleet.devices)
    return Nodes(fleet.nodes, scatter=fleet.scatter)


class Flat:
    """One pool of equal devices: what is free fits."""

    __slots__ = ("devices", "free")

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.free = devices

    def fits(self, count: int) -> bool:
        return count <= self.free

    def take(self, count: int, where: Where = ()) -> Where:
        if count > self.free:
            raise InternalError(f"{count} devices were given away, and {self.free} are free")
        self.free -= count
        return ()

    def give(self, count: int, where: Where) -> None:
        self.free += count


class Nodes:
    """Devices on nodes. A gang goes to the fullest node that takes it, the first of those.

    A larger one takes whole empty nodes, the largest first, and a best fit for the rest.
    """

    def __init__(self, sizes: Sequence[int], *, scatter: bool) -> None:
        self.sizes = tuple(sizes)
        self.devices = self.free = sum(sizes)
        self._scatter = scatter
        self._largest = max(sizes)
        self._free = list(sizes)
        self._down = [False] * len(sizes)
        self._by_free: list[dict[int, None]] = [{} for _ in range(self._largest + 1)]
        for node, size in enumerate(sizes):
            self._by_free[size][node] = None

    def free_on(self, node: int) -> int:
        """Free devices of a node; 0 while it is out of service."""
        return 0 if self._down[node] else self._free[node]

    def fits(self, count: int) -> bool:
        if count > self.free:
            return False
        if self._scatter:
            return True
        if count <= self._largest:
            return any(self._by_free[free] for free in range(count, self._largest + 1))
        return self._spread(count) is not None

    def take(self, count: int, where: Where = ()) -> Where:
        chosen = where or self._choose(count)
        if chosen is None or sum(part for _, part in chosen) != count:
            raise InternalError(f"{count} devices were given away that do not fit")
        if len(chosen) > 1 and count <= self._largest and not self._scatter:
            raise InternalError(f"{count} devices fit on one node, and {len(chosen)} were named")
        for node, part in chosen:
            if self._down[node] or not 1 <= part <= self._free[node]:
                raise InternalError(f"{part} devices of node {node} were given away, and are not")
            self._set(node, self._free[node] - part)
            self.free -= part
        return chosen

    def give(self, count: int, where: Where) -> None:
        for node, part in where:
            self._set(node, self._free[node] + part)
            if not self._down[node]:
                self.free += part

    def lose(self, node: int) -> None:
        """A node goes out of service, with whoever lies there."""
        del self._by_free[self._free[node]][node]
        self._down[node] = True
        self.free -= self._free[node]
        self.devices -= self.sizes[node]

    def repair(self, node: int) -> None:
        self._down[node] = False
        self._by_free[self._free[node]][node] = None
        self.free += self._free[node]
        self.devices += self.sizes[node]

    def _set(self, node: int, free: int) -> None:
        if not self._down[node]:
            del self._by_free[self._free[node]][node]
            self._by_free[free][node] = None
        self._free[node] = free

    def _choose(self, count: int) -> Where | None:
        if count <= self._largest:
            for free in range(count, self._largest + 1):
                for node in self._by_free[free]:
                    return ((node, count),)
        if self._scatter:
            return self._pieces(count)
        return self._spread(count) if count > self._largest else None

    def _pieces(self, count: int) -> Where | None:
        """On as few nodes as possible: those with the most free devices first."""
        chosen: list[tuple[int, int]] = []
        for free in range(self._largest, 0, -1):
            for node in self._by_free[free]:
                part = min(free, count)
                chosen.append((node, part))
                count -= part
                if count == 0:
                    return tuple(chosen)
        return None

    def _spread(self, count: int) -> Where | None:
        """Whole empty nodes, and one part."""
        chosen: list[tuple[int, int]] = []
        taken: dict[int, None] = {}
        for size in range(self._largest, 0, -1):
            for node in self._by_free[size]:
                if self.sizes[node] == size and size <= count:
                    chosen.append((node, size))
                    taken[node] = None
                    count -= size
        if count == 0:
            return tuple(chosen)
        for free in range(count, self._largest + 1):
            for node in self._by_free[free]:
                if node not in taken:
                    return (*chosen, (node, count))
        return None
