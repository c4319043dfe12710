"""A worker's monotonic clocks: they stand still while it is saved, wherever it comes back.

A program that slept until a time that its monotonic clock has not reached on another machine, or
after a boot, would sleep for as long as the first machine had been up; and one that waits for
somebody would see its time limits pass while nobody ran. root's criu sees to that by a time
namespace. An ordinary user's does not, so the cell is put into one before criu restores into it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

from onefleet.drivers import linux

#: Nanoseconds by the clock's name in the kernel's file of offsets.
Clocks = Mapping[str, int]

_IDS = {"monotonic": time.CLOCK_MONOTONIC, "boottime": time.CLOCK_BOOTTIME}
_SECOND = 10**9


def offsets(pid: int | str) -> dict[str, int]:
    """How far the process's clocks are ahead of the machine's; nothing without time namespaces."""
    found: dict[str, int] = {}
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        open(f"/proc/{pid}/timens_offsets", encoding="ascii") as file,
    ):
        for line in file:
            name, seconds, rest = line.split()
            found[name] = int(seconds) * _SECOND + int(rest)
    return found


#: Of this process. Read once, because after `go_on_from` the kernel tells those of its children.
_MINE = offsets("self")


def of_process(pid: int) -> dict[str, int]:
    """What the process's clocks show now."""
    now = _of_machine()
    return {name: now[name] + ahead for name, ahead in offsets(pid).items()}


def go_on_from(clocks: Clocks) -> None:
    """Let the clocks of the children of this process start with `clocks`. Raises OSError.

    To be called before the first child is born; it needs the rights of the user namespace. Where
    the kernel has no time namespaces, or the image no clocks, the clocks are the machine's.
    """
    if not clocks or not os.path.exists("/proc/self/timens_offsets"):
        return
    now = _of_machine()
    linux.unshare(linux.NEW_TIME)
    with open("/proc/self/timens_offsets", "w", encoding="ascii") as file:
        for name in _IDS:
            seconds, rest = divmod(clocks[name] - now[name], _SECOND)
            file.write(f"{name} {seconds} {rest}\n")


def _of_machine() -> dict[str, int]:
    """The machine's own clocks, even if this process lives in a time namespace."""
    return {name: time.clock_gettime_ns(key) - _MINE.get(name, 0) for name, key in _IDS.items()}
