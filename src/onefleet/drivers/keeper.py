"""Keeps a worker's processes together where there is no cell: the local driver's containment.

Between the supervisor and the command stands a small process, the keeper, that adopts orphans.
If the supervisor is killed, the keeper ends everything; if the keeper is killed, its children
fall to the supervisor, which ends them. So nothing runs on that nobody watches.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from onefleet.drivers import linux, process_tree
from onefleet.drivers.freezer import Freezer
from onefleet.drivers.launch import become_command, close_all_but, launch_error


class Keeper:
    """A command and its descendants under a keeper process.

    root: pid of the command's process. root_status: its raw wait status once it has ended.
    descriptor: readable when there is news; then call `poll`.
    """

    def __init__(self, order: dict[str, Any], folder: str) -> None:
        self.root_status: int | None = None
        self.ended_cpu_ms = 0
        self.lost = ""
        self._ending = False
        linux.adopt_orphans()
        self.descriptor, news = os.pipe()
        report, failed = os.pipe()
        supervisor = os.getpid()
        self.freezer = Freezer()
        self._keeper = os.fork()
        if self._keeper == 0:
            os.close(report)
            _become_keeper(order, folder, news, failed, supervisor, self.freezer.enter)
        os.close(news)
        os.close(failed)
        with os.fdopen(report, encoding="ascii") as lines:
            said = lines.read()
        first = os.read(self.descriptor, 32)
        if said or not first:
            self.destroy()
            self.freezer.remove()
            raise launch_error(said, order)
        self.root = int(first)
        os.set_blocking(self.descriptor, False)

    def poll(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if text := os.read(self.descriptor, 256):
                news = json.loads(text)
                self.root_status, self.ended_cpu_ms = news["status"], news["cpu_ms"]

    def reaped(self, pid: int, status: int, cpu_ms: int) -> None:
        """A child of the supervisor has ended."""
        self.poll()
        if pid != self._keeper:
            return
        self._keeper = 0
        if self.root_status is None and not self._ending:
            self.lost = "its keeper process was killed, and it was ended with that"

    def members(self) -> list[int]:
        """Live processes of the worker."""
        everyone = process_tree.tree(os.getpid())[1:]
        return [
            pid
            for pid in everyone
            if pid != self._keeper and process_tree.stat_fields(pid)[:1] not in ([], ["Z"])
        ]

    def processes(self) -> list[int]:
        """The same: there is no cell that would number them otherwise."""
        return self.members()

    def leave(self) -> None:
        """All its processes have ended: take away what the kernel does not."""
        self.freezer.remove()

    def ask_to_end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.root, signal.SIGTERM)

    def destroy(self) -> None:
        self._ending = True
        if self._keeper:
            process_tree.kill_tree(self._keeper, keep_root=True)
            os.kill(self._keeper, signal.SIGKILL)
        process_tree.kill_tree(os.getpid(), keep_root=True)


def _become_keeper(
    order: dict[str, Any],
    folder: str,
    news: int,
    failed: int,
    supervisor: int,
    enter: Callable[[], None],
) -> NoReturn:
    """Start the command, say its pid, then its end; end everything when the supervisor dies."""
    try:
        signal.set_wakeup_fd(-1)
        close_all_but(news, failed)
        signal.signal(signal.SIGTERM, _supervisor_died)
        linux.die_with_parent(signal.SIGTERM)
        if os.getppid() != supervisor:  # it died before it could be watched
            os._exit(1)
        linux.adopt_orphans()
        linux.name_process("onefleet-keeper")
        root = os.fork()
        if root == 0:
            become_command(order, folder, order["work"], None, failed, enter)
        os.close(failed)
        os.write(news, str(root).encode())
        while True:
            try:
                pid, status, usage = os.wait4(-1, 0)
            except ChildProcessError:
                signal.pause()
                continue
            if pid == root:
                spent = int((usage.ru_utime + usage.ru_stime) * 1000)
                os.write(news, json.dumps({"status": status, "cpu_ms": spent}).encode())
    finally:
        os._exit(1)


def _supervisor_died(number: int, frame: FrameType | None) -> None:
    process_tree.kill_tree(os.getpid(), keep_root=True)
    os._exit(1)
