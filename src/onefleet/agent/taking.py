"""What the takers of turns on this node have in common: a machine, fed with what happens, and its
effects, each carried out while nothing else is done with its worker.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from typing import Generic, TypeVar

from onefleet.agent.protocol import WorkerKey
from onefleet.agent.worker import Worker
from onefleet.core.machine import Machine
from onefleet.core.turns import Tick
from onefleet.domain.ids import Instant
from onefleet.wire.agent import Observed

EventT = TypeVar("EventT")
EffectT = TypeVar("EffectT")

Spawn = Callable[[Coroutine[None, None, None]], None]


def is_at_hand(worker: Worker) -> bool:
    """Whether it is a job's that runs, and nothing else is being done with it, or is to be."""
    idle = worker.doing is None and not worker.settling and worker.hold is None
    runs = worker.alive and not worker.frozen and worker.observed is Observed.RUNNING
    return idle and runs and worker.is_job and not worker.condemned


class Taker(ABC, Generic[EventT, EffectT]):
    """clock: in milliseconds, never going back. spawn: runs what it is given as a task of its
    own."""

    def __init__(
        self, machine: Machine[EventT | Tick, EffectT], clock: Callable[[], Instant], spawn: Spawn
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._spawn = spawn
        self._locks: dict[WorkerKey, asyncio.Lock] = {}
        self._poke = asyncio.Event()

    async def settled(self, key: WorkerKey) -> None:
        """Return when nothing is being done with it for the sake of turns. It has to have been
        seen as one that must not wait, before."""
        async with self._lock(key):
            pass

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            self._poke.clear()
            deadline = self._machine.next_deadline()
            left_s = None if deadline is None else max(deadline - self._clock(), 0) / 1000
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._poke.wait()
            if deadline is not None and self._clock() >= deadline:
                self._feed(Tick())

    @abstractmethod
    async def _carry_out(self, effect: EffectT) -> None:
        """Do it, and feed its answer."""

    def _lock(self, key: WorkerKey) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    def _forget(self, but: Collection[WorkerKey]) -> None:
        """Drop the locks of all others."""
        for key in [k for k, lock in self._locks.items() if k not in but and not lock.locked()]:
            del self._locks[key]

    def _feed(self, event: EventT | Tick) -> None:
        for effect in self._machine.handle(event, self._clock()):
            self._spawn(self._carry_out(effect))
        self._poke.set()
