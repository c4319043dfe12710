"""Puts workers of gangs on their GPUs, and lets those that share some take turns there, as
`core/device_turns.py` says.

Only of gangs whose state on GPUs is saved from outside: others cannot be taken off. Jobs that share
a GPU (`--share`) are left to its driver, which slices their time: they do not wait for each other,
and are meant to fit. All that is known of who is where is found out from the workers' supervisors,
so an agent that has just started goes on where the one before it died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, assert_never

import structlog

from onefleet.agent import accelerators
from onefleet.agent.crew import Crew
from onefleet.agent.deciding import is_gang
from onefleet.agent.gpu_meter import GpuMeter, Use
from onefleet.agent.protocol import WorkerKey
from onefleet.agent.taking import Spawn, Taker, is_at_hand
from onefleet.agent.worker import Worker
from onefleet.core.device_turns import (
    DeviceTurnRules,
    DeviceTurns,
    Effect,
    Event,
    Find,
    Found,
    Metered,
    Seen,
    Sharer,
    Unable,
    Where,
)
from onefleet.core.turns import Run, RunFailed, Running, Yield, Yielded, YieldFailed
from onefleet.domain.errors import NotFound, OnefleetError
from onefleet.domain.fleet import CheckpointMode, Device
from onefleet.domain.ids import DeviceId, Instant, Millis
from onefleet.drivers import process_tree
from onefleet.drivers.base import Driver

log = structlog.get_logger()

#: Between two looks at who uses the GPUs.
MEASURE_S = 0.2


class GpuWorkers(Protocol):
    """The workers here, as far as their GPUs go; what is done with them raises OnefleetError."""

    def gpus_in_turns(self, key: WorkerKey, devices: Sequence[DeviceId]) -> tuple[str, ...]:
        """UUIDs of those of a worker of a gang that can be taken off them; empty for others."""
        ...

    async def off(self, key: WorkerKey) -> None:
        """As `Driver.off`."""
        ...

    async def on(self, key: WorkerKey, gpus: Sequence[str]) -> None:
        """As `Driver.on`."""
        ...

    async def is_off(self, key: WorkerKey) -> bool:
        """As `Driver.is_off`."""
        ...

    async def root(self, key: WorkerKey) -> int | None:
        """Its first process, as this machine numbers it."""
        ...


class GpuTurnTaker(Taker[Event[WorkerKey], Effect[WorkerKey]]):
    """One node's. unfit: ends a worker, for the reason that is given. clock, spawn: as of
    `Taker`."""

    def __init__(
        self,
        workers: GpuWorkers,
        meter: GpuMeter,
        unfit: Callable[[WorkerKey, str], None],
        clock: Callable[[], Instant],
        spawn: Spawn,
        rules: DeviceTurnRules | None = None,
    ) -> None:
        self._workers = workers
        self._meter = meter
        self._unfit = unfit
        self._turns: DeviceTurns[WorkerKey] = DeviceTurns(rules or DeviceTurnRules())
        self._sharers: tuple[Sharer[WorkerKey], ...] = ()
        self._gpus: dict[WorkerKey, tuple[str, ...]] = {}
        super().__init__(self._turns, clock, spawn)

    def takers(self, key: WorkerKey) -> int:
        """How many take turns with it, itself included; 0 when it takes none."""
        return self._turns.takers(key)

    def see(self, workers: Iterable[Worker]) -> None:
        """Something may have become of these, which are all that are here."""
        sharers = []
        for worker in workers:
            gpus = self._workers.gpus_in_turns(worker.key, worker.devices) if worker.alive else ()
            if gpus:
                place = worker.key.work_id, gpus
                sharers.append(Sharer(worker.key, place, is_at_hand(worker)))
                self._gpus[worker.key] = gpus
        if (now := tuple(sharers)) != self._sharers:
            self._sharers = now
            self._feed(Seen(now))
            known = {sharer.worker for sharer in now}
            self._forget(known)
            self._gpus = {key: gpus for key, gpus in self._gpus.items() if key in known}

    async def watch(self) -> None:
        """Measure for ever; beside all else, as the GPUs' driver may hang."""
        while True:
            await self.measure()
            await asyncio.sleep(MEASURE_S)

    async def measure(self) -> None:
        """Look at who uses the GPUs that are shared; also while nobody takes turns there, or what
        was used then would be told of the first turn after."""
        places = [sharer.place for sharer in self._sharers]
        keys = [s.worker for s in self._sharers if places.count(s.place) > 1]
        if not keys:
            return
        shared = dict.fromkeys(gpu for key in keys for gpu in self._gpus.get(key, ()))
        uses = await asyncio.to_thread(self._meter.read, list(shared))
        trees = {key: await self._tree(key) for key in keys}
        for key in keys:
            if (gpus := self._gpus.get(key)) is not None:
                strangers = _others(key, trees)
                seen = [uses.get(gpu, Use()) for gpu in gpus]
                holds = any(_may_be(use.holders, trees[key], strangers) for use in seen)
                used = any(_may_be(use.users, trees[key], strangers) for use in seen)
                self._feed(Metered(key, holds, used))

    async def _tree(self, key: WorkerKey) -> frozenset[int]:
        try:
            root = await self._workers.root(key)
        except OnefleetError:
            return frozenset()
        return frozenset(await asyncio.to_thread(process_tree.tree, root) if root else ())

    async def _carry_out(self, effect: Effect[WorkerKey]) -> None:
        key, began = effect.worker, self._clock()
        if isinstance(effect, Unable):
            self._unfit(key, _why(effect))
            return
        failure, where = "", None
        async with self._lock(key):
            try:
                match effect:
                    case Find():
                        where = await self._find(key)
                    case Yield():
                        await self._workers.off(key)
                    case Run():
                        await self._workers.on(key, self._gpus.get(key, ()))
                    case _:
                        assert_never(effect)
            except (OnefleetError, OSError) as error:
                failure = _text(error)
        took_ms = Millis(max(self._clock() - began, 0))
        match effect:
            case Find():
                self._feed(Found(key, where))
            case Yield():
                self._feed(YieldFailed(key, failure) if failure else Yielded(key, took_ms))
            case Run():
                self._feed(RunFailed(key, failure) if failure else Running(key, took_ms))
        if failure:
            log.warning("no turn", effect=type(effect).__name__, worker=key, reason=failure)

    async def _find(self, key: WorkerKey) -> Where:
        """Who is not known to use nothing may use its GPUs."""
        if await self._workers.is_off(key):
            return Where.OFF
        gpus = self._gpus.get(key, ())
        found = await asyncio.to_thread(self._meter.holders, list(gpus))
        trees = {sharer.worker: await self._tree(sharer.worker) for sharer in self._sharers}
        tree, strangers = trees.get(key, frozenset()), _others(key, trees)
        holds = any(_may_be(found.get(gpu), tree, strangers) for gpu in gpus)
        return Where.ON if holds else Where.NOWHERE


