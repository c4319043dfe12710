"""A driver without processes: for tests and simulations of whatever stands above drivers.

It keeps the contract of `base.Driver` (one suite proves that), takes time only by the sleep that
it is given, and fails where it is told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onefleet.domain.errors import Conflict, InvalidRequest, NotFound, OnefleetError, TimedOut
from onefleet.domain.fleet import CheckpointMode
from onefleet.domain.gang import GangPlace
from onefleet.drivers.base import Capability, SavedImage, WorkerSpec, WorkerState, WorkerStatus

_FIRST_PID = 1000
_ALIVE = (
    WorkerState.RUNNING,
    WorkerState.FROZEN,
    WorkerState.SAVING,
    WorkerState.SAVE_HELD,
    WorkerState.RESTORE_HELD,
)


@dataclass(frozen=True, slots=True)
class _Hold:
    """The last hold of a worker. after: its state if it goes on. commit: the answer, if any."""

    image: Path
    restores: bool
    after: WorkerState
    leave_running: bool = False
    commit: bool | None = None


async def _no_time(seconds: float) -> None:
    """Let others run, take no time."""
    await asyncio.sleep(0)


@dataclass(slots=True)
class FakeFaults:
    """What goes wrong: per operation (a method's name) the errors of its next calls.

    An error is used up by one call. missing: commands that do not exist.
    """

    errors: dict[str, list[OnefleetError]] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()

    def strike(self, operation: str) -> None:
        waiting = self.errors.get(operation)
        if waiting:
            raise waiting.pop(0)


class _FakeWorkers:
    """Who there is, and where what they have on GPUs is."""

    def __init__(
        self,
        takes_ms: Mapping[str, int],
        faults: FakeFaults,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.faults = faults
        self._takes_ms = dict(takes_ms)
        self._sleep = sleep
        self._workers: dict[Path, WorkerStatus] = {}
        self.gpus: dict[Path, tuple[str, ...]] = {}  # where each is, or was last
        self.off_gpus: set[Path] = set()
        self._takes_turns: set[Path] = set()

    async def off(self, folder: Path, towards: Sequence[str] = ()) -> None:
        """See Driver.off."""
        await self._place(folder, "off", (WorkerState.RUNNING, WorkerState.FROZEN))
        if self.gpus[folder]:
            self.off_gpus.add(folder)

    async def on(self, folder: Path, gpus: Sequence[str] = ()) -> None:
        """See Driver.on."""
        await self._place(folder, "on", (WorkerState.RUNNING,))
        self._put_on(folder, gpus)

    def _put_on(self, folder: Path, gpus: Sequence[str]) -> None:
        there = tuple(gpus) or self.gpus[folder]
        if folder not in self.off_gpus and there != self.gpus[folder]:
            raise Conflict(f"the worker in {folder} cannot be moved", why="it is on its GPUs")
        self.gpus[folder] = there
        self.off_gpus.discard(folder)

    async def is_off(self, folder: Path) -> bool:
        """See Driver.is_off."""
        state = self._known(folder).state
        if not self._lives(folder):
            raise Conflict(f"the worker in {folder} has no processes", why=f"it is {state}")
        return folder in self.off_gpus

    async def _place(self, folder: Path, operation: str, states: tuple[WorkerState, ...]) -> None:
        state = self._known(folder).state
        if state not in states:
            raise Conflict(
                f"the worker in {folder} cannot be put {operation}", why=f"it is {state}"
            )
        await self._operate(operation)

    async def _operate(self, operation: str) -> None:
        await self._sleep(self._takes_ms.get(operation, 0) / 1000)
        self.faults.strike(operation)

    def _known(self, folder: Path) -> WorkerStatus:
        if folder not in self._workers:
            raise NotFound(f"there is no worker in {folder}")
        return self._workers[folder]

    def _lives(self, folder: Path) -> bool:
        status = self._workers.get(folder)
        return status is not None and status.state in _ALIVE


class FakeDriver(_FakeWorkers):
    """Workers in memory.

    takes_ms: how long each operation takes (by the method's name), by `sleep`.
    memory_bytes: what a running worker holds, and the size of its image.
    """

    name = "fake"

    def __init__(
        self,
        *,
        mode: CheckpointMode = CheckpointMode.CRIU,
        takes_ms: Mapping[str, int] | None = None,
        memory_bytes: int = 1 << 20,
        faults: FakeFaults | None = None,
        sleep: Callable[[float], Awaitable[None]] = _no_time,
    ) -> None:
        super().__init__(takes_ms or {}, faults or FakeFaults(), sleep)
        self._mode = mode
        self._memory_bytes = memory_bytes
        self._images: dict[Path, Path] = {}
        self._holds: dict[Path, _Hold] = {}
        self.pinned: dict[Path, tuple[int, ...]] = {}
        self.paused: dict[Path, int] = {}
        self.places: dict[Path, GangPlace] = {}
        self._next_pid = _FIRST_PID

    def keep_ready(self, on: bool) -> None:
        """See Driver.keep_ready. Nothing here takes time to get ready."""

    async def probe(self) -> Capability:
        """See Driver.probe."""
        reason = "" if self._mode is CheckpointMode.CRIU else f"told to be {self._mode}"
        return Capability(self._mode, reason, evidence="a fake: nothing was tried")

    async def probe_gpus(self, gpus: Sequence[str]) -> Capability:
        """See Driver.probe_gpus."""
        return await self.probe()

    async def start(self, spec: WorkerSpec) -> None:
        """See Driver.start."""
        if self._lives(spec.folder):
            return
        if not spec.command or spec.command[0] in self.faults.missing:
            raise InvalidRequest(f"command {' '.join(spec.command)!r} does not exist")
        await self._operate("start")
        self._run(spec)

    async def save(
        self,
        folder: Path,
        image: Path,
        *,
        hold: bool = False,
        leave_running: bool = False,
        memory: Path | None = None,
        limit_ms: int = 0,
    ) -> SavedImage:
        """See Driver.save."""
        status = self._known(folder)
        before = status.state
        if self._images.get(image) == folder and self._has_saved(folder, image, leave_running):
            return SavedImage(image, self._memory_bytes, 0)
        if before not in (WorkerState.RUNNING, WorkerState.FROZEN):
            raise Conflict(f"the worker in {folder} was not saved", why=f"it is {before}")
        if image in self._images:
            raise Conflict(f"image {image} already exists")
        self._workers[folder] = replace(status, state=WorkerState.SAVING)
        try:
            await self._operate("save")
        except OnefleetError:
            self._workers[folder] = status
            raise
        if 0 < limit_ms < self._takes_ms.get("save", 0):
            self._workers[folder] = replace(
                status, state=WorkerState.ENDED, reason="not saved in time"
            )
            raise TimedOut("the save was broken off", why=f"it takes more than {limit_ms} ms")
        if self._workers[folder].state is not WorkerState.SAVING:
            raise Conflict(f"the worker in {folder} was not saved", why="it ended meanwhile")
        size = self._memory_bytes
        self._images[image] = folder
        self._holds[folder] = _Hold(image, False, before, leave_running)
        self._workers[folder] = replace(status, state=WorkerState.SAVE_HELD, image_bytes=size)
        if not hold:
            self._decide(folder, commit=True)
        return SavedImage(image, size, frozen_ms=self._takes_ms.get("save", 0))

    def _has_saved(self, folder: Path, image: Path, leave_running: bool) -> bool:
        hold, state = self._holds.get(folder), self._workers[folder].state
        if hold is None or hold.image != image:
            return False
        return leave_running or state in (WorkerState.SAVED, WorkerState.SAVE_HELD)

    async def restore(self, spec: WorkerSpec, image: Path, *, hold: bool = False) -> None:
        """See Driver.restore."""
        if self._lives(spec.folder):
            return
        if image not in self._images:
            raise NotFound(f"image {image} does not exist")
        await self._operate("restore")
        self._run(spec)
        if spec.takes_turns and spec.gpus:
            self.off_gpus.add(spec.folder)
        if hold:
            running = self._workers[spec.folder]
            self._workers[spec.folder] = replace(running, state=WorkerState.RESTORE_HELD)
            self._holds[spec.folder] = _Hold(image, True, WorkerState.RUNNING)

    async def finish(self, folder: Path, commit: bool) -> None:
        """See Driver.finish."""
        self._known(folder)
        await self._operate("finish")
        self._decide(folder, commit)

    def _decide(self, folder: Path, commit: bool) -> None:
        status, hold = self._known(folder), self._holds.get(folder)
        if hold is None:
            raise Conflict(f"the worker in {folder} is not held", why=f"it is {status.state}")
        if hold.commit is not None:
            if hold.commit is not commit:
                raise Conflict(f"the worker in {folder} was told otherwise before")
            return
        ended = status.state is WorkerState.ENDED
        saved = WorkerStatus(WorkerState.SAVED, image_bytes=self._memory_bytes)
        if ended and (hold.restores or not commit):
            raise Conflict(f"the worker in {folder} has ended", why=status.reason)
        self._holds[folder] = replace(hold, commit=commit)
        if not commit and not hold.restores:
            del self._images[hold.image]
        if commit is hold.restores or (commit and hold.leave_running):
            held = status.state in (WorkerState.SAVE_HELD, WorkerState.RESTORE_HELD)
            state = hold.after if held else status.state
            self._workers[folder] = replace(status, state=state)
        else:
            self._workers[folder] = saved

    async def freeze(self, folder: Path) -> None:
        """See Driver.freeze."""
        await self._turn(folder, "freeze", WorkerState.RUNNING, WorkerState.FROZEN)
        if self.gpus[folder]:
            self.off_gpus.add(folder)

    async def thaw(self, folder: Path, gpus: Sequence[str] = ()) -> None:
        """See Driver.thaw."""
        await self._turn(folder, "thaw", WorkerState.FROZEN, WorkerState.RUNNING)
        if folder not in self._takes_turns:
            self._put_on(folder, gpus)

    async def pause(self, folder: Path, limit_ms: int) -> None:
        """See Driver.pause."""
        state = self._known(folder).state
        if state is not WorkerState.RUNNING:
            raise Conflict(f"the worker in {folder} cannot wait", why=f"it is {state}")
        await self._operate("pause")
        self.paused[folder] = limit_ms

    async def _turn(
        self, folder: Path, operation: str, before: WorkerState, after: WorkerState
    ) -> None:
        state = self._known(folder).state
        if state not in (before, after):
            raise Conflict(f"the worker in {folder} cannot {operation}", why=f"it is {state}")
        await self._operate(operation)
        if self._workers[folder].state is before:
            self._workers[folder] = replace(self._workers[folder], state=after)

    async def pin(self, folder: Path, cpus: Sequence[int]) -> None:
        """See Driver.pin."""
        status = self._known(folder)
        if not self._lives(folder):
            raise Conflict(f"the worker in {folder} has no threads", why=f"it is {status.state}")
        await self._operate("pin")
        self.pinned[folder] = tuple(cpus)

    async def connect(self, folder: Path, node: str, nodes: Sequence[str]) -> None:
        """See Driver.connect."""
        status = self._known(folder)
        if not self._lives(folder) or folder not in self.places:
            raise Conflict(f"the worker in {folder} is in no gang", why=f"it is {status.state}")
        await self._operate("connect")
        self.places[folder] = replace(self.places[folder], node=node, nodes=tuple(nodes))

    async def stop(self, folder: Path, grace_ms: int) -> None:
        """See Driver.stop."""
        self._known(folder)
        if self._lives(folder):
            await self._operate("stop")
            hold = self._holds.get(folder)
            if self._workers[folder].state is WorkerState.SAVE_HELD and hold is not None:
                del self._images[hold.image]
            self.end(folder, 143, "stopped on request")

    async def status(self, folder: Path) -> WorkerStatus:
        """See Driver.status."""
        return self._known(folder)

    async def adopt(self, root: Path) -> Sequence[Path]:
        """See Driver.adopt."""
        return sorted(folder for folder in self._workers if folder.parent == root)

    def end(self, folder: Path, exit_code: int, reason: str = "") -> None:
        """The worker's command ends by itself; no effect on one that does not run."""
        if self._lives(folder):
            reason = reason or f"exited with code {exit_code}"
            self._workers[folder] = WorkerStatus(
                WorkerState.ENDED, exit_code=exit_code, reason=reason
            )

    def lapse(self, folder: Path) -> None:
        """The time limit of the worker's hold passes."""
        state = self._known(folder).state
        assert state in (WorkerState.SAVE_HELD, WorkerState.RESTORE_HELD), f"it is {state}"
        self._workers[folder] = replace(self._workers[folder], state=WorkerState.RUNNING)

    def _run(self, spec: WorkerSpec) -> None:
        self._next_pid += 1
        self.pinned[spec.folder] = spec.cpus
        self.gpus[spec.folder] = spec.gpus
        self.off_gpus.discard(spec.folder)
        self._takes_turns.discard(spec.folder)
        if spec.takes_turns:
            self._takes_turns.add(spec.folder)
        if spec.gang is not None:
            self.places[spec.folder] = spec.gang
        self._holds.pop(spec.folder, None)
        self._workers[spec.folder] = WorkerStatus(
            WorkerState.RUNNING, pid=self._next_pid, memory_bytes=self._memory_bytes
        )
