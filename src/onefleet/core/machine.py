"""The shape of a protocol in time, and what drives one.

A machine never waits and never reads a clock: the same calls give the same effects. The outcome
of an effect comes back as an event. A live process and the simulator drive the same machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from onefleet.domain.ids import Instant

EventT = TypeVar("EventT", contravariant=True)
EffectT = TypeVar("EffectT", covariant=True)


class Machine(Protocol[EventT, EffectT]):
    """A state machine: effects as data, the clock as an argument."""

    def handle(self, event: EventT, now: Instant) -> Sequence[EffectT]:
        """Take one event; return what is to be done, in order."""
        ...

    def next_deadline(self) -> Instant | None:
        """When it must be called again at the latest, with its tick event; None: never."""
        ...

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        ...
