"""The seam between the agent and processes.

A driver starts one worker (one process tree) under a supervisor, a small daemon that outlives the
agent, and saves and restores its state. Everything about a worker lies in its folder, so that a
restarted agent finds it again by `adopt`.

A gang is several workers that the agent starts, saves and restores together; a driver knows one
worker at a time. What makes the whole consistent are two phases: each worker is saved (or
restored) with `hold` and then stands still, and only when all of them have come that far does the
agent `finish` each. If one fails, the others are told to go on as if nothing had been.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from onefleet.domain.fleet import CheckpointMode
from onefleet.domain.gang import GangPlace


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
    the current directory of the command; the transparent driver shows it as /job.

    environment: the command's whole environment; PATH and ONEFLEET_CHECKPOINT_DIR (`checkpoint` in
    the folder) are set where it has none. cpus: the cores that it may use (affinity); empty: all.
    gpus: UUIDs of those whose memory a transparent save takes along (environment says what it
    sees). takes_turns: others of its gang may be on them: after a restore or a thaw it stays off
    them until `Driver.on`. network, for the transparent driver: "cell" gives it a loopback of its
    own and nothing else, "host" leaves it the machine's network. gang: its place in a gang, instead
    of `network`; its cell is then joined to those of the gang's other workers. grace_ms: how long a
    cooperative save may take. hold_ms: after which a hold ends by itself. ends_with: id of a
    process that the worker shall not outlive; 0: none. chunks: the store that its images may have
    been folded into. lease: the file that says until when it may run (`drivers.lease`); None: for
    ever. origin: an archive (tar) of the files that `work` held at first, for a restore of a time
    when they were not changed yet.
    """

    folder: Path
    command: tuple[str, ...]
    work: Path
    environment: tuple[tuple[str, str], ...] = ()
    cpus: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    takes_turns: bool = False
    network: str = "cell"
    gang: GangPlace | None = None
    grace_ms: int = 10_000
    hold_ms: int = 600_000
    ends_with: int = 0
    chunks: Path | None = None
    lease: Path | None = None
    origin: Path | None = None


class WorkerState(StrEnum):
    """frozen: stands still, memory stays. save-held: its image is whole, it stands still until
    `finish` says which of the two counts. restore-held: restored, and not yet let go.
    """

    STARTING = "starting"
    RUNNING = "running"
    FROZEN = "frozen"
    SAVING = "saving"
    SAVE_HELD = "save-held"
    SAVED = "saved"
    RESTORING = "restoring"
    RESTORE_HELD = "restore-held"
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
    """A whole image of one worker, durable unless it was to lie in memory.

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

    async def probe_gpus(self, gpus: Sequence[str]) -> Capability:
        """The same for what workers have on GPUs, tried on the first of these (UUIDs)."""
        ...

    def keep_ready(self, on: bool) -> None:
        """Keep ready what makes starts and restores quicker, or do so no more."""
        ...

    async def start(self, spec: WorkerSpec) -> None:
        """Start a fresh worker; return when its command runs.

        Raises InvalidRequest when the command does not exist or may not be executed.
        """
        ...

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
        """Save the worker's state into `image` and free its memory; it no longer runs after.

        leave_running: a checkpoint; it runs on. hold: return with the image whole and the worker
        SAVE_HELD; `finish` follows. memory: a folder on a file system in memory for the files of
        the image, which then is whole but not durable; a program that saves itself ignores it.
        When it raises, the worker runs on unharmed and `image` is gone. A frozen worker can be
        saved, and stays frozen unless it is given up. limit_ms: a save that takes longer is broken
        off, and the worker is ended: without an image (TimedOut), or with what its program had
        saved itself. 0: as long as it may take at all.
        """
        ...

    async def restore(self, spec: WorkerSpec, image: Path, *, hold: bool = False) -> None:
        """Bring the worker back from `image`; return when it runs. The image stays.

        hold: return when all is there, and nothing moves yet (RESTORE_HELD); `finish` follows.
        """
        ...

    async def finish(self, folder: Path, commit: bool) -> None:
        """End a hold.

        Of a save, commit: the worker is given up, SAVED (with leave_running it runs on, and the
        image counts); else it runs on and the image is gone. Of a restore, commit: it runs; else
        it is SAVED again. Called again with the same answer, it does nothing; with another it
        raises Conflict.

        A hold that nobody ends within a limit ends by itself: the worker runs (on), and the image
        stays, so that either answer may still be given. Commit of a save then stops a worker that
        ran on, and what it did since is undone by the restore.
        """
        ...

    async def freeze(self, folder: Path) -> None:
        """Let all its processes stand still, within milliseconds; their memory stays.

        What it has on GPUs is taken into its own memory first, so that they are free for others;
        that takes as long as copying it.
        """
        ...

    async def thaw(self, folder: Path, gpus: Sequence[str] = ()) -> None:
        """Let a frozen worker run on. gpus: as of `on`; one that takes turns stays off them.

        Raises UpstreamFailed, and it stays frozen, when its GPUs have no room for it.
        """
        ...

    async def pause(self, folder: Path, limit_ms: int) -> None:
        """Let a running worker wait for its turn: it stands still, what it has on devices stays.

        It is RUNNING all the while, and goes on by itself after limit_ms, or when anything else is
        asked of it. Asked again, it waits for limit_ms from then on; 0: it goes on. Raises Conflict
        for a worker that is not RUNNING, TimedOut when it does not stand still soon.
        """
        ...

    async def off(self, folder: Path, towards: Sequence[str] = ()) -> None:
        """Take what it has on GPUs into its own memory, so that they are free for others.

        It is RUNNING all the while, and runs on; a call of it to a GPU waits until `on`. Saves,
        freezes and what follows them leave it off. Called again, it also takes what has come to the
        GPUs since. towards: GPUs (UUIDs) on which it is going to be put, in the order of those that
        it has; empty: no others. Whether it can be is found out now; `on` says where it is put.
        Raises OnefleetError, and it is where it was; Unsupported where nobody can take it off.
        """
        ...

    async def on(self, folder: Path, gpus: Sequence[str] = ()) -> None:
        """Put a worker on GPUs that is off them; nothing is done to one that is on them.

        gpus: by UUID, in the order of those that it was on; empty: those. Raises Conflict for one
        that is on others; UpstreamFailed, and it stays off, when they have no room for it.
        """
        ...

    async def is_off(self, folder: Path) -> bool:
        """Whether it is off its GPUs, once nothing is under way that it was told before."""
        ...

    async def pin(self, folder: Path, cpus: Sequence[int]) -> None:
        """Bind all its threads to these cores, in any state in which it has some.

        What a program was told of the machine before does not change by that: see
        `domain.gang.threads`. A restore binds it to the cores of its spec. Raises InvalidRequest
        for cores that this machine does not have.
        """
        ...

    async def connect(self, folder: Path, node: str, nodes: Sequence[str]) -> None:
        """Let a gang's worker reach those on these other machines, too (see GangPlace).

        To be called for the workers that stay where they are, before another comes to a machine
        that was not among theirs. Raises Conflict for a worker without a place in a gang.
        """
        ...

    async def stop(self, folder: Path, grace_ms: int) -> None:
        """End its whole process tree: ask, wait for grace_ms, kill. Returns when nothing runs.

        One that is held is killed at once, and the image of a held save is gone.
        """
        ...

    async def status(self, folder: Path) -> WorkerStatus:
        """What is true now. A worker whose supervisor died is ENDED with a reason."""
        ...

    async def adopt(self, root: Path) -> Sequence[Path]:
        """Folders under `root` that hold a worker of this driver, running or not."""
        ...
