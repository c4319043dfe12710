"""Lets a worker's processes stand still with their memory in place, and go on.

By a group of its own in the machine's control groups (version 2), where this process may make one:
the program cannot notice it, and no process escapes by being born at that moment. Groups of
version 1 are not used: what they hold frozen cannot be killed. Elsewhere by SIGSTOP and SIGCONT,
which a program's own parent processes may notice if they ask for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence

from onefleet.domain.errors import TimedOut
from onefleet.drivers import process_tree

_NAME = "onefleet"
#: A process that waits for a disk stands still only when the disk has answered.
_LIMIT_S = 10.0
_PAUSE_S = 0.001
_ROUNDS = 100
_MOUNTS, _MINE = "/proc/self/mountinfo", "/proc/self/cgroup"


class Freezer:
    """The brake of one worker. `group`: its control group's folder; empty where there is none.

    Whoever is to be in the group calls `enter` before it becomes the worker.
    """

    def __init__(self) -> None:
        self.frozen = False
        self._stopped: set[int] = set()  # those that stood still by themselves
        self.group = ""
        with contextlib.suppress(OSError, ValueError, StopIteration):
            self.group = _make_group()

    def enter(self) -> None:
        """Put the calling process into the group. Raises OSError."""
        if self.group:
            with open(f"{self.group}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")

    def freeze(self, pids: Callable[[], Sequence[int]], limit_s: float = _LIMIT_S) -> None:
        """Return when all of `pids` stand still. Raises OSError, TimedOut (then all go on)."""
        if self.frozen:
            return
        self.frozen = True
        if not self.group:
            self._stop(pids)
            return
        self._write(1)
        deadline = time.monotonic() + limit_s
        while "frozen 1" not in _text(f"{self.group}/cgroup.events"):
            if time.monotonic() > deadline:
                self.thaw(pids)
                why = "one of its processes waits for a device that does not answer"
                raise TimedOut(f"the worker did not stand still within {limit_s:.0f} s", why=why)
            time.sleep(_PAUSE_S / 10)

    def thaw(self, pids: Callable[[], Sequence[int]]) -> None:
        """Let them go on. Raises OSError."""
        self.frozen = False
        if self.group:
            self._write(0)
            return
        for pid in pids():
            if pid not in self._stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self._stopped.clear()

    def _stop(self, pids: Callable[[], Sequence[int]]) -> None:
        """Parents first, until nobody is left who could have children."""
        self._stopped = {pid for pid in pids() if _state(pid) == "T"}
        for _ in range(_ROUNDS):
            moving = [pid for pid in pids() if _state(pid) not in ("T", "t", "Z", "X", "")]
            if not moving:
                return
            for pid in moving:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(_PAUSE_S)

    def _write(self, value: int) -> None:
        with open(f"{self.group}/cgroup.freeze", "w", encoding="ascii") as file:
            file.write(str(value))

    def remove(self) -> None:
        """Take the group away; its processes have ended."""
        if self.group:
            with contextlib.suppress(OSError):
                os.rmdir(self.group)


def _make_group() -> str:
    """A group for this supervisor's worker, below this process's own. Raises OSError.

    Groups that supervisors which were killed have left are removed on the way.
    """
    parent = _own_folder()
    for name in os.listdir(parent):
        kind, _, owner = name.partition("-")
        if kind == _NAME:
            pid, _, born = owner.partition("-")
            if str(process_tree.born_at(int(pid))) != born:
                with contextlib.suppress(OSError):
                    os.rmdir(f"{parent}/{name}")
    me = os.getpid()
    group = f"{parent}/{_NAME}-{me}-{process_tree.born_at(me)}"
    os.mkdir(group)
    try:
        with open(f"{group}/cgroup.freeze", "r+", encoding="ascii"):
            return group
    except OSError:
        os.rmdir(group)
        raise


def _own_folder() -> str:
    """Where this process's group of version 2 is in the file system. Raises StopIteration."""
    own = next(line[3:] for line in _text(_MINE).splitlines() if line.startswith("0::"))
    mounts = (line.split() for line in _text(_MOUNTS).splitlines() if " - cgroup2 " in line)
    for fields in mounts:
        root, place = fields[3], fields[4]
        if root == "/" or own == root or own.startswith(f"{root}/"):
            return os.path.normpath(f"{place}/{own.removeprefix(root).lstrip('/')}")
    raise OSError("no control groups of version 2 are mounted")


def _state(pid: int) -> str:
    fields = process_tree.stat_fields(pid)
    return fields[0] if fields else ""


def _text(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()
