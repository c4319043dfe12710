"""The agent's process: keeps the worker machine fed with orders and observations.

Three loops on one event loop. `_sync` tells the control plane what is true and takes its orders;
the call is held there until there is something new, and is broken off when there is something new
here. `_look` asks the drivers what became of the workers. Each effect of the machine runs as a
task of its own and comes back as an event.

The end of this process leaves the workers running: their supervisors hold them, and the next
agent adopts them. Only a drain ends them: SIGUSR1 saves the jobs, ends the replicas and then
exits; a second SIGUSR1 takes all grace away.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
from msgspec import structs

from onefleet.agent import readiness, records
from onefleet.agent.crew import Crew
from onefleet.agent.devices import CpuMeter, DeviceProbe, default_probes, discover, memory_bytes
from onefleet.agent.door import Door
from onefleet.agent.gpu_meter import NvidiaMeter
from onefleet.agent.gpu_turns import CrewGpus, GpuTurnTaker
from onefleet.agent.link import Link, local
from onefleet.agent.protocol import (
    Act,
    Drain,
    Event,
    OrdersReceived,
    Ready,
    Report,
    Stop,
    Tick,
    Unfit,
    WorkerKey,
)
from onefleet.agent.share import Share
from onefleet.agent.specs import PORT_FILE
from onefleet.agent.turn_taker import Pause, TurnTaker
from onefleet.agent.warden import FAULTS, Warden
from onefleet.agent.worker import Worker
from onefleet.agent.worker_machine import WorkerMachine
from onefleet.domain.errors import Conflict, Forbidden, OnefleetError, Unauthenticated
from onefleet.domain.fleet import Device, DeviceKind
from onefleet.domain.ids import Generation, Instant
from onefleet.domain.layout import Layout
from onefleet.drivers import lease
from onefleet.drivers.base import Driver, WorkerState, WorkerStatus
from onefleet.engines.catalog import engine
from onefleet.engines.launch import read_port_file
from onefleet.wire.agent import NodeOrders, NodeReport, Observed, WorkerReport, node_id

log = structlog.get_logger()

#: How long the control plane may hold a sync with nothing new.
SYNC_WAIT_MS = 3_000
#: Between syncs that failed.
RETRY_S = 0.5
#: Between looks at the workers.
LOOK_S = 0.2
#: Changes that come together are told together.
GATHER_S = 0.01
#: How long a drain may take: the longest save that is sensible, and a stop's grace.
DRAIN_LIMIT_S = 120.0
#: How long the supervisors may take to end after that.
QUIET_LIMIT_S = 60.0
#: How long the last report of a drain may take.
FAREWELL_S = 2.0


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What a node says of itself. host, port: where its door is; port 0: any that is free."""

    name: str
    region: str = ""
    zone: str = ""
    host: str = "127.0.0.1"
    port: int = 0


