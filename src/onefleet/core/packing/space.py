"""What packing is about: what a worker asks of one node, what a node has left, and a fit of both.

These values are small and its own, so that packing knows nothing of jobs, tenants or phases.
Quantities are integers: CPU in thousandths of a core, shares in thousandths of a device, memory in
any one unit that all nodes and asks agree on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

#: A whole device.
MILLI = 1000


@dataclass(frozen=True, slots=True)
class Ask:
    """What one worker asks of one node.

    devices: how many, whole each; or one, and milli says which share of it. products: those it
    accepts; empty: any. speeds: its relative speed on a product, 1000 being the usual; what is not
    named has the usual speed.
    """

    cpu_milli: int = 0
    memory: int = 0
    devices: int = 0
    milli: int = MILLI
    products: tuple[str, ...] = ()
    speeds: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for a share that is not of exactly one device, and for negatives."""
        if min(self.cpu_milli, self.memory, self.devices) < 0 or not 0 < self.milli <= MILLI:
            raise ValueError(f"a quantity is out of range: {self}")
        if self.milli < MILLI and self.devices != 1:
            raise ValueError(f"a share is of one device, not of {self.devices}")

    @property
    def size(self) -> int:
        """The device thousandths that it takes."""
        return self.devices * self.milli

    def accepts(self, product: str) -> bool:
        return not self.devices or not self.products or product in self.products

    def speed(self, product: str) -> int:
        return next((speed for name, speed in self.speeds if name == product), MILLI)


class Space(NamedTuple):
    """What a node has left: equal spaces are interchangeable.

    free: thousandths left of each device, most first, so that the order of devices does not matter.
    """

    product: str
    cpu_milli: int
    memory: int
    free: tuple[int, ...]

    @property
    def size(self) -> int:
        """Device thousandths left."""
        return sum(self.free)


@dataclass(frozen=True, slots=True)
class Spot:
    """A place for one worker: a node and the indexes of devices on it."""

    node: str
    devices: tuple[int, ...] = ()


def space_of(product: str, cpu_milli: int, memory: int, free: Iterable[int]) -> Space:
    """A space from devices in any order."""
    return Space(product, cpu_milli, memory, tuple(sorted(free, reverse=True)))


def fits(space: Space, ask: Ask) -> bool:
    """Whether the ask fits into the space."""
    if ask.cpu_milli > space.cpu_milli or ask.memory > space.memory:
        return False
    if not ask.devices:
        return True
    if ask.devices > len(space.free) or space.free[ask.devices - 1] < ask.milli:
        return False
    return ask.accepts(space.product)


def afters(space: Space, ask: Ask) -> list[tuple[int, Space]]:
    """All different outcomes of putting the ask, which fits, into the space.

    Each is the amount that was free on the device (or devices) taken, and the space that is left.
    """
    cpu, memory = space.cpu_milli - ask.cpu_milli, space.memory - ask.memory
    if not ask.devices:
        return [(0, Space(space.product, cpu, memory, space.free))]
    free = space.free
    if ask.milli == MILLI:
        # Whole devices are those at the front; used up, they go to the end.
        left = free[ask.devices :] + (0,) * ask.devices
        return [(MILLI, Space(space.product, cpu, memory, left))]
    outcomes = []
    for at, amount in enumerate(free):
        if amount < ask.milli:
            break
        if at and free[at - 1] == amount:
            continue
        rest = [*free[:at], *free[at + 1 :], amount - ask.milli]
        rest.sort(reverse=True)
        outcomes.append((amount, Space(space.product, cpu, memory, tuple(rest))))
    return outcomes
