"""criu's dump and restore of one cell: the command lines, the hook, and what its log means.

The options are those that saved every kind of process tried: sockets with their queues, file
locks, named semaphores, deleted files. criu runs inside the cell, so namespaces need no options.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from onefleet.domain.errors import OnefleetError, StorageFull, TimedOut, UpstreamFailed
from onefleet.drivers import linux
from onefleet.drivers.cell import OWN, ROOT_PID, Cell
from onefleet.drivers.rights import Rights, limit_in
from onefleet.drivers.supervisor_files import HOOK, HOOK_ASKS, HOOK_HEARS

#: criu's own processes in a cell start here; a restored worker has its old ids, far below.
CRIU_PIDS = 30_000
#: How many process ids criu itself may take while it restores.
CRIU_SPAN = 64
#: A dump or restore that takes longer is broken, not slow: 600 s are 600 GB at the usual rate.
LIMIT_S = 600.0
#: Between looks at what criu has written so far.
_LOOK_S = 0.01

_SAME = ("--tcp-established", "--file-locks", "--link-remap", "--manage-cgroups=ignore", "-v2")
_BOTH = (*_SAME, "--action-script", f"{OWN}/{HOOK}")
_DUMP = ("--network-lock", "nftables", "--ghost-limit", "1G")
_HOOK = f"""#!/bin/sh
# Called by criu; at these two of its steps the processes stand still, with all that was to be done
# done. They are given up, or go on, only when the supervisor says so.
case "$CRTOOLS_SCRIPT_ACTION" in post-dump | pre-resume) ;; *) exit 0 ;; esac
echo frozen >{OWN}/{HOOK_ASKS}
read -r answer <{OWN}/{HOOK_HEARS}
[ "$answer" = yes ]
"""


#: criu tries to raise its own limit of open files, and says so when it may not.
_HARMLESS = "Can't setup RLIMIT_NOFILE"


class CriuKilled(UpstreamFailed):
    """criu itself was killed at work: the state of the processes that it held is unknown."""


def write_hook(folder: str) -> None:
    """Put the hook and its two pipes into the worker's folder. Raises OSError.

    Named pipes, because criu closes every descriptor that it inherits.
    """
    descriptor = os.open(f"{folder}/{HOOK}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(_HOOK)
    for name in (HOOK_ASKS, HOOK_HEARS):
        with contextlib.suppress(FileExistsError):
            os.mkfifo(f"{folder}/{name}", 0o600)


class Criu:
    """criu at its work in a cell, up to the moment at which its hook asks, and beyond.

    Made by `begin_dump` and `begin_restore`. pid: of criu itself, a child of this process; if
    somebody else reaps it, its wait status goes to `status`. asked: it waits for an answer.
    """

    def __init__(
        self,
        cell: Cell,
        arguments: list[str],
        own: str,
        folder: str,
        verb: str,
        enter: Callable[[], None] = lambda: None,
    ) -> None:
        """own: the worker's folder. folder: of the image, as the machine sees it. enter: what
        the process does in the cell before it becomes criu.
        """
        self.status: int | None = None
        self.asked = False
        self._verb = verb
        self._folder = folder
        self._rights = cell.rights
        # For reading and writing, so that neither side waits for the other to open.
        self._asks, self._hears = (
            os.open(f"{own}/{name}", os.O_RDWR | os.O_CLOEXEC) for name in (HOOK_ASKS, HOOK_HEARS)
        )
        self._log = os.memfd_create("criu")
        command = [*arguments, "-D", ".", "-W", OWN, *_BOTH, *cell.rights.criu_options]
        here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

        def body() -> NoReturn:
            enter()
            _become_criu(command, cell.rights, here, self._log)

        self.pid = cell.run(body)
        os.close(here)

    def wait_asked(
        self, meanwhile: Callable[[], bool] = lambda: False, limit_s: float = LIMIT_S
    ) -> None:
        """Until the hook asks. Raises UpstreamFailed, StorageFull with criu's own words when it
        ended without that (the worker runs on), CriuKilled, TimedOut (its state is unknown).

        meanwhile: something to do until then, a piece a call; whether there may be more of it.
        """
        watch = os.pidfd_open(self.pid)
        try:
            readable = self._readable(watch, meanwhile, limit_s)
        finally:
            os.close(watch)
        if not readable:
            self._give_up(limit_s)
        if self._asks in readable:
            os.read(self._asks, 64)
            self.asked = True
            return
        self.finish()
        raise CriuKilled(f"the {self._verb} did not ask", why="criu ended without calling its hook")

    def _readable(self, watch: int, meanwhile: Callable[[], bool], limit_s: float) -> list[int]:
        deadline = time.monotonic() + limit_s
        while (left := deadline - time.monotonic()) > 0:
            wait_s = 0.0 if meanwhile() else min(_LOOK_S, left)
            if readable := select.select([self._asks, watch], [], [], wait_s)[0]:
                return readable
        return []

    def answer(self, yes: bool) -> None:
        self.asked = False
        os.write(self._hears, b"yes\n" if yes else b"no\n")

    def finish(self) -> None:
        """Wait until it has ended. Raises UpstreamFailed, StorageFull, CriuKilled, TimedOut."""
        try:
            status = self._wait_end()
        finally:
            os.close(self._asks)
            os.close(self._hears)
        os.lseek(self._log, 0, os.SEEK_SET)
        with os.fdopen(self._log, encoding="utf-8", errors="replace") as file:
            text = file.read()
        if os.WIFSIGNALED(status):
            raise CriuKilled(
                f"the {self._verb} was broken off",
                why=f"criu was killed by signal {os.WTERMSIG(status)} at its work",
                hint="restore the last image; look for a lack of memory",
            )
        if status != 0:
            raise _failure(self._verb, text, self._folder, self._rights)

    def _wait_end(self) -> int:
        if self.status is None:
            watch = os.pidfd_open(self.pid)
            try:
                readable = select.select([watch], [], [], LIMIT_S)[0]
            finally:
                os.close(watch)
            if not readable:
                self._give_up(LIMIT_S)
            self.status = os.waitpid(self.pid, 0)[1]
        return self.status

    def _give_up(self, limit_s: float) -> NoReturn:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise TimedOut(f"criu did not finish within {limit_s:g} s", why="it was killed at its work")


def allowed_s(limit_ms: int) -> float:
    """How long a dump may take. Never longer than whoever ordered it waits for an answer."""
    return min(limit_ms / 1000, LIMIT_S) if limit_ms else LIMIT_S


def begin_dump(
    cell: Cell, criu: list[str], own: str, partial: str, leave_running: bool, frozen: str
) -> Criu:
    """Start to dump the cell's worker into the folder `partial`; then call `wait_asked`.

    The answer yes ends the worker, or lets it run on (leave_running); no lets it run on, and
    `finish` then raises UpstreamFailed. frozen: the control group that the worker is frozen in; it
    will be frozen again if the worker is not ended.
    """
    arguments = [*criu, "dump", "-t", str(ROOT_PID), *_DUMP]
    if leave_running:
        arguments.append("--leave-running")
    if frozen:
        arguments += ["--freeze-cgroup", frozen]
    return Criu(cell, arguments, own, partial, "save")


def begin_restore(
    cell: Cell, criu: list[str], own: str, image: str, enter: Callable[[], None]
) -> Criu:
    """Start to restore the image's worker into the empty cell, as a child of this process.

    When the hook asks, all is there, its sockets too, and nothing has moved yet; the answer lets it
    run. There is no way to say no but to end the cell. enter: puts criu, and with it all that it
    restores, into the worker's control group.
    """
    return Criu(cell, [*criu, "restore", "-d", "-S"], own, image, "restore", enter)


def telling_errors(log: str) -> str:
    """What criu's log says went wrong: its first and its last error line of substance.

    The first is usually the cause, the last what became of it.
    """
    errors = [line.strip() for line in log.splitlines() if "Error" in line]
    telling = [e for e in errors if not e.endswith("FAILED.") and _HARMLESS not in e]
    chosen = telling or errors or log.strip().splitlines() or ["it said nothing"]
    return chosen[0] if chosen[0] == chosen[-1] else f"{chosen[0]}; {chosen[-1]}"


def _become_criu(command: list[str], mine: Rights, folder: int, log: int) -> NoReturn:
    """Execute criu in `folder`, a descriptor: its path may mean nothing inside the cell."""
    os.fchdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if mine.user_namespace:
        linux.keep_capabilities()
    os.execv(command[0], command)  # noqa: S606


def _failure(verb: str, log: str, folder: str, mine: Rights) -> OnefleetError:
    why = telling_errors(log)
    if "No space left on device" in log or _is_full(folder):
        return StorageFull(
            f"the {verb} failed: no space left on the disk of {folder}",
            why=why,
            hint="free some space; the worker was not harmed",
        )
    what = f"criu could not {verb} the worker"
    if limit := limit_in(mine, log):
        why = f"{limit.what} cannot be {verb}d without root ({why})"
        return UpstreamFailed(what, why=why, hint=limit.hint)
    return UpstreamFailed(what, why=why, hint="see doctor")


def _is_full(folder: str) -> bool:
    with contextlib.suppress(OSError):
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize < 64 * 1024
    return False