class CrewGpus:
    """A crew's workers, as `GpuWorkers`. devices: the node's."""

    def __init__(self, crew: Crew, devices: Sequence[Device]) -> None:
        self._crew = crew
        self._devices = {device.id: device for device in devices}

    def gpus_in_turns(self, key: WorkerKey, devices: Sequence[DeviceId]) -> tuple[str, ...]:
        """See GpuWorkers.gpus_in_turns."""
        record = self._crew.record(key)
        saved = self._crew.mode(key) is CheckpointMode.CRIU
        if record is None or not saved or not is_gang(record.order):
            return ()
        return accelerators.gpus([self._devices[d] for d in devices if d in self._devices])

    async def off(self, key: WorkerKey) -> None:
        """See GpuWorkers.off."""
        await self._driver(key).off(self._crew.folder(key))

    async def on(self, key: WorkerKey, gpus: Sequence[str]) -> None:
        """See GpuWorkers.on."""
        await self._driver(key).on(self._crew.folder(key), gpus)

    async def is_off(self, key: WorkerKey) -> bool:
        """See GpuWorkers.is_off."""
        return await self._driver(key).is_off(self._crew.folder(key))

    async def root(self, key: WorkerKey) -> int | None:
        """See GpuWorkers.root."""
        return (await self._driver(key).status(self._crew.folder(key))).pid

    def _driver(self, key: WorkerKey) -> Driver:
        """Raises NotFound for a worker that is over: it may have ended since it was looked at."""
        if self._crew.record(key) is None:
            raise NotFound(f"there is no worker {self._crew.folder(key).name}")
        return self._crew.driver(key)


def _others(key: WorkerKey, trees: Mapping[WorkerKey, frozenset[int]]) -> frozenset[int]:
    """Processes that are known to be another's."""
    return frozenset().union(*(tree for other, tree in trees.items() if other != key))


def _may_be(found: frozenset[int] | None, tree: frozenset[int], others: frozenset[int]) -> bool:
    """Whether some of those that were found are of this tree, or nobody can tell whose they are:
    where a container numbers processes in its own way, the GPUs' driver does not."""
    return found is None or bool(found & tree) or bool(found - others - tree)


def _text(error: OnefleetError | OSError) -> str:
    if isinstance(error, OnefleetError) and error.why:
        return f"{error.what}: {error.why}"
    return str(error)


def _why(unable: Unable[WorkerKey]) -> str:
    why = f"it could not be put on its GPUs again: {unable.why}"
    if unable.beside is not None:
        why += f"; and rank {unable.beside.rank}, which is there, could not be taken off"
    return why