class Agent:
    """One node's agent. Made and run on one event loop."""

    def __init__(
        self, spec: NodeSpec, crew: Crew, link: Link, devices: Sequence[Device], door: Door
    ):
        self.machine = WorkerMachine()
        self._spec = spec
        self._door = door
        self._identity = records.identity(door.layout)
        self._crew = crew
        self._link = link
        self._devices = tuple(devices)
        self._meter = CpuMeter()
        self._statuses: dict[WorkerKey, WorkerStatus] = {}
        self._watches: dict[WorkerKey, tuple[Generation, asyncio.Task[None]]] = {}
        self._acts: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._draining = asyncio.Event()
        self._rest = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hurry = False
        self._warden = Warden(
            devices,
            _wall_clock,
            self._changed.set,
            remembered=records.recall_health(door.layout),
            remember=partial(records.remember_health, door.layout),
        )
        self._turns = TurnTaker(_pauses(crew), devices, _now, self._spawn)
        gpus = CrewGpus(crew, devices)
        self._gpu_turns = GpuTurnTaker(gpus, NvidiaMeter(), self._unfit, _now, self._spawn)

    async def run(self) -> None:
        """Adopt what is here, then go on until drained or cancelled."""
        if await self._crew.prepare():
            self._spawn(self._prove_again())
        else:
            await self._crew.prove()
        self._crew.keep_ready(True)
        for found in await self._crew.adopt():
            self._feed(found)
        await self._first_health()
        own = self._sync(), self._look()
        parts = (*own, self._crew.archivist.run(), self._warden.run())
        turns = self._turns.run(), self._gpu_turns.run(), self._gpu_turns.watch()
        loops = [asyncio.create_task(part) for part in (*parts, *turns)]
        drain = asyncio.create_task(self._drain())
        try:
            done, _ = await asyncio.wait(
                (*loops, drain, self._failed), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
        finally:
            self._link.abort()
            watches = [task for _, task in self._watches.values()]
            for task in (*loops, drain, *watches):
                task.cancel()
            await asyncio.gather(*loops, drain, *watches, return_exceptions=True)
            self._crew.keep_ready(False)

    def drain(self) -> None:
        """Begin to drain; the second call takes all grace away."""
        if not self._draining.is_set():
            log.info("draining: jobs are saved, replicas ended")
            self._draining.set()
            return
        self._hurry = True
        for worker in self.machine.workers():
            if isinstance(worker.doing, Stop):
                self._spawn_act(Stop(worker.key, 0), answered=False)

    # --- events in, effects out ------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        effects = self.machine.handle(event, _now())
        if isinstance(event, OrdersReceived) and self.machine.lease_until is not None:
            self._crew.renew(self.machine.lease_until)  # before anything is done under it
        for key in self.machine.overtaken():
            if (errand := self._crew.fetches.get(key)) is not None:
                errand.break_off()
        for key in self.machine.counted():
            if (errand := self._crew.fetches.get(key)) is not None:
                errand.count()
        for effect in effects:
            if isinstance(effect, Report):
                self._changed.set()
            else:
                if self._hurry and isinstance(effect, Stop):
                    effect = Stop(effect.key, 0)
                self._spawn_act(effect)
        self._tend_watches()
        self._turns.see(self.machine.workers())
        self._gpu_turns.see(self.machine.workers())
        if self.machine.at_rest:
            self._rest.set()
        else:
            self._rest.clear()

    def _spawn_act(self, act: Act, answered: bool = True) -> None:
        self._spawn(self._perform(act, answered))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._acts.add(task)
        task.add_done_callback(self._acts.discard)
        task.add_done_callback(self._fail_with)

    async def _prove_again(self) -> None:
        await self._crew.prove()
        self._crew.keep_ready(True)
        self._changed.set()

    def _fail_with(self, task: asyncio.Task[None]) -> None:
        """A defect in a task ends the agent: the next one adopts everything and is whole again."""
        if not task.cancelled() and (error := task.exception()) and not self._failed.done():
            self._failed.set_exception(error)

    async def _perform(self, act: Act, answered: bool) -> None:
        await self._turns.settled(act.key)
        await self._gpu_turns.settled(act.key)
        done = await self._crew.perform(act)
        if answered:
            self._feed(done)

    def _unfit(self, key: WorkerKey, reason: str) -> None:
        """It cannot go on: end it, so that it is brought back from its image."""
        if (worker := self.machine.get(key)) is not None:
            self._feed(Unfit(key, worker.ran, reason))

    def _tend_watches(self) -> None:
        """Every engine that may be alive is watched under its epoch, and no other."""
        wanted = {
            w.key: w.ran
            for w in self.machine.workers()
            if w.alive and not w.is_job and w.doing is None
        }
        for key, (epoch, task) in list(self._watches.items()):
            if wanted.get(key) != epoch:
                task.cancel()
                del self._watches[key]
        for key, epoch in wanted.items():
            record = self._crew.record(key)
            if key in self._watches or record is None or record.order.engine is None:
                continue
            port_file = self._crew.folder(key) / PORT_FILE
            path = engine(record.order.engine.engine).dialect.health_path
            watch = readiness.watch(key, epoch, port_file, path, self._feed)
            task = asyncio.create_task(watch)
            task.add_done_callback(self._fail_with)
            self._watches[key] = (epoch, task)

    async def _first_health(self) -> None:
        """Adopted engines that answer are told as running in the very first report."""
        for worker in self.machine.workers():
            record = self._crew.record(worker.key)
            if worker.is_job or not worker.alive or record is None or record.order.engine is None:
                continue
            address = read_port_file(self._crew.folder(worker.key) / PORT_FILE)
            path = engine(record.order.engine.engine).dialect.health_path
            if address and await readiness.answers(*address, path, limit_s=1.0):
                self._feed(Ready(worker.key, worker.ran, *address))

    # --- the loops -------------------------------------------------------------------------------

    async def _look(self) -> None:
        while True:
            for worker in list(self.machine.workers()):
                await self._look_at(worker)
            deadline = self.machine.next_deadline()
            if deadline is not None and _now() >= deadline:
                self._feed(Tick())
            await asyncio.sleep(LOOK_S)

    async def _look_at(self, worker: Worker) -> None:
        if worker.doing is not None or self._crew.record(worker.key) is None:
            return
        if not worker.alive:
            self._statuses.pop(worker.key, None)
            return
        seen, status = await self._crew.status(worker.key, worker.ran)
        self._statuses[worker.key] = status
        if worker.is_job and seen.state is WorkerState.ENDED and seen.exit_code is not None:
            await self._warden.died(worker.key.work_id, worker.devices, seen.exit_code)
        self._feed(seen)
        await self._turns.measure(worker.key, status)

    async def _sync(self) -> None:
        failures = 0
        while True:
            self._changed.clear()
            asked_at = _now()
            try:
                orders = await self._call(self._report(SYNC_WAIT_MS))
            except (Conflict, Forbidden, Unauthenticated):
                raise  # it is not wanted
            except OnefleetError as error:
                if failures == 0:
                    log.warning("the control plane does not answer", reason=error.what)
                failures += 1
                await self._pause()
                continue
            if orders is None:  # broken off: there is news
                continue
            if failures:
                log.info("the control plane answers again", failures=failures)
                failures = 0
            self._door.key = orders.door
            self._feed(OrdersReceived(orders, asked_at))

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S):
                await self._changed.wait()
        await asyncio.sleep(GATHER_S)

    async def _call(self, report: NodeReport) -> NodeOrders | None:
        """The orders, or None when there was news first and the call was broken off."""
        call = asyncio.create_task(asyncio.to_thread(self._link.sync, report))
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait((call, changed), return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
            await asyncio.sleep(GATHER_S)
            while not call.done():
                self._link.abort()
                await asyncio.wait((call,), timeout=GATHER_S)
            with suppress(OnefleetError):
                return call.result()
            return None
        finally:
            changed.cancel()
            if not call.done():
                self._link.abort()
                call.cancel()

    async def _drain(self) -> None:
        """Wait for the word, then until nothing runs here; then say so once more."""
        await self._draining.wait()
        self._feed(Drain())
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_LIMIT_S):
                await self._rest.wait()
        for worker in self.machine.workers():
            if worker.alive:
                log.error("could not be ended", worker=self._crew.folder(worker.key).name)
        with suppress(OnefleetError, TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await asyncio.to_thread(self._link.sync, self._report(0))
        if not await self._crew.quiet(QUIET_LIMIT_S):
            log.error("a supervisor is left", after_s=QUIET_LIMIT_S)
        log.info("drained")

    # --- the report ------------------------------------------------------------------------------

    def _report(self, wait_ms: int) -> NodeReport:
        total, free = _memory(self._devices)
        capability = self._crew.capability
        return NodeReport(
            node_id=node_id(self._spec.name),
            name=self._spec.name,
            devices=self._devices,
            memory_bytes=total,
            memory_free_bytes=free,
            cpu_busy_permille=self._meter.busy_permille(),
            checkpoint_mode=capability.mode,
            checkpoint_reason=capability.reason,
            seen=self.machine.generation,
            wait_ms=wait_ms,
            workers=tuple(
                self._worker_report(w) for w in self.machine.workers() if w.observed is not None
            ),
            cordons=self._warden.cordons(),
            sent_at=_wall_clock(),
            region=self._spec.region,
            zone=self._spec.zone,
            address=self._door.address,
            identity=self._identity,
            data_dir=str(self._door.layout.root),
        )

    def _worker_report(self, worker: Worker) -> WorkerReport:
        status = self._statuses.get(worker.key)
        report = worker.report(
            self._crew.mode(worker.key),
            status.memory_bytes if status else 0,
            status.cpu_ms if status else 0,
        )
        report = structs.replace(
            report,
            checkpoint_reason=self._crew.why_not_criu(worker.key),
            turns=self._turns.takers(worker.key) or self._gpu_turns.takers(worker.key),
        )
        if report.observed is Observed.ENDED and report.exit_code in FAULTS:
            why = self._warden.why_out(worker.devices)
            if why:  # not the program's own failure
                report = structs.replace(report, exit_code=None, reason=f"its device failed: {why}")
        return report


def run(
    layout: Layout,
    spec: NodeSpec,
    drivers: Mapping[str, Driver],
    probes: Sequence[DeviceProbe] | None = None,
    image_share: Path | None = None,
    *,
    link: Link | None = None,
    drains: bool = False,
) -> None:
    """Be the agent of this node until SIGTERM (workers run on) or SIGUSR1 (drain).

    link: None on the pool's own machine. drains: SIGTERM drains as well.
    Raises Conflict when another agent of this name is in the pool, Forbidden for a wrong key.
    """
    layout.agent.mkdir(parents=True, exist_ok=True, mode=0o700)
    link = link or local(layout, SYNC_WAIT_MS)
    devices = discover(node_id(spec.name), default_probes() if probes is None else probes)
    share = None if image_share is None else Share(image_share, layout, spec.name)
    crew = Crew(layout, drivers, devices, share, link.get_code)
    door = Door(layout, spec.host, spec.port)
    try:
        with suppress(asyncio.CancelledError):
            asyncio.run(_main(spec, crew, link, devices, door, drains))
    finally:
        door.close()


def sweep(layout: Layout, drivers: Mapping[str, Driver]) -> bool:
    """Save the jobs and end the replicas that no agent holds. Whether nothing of them is left."""
    return asyncio.run(_sweep(Crew(layout, drivers, ())))


async def _sweep(crew: Crew) -> bool:
    """The machine alone, without loops: nobody gives orders, so a drain is all that happens."""
    machine = WorkerMachine()
    effects = [e for found in await crew.adopt() for e in machine.handle(found, _now())]
    effects.extend(machine.handle(Drain(), _now()))
    deadline = time.monotonic() + DRAIN_LIMIT_S
    while not machine.at_rest and time.monotonic() < deadline:
        acts = [e for e in effects if not isinstance(e, Report)]
        events: list[Event] = list(await asyncio.gather(*(crew.perform(act) for act in acts)))
        for worker in machine.workers():
            if worker.alive and worker.doing is None:
                events.append((await crew.status(worker.key, worker.ran))[0])
        effects = [e for event in events for e in machine.handle(event, _now())]
        effects.extend(machine.handle(Tick(), _now()))
        await asyncio.sleep(0 if effects else LOOK_S)
    return machine.at_rest and await crew.quiet(QUIET_LIMIT_S)


async def _main(
    spec: NodeSpec, crew: Crew, link: Link, devices: Sequence[Device], door: Door, drains: bool
) -> None:
    agent = Agent(spec, crew, link, devices, door)
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.drain if drains else task.cancel)
    loop.add_signal_handler(signal.SIGUSR1, agent.drain)
    await agent.run()


def _pauses(crew: Crew) -> Pause:
    """How a worker of the crew is let wait for its turn."""

    async def pause(key: WorkerKey, limit_ms: int) -> None:
        await crew.driver(key).pause(crew.folder(key), limit_ms)

    return pause


def _memory(devices: Sequence[Device]) -> tuple[int, int]:
    """(total, free) memory of the node: what goes with its cores, if others have the rest."""
    total, free = memory_bytes()
    mine = sum(d.memory_bytes for d in devices if d.kind is DeviceKind.CPU and not d.simulated)
    return (min(mine, total), min(mine, free)) if mine else (total, free)


def _now() -> Instant:
    """The clock that leases are measured with: it never goes back, and does not sleep."""
    return Instant(lease.now_ms())


def _wall_clock() -> Instant:
    return Instant(time.time_ns() // 1_000_000)
