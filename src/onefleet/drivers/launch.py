"""The last steps of a child before it becomes the worker's command.

Everything that a later save depends on is set here: a session of its own, no terminal, no pipe to
the outside, fixed addresses and hash seeds, no io_uring.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Any, NoReturn

from onefleet.domain.errors import InternalError, InvalidRequest, OnefleetError
from onefleet.drivers import linux
from onefleet.drivers.rights import Rights
from onefleet.drivers.supervisor_files import STDERR, STDOUT

#: Set unless the order says otherwise: equal runs then hash alike and give equal pages.
#: USE_LIBUV=0 keeps torch's rendezvous off io_uring, which cannot be saved.
DEFAULTS = {"PYTHONHASHSEED": "0", "USE_LIBUV": "0"}

_MAX_FD = 4096


def become_command(
    order: dict[str, Any],
    own: str,
    work: str,
    mine: Rights | None,
    report: int,
    enter: Callable[[], None],
) -> NoReturn:
    """Execute the order's command; write an errno to `report` (close-on-exec) if that fails.

    own: the worker's folder as seen from here. work: the directory to run in. mine: of whoever is
    to save it transparently. enter: puts this process into the worker's control group.
    """
    try:
        enter()
        os.setsid()
        os.chdir(work)
        _wire_up(own, report)
        if order["cpus"]:
            os.sched_setaffinity(0, order["cpus"])
        linux.fix_addresses()
        if mine is not None:
            # Whatever is orphaned stays in the tree that is saved.
            linux.adopt_orphans()
            linux.gain_no_privileges()
            if mine.denies_io_uring:
                linux.deny_io_uring()
        _reset_signals()
        command = order["command"]
        os.execvpe(command[0], command, {**DEFAULTS, **order["environment"]})  # noqa: S606
    except OSError as error:
        os.write(report, str(error.errno or errno.EIO).encode())
    finally:
        os._exit(127)


def launch_error(said: str, order: dict[str, Any]) -> OnefleetError:
    """What `become_command` reported, as an error for a person."""
    name = order["command"][0]
    number = int(said) if said.isdecimal() else 0
    match number:
        case errno.ENOENT | errno.ENOTDIR:
            what, why = f"command {name!r} does not exist", "no such file in PATH or work folder"
        case errno.EACCES | errno.EPERM:
            what, why = f"command {name!r} may not be executed", "it is not an executable file"
        case errno.ENOEXEC:
            what, why = f"command {name!r} cannot be executed", "it is not a program or script"
        case errno.E2BIG:
            what, why = f"command {name!r} is too long", "arguments and environment are too large"
        case errno.EINVAL if order["cpus"]:
            what = f"command {name!r} cannot run on cores {order['cpus']}"
            why = "the machine does not have all of these cores, or not for this process"
        case 0:
            return InternalError("the command's process died before it ran", why=said)
        case _:
            what, why = f"command {name!r} did not start", os.strerror(number)
    return InvalidRequest(what, why=why, hint="check the command's name and its permissions")


def close_all_but(*kept: int) -> None:
    """Close every descriptor from 3 on, apart from `kept`."""
    below = 3
    for number in sorted(kept):
        os.closerange(below, number)
        below = number + 1
    os.closerange(below, _MAX_FD)


def _wire_up(own: str, report: int) -> None:
    """stdin is empty, stdout and stderr are append files, nothing else stays open."""
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(f"{own}/{STDOUT}", append, 0o644), 1)
    os.dup2(os.open(f"{own}/{STDERR}", append, 0o644), 2)
    close_all_but(report)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP) and number < signal.SIGRTMIN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
