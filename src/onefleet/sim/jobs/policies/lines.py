"""Waiting jobs in order, kept apart by gang size.

A policy wants the first job that fits. Looking through thousands in order would cost more than the
rest of a simulation; but there are few sizes, and within one size either the first fits or none.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from onefleet.sim.jobs.desk import Desk, JobView

Key = tuple[float, ...]


class Lines:
    """An ordered queue, whose order is given by a key at the time of `push`."""

    def __init__(self) -> None:
        self._heaps: dict[int, list[tuple[Key, int, JobView]]] = {}
        self.count = 0
        self.devices = 0  # wanted by all that are here

    def push(self, key: Key, job: JobView) -> None:
        heapq.heappush(self._heaps.setdefault(job.devices, []), (key, job.number, job))
        self.count += 1
        self.devices += job.devices

    def best(
        self, most: int, fits: Callable[[int], bool] | None = None
    ) -> tuple[Key, JobView] | None:
        """The first of those that want at most so many devices, and whose gang fits."""
        found: tuple[Key, int, JobView] | None = None
        for devices, heap in self._heaps.items():
            if devices > most or not heap or (found is not None and found < heap[0]):
                continue
            if fits is None or fits(devices):
                found = heap[0]
        return None if found is None else (found[0], found[2])

    def pop(self, devices: int) -> JobView:
        """Take out the first of a size."""
        self.count -= 1
        self.devices -= devices
        return heapq.heappop(self._heaps[devices])[2]


def fill(desk: Desk, lines: Lines) -> None:
    """Start what fits, in order."""
    while lines.count and desk.free:
        best = lines.best(desk.free, desk.fits)
        if best is None:
            return
        desk.start(lines.pop(best[1].devices))


def newcomers(desk: Desk) -> Iterable[JobView]:
    """Those that wait since this moment: they arrived, or were thrown back."""
    yield from desk.arrived
    yield from desk.returned


class FirstAtMost:
    """Values in the order of their coming; finds the first that is at most x, in log(n) steps."""

    def __init__(self) -> None:
        self._leaves = 1
        self._tree: list[float] = [float("inf")] * 2
        self._jobs: list[JobView] = []

    def append(self, value: float, job: JobView) -> int:
        """Return its position."""
        position = len(self._jobs)
        if position == self._leaves:
            self._grow()
        self._jobs.append(job)
        self._set(position, value)
        return position

    def remove(self, position: int) -> None:
        self._set(position, float("inf"))

    def first(self, most: float) -> tuple[int, JobView] | None:
        """The first whose value is at most this."""
        tree, node = self._tree, 1
        if tree[1] > most:
            return None
        while node < self._leaves:
            node *= 2
            if tree[node] > most:
                node += 1
        position = node - self._leaves
        return position, self._jobs[position]

    def _set(self, position: int, value: float) -> None:
        tree, node = self._tree, position + self._leaves
        tree[node] = value
        node //= 2
        while node:
            tree[node] = min(tree[2 * node], tree[2 * node + 1])
            node //= 2

    def _grow(self) -> None:
        values = self._tree[self._leaves :]
        self._leaves *= 2
        self._tree = [float("inf")] * (2 * self._leaves)
        for position, value in enumerate(values):
            self._tree[position + self._leaves] = value
        for node in range(self._leaves - 1, 0, -1):
            self._tree[node] = min(self._tree[2 * node], self._tree[2 * node + 1])
