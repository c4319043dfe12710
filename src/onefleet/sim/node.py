"""A simulated machine: the real worker machine of the agent around processes that are numbers.

Everything that outlives an agent (processes, images, records) is kept beside its machine, so that
killing the agent and losing the node's power are two different things, as they are in life.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from onefleet.agent.protocol import (
    Act,
    Adopted,
    Discard,
    Done,
    Event,
    OrdersReceived,
    Prune,
    Ready,
    Report,
    Restore,
    Save,
    Start,
    StatusSeen,
    Stop,
    Tick,
    Verb,
    WorkerKey,
)
from onefleet.agent.worker_machine import WorkerMachine
from onefleet.domain.fleet import CheckpointMode, Device
from onefleet.domain.ids import DeviceId, Generation, ImageId, Instant, NodeId
from onefleet.drivers.base import WorkerState
from onefleet.sim.line import Line, Sync
from onefleet.sim.programs import Programs
from onefleet.sim.scenario import Fleet, ReportsSpec
from onefleet.sim.timeline import Timeline
from onefleet.wire.agent import NodeOrders, NodeReport, Order

#: How long the control plane may hold a call.
SYNC_WAIT_MS = 3_000


@dataclass(slots=True)
class Process:
    """One worker on this node, and what its folder remembers. progress: of its saved state."""

    key: WorkerKey
    order: Order
    state: WorkerState
    is_job: bool
    exit_code: int | None = None
    reason: str = ""
    image: ImageId | None = None
    images: dict[ImageId, int] = field(default_factory=dict)  # to the progress in it
    ready: bool = False
    step: int = 0  # rises with each act on it: what was under way before is void

    @property
    def alive(self) -> bool:
        return self.state not in (WorkerState.SAVED, WorkerState.ENDED)

    @property
    def epoch(self) -> Generation:
        return self.order.epoch


class SimNode:
    """One machine with its agent. `changed`: engines came or went."""

    def __init__(
        self,
        node_id: NodeId,
        devices: tuple[Device, ...],
        fleet: Fleet,
        reports: ReportsSpec,
        timeline: Timeline,
        programs: Programs,
        sync: Sync,
        rng: random.Random,
        load_ms: Callable[[Order], int],
    ) -> None:
        self.id = node_id
        self.devices = devices
        self.processes: dict[WorkerKey, Process] = {}
        self.machine = WorkerMachine()
        self.agent_lives = True
        self.saves_fail = False
        self.changed: Callable[[], None] = lambda: None
        self.lease_until: Instant | None = None  # counted beside the machine, to check it
        self._fleet = fleet
        self._timeline = timeline
        self._programs = programs
        self._load_ms = load_ms
        self._life = 0  # of the agent
        self._deadline: Instant | None = None
        self.line = Line(timeline, fleet.network_ms, reports, sync, rng, self._report, self._take)

    # --- the life of the machine and of its agent ------------------------------------------------

    def boot(self) -> None:
        """An agent starts: it adopts what is here, and calls the control plane."""
        self._life += 1
        self.line.hang_up()
        self.agent_lives = True
        self.machine = WorkerMachine()
        self._deadline = None
        self.lease_until = None
        for key in sorted(self.processes):
            process = self.processes[key]
            self._feed(
                Adopted(
                    key,
                    is_job=process.is_job,
                    epoch=process.epoch,
                    grace_ms=process.order.grace_ms,
                    state=process.state,
                    exit_code=process.exit_code,
                    reason=process.reason,
                    image=process.image,
                    images=tuple(process.images),
                    image_bytes=self._image_bytes(key),
                    devices=process.order.devices,
                )
            )
            if process.ready:
                self._feed(Ready(key, process.epoch, self.id, 1))
        self.line.tell()

    def kill_agent(self) -> None:
        """The agent dies; what it started runs on."""
        self.agent_lives = False
        self._life += 1
        self.line.hang_up()

    def lose_power(self) -> None:
        """Everything that runs is gone; files stay."""
        self.kill_agent()
        for process in self.processes.values():
            if process.alive:
                self._end(process, None, "the machine went down")

    def crash_engines(self) -> None:
        """All engines of this node die."""
        for key in sorted(self.processes):
            process = self.processes[key]
            if process.alive and not process.is_job:
                self._end(process, 139, "segmentation fault")
                self._seen(process)

    def exited(self, key: WorkerKey, epoch: Generation) -> None:
        """A program on this node is through."""
        process = self.processes[key]
        if process.alive and process.epoch == epoch:
            code = self._programs.program(key.work_id).exit_code
            self._end(process, code, "" if code == 0 else f"exited with code {code}")
            self._seen(process)

    # --- the machine and its effects -------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        for effect in self.machine.handle(event, self._timeline.now()):
            if isinstance(effect, Report):
                self.line.tell()
            else:
                self._perform(effect)
        self.machine.check()
        self._wake()

    def _wake(self) -> None:
        deadline = self.machine.next_deadline()
        if deadline is None or deadline == self._deadline:
            return
        self._deadline = deadline
        life = self._life

        async def tick() -> None:
            if self._life == life and self._deadline == deadline:
                self._deadline = None
                self._feed(Tick())

        self._timeline.at(deadline, tick)

    def _perform(self, act: Act) -> None:
        match act:
            case Start(key, order):
                self._start(key, order, None)
            case Restore(key, order, image):
                self._start(key, order, image)
            case Save(key, image):
                self._save(self.processes[key], image)
            case Stop(key):
                self._stop(self.processes[key])
            case Prune(key, keep):
                process = self.processes[key]
                process.images = {k: v for k, v in process.images.items() if k in keep}
                self._later(0, lambda: self._feed(Done(key, Verb.PRUNE)))
            case Discard(key):
                self.processes.pop(key, None)
                self._later(0, lambda: self._feed(Done(key, Verb.DISCARD)))
            case _:
                assert_never(act)

    def _start(self, key: WorkerKey, order: Order, image: ImageId | None) -> None:
        verb = Verb.START if image is None else Verb.RESTORE
        known = self.processes.get(key)
        images = known.images if known else {}
        if image is not None and image not in images:
            gone = Done(key, verb, error=f"image {image} is not on this node")
            self._later(0, lambda: self._feed(gone))
            return
        state = WorkerState.STARTING if image is None else WorkerState.RESTORING
        process = Process(key, order, state, is_job=order.job is not None, image=image)
        process.images = images
        process.step = known.step + 1 if known else 1
        self.processes[key] = process
        took_ms = self._fleet.start_ms
        if image is not None:
            took_ms = self._fleet.restore_fixed_ms + self._disk_ms(key)

        def running() -> None:
            process.state = WorkerState.RUNNING
            self._run(process, 0 if image is None else images[image])
            self._outcome(process, Done(key, verb))

        self._step(process, took_ms, running)

    def _run(self, process: Process, progress: int) -> None:
        if process.is_job:
            key, devices = process.key, len(process.order.devices)
            self._programs.join(key.work_id, process.epoch, key.rank, self.id, devices, progress)
            return

        def ready() -> None:
            process.ready = True
            self._feed_if_alive(Ready(process.key, process.epoch, self.id, 1))
            self.changed()

        self._step(process, self._load_ms(process.order), ready)

    def _save(self, process: Process, image: ImageId) -> None:
        key = process.key
        progress = self._programs.leave(key.work_id, process.epoch, key.rank)
        process.state = WorkerState.SAVING
        process.image = image

        def saved() -> None:
            if self.saves_fail:
                process.state = WorkerState.RUNNING
                self._run(process, progress)
                full = Done(key, Verb.SAVE, error="no space left for the image")
                self._outcome(process, full)
                return
            process.state = WorkerState.SAVED
            process.images[image] = progress
            size = self._image_bytes(key)
            self._outcome(process, Done(key, Verb.SAVE, image_bytes=size))

        self._step(process, self._fleet.save_fixed_ms + self._disk_ms(key), saved)

    def _stop(self, process: Process) -> None:
        key = process.key
        self._programs.leave(key.work_id, process.epoch, key.rank)
        process.state = WorkerState.STOPPING
        process.ready = False
        self.changed()

        def stopped() -> None:
            self._end(process, 143, "")
            self._outcome(process, Done(key, Verb.STOP, exit_code=143))

        self._step(process, self._fleet.stop_ms, stopped)

    def _end(self, process: Process, exit_code: int | None, reason: str) -> None:
        process.step += 1
        self._programs.leave(process.key.work_id, process.epoch, process.key.rank)
        process.state = WorkerState.ENDED
        process.exit_code = exit_code
        process.reason = reason
        process.ready = False
        self.changed()

    # --- time and outcomes -----------------------------------------------------------------------

    def _step(self, process: Process, after_ms: int, then: Callable[[], None]) -> None:
        """Go on with a process, unless something else happens to it before."""
        process.step += 1
        step = process.step

        async def go_on() -> None:
            if self.processes.get(process.key) is process and process.step == step:
                then()

        self._timeline.at(Instant(self._timeline.now() + after_ms), go_on)

    def _later(self, after_ms: int, then: Callable[[], None]) -> None:
        """Something of this agent's life."""
        life = self._life

        async def do() -> None:
            if self._life == life:
                then()

        self._timeline.at(Instant(self._timeline.now() + after_ms), do)

    def _outcome(self, process: Process, done: Done) -> None:
        """The outcome of an act; an agent that did not ask for it sees the state instead."""
        if not self.agent_lives:
            return
        worker = self.machine.get(process.key)
        if worker is not None and worker.doing is not None and worker.doing.verb is done.verb:
            self._feed(done)
        else:
            self._seen(process)

    def _feed_if_alive(self, event: Event) -> None:
        if self.agent_lives:
            self._feed(event)

    def _seen(self, process: Process) -> None:
        seen = StatusSeen(
            process.key, process.epoch, process.state, process.exit_code, process.reason
        )
        self._feed_if_alive(seen)
        self._died_meanwhile(process)

    def _died_meanwhile(self, process: Process) -> None:
        """A call on a process that died under it comes back with an error."""
        worker = self.machine.get(process.key)
        if not self.agent_lives or worker is None or worker.doing is None or process.alive:
            return
        if worker.doing.verb in (Verb.SAVE, Verb.START, Verb.RESTORE):
            error = process.reason or "it ended meanwhile"
            self._feed(Done(process.key, worker.doing.verb, error, process.exit_code))
        elif worker.doing.verb is Verb.STOP:
            self._feed(Done(process.key, Verb.STOP, exit_code=process.exit_code))
        self._feed_if_alive(
            StatusSeen(process.key, process.epoch, process.state, process.exit_code, process.reason)
        )

    def _disk_ms(self, key: WorkerKey) -> int:
        per_ms = self._fleet.disk_mib_per_s * 2**20 // 1000
        return self._image_bytes(key) // max(per_ms, 1)

    def _image_bytes(self, key: WorkerKey) -> int:
        process = self.processes.get(key)
        if process is None or not process.is_job:
            return 0
        return self._programs.program(key.work_id).state_bytes

    # --- what is told and taken ------------------------------------------------------------------

    def _take(self, orders: NodeOrders) -> None:
        if orders.generation >= self.machine.generation:
            self.lease_until = Instant(self._timeline.now() + orders.lease_ms)
        self._feed(OrdersReceived(orders))

    def _report(self) -> NodeReport:
        memory = self._fleet.memory_gib << 30
        return NodeReport(
            node_id=self.id,
            name=self.id,
            devices=self.devices,
            memory_bytes=memory,
            memory_free_bytes=memory,
            cpu_busy_permille=0,
            checkpoint_mode=CheckpointMode.CRIU,
            checkpoint_reason="",
            seen=self.machine.generation,
            wait_ms=SYNC_WAIT_MS,
            workers=tuple(
                worker.report() for worker in self.machine.workers() if worker.observed is not None
            ),
            sent_at=self._timeline.now(),
        )

    # --- what the checkers look at ---------------------------------------------------------------

    def holders(self) -> list[tuple[DeviceId, Process]]:
        """Each device that a living process has, with it."""
        return [
            (device, process)
            for process in self.processes.values()
            if process.alive
            for device in process.order.devices
        ]
