"""The seam between the agent and processes.

A driver starts one worker (one process tree) under a supervisor, a small daemon that outlives the
agent, and saves and restores its state. Everything about a worker lies in its folder, so that a
restarted agent finds it again by `adopt`. A gang is several workers that the agent starts, saves
and restores together; a driver knows one worker at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from onefleet.domain.fleet import CheckpointMode


@dataclass(frozen=True, slots=True)
class Capability:
    """What this driver can do on this machine, proved by a real save and restore."""

    mode: CheckpointMode
    reason: str  # why it is not criu; empty when it is
    evidence: str  # what was tried and seen


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What to start. The folder belongs to this worker alone and outlives its processes.

    stdout and stderr are append files of these names in the folder; they survive a save. `work` is
    the current directory of the command; the transparent driver shows it as /job. environment: the
    command's whole environment; PATH and ONEFLEET_CHECKPOINT_DIR (`checkpoint` in the folder) are
    set where it has none. cpus: the cores that it may use (affinity); empty: all. network, for the
    transparent driver: "cell" gives it a loopback of its own and nothing else, "host" leaves it the
    machine's network. grace_ms: how long a cooperative save may take. ends_with: id of a process
    that the worker shall not outlive; 0: none.
    """

    folder: Path
    command: tuple[str, ...]
    work: Path
    environment: tuple[tuple[str, str], ...] = ()
    cpus: tuple[int, ...] = ()
    network: str = "cell"
    grace_ms: int = 10_000
    ends_with: int = 0


class WorkerState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    SAVING = "saving"
    SAVED = "saved"
    RESTORING = "restoring"
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What is true of a worker now, as its supervisor last wrote it.

    exit_code: 128 + signal when a signal ended it; None when its end was not its own, because the
    supervisor, or what stands between it and the worker, died. reason: of a failure or end, a
    person's line.
    """

    state: WorkerState
    pid: int | None = None  # of its root process, as the machine sees it
    exit_code: int | None = None
    reason: str = ""
    image_bytes: int = 0
    lost_ms: int = 0  # as SavedImage.lost_ms
    memory_bytes: int = 0
    cpu_ms: int = 0


@dataclass(frozen=True, slots=True)
class SavedImage:
    """A whole, durable image of one worker.

    lost_ms: the time just before the save whose work is not in it. A cooperative image holds what
    the program itself wrote; it may have written nothing for a while.
    """

    folder: Path
    size_bytes: int
    frozen_ms: int  # how long the processes stood still before their memory was free
    files: tuple[tuple[str, int], ...] = field(default=())  # writable files and their sizes then
    lost_ms: int = 0


class Driver(Protocol):
    """Starts and saves workers. Methods raise OnefleetError; each is safe to call again."""

    name: str

    async def probe(self) -> Capability:
        """Try it for real on this machine; cached for the life of the process."""
        ...

    async def start(self, spec: WorkerSpec) -> None:
        """Start a fresh worker; return when its command runs.

        Raises InvalidRequest when the command does not exist or may not be executed.
        """
        ...

    async def save(self, folder: Path, image: Path) -> SavedImage:
        """Save the worker's state into `image` and free its memory; it no longer runs after.

        When it raises, the worker runs on unharmed and `image` is gone.
        """
        ...

    async def restore(self, spec: WorkerSpec, image: Path) -> None:
        """Bring the worker back from `image`; return when it runs. The image stays."""
        ...

    async def stop(self, folder: Path, grace_ms: int) -> None:
        """End its whole process tree: ask, wait for grace_ms, kill. Returns when nothing runs."""
        ...

    async def status(self, folder: Path) -> WorkerStatus:
        """What is true now. A worker whose supervisor died is ENDED with a reason."""
        ...

    async def adopt(self, root: Path) -> Sequence[Path]:
        """Folders under `root` that hold a worker of this driver, running or not."""
        ...
