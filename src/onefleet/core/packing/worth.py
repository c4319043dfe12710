"""What the free part of a node is worth to the demand: the measure that placements should not hurt.

Four things make free devices worth less than they are, all against the mix seen so far:

* parts of devices that no set of shares fills (`prices`),
* more free devices than the free CPU or memory lets run: what the mix needs beside a device is
  spread, so the lack is a mean over its quantiles, drawn half way to the mean, because several
  asks share a node and even out;
* what a device drawn from the demand could not use at all (`mix`), so that nodes stay whole for
  those who need them whole,
* and free devices of a sought-after product are worth more than others (`products`).

What each is worth on the openb trace: benchmarks/openb.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onefleet.core.packing.mix import Fragmentation
from onefleet.core.packing.prices import worths
from onefleet.core.packing.products import pressures
from onefleet.core.packing.space import MILLI, Ask, Space

#: Parts into which the needs of the mix beside a device are cut, by device.
QUANTILES = 5

#: A device without CPU or memory to run it counts as a fourth lost: others may leave early.
LACK_PART = 4

#: What the drawn demand cannot use counts a twentieth: it decides between places nearly alike.
UNUSABLE_PART = 20


@dataclass(frozen=True, slots=True)
class Worth:
    """Measures spaces in millionths of a device; only differences between spaces mean something.

    counts: the mix. capacity: devices of each product in the fleet.
    """

    counts: Mapping[Ask, int]
    capacity: Mapping[str, int]
    pressure: Mapping[str, int] = field(init=False)
    _fragmentation: Fragmentation = field(init=False)
    _waste: tuple[int, ...] = field(init=False)
    _cpu_needs: tuple[int, ...] = field(init=False)
    _memory_needs: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        shares: dict[int, int] = {}
        for ask, count in self.counts.items():
            if ask.devices and ask.milli < MILLI:
                shares[ask.milli] = shares.get(ask.milli, 0) + count
        waste = tuple(free * MILLI - worth for free, worth in enumerate(worths(shares)))
        beside = [(ask, ask.size * count) for ask, count in self.counts.items() if ask.devices]
        cpu = [(ask.cpu_milli * MILLI // ask.size, size) for ask, size in beside]
        memory = [(ask.memory * MILLI // ask.size, size) for ask, size in beside]
        set_ = object.__setattr__  # frozen: what is derived is set once, here
        set_(self, "_fragmentation", Fragmentation(dict(beside)))
        set_(self, "pressure", pressures(self.counts, self.capacity))
        set_(self, "_waste", waste)
        set_(self, "_cpu_needs", _quantiles(cpu))
        set_(self, "_memory_needs", _quantiles(memory))

    def loss(self, space: Space) -> int:
        """The more, the less the free part of the space is worth than its size."""
        free = space.free
        size = sum(free) * MILLI
        if not size:
            return 0
        waste = self._waste
        loss = sum([waste[part] for part in free])
        lack = _lack(size, space.cpu_milli, self._cpu_needs)
        lack = max(lack, _lack(size, space.memory, self._memory_needs))
        loss += lack // LACK_PART
        measure = self._fragmentation
        if measure.total:
            loss += measure.of(space) * MILLI // (measure.total * UNUSABLE_PART)
        return loss - self.pressure.get(space.product, MILLI) * size // MILLI


def _lack(size: int, have: int, needs: tuple[int, ...]) -> int:
    """The mean over the needs of a device of what `have` leaves without, in millionths."""
    lack = 0
    for need in needs:
        short = size - have * MILLI * MILLI // need
        if short > 0:
            lack += short
    return lack // QUANTILES


def _quantiles(needs: list[tuple[int, int]]) -> tuple[int, ...]:
    """The middles of equal parts of (need, weight), half way to the mean; empty for no need."""
    total = sum(weight for _, weight in needs)
    if not total:
        return ()
    mean = sum(need * weight for need, weight in needs) // total
    middles: list[int] = []
    passed = 0
    for need, weight in sorted(needs):
        passed += weight
        while len(middles) < QUANTILES and passed * 2 * QUANTILES > total * (2 * len(middles) + 1):
            middles.append((need + mean) // 2)
    return tuple(middle for middle in middles if middle > 0)
