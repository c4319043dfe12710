"""A simulated machine's agent: the real worker machine around simulated workers.

What outlives an agent is kept beside it (`workers.py`), so that killing the agent and losing the
node's power are two different things, as they are in life.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import assert_never

from onefleet.agent.protocol import (
    Act,
    Discard,
    Done,
    Event,
    Fetch,
    Finish,
    Freeze,
    OrdersReceived,
    Pin,
    Prune,
    Ready,
    Report,
    Restore,
    Save,
    Start,
    StatusSeen,
    Stop,
    Thaw,
    Tick,
    Verb,
    WorkerKey,
)
from onefleet.agent.worker_machine import WorkerMachine
from onefleet.domain.fleet import CheckpointMode, Device
from onefleet.domain.ids import DeviceId, Generation, ImageId, Instant, NodeId
from onefleet.sim.line import Line, Sync
from onefleet.sim.programs import Programs
from onefleet.sim.scenario import Fleet, ReportsSpec
from onefleet.sim.timeline import Timeline
from onefleet.sim.workers import Process, SimWorkers
from onefleet.wire.agent import NodeOrders, NodeReport, Order

#: How long the control plane may hold a call.
SYNC_WAIT_MS = 3_000
#: How long an image is fetched in one go, and how long nobody may answer meanwhile.
FETCH_SLICE_MS = 5_000


class SimNode:
    """One machine with its agent. `changed`: engines came or went. peer: another machine."""

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
        peer: Callable[[NodeId], SimNode | None] = lambda node_id: None,
    ) -> None:
        self.id = node_id
        self.devices = devices
        self.workers = SimWorkers(node_id, fleet, timeline, programs, load_ms, self)
        self.machine = WorkerMachine()
        self.agent_lives = True
        self.changed: Callable[[], None] = lambda: None
        self._fleet = fleet
        self._timeline = timeline
        self._programs = programs
        self._peer = peer
        self._fetched: dict[tuple[WorkerKey, ImageId], int] = {}  # bytes that have come
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
        for found in self.workers.adopted():
            self._feed(found)
            process = self.workers.processes.get(found.key)
            if process is not None and process.ready:
                self._feed(Ready(found.key, process.epoch, self.id, 1))
        self.line.tell()

    def kill_agent(self) -> None:
        """The agent dies; what it started runs on."""
        self.agent_lives = False
        self._life += 1
        self.line.hang_up()

    def lose_power(self) -> None:
        """Everything that runs is gone; files stay."""
        self.kill_agent()
        for process in self.workers.processes.values():
            if process.alive:
                self.workers.end(process, None, "the machine went down")

    def crash_engines(self) -> None:
        """All engines of this node die."""
        for key in sorted(self.workers.processes):
            process = self.workers.processes[key]
            if process.alive and not process.is_job:
                self.workers.end(process, 139, "segmentation fault")
                self.seen(process)

    def exited(self, key: WorkerKey, epoch: Generation) -> None:
        """A program on this node is through."""
        process = self.workers.processes[key]
        if process.alive and process.epoch == epoch:
            code = self._programs.program(key.work_id).exit_code
            self.workers.end(process, code, "" if code == 0 else f"exited with code {code}")
            self.seen(process)

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
        workers = self.workers
        match act:
            case Restore(key, _, image) if image not in workers.images.get(key, {}):
                self._answer(Done(key, Verb.RESTORE, f"image {image} is not on this node"))
            case Start() | Restore():
                workers.start(act)
            case Save(key):
                workers.save(workers.processes[key], act)
            case Finish(key):
                workers.finish(workers.processes[key], act)
            case Freeze(key) | Thaw(key) | Pin(key):
                workers.turn(workers.processes[key], act)
            case Stop(key):
                workers.stop(workers.processes[key], act)
            case Fetch():
                self._fetch(act)
            case Prune(key, keep):
                kept = workers.images.get(key, {})
                workers.images[key] = {k: v for k, v in kept.items() if k in keep}
                self._answer(Done(key, Verb.PRUNE))
            case Discard(key):
                workers.processes.pop(key, None)
                workers.images.pop(key, None)
                self._answer(Done(key, Verb.DISCARD))
            case _:
                assert_never(act)

    def _answer(self, done: Done) -> None:
        self._later(0, lambda: self._feed(done))

    def _fetch(self, act: Fetch) -> None:
        """Some of an image comes from another machine, as much as in one slice of time."""
        key, image = act.key, act.image
        images = self.workers.images.setdefault(key, {})
        if image in images:
            self._answer(Done(key, Verb.FETCH))
            return
        peers = [self._peer(source.node_id) for source in act.order.sources]
        source = next((p for p in peers if p is not None and p.serves(key, image)), None)
        per_ms = max(self._fleet.fetch_mib_per_s * 2**20 // 1000, 1)
        left = self.workers.image_bytes(key) - self._fetched.get((key, image), 0)
        took_ms = min(-(-left // per_ms), FETCH_SLICE_MS)

        def came() -> None:
            if source is None or not source.serves(key, image):
                self._feed(Done(key, Verb.FETCH, f"no node gives image {image}"))
                return
            more = left > took_ms * per_ms
            if more:
                self._fetched[key, image] = self._fetched.get((key, image), 0) + took_ms * per_ms
            else:
                self._fetched.pop((key, image), None)
                images[image] = source.workers.images[key][image]
            self._feed(Done(key, Verb.FETCH, more=more))

        self._later(FETCH_SLICE_MS if source is None else took_ms, came)

    def serves(self, key: WorkerKey, image: ImageId) -> bool:
        """Whether others can have an image from here now."""
        has = image in self.workers.images.get(key, {})
        return has and self.agent_lives and self.line.reachable

    # --- what becomes of the processes -----------------------------------------------------------

    def outcome(self, process: Process, done: Done) -> None:
        """The outcome of an act; an agent that did not ask for it sees the state instead."""
        if not self.agent_lives:
            return
        worker = self.machine.get(process.key)
        if worker is not None and worker.doing is not None and worker.doing.verb is done.verb:
            self._feed(done)
        else:
            self.seen(process)

    def seen(self, process: Process) -> None:
        """The agent looks at a process."""
        self._look(process)
        worker = self.machine.get(process.key)
        if not self.agent_lives or worker is None or worker.doing is None or process.alive:
            return
        # A call on a process that died under it comes back with an error.
        verb, gone = worker.doing.verb, process.reason or "it ended meanwhile"
        error = "" if verb is Verb.STOP else gone
        self._feed(Done(process.key, verb, error, process.exit_code))
        self._look(process)

    def _look(self, process: Process) -> None:
        if self.agent_lives:
            self._feed(
                StatusSeen(
                    process.key, process.epoch, process.state, process.exit_code, process.reason
                )
            )

    def ready(self, process: Process) -> None:
        """An engine answers."""
        if self.agent_lives:
            self._feed(Ready(process.key, process.epoch, self.id, 1))

    def _later(self, after_ms: int, then: Callable[[], None]) -> None:
        """Something of this agent's life."""
        life = self._life

        async def do() -> None:
            if self._life == life:
                then()

        self._timeline.at(Instant(self._timeline.now() + after_ms), do)

    # --- what is told and taken ------------------------------------------------------------------

    def _take(self, orders: NodeOrders, asked_at: Instant) -> None:
        self._feed(OrdersReceived(orders, asked_at))
        if self.machine.lease_until is not None:
            self.workers.renew(self.machine.lease_until)

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
            address=f"{self.id}:1",
        )

    # --- what the checkers look at ---------------------------------------------------------------

    def holders(self) -> list[tuple[DeviceId, Process]]:
        """Each device that a living process has, with it; one that is frozen has none."""
        return [
            (device, process)
            for process in self.workers.processes.values()
            if process.alive and not process.is_off
            for device in process.devices
        ]
