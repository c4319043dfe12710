"""Saves by asking: the program itself writes what it needs into its checkpoint folder.

Asked with SIGTERM it saves itself and ends; asked with SIGUSR1, if it handles that, it saves
itself and goes on. Either way its image holds what it wrote, and a restore is the same command
with the same folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

from onefleet.domain.errors import Unsupported
from onefleet.drivers import image, process_tree
from onefleet.drivers import supervisor_files as files
from onefleet.drivers.keeper import Keeper
from onefleet.drivers.work_files import WorkFiles

#: Files get the time of the kernel's last tick, which may be this much behind the clock.
_CLOCK_TICK_NS = 20_000_000
#: A program that has written nothing for this long, and has nothing open there, is done.
_QUIET_NS = 300_000_000


class Request:
    """One request to a program to save itself. began_ns: when this stretch of it began."""

    def __init__(self, worker: Keeper, target: str, leave_running: bool, began_ns: int) -> None:
        """Ask it; the image gets its place first. Raises OSError, Conflict, Unsupported."""
        self.target = target
        self.leave_running = leave_running
        self._began_ns = began_ns
        self._worker = worker
        listeners = [pid for pid in worker.members() if _handles(pid, signal.SIGUSR1)]
        if leave_running and not listeners:
            raise Unsupported(
                "the worker cannot be saved and go on",
                why="none of its processes handles SIGUSR1",
                hint="suspend it instead, or let it save itself on SIGUSR1",
            )
        image.begin(target)
        self.asked_ns = time.time_ns()
        if not leave_running:
            worker.ask_to_end()
        for pid in listeners if leave_running else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)

    def is_done(self) -> bool:
        """Whether a program that goes on has written its checkpoint since it was asked."""
        newest = files.newest_change_ns(files.CHECKPOINT)
        if newest < self.asked_ns - _CLOCK_TICK_NS or time.time_ns() - newest < _QUIET_NS:
            return False
        here = f"{os.path.realpath(files.CHECKPOINT)}/"
        opened = process_tree.writable_files(self._worker.members())
        return not any(path.startswith(here) for path, *_ in opened)

    def commit(self, command: list[str], own: WorkFiles, facts: dict[str, Any]) -> dict[str, Any]:
        """Make the image whole; its manifest. Raises OSError."""
        lost_ms = 0 if self.leave_running else self._unsaved_ms()
        return image.commit(
            self.target,
            {
                "kind": "local",
                "id": os.urandom(16).hex(),
                "made_at_ms": time.time_ns() // 1_000_000,
                "command": command,
                "writable": [],
                "frozen_ms": 0,
                "lost_ms": lost_ms,
                "work": own.pack(self.target + image.PARTIAL),
                **facts,
            },
        )

    def call_off(self) -> None:
        image.discard_partial(self.target)

    def _unsaved_ms(self) -> int:
        """How long it had run, when it was asked to save itself, since what it did save.

        What it saved is what it wrote into its checkpoint folder. Nothing since this stretch
        began: then the whole stretch; what was not saved of earlier ones was told at their end.
        """
        newest = files.newest_change_ns(files.CHECKPOINT)
        if newest >= self.asked_ns - _CLOCK_TICK_NS:
            return 0
        return max(self.asked_ns - max(newest, self._began_ns), 0) // 1_000_000


def _handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal, which would else end it."""
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file,
    ):
        for line in file:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
