"""Lets works that share a core of this node take turns on it, as `core/slices.py` says.

Only jobs: a replica never waits for a turn while a request waits for the replica. Only works that
were given a share of one core: the workers of a gang, which wait for each other, are left to the
kernel. And only while nothing else is to be done with them: a save, a stop or a freeze ends the
pause of whom it is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from onefleet.agent.protocol import WorkerKey
from onefleet.agent.taking import Spawn, Taker, is_at_hand
from onefleet.agent.worker import Worker
from onefleet.core.slices import Effect, Event, Renew, Seen, Sharer, SliceRules, Slices, Used
from onefleet.core.turns import Run, RunFailed, Running, Yield, Yielded, YieldFailed
from onefleet.domain.errors import OnefleetError
from onefleet.domain.fleet import Device, DeviceKind
from onefleet.domain.ids import Instant, Millis
from onefleet.domain.work import WHOLE
from onefleet.drivers import process_tree
from onefleet.drivers.base import WorkerStatus

#: As `Driver.pause`, of one of the workers here.
Pause = Callable[[WorkerKey, int], Awaitable[None]]


class TurnTaker(Taker[Event[WorkerKey], Effect[WorkerKey]]):
    """One node's. clock, spawn: as of `Taker`."""

    def __init__(
        self,
        pause: Pause,
        devices: Sequence[Device],
        clock: Callable[[], Instant],
        spawn: Spawn,
        rules: SliceRules | None = None,
    ) -> None:
        self._pause = pause
        self._cores = {d.id for d in devices if d.kind is DeviceKind.CPU and not d.simulated}
        self._rules = rules or SliceRules()
        self._slices: Slices[WorkerKey] = Slices(self._rules)
        self._sharers: tuple[Sharer[WorkerKey], ...] = ()
        super().__init__(self._slices, clock, spawn)

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
        self._forget({sharer.worker for sharer in sharers})

    async def measure(self, key: WorkerKey, status: WorkerStatus) -> None:
        """Look at what one of them uses."""
        if status.pid is None or all(sharer.worker != key for sharer in self._sharers):
            return
        tree = await asyncio.to_thread(process_tree.tree, status.pid)
        used_ms, kept_ms = await asyncio.to_thread(process_tree.core_time_ms, tree)
        self._feed(Used(key, used_ms, kept_ms))

    def _may_wait(self, worker: Worker) -> bool:
        shares = worker.milli < WHOLE and len(worker.devices) == 1
        return is_at_hand(worker) and shares and worker.devices[0] in self._cores

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
