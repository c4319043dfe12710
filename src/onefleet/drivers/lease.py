"""Until when a node's jobs may run: the agent writes it, every supervisor of a job holds to it.

One short file, written over in place, so that a full disk does not end a lease. The time is of a
clock that goes on while the machine sleeps, and that no one can set: the control plane's goes on,
too, and gives the node up when the lease is over.
"""

from __future__ import annotations

import contextlib
import os
import time

#: The time twice: who reads while it is written sees two that differ.
_LINE = "{0:020d} {0:020d}\n"
_TRIES = 5


def now_ms() -> int:
    """Milliseconds since the machine was started, its sleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def write(path: str, until_ms: int) -> None:
    """Raises OSError, when the file is new or cannot be written at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, _LINE.format(until_ms).encode("ascii"), 0)
    finally:
        os.close(descriptor)


def read(path: str) -> int:
    """What was written; 0, which has long been over, when that cannot be read."""
    for _ in range(_TRIES):
        with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
            once, again = file.read().split()
            if once == again:
                return int(once)
    return 0


class Lease:
    """A lease as a supervisor sees it: the file is read when the time that is known has come."""

    def __init__(self, path: str | None) -> None:
        """path: None for what may run without one."""
        self._path = path
        self._until_ms = 0

    @property
    def left_s(self) -> float | None:
        """How long it lasts for certain; 0.0: it is over. None: for ever."""
        if self._path is None:
            return None
        if now_ms() >= self._until_ms:
            self._until_ms = read(self._path)
        return max(self._until_ms - now_ms(), 0) / 1000
