"""The run folder of a pool: who holds it, where the pool is, and which processes are its own.

A process is known by its pid and its start time together, so that a number that was given again
is never taken for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from onefleet.domain.errors import Conflict, Forbidden, StorageFull
from onefleet.domain.layout import Layout

#: A log over this size is put aside as .1; so a process has at most twice as much.
LOG_BYTES_MAX = 16 << 20
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this machine. start: its start time in clock ticks since boot."""

    pid: int
    start: int

    @property
    def alive(self) -> bool:
        """It runs; a zombie does not."""
        return start_of(self.pid) == self.start

    def signal(self, number: int) -> None:
        """Send a signal, unless it is gone."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def wait(self, limit_s: float) -> bool:
        """Whether it was gone within the limit. For processes that are not our children, too."""
        deadline = time.monotonic() + limit_s
        while self.alive:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True


@dataclass(frozen=True, slots=True)
class Pool:
    """The contents of the pool file. processes: the launcher's children, by name."""

    url: str
    pid: int
    start: int
    version: str
    started_at: int
    processes: Mapping[str, Process] = field(default_factory=dict)

    @property
    def launcher(self) -> Process:
        return Process(self.pid, self.start)


def start_of(pid: int) -> int | None:
    """The start time of a process, or None when there is none or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[0] in ("Z", "X") else int(fields[19])


def process(pid: int) -> Process:
    """A process that is there now; one that is already gone never counts as alive."""
    return Process(pid, start_of(pid) or 0)


def write_pool(layout: Layout, pool: Pool) -> None:
    """Replace the pool file as a whole."""
    value = {**asdict(pool), "pids": {n: p.pid for n, p in pool.processes.items()}}
    write_whole(layout.pool_file, json.dumps(value, indent=1) + "\n")


def read_pool(layout: Layout) -> Pool | None:
    """What the pool file says; None without one, or with one that is torn."""
    try:
        value = json.loads(layout.pool_file.read_text(encoding="utf-8"))
        return Pool(
            url=value["url"],
            pid=value["pid"],
            start=value["start"],
            version=value["version"],
            started_at=value["started_at"],
            processes={n: Process(**p) for n, p in value["processes"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file so that a reader sees all of it or what was there. Raises StorageFull."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageFull(
            f"{path} cannot be written", why=str(error), hint="df -h; onefleet --data-dir elsewhere"
        ) from error
    os.replace(temporary, path)


def take_lock(layout: Layout) -> IO[str]:
    """Lock the data folder for the life of this process. Raises Conflict when a pool runs on it."""
    try:
        layout.lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = layout.lock.open("a+", encoding="utf-8")
    except PermissionError as error:
        raise Forbidden(
            f"{layout.root} may not be written by this user",
            why=str(error),
            hint="name a folder of your own with --data-dir",
        ) from error
    except OSError as error:
        raise StorageFull(
            f"{layout.root} cannot be used", why=str(error), hint="name another with --data-dir"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        pool = read_pool(layout)
        where = f" and serves at {pool.url}" if pool else ", and is starting or stopping"
        raise Conflict(
            f"a pool already runs on {layout.root}",
            why=f"process {holder} holds it{where}",
            hint="onefleet status; to stop it: onefleet down; or use another --data-dir",
            code="pool_running",
        ) from error
    try:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            file.close()
        raise StorageFull(
            f"{layout.lock} cannot be written", why=str(error), hint=f"df -h {layout.root}"
        ) from error
    return file


def is_locked(layout: Layout) -> bool:
    """Whether a launcher holds the data folder."""
    try:
        with layout.lock.open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def end_strays(layout: Layout, limit_s: float = 10.0) -> int:
    """End the processes of a launcher that was killed; its workers are not touched. How many."""
    pool = read_pool(layout)
    strays = [p for p in pool.processes.values() if p.alive] if pool else []
    for stray in strays:
        stray.signal(signal.SIGTERM)
    for stray in strays:
        if not stray.wait(limit_s):
            stray.signal(signal.SIGKILL)
            stray.wait(limit_s)
    return len(strays)


def open_log(layout: Layout, name: str) -> IO[bytes]:
    """The log of the process of this name, to be appended to. One that has grown too long is put
    aside first. Where there is no room for a log, it goes nowhere: the process counts for more."""
    path = layout.logs / f"{name}.log"
    try:
        layout.logs.mkdir(parents=True, exist_ok=True)
        bound_log(path)
        return path.open("ab")
    except OSError:
        return open(os.devnull, "ab")


def bound_log(path: Path, limit_bytes: int = LOG_BYTES_MAX) -> None:
    """Put a long log aside by copying, so that its writer (which appends) may keep it open.

    Without room for the copy the log is cut all the same: that gives the room back.
    """
    if path.exists() and path.stat().st_size > limit_bytes:
        aside = path.with_name(f"{path.name}.1")
        try:
            shutil.copyfile(path, aside)
        except OSError:
            aside.unlink(missing_ok=True)
        os.truncate(path, 0)


def tail(path: Path, lines: int = 8) -> str:
    """The last lines of a log, for the error that names it."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - 16_384, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
