"""Lets works that share a core of this node take turns on it, as `core/slices.py` says.

Only jobs: a replica never waits for a turn while a request waits for the replica. Only works that
were given a share of one core: the workers of a gang, which wait for each other, are left to the
kernel. And only while nothing else is to be done with them: a save, a stop or a freeze ends the
pause of whom it is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress

import structlog

from onefleet.agent.protocol import WorkerKey
from onefleet.agent.worker import Worker
from onefleet.core.slices import Effect, Event, Renew, Seen, Sharer, SliceRules, Slices, Used
from onefleet.core.turns import Run, RunFailed, Running, Tick, Yield, Yielded, YieldFailed
from onefleet.domain.errors import OnefleetError
from onefleet.domain.fleet import Device, DeviceKind
from onefleet.domain.ids import Instant, Millis
from onefleet.domain.work import WHOLE
from onefleet.drivers import process_tree
from onefleet.drivers.base import WorkerStatus
from onefleet.wire.agent import Observed

log = structlog.get_logger()


#: As `Driver.pause`, of one of the workers here.
Pause = Callable[[WorkerKey, int], Awaitable[None]]


class TurnTaker:
    """One node's. clock: in milliseconds, never going back. spawn: runs what it is given as a task
    of its own."""

    def __init__(
        self,
        pause: Pause,
        devices: Sequence[Device],
        clock: Callable[[], Instant],
        spawn: Callable[[Coroutine[None, None, None]], None],
        rules: SliceRules | None = None,
    ) -> None:
        self._pause = pause
        self._cores = {d.id for d in devices if d.kind is DeviceKind.CPU and not d.simulated}
        self._clock = clock
        self._spawn = spawn
        self._rules = rules or SliceRules()
        self._slices: Slices[WorkerKey] = Slices(self._rules)
        self._sharers: tuple[Sharer[WorkerKey], ...] = ()
        self._locks: dict[WorkerKey, asyncio.Lock] = {}
        self._poke = asyncio.Event()

    def takers(self, key: WorkerKey) -> int:
        """How many take turns with it, itself included; 0 when it takes none."""
        return self._slices.takers(key)

    def see(self, workers: Iterable[Worker]) -> None:
        """Something may have become of these, which are all that are here."""
        may_wait = (worker for worker in workers if self._may_wait(worker))
        sharers = tuple(Sharer(w.key, w.devices[0], w.milli) for w in may_wait)
        if sharers == self._sharers:
            return
        self._sharers = sharers
        self._feed(Seen(sharers))
        known = {sharer.worker for sharer in sharers}
        for key in [k for k, lock in self._locks.items() if k not in known and not lock.locked()]:
            del self._locks[key]

    async def measure(self, key: WorkerKey, status: WorkerStatus) -> None:
        """Look at what one of them uses."""
        if status.pid is None or all(sharer.worker != key for sharer in self._sharers):
            return
        tree = await asyncio.to_thread(process_tree.tree, status.pid)
        used_ms, kept_ms = await asyncio.to_thread(process_tree.core_time_ms, tree)
        self._feed(Used(key, used_ms, kept_ms))

    async def settled(self, key: WorkerKey) -> None:
        """Return when nothing is being done with it for the sake of turns. It has to have been
        seen as one that must not wait, before."""
        async with self._lock(key):
            pass

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            self._poke.clear()
            deadline = self._slices.next_deadline()
            left_s = None if deadline is None else max(deadline - self._clock(), 0) / 1000
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._poke.wait()
            if deadline is not None and self._clock() >= deadline:
                self._feed(Tick())

    def _may_wait(self, worker: Worker) -> bool:
        idle = worker.doing is None and not worker.settling and worker.hold is None
        runs = worker.alive and not worker.frozen and worker.observed is Observed.RUNNING
        shares = worker.milli < WHOLE and len(worker.devices) == 1
        is_wanted = worker.is_job and not worker.condemned
        return idle and runs and shares and is_wanted and worker.devices[0] in self._cores

    def _lock(self, key: WorkerKey) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    def _feed(self, event: Event[WorkerKey]) -> None:
        for effect in self._slices.handle(event, self._clock()):
            self._spawn(self._carry_out(effect))
        self._poke.set()

    async def _carry_out(self, effect: Effect[WorkerKey]) -> None:
        key, began = effect.worker, self._clock()
        limit_ms = 0 if isinstance(effect, Run) else self._rules.pause_ms
        failure = ""
        async with self._lock(key):
            try:
                await self._pause(key, limit_ms)
            except (OnefleetError, OSError) as error:
                failure = str(error)
        took_ms = Millis(max(self._clock() - began, 0))
        match effect:
            case Yield():
                done = YieldFailed(key, failure) if failure else Yielded(key, took_ms)
                self._feed(done)
            case Run():
                self._feed(RunFailed(key, failure) if failure else Running(key, took_ms))
            case Renew():
                pass
