"""Ways to choose among the places that fit. Each is a named value; the lowest cost wins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from onefleet.core.packing.mix import Fragmentation
from onefleet.core.packing.space import MILLI, Ask, Space
from onefleet.core.packing.worth import Worth


class Score(Protocol):
    """What it costs to turn `space` into `after` by placing the ask there. Must be pure."""

    @property
    def name(self) -> str: ...

    def cost(self, space: Space, ask: Ask, after: Space) -> int: ...


@dataclass(frozen=True, slots=True)
class FirstFit:
    """All places cost the same, so the first node wins."""

    name: str = "first-fit"

    def cost(self, space: Space, ask: Ask, after: Space) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class BestFit:
    """The least left over, CPU and devices weighted alike by the largest node of the fleet."""

    cpu_milli_max: int
    size_max: int
    name: str = "best-fit"

    def cost(self, space: Space, ask: Ask, after: Space) -> int:
        return after.cpu_milli * self.size_max + after.size * self.cpu_milli_max


@dataclass(frozen=True, slots=True)
class DotProduct:
    """The free vector least aligned with the ask's (Tetris, SIGCOMM 2014, as FGD's authors ran it).

    The smaller the product, the fuller is the node in what the ask needs most.
    """

    cpu_milli_max: int
    size_max: int
    name: str = "dot-product"

    def cost(self, space: Space, ask: Ask, after: Space) -> int:
        cpu = space.cpu_milli * ask.cpu_milli * self.size_max**2
        return cpu + space.size * ask.size * self.cpu_milli_max**2


@dataclass(frozen=True, slots=True)
class DevicePacking:
    """Devices in part use first, then free devices of nodes in use, then those of free nodes."""

    name: str = "device-packing"

    def cost(self, space: Space, ask: Ask, after: Space) -> int:
        whole = space.free.count(MILLI)
        if not ask.devices:
            return 0
        if whole == len(space.free):
            return 20 * MILLI + whole
        opened = whole - after.free.count(MILLI)
        if opened:
            return 10 * MILLI + opened
        return next(was for was, is_ in zip(space.free, after.free, strict=True) if was != is_)


@dataclass(frozen=True, slots=True)
class Gradient:
    """The least growth of fragmentation (FGD, ATC 2023)."""

    measure: Fragmentation
    name: str = "fragmentation"

    @classmethod
    def over(cls, worth: Worth) -> Gradient:
        """Over the mix of the worth, each ask counting once, as in the paper."""
        return cls(Fragmentation(worth.counts))

    def cost(self, space: Space, ask: Ask, after: Space) -> int:
        return self.measure.of(after) - self.measure.of(space)


@dataclass(frozen=True, slots=True)
class LeastLoss:
    """The place whose free part loses the least worth to the rest of the demand: the default."""

    worth: Worth
    name: str = "least-loss"

    def cost(self, space: Space, ask: Ask, after: Space) -> int:
        return self.worth.loss(after) - self.worth.loss(space)
