"""criu's dump and restore of one cell: the command lines, the hook, and what its log means.

The options are those that saved every kind of process tried: sockets with their queues, file
locks, named semaphores, deleted files. criu runs inside the cell, so namespaces need no options.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
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

_BOTH = ("--tcp-established", "--file-locks", "--link-remap", "--manage-cgroups=ignore", "-v2")
_DUMP = ("--network-lock", "nftables", "--ghost-limit", "1G", "--action-script", f"{OWN}/{HOOK}")
_HOOK = f"""#!/bin/sh
# Called by criu; post-dump comes while the processes stand still, with all images written.
# They are given up only when the supervisor has made the images durable and says so.
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
echo frozen >{OWN}/{HOOK_ASKS}
read -r answer <{OWN}/{HOOK_HEARS}
[ "$answer" = durable ]
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


def dump(
    cell: Cell, criu: list[str], folder: str, partial: str, make_durable: Callable[[], None]
) -> None:
    """Dump the cell's worker, whose own folder is `folder`, into the folder `partial`; end it.

    `make_durable` is called while the processes stand still; if it raises, they run on and its
    error is raised. Raises UpstreamFailed, StorageFull with criu's own words (the worker runs on),
    CriuKilled, TimedOut (its state is unknown).
    """
    # For reading and writing, so that neither side waits for the other to open.
    asks, hears = (
        os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC) for name in (HOOK_ASKS, HOOK_HEARS)
    )
    log = os.memfd_create("criu")
    what = ("dump", "-t", str(ROOT_PID), *_DUMP)
    command = [*criu, *what, "-D", ".", "-W", OWN, *_BOTH, *cell.rights.criu_options]
    here = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    pid = cell.run(lambda: _become_criu(command, cell.rights, here, log))
    os.close(here)
    refused: OnefleetError | OSError | None = None
    try:
        if _wait_asked(pid, asks):
            try:
                make_durable()
            except (OnefleetError, OSError) as error:
                refused = error
            os.write(hears, b"durable\n" if refused is None else b"no\n")
        status = _wait_end(pid)
    finally:
        os.close(asks)
        os.close(hears)
    text = _take_log(log)
    if os.WIFSIGNALED(status):
        raise _killed("save", status)
    if refused is not None:
        raise refused
    if status != 0:
        raise _failure("save", text, partial, cell.rights)


def restore(cell: Cell, criu: list[str], image: str) -> None:
    """Restore the image's worker into the empty cell; it becomes a child of this process.

    Raises UpstreamFailed with criu's own words, CriuKilled, TimedOut.
    """
    log = os.memfd_create("criu")
    command = [*criu, "restore", "-d", "-S", "-D", ".", "-W", OWN, *_BOTH]
    command += cell.rights.criu_options
    here = os.open(image, os.O_RDONLY | os.O_DIRECTORY)
    pid = cell.run(lambda: _become_criu(command, cell.rights, here, log))
    os.close(here)
    status = _wait_end(pid)
    text = _take_log(log)
    if os.WIFSIGNALED(status):
        raise _killed("restore", status)
    if status != 0:
        raise _failure("restore", text, image, cell.rights)


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


def _wait_asked(pid: int, asks: int) -> bool:
    """Until the hook asks (True) or criu has ended without that. Raises TimedOut, criu killed."""
    watch = os.pidfd_open(pid)
    try:
        readable = select.select([asks, watch], [], [], LIMIT_S)[0]
    finally:
        os.close(watch)
    if not readable:
        _give_up(pid)
    return asks in readable


def _wait_end(pid: int) -> int:
    """Reap criu; its raw wait status. Raises TimedOut, criu killed."""
    watch = os.pidfd_open(pid)
    try:
        readable = select.select([watch], [], [], LIMIT_S)[0]
    finally:
        os.close(watch)
    if not readable:
        _give_up(pid)
    return os.waitpid(pid, 0)[1]


def _give_up(pid: int) -> NoReturn:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimedOut(f"criu did not finish within {LIMIT_S:.0f} s", why="it hung, and was killed")


def _take_log(log: int) -> str:
    os.lseek(log, 0, os.SEEK_SET)
    with os.fdopen(log, encoding="utf-8", errors="replace") as file:
        return file.read()


def _killed(verb: str, status: int) -> CriuKilled:
    return CriuKilled(
        f"the {verb} was broken off",
        why=f"criu was killed by signal {os.WTERMSIG(status)} at its work",
        hint="restore the last image; look for a lack of memory",
    )


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
