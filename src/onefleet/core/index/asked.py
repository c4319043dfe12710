"""What is asked of the fleet: the mix of all works on record, and the worth of devices to it.

A placement should not hurt what is likely to be asked next, and nobody knows that but by what was
asked before (`packing/worth.py`). All works count that there is a record of, those that have ended
as well. Counts are rounded down to powers of two, so that the measure follows from the records
alone, and is worked out anew only when the mix has changed much.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from onefleet.core.feasibility import node_memory
from onefleet.core.packing import Ask, Worth
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.work import Demand

#: How often each shape is asked for, roughly.
Rounded = frozenset[tuple[Ask, int]]
#: Measures that are remembered: a mix goes back and forth between a few of them.
WORTHS_MAX = 64


class Asked:
    """Counts works by what one of their workers asks for."""

    def __init__(self) -> None:
        self._counts: dict[DeviceKind, dict[Ask, int]] = {}
        self._rounded: dict[DeviceKind, Rounded] = {}  # unless it has changed

    def change(self, before: Demand | None, demand: Demand | None) -> None:
        """A work asks for this now, in place of what it asked for before; None: for nothing."""
        if before == demand:
            return
        for asked, sign in ((before, -1), (demand, 1)):
            if asked is not None:
                self._count(asked, sign)

    def _count(self, demand: Demand, sign: int) -> None:
        counts, kind = self._counts.setdefault(demand.kind, {}), _kind_of(demand)
        before = counts.pop(kind, 0)
        after = before + sign * demand.workers
        if after:
            counts[kind] = after
        if before.bit_length() != after.bit_length():
            self._rounded.pop(demand.kind, None)

    def worth(self, kind: DeviceKind, capacity: Mapping[str, int]) -> Worth:
        """What free devices of a kind are worth. capacity: how many there are of each product."""
        rounded = self._rounded.get(kind)
        if rounded is None:
            counts = self._counts.get(kind, {}).items()
            rounded = frozenset((ask, 1 << count.bit_length() - 1) for ask, count in counts)
            self._rounded[kind] = rounded
        return _worth(rounded, frozenset(capacity.items()))


@lru_cache(maxsize=4_096)
def ask_of(demand: Demand) -> Ask:
    """What one worker asks of one node, on as few devices as it can run on."""
    speeds = tuple((speed.product, speed.permille) for speed in demand.speeds)
    return Ask(
        memory=node_memory(demand),
        devices=demand.devices_min,
        milli=demand.milli,
        products=tuple(product for product, _ in speeds),
        speeds=speeds,
    )


@lru_cache(maxsize=4_096)
def _kind_of(demand: Demand) -> Ask:
    """As which it counts: nearly as much memory is the same."""
    ask = ask_of(demand)
    memory = 1 << (ask.memory - 1).bit_length() if ask.memory else 0
    return Ask(0, memory, ask.devices, ask.milli, ask.products)


@lru_cache(maxsize=WORTHS_MAX)
def _worth(counts: Rounded, capacity: frozenset[tuple[str, int]]) -> Worth:
    return Worth(dict(counts), dict(capacity))
