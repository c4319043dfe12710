"""A driver without processes: for tests and simulations of whatever stands above drivers.

It keeps the contract of `base.Driver` (one suite proves that), takes time only by the sleep that
it is given, and fails where it is told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onefleet.domain.errors import Conflict, InvalidRequest, NotFound, OnefleetError
from onefleet.domain.fleet import CheckpointMode
from onefleet.drivers.base import Capability, SavedImage, WorkerSpec, WorkerState, WorkerStatus

_FIRST_PID = 1000
_RUNNING = (WorkerState.RUNNING, WorkerState.SAVING)


async def _no_time(seconds: float) -> None:
    """Let others run, take no time."""
    await asyncio.sleep(0)


@dataclass(slots=True)
class FakeFaults:
    """What goes wrong: per operation (start, save, restore, stop) the errors of its next calls.

    An error is used up by one call. missing: commands that do not exist.
    """

    errors: dict[str, list[OnefleetError]] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()

    def strike(self, operation: str) -> None:
        waiting = self.errors.get(operation)
        if waiting:
            raise waiting.pop(0)


class FakeDriver:
    """Workers in memory.

    takes_ms: how long each operation takes (start, save, restore, stop), by `sleep`.
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
        self.faults = faults or FakeFaults()
        self._mode = mode
        self._takes_ms = dict(takes_ms or {})
        self._memory_bytes = memory_bytes
        self._sleep = sleep
        self._workers: dict[Path, WorkerStatus] = {}
        self._images: dict[Path, Path] = {}
        self._next_pid = _FIRST_PID

    async def probe(self) -> Capability:
        """See Driver.probe."""
        reason = "" if self._mode is CheckpointMode.CRIU else f"told to be {self._mode}"
        return Capability(self._mode, reason, evidence="a fake: nothing was tried")

    async def start(self, spec: WorkerSpec) -> None:
        """See Driver.start."""
        if self._runs(spec.folder):
            return
        if not spec.command or spec.command[0] in self.faults.missing:
            raise InvalidRequest(f"command {' '.join(spec.command)!r} does not exist")
        await self._operate("start")
        self._run(spec.folder)

    async def save(self, folder: Path, image: Path) -> SavedImage:
        """See Driver.save."""
        status = self._known(folder)
        if status.state is WorkerState.SAVED and self._images.get(image) == folder:
            return SavedImage(image, status.image_bytes, 0)
        if not self._runs(folder):
            raise Conflict(f"the worker in {folder} was not saved", why=f"it is {status.state}")
        if image in self._images:
            raise Conflict(f"image {image} already exists")
        self._workers[folder] = replace(status, state=WorkerState.SAVING)
        try:
            await self._operate("save")
        except OnefleetError:
            self._workers[folder] = status
            raise
        if self._workers[folder].state is not WorkerState.SAVING:
            raise Conflict(f"the worker in {folder} was not saved", why="it ended meanwhile")
        self._images[image] = folder
        size = self._memory_bytes
        self._workers[folder] = WorkerStatus(WorkerState.SAVED, image_bytes=size)
        return SavedImage(image, size, frozen_ms=self._takes_ms.get("save", 0))

    async def restore(self, spec: WorkerSpec, image: Path) -> None:
        """See Driver.restore."""
        if self._runs(spec.folder):
            return
        if image not in self._images:
            raise NotFound(f"image {image} does not exist")
        await self._operate("restore")
        self._run(spec.folder)

    async def stop(self, folder: Path, grace_ms: int) -> None:
        """See Driver.stop."""
        self._known(folder)
        if self._runs(folder):
            await self._operate("stop")
            self.end(folder, 143, "stopped on request")

    async def status(self, folder: Path) -> WorkerStatus:
        """See Driver.status."""
        return self._known(folder)

    async def adopt(self, root: Path) -> Sequence[Path]:
        """See Driver.adopt."""
        return sorted(folder for folder in self._workers if folder.parent == root)

    def end(self, folder: Path, exit_code: int, reason: str = "") -> None:
        """The worker's command ends by itself; no effect on one that does not run."""
        if self._runs(folder):
            reason = reason or f"exited with code {exit_code}"
            self._workers[folder] = WorkerStatus(
                WorkerState.ENDED, exit_code=exit_code, reason=reason
            )

    async def _operate(self, operation: str) -> None:
        await self._sleep(self._takes_ms.get(operation, 0) / 1000)
        self.faults.strike(operation)

    def _known(self, folder: Path) -> WorkerStatus:
        if folder not in self._workers:
            raise NotFound(f"there is no worker in {folder}")
        return self._workers[folder]

    def _runs(self, folder: Path) -> bool:
        status = self._workers.get(folder)
        return status is not None and status.state in _RUNNING

    def _run(self, folder: Path) -> None:
        self._next_pid += 1
        self._workers[folder] = WorkerStatus(
            WorkerState.RUNNING, pid=self._next_pid, memory_bytes=self._memory_bytes
        )
