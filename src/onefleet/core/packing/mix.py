"""The mix of demand seen so far, and how much of a space it could not use.

Fragmentation as in Weng et al., "Beware of Fragmentation" (USENIX ATC 2023): draw a task from the
mix; if the node cannot run it, all that is free there is unusable to it; if it can, the parts of
devices too small for it are. The expectation over the mix is the node's fragmentation. Here the mix
is what was asked so far, never what will be: a scheduler cannot know that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from onefleet.core.packing.space import MILLI, Ask, Space

#: Different asks remembered; the one not seen for the longest time goes first.
KINDS_MAX = 512

#: When so many asks are in the mix, all counts are halved: what was asked long ago fades.
FADE_AT = 1 << 14

#: Results kept of `Fragmentation.of`.
CACHE_MAX = 1 << 18


class Mix:
    """Counts what is asked. seen: how many asks ever."""

    def __init__(self) -> None:
        self._counts: OrderedDict[Ask, int] = OrderedDict()
        self._total = 0
        self.seen = 0

    def observe(self, ask: Ask) -> None:
        """One more demand of this shape."""
        kind = replace(ask, speeds=()) if ask.speeds else ask
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._counts.move_to_end(kind)
        self.seen += 1
        self._total += 1
        if len(self._counts) > KINDS_MAX:
            self._total -= self._counts.popitem(last=False)[1]
        if self._total >= FADE_AT:
            halves = ((kind, count // 2) for kind, count in self._counts.items())
            self._counts = OrderedDict((kind, count) for kind, count in halves if count)
            self._total = sum(self._counts.values())

    def counts(self) -> dict[Ask, int]:
        """How often each shape was asked."""
        return dict(self._counts)


@dataclass(frozen=True, slots=True)
class _Class:
    """Asks that differ in CPU only. Weights are cumulative over cpu, both ascending."""

    devices: int
    milli: int
    products: tuple[str, ...]
    cpu: tuple[int, ...]
    weights: tuple[int, ...]

    def weight(self, cpu_milli: int) -> int:
        """Of how many asks the CPU need is met."""
        at = bisect_right(self.cpu, cpu_milli)
        return self.weights[at - 1] if at else 0


@dataclass(slots=True)
class Fragmentation:
    """Expected unusable device thousandths of a space, times the weight of all asks (`total`).

    counts: how much each ask weighs.

    Memory is left out, as in the paper: it is rarely short where CPU is not.
    """

    counts: Mapping[Ask, int]
    total: int = field(init=False)
    _classes: tuple[_Class, ...] = field(init=False)
    _steps: tuple[int, ...] = field(init=False)
    _cache: dict[tuple[str, int, tuple[int, ...]], int] = field(init=False, default_factory=dict)
    _weights: dict[tuple[str, int], list[tuple[int, int, int]]] = field(
        init=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        """Groups the mix into classes."""
        self.total = sum(self.counts.values())
        groups: dict[tuple[int, int, tuple[str, ...]], dict[int, int]] = {}
        for ask, count in self.counts.items():
            if ask.devices:
                group = groups.setdefault((ask.devices, ask.milli, ask.products), {})
                group[ask.cpu_milli] = group.get(ask.cpu_milli, 0) + count
        classes = []
        for (devices, milli, products), group in groups.items():
            cpu = tuple(sorted(group))
            weights, sum_ = [], 0
            for need in cpu:
                sum_ += group[need]
                weights.append(sum_)
            classes.append(_Class(devices, milli, products, cpu, tuple(weights)))
        self._classes = tuple(classes)
        self._steps = tuple(sorted({need for kind in classes for need in kind.cpu}))

    def of(self, space: Space) -> int:
        """The fragmentation of the space."""
        step = bisect_right(self._steps, space.cpu_milli)
        key = (space.product, step, space.free)
        known = self._cache.get(key)
        if known is None:
            if len(self._cache) >= CACHE_MAX:
                self._cache.clear()
            known = self._cache[key] = self._of(space, step)
        return known

    def _of(self, space: Space, step: int) -> int:
        size = space.size
        usable = 0
        free = space.free
        many = len(free)
        for devices, milli, weight in self._runnable(space.product, step):
            if devices > many or free[devices - 1] < milli:
                continue
            if milli == MILLI:
                usable += weight * MILLI * free.count(MILLI)
            else:
                usable += weight * sum([part for part in free if part >= milli])
        return self.total * size - usable

    def _runnable(self, product: str, step: int) -> list[tuple[int, int, int]]:
        """Devices, share and weight of what the mix has for this product and so much CPU."""
        key = (product, step)
        known = self._weights.get(key)
        if known is None:
            cpu = self._steps[step - 1] if step else -1
            known = [
                (kind.devices, kind.milli, weight)
                for kind in self._classes
                if not kind.products or product in kind.products
                if (weight := kind.weight(cpu))
            ]
            self._weights[key] = known
        return known
