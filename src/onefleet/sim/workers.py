"""What outlives an agent on a simulated machine: processes that are numbers, their supervisors,
their images and records.

It does what drivers do, and takes the time that they take. A supervisor lets its job stand still
when the node's lease runs out, whether there is an agent or not, and ends a hold that nobody ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from onefleet.agent.protocol import (
    Adopted,
    Done,
    Finish,
    Freeze,
    Hold,
    HoldKind,
    Pin,
    Restore,
    Save,
    Start,
    Stop,
    Thaw,
    Verb,
    WorkerKey,
)
from onefleet.domain.gang import HOLD_MS
from onefleet.domain.ids import NO_GENERATION, DeviceId, Generation, ImageId, Instant, NodeId
from onefleet.drivers.base import WorkerState
from onefleet.sim.programs import Programs
from onefleet.sim.scenario import Fleet
from onefleet.sim.timeline import Timeline
from onefleet.wire.agent import Order

#: How long it takes to freeze or thaw a process, and to end a hold.
TURN_MS = 1
_SAVES = (WorkerState.SAVING, WorkerState.SAVE_HELD)


@dataclass(slots=True)
class Process:
    """One worker on this machine, and what its record says. progress: of its program, while it
    stands still. after: its state once the hold or save that it is in is given up."""

    key: WorkerKey
    order: Order
    state: WorkerState
    is_job: bool
    devices: tuple[DeviceId, ...] = ()
    exit_code: int | None = None
    reason: str = ""
    image: ImageId | None = None
    progress: int = 0
    hold: Hold | None = None
    after: WorkerState = WorkerState.RUNNING
    ready: bool = False
    step: int = 0  # rises with each act on it: what was under way before is void

    @property
    def alive(self) -> bool:
        return self.state not in (WorkerState.SAVED, WorkerState.ENDED)

    @property
    def is_off(self) -> bool:
        """Whether it stands still and its devices are free."""
        frozen_before = self.after is WorkerState.FROZEN and self.state in _SAVES
        return self.state is WorkerState.FROZEN or frozen_before

    @property
    def epoch(self) -> Generation:
        return self.order.epoch


class Ears(Protocol):
    """Who hears what becomes of the processes: the agent, while there is one."""

    def outcome(self, process: Process, done: Done) -> None: ...

    def seen(self, process: Process) -> None: ...

    def ready(self, process: Process) -> None: ...

    def changed(self) -> None: ...


class SimWorkers:
    """All of one machine. images: of each worker, by id, with the progress that is in them."""

    def __init__(
        self,
        node_id: NodeId,
        fleet: Fleet,
        timeline: Timeline,
        programs: Programs,
        load_ms: Callable[[Order], int],
        ears: Ears,
    ) -> None:
        self.processes: dict[WorkerKey, Process] = {}
        self.images: dict[WorkerKey, dict[ImageId, int]] = {}
        self.lease_until: Instant | None = None
        self.saves_fail = False
        self._id = node_id
        self._fleet = fleet
        self._timeline = timeline
        self._programs = programs
        self._load_ms = load_ms
        self._ears = ears
        self._watches = False

    def adopted(self) -> list[Adopted]:
        """What an agent finds that starts now."""
        keys = sorted({**self.processes, **self.images})
        return [self._adopted(key) for key in keys]

    def _adopted(self, key: WorkerKey) -> Adopted:
        images = tuple(self.images.get(key, ()))
        process = self.processes.get(key)
        if process is None:  # it has an image that was fetched, and nothing else
            return Adopted(key, True, NO_GENERATION, 0, None, images=images)
        return Adopted(
            key,
            is_job=process.is_job,
            epoch=process.epoch,
            grace_ms=process.order.grace_ms,
            state=process.state,
            exit_code=process.exit_code,
            reason=process.reason,
            image=process.image,
            images=images,
            image_bytes=self.image_bytes(key),
            devices=process.devices,
            milli=process.order.milli,
            hold=process.hold,
        )

    # --- what drivers do -------------------------------------------------------------------------

    def start(self, act: Start | Restore) -> None:
        """Start it, or bring it back from an image that is here."""
        key, order, known = act.key, act.order, self.processes.get(act.key)
        image = act.image if isinstance(act, Restore) else None
        state = WorkerState.STARTING if image is None else WorkerState.RESTORING
        process = Process(key, order, state, order.job is not None, order.devices, image=image)
        process.step = known.step + 1 if known else 1
        self.processes[key] = process
        holds = isinstance(act, Restore) and act.hold
        if holds and image is not None:
            process.hold = Hold(HoldKind.RESTORE, image)
        took_ms = self._fleet.start_ms
        if image is not None:
            process.progress = self.images[key][image]
            took_ms = self._fleet.restore_fixed_ms + self._disk_ms(key)

        def there() -> None:
            if holds:
                self._hold(process, WorkerState.RESTORE_HELD)
            else:
                self._go(process)
            self._ears.outcome(process, Done(key, act.verb))

        self._step(process, took_ms, there)

    def save(self, process: Process, act: Save) -> None:
        """Save it; it then is given up, stands still, or goes on."""
        key, images = process.key, self.images.setdefault(process.key, {})
        done = Done(key, Verb.SAVE, image_bytes=self.image_bytes(key))
        if act.image in images and process.hold is not None:  # an agent before had it made

            async def again() -> None:
                self._ears.outcome(process, done)

            self._timeline.at(self._timeline.now(), again)
            return
        process.after = process.state
        self._stand(process)
        process.state = WorkerState.SAVING
        kind = HoldKind.MAKING if act.runs_on else HoldKind.SAVE
        process.hold = Hold(kind, act.image) if act.hold else None
        if not act.runs_on:
            process.image = act.image

        def saved() -> None:
            if self.saves_fail:
                self._back(process)
                self._ears.outcome(process, Done(key, Verb.SAVE, "no space left for the image"))
                return
            images[act.image] = process.progress
            if act.hold:
                self._hold(process, WorkerState.SAVE_HELD)
            elif act.runs_on:
                self._back(process)
            else:
                process.state = WorkerState.SAVED
            self._ears.outcome(process, done)

        self._step(process, self._fleet.save_fixed_ms + self._disk_ms(key), saved)

    def finish(self, process: Process, act: Finish) -> None:
        """End its hold."""

        def finished() -> None:
            hold, process.hold = process.hold, None
            restores = hold is not None and hold.kind is HoldKind.RESTORE
            gives_up = act.commit != restores and (
                restores or hold is None or hold.kind is HoldKind.SAVE
            )
            if not act.commit and not restores:
                self.images[process.key].pop(act.image, None)
            if gives_up:
                self._stand(process)
                process.state = WorkerState.SAVED
            elif process.state in (WorkerState.SAVE_HELD, WorkerState.RESTORE_HELD):
                self._back(process)
            self._ears.outcome(process, Done(process.key, Verb.FINISH))

        self._step(process, TURN_MS, finished)

    def turn(self, process: Process, act: Freeze | Thaw | Pin) -> None:
        """Let it stand still, or on other devices, or run on."""
        if isinstance(act, Thaw | Pin):
            runs = process.state is WorkerState.RUNNING
            self._stand(process)
            process.devices = act.devices
            if runs:
                self._join(process)

        def turned() -> None:
            if isinstance(act, Freeze):
                self._freeze(process)
            elif isinstance(act, Thaw):
                self._go(process)
            self._ears.outcome(process, Done(process.key, act.verb))

        self._step(process, TURN_MS, turned)

    def stop(self, process: Process, act: Stop) -> None:
        """End it."""
        self._stand(process)
        process.state = WorkerState.STOPPING
        process.ready = False
        self._ears.changed()

        def stopped() -> None:
            if process.hold is not None and process.hold.kind is not HoldKind.RESTORE:
                self.images[process.key].pop(process.hold.image, None)
            self.end(process, 143, "")
            self._ears.outcome(process, Done(act.key, Verb.STOP, exit_code=143))

        self._step(process, self._fleet.stop_ms, stopped)

    def end(self, process: Process, exit_code: int | None, reason: str) -> None:
        """It is over, whoever wanted that."""
        process.step += 1
        self._stand(process)
        process.state = WorkerState.ENDED
        process.exit_code = exit_code
        process.reason = reason
        process.hold = None
        process.ready = False
        self._ears.changed()

    def image_bytes(self, key: WorkerKey) -> int:
        """The size of one image of this worker."""
        process = self.processes.get(key)
        is_job = process is None or process.is_job
        return self._programs.program(key.work_id).state_bytes if is_job else 0

    # --- the lease -------------------------------------------------------------------------------

    def renew(self, until: Instant) -> None:
        """The jobs of this node may run until then."""
        self.lease_until = until
        if not self._watches:
            self._watches = True
            self._timeline.at(until, self._watch)

    async def _watch(self) -> None:
        assert self.lease_until is not None
        if self._timeline.now() < self.lease_until:
            self._timeline.at(self.lease_until, self._watch)
            return
        self._watches = False
        for key in sorted(self.processes):
            process = self.processes[key]
            if process.is_job and process.state is WorkerState.RUNNING:
                self._freeze(process)
                self._ears.seen(process)

    @property
    def _may_run(self) -> bool:
        return self.lease_until is None or self._timeline.now() < self.lease_until

    # --- the parts of all that -------------------------------------------------------------------

    def _go(self, process: Process) -> None:
        """It runs from now on; a job without a lease stands still instead."""
        if not process.is_job:
            process.state = WorkerState.RUNNING

            def ready() -> None:
                process.ready = True
                self._ears.ready(process)
                self._ears.changed()

            self._step(process, self._load_ms(process.order), ready)
        elif self._may_run:
            process.state = WorkerState.RUNNING
            self._join(process)
        else:
            process.state = WorkerState.FROZEN

    def _join(self, process: Process) -> None:
        key = process.key
        self._programs.join(
            key.work_id,
            process.epoch,
            key.rank,
            self._id,
            process.devices,
            process.progress,
            process.order.milli,
        )

    def _stand(self, process: Process) -> None:
        """Its program makes no progress from now on."""
        if process.is_job and process.state is WorkerState.RUNNING:
            key = process.key
            process.progress = self._programs.leave(key.work_id, process.epoch, key.rank)

    def _freeze(self, process: Process) -> None:
        self._stand(process)
        process.state = WorkerState.FROZEN

    def _back(self, process: Process) -> None:
        """It goes on as it was before it was saved, or as it shall once it is restored."""
        if process.after is WorkerState.FROZEN:
            process.state = WorkerState.FROZEN
        else:
            self._go(process)

    def _hold(self, process: Process, state: WorkerState) -> None:
        process.state = state
        self._step(process, HOLD_MS, lambda: self._back(process))

    def _step(self, process: Process, after_ms: int, then: Callable[[], None]) -> None:
        """Go on with a process, unless something else happens to it before."""
        process.step += 1
        step = process.step

        async def go_on() -> None:
            if self.processes.get(process.key) is process and process.step == step:
                then()

        self._timeline.at(Instant(self._timeline.now() + after_ms), go_on)

    def _disk_ms(self, key: WorkerKey) -> int:
        per_ms = self._fleet.disk_mib_per_s * 2**20 // 1000
        return self.image_bytes(key) // max(per_ms, 1)
