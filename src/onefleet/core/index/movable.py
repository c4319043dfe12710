"""Works that may be moved out of the way, in the order in which they go."""

from __future__ import annotations

from typing import NamedTuple

from onefleet.domain.ids import WorkId
from onefleet.domain.work import Work


class Victim(NamedTuple):
    """A work that may be moved out of the way. Sorted: the first goes first."""

    tier_order: int  # minus its rank
    level_order: int  # beside works of its own rank: minus its level
    loss: int  # device-milliseconds
    younger_first: int  # minus the time since when it runs
    id: WorkId
    work: Work
