"""What differs between a supervisor of root and one of an ordinary user.

Cells, images and everything else are the same for both. An ordinary user makes its cells inside a
user namespace, where it may do what root may do outside, apart from a few things that the kernel
keeps for the machine's real root. Those are the limits that are named here.

Inside that namespace a job has the user id that it was started with: its user's own at first, and
that of its image after a restore, whoever restores it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from onefleet.domain.errors import Unsupported
from onefleet.drivers import clocks, linux
from onefleet.drivers.clocks import Clocks

_SYS_ADMIN = 21
_WHOLE_MACHINE = ["0", "0", str(2**32 - 1)]

#: Settings that forbid user namespaces: the file under /proc/sys, the value that does, what to do.
_FORBIDDING = (
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a worker brings into a user namespace. clocks: empty for a fresh one."""

    uid: int
    gid: int
    clocks: Clocks


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that cannot be saved: what criu's log then says, what it is, what to do."""

    marks: tuple[str, ...]  # all of these in one line
    what: str
    hint: str


@dataclass(frozen=True, slots=True)
class Rights:
    """The table of differences; see the two rows below."""

    user_namespace: bool
    criu_options: tuple[str, ...]
    checks: bool  # whether `criu check` tells anything: it judges by the rights of real root
    denies_io_uring: bool
    limits: tuple[Limit, ...]


ROOT = Rights(user_namespace=False, criu_options=(), checks=True, denies_io_uring=True, limits=())
USER = Rights(
    user_namespace=True,
    criu_options=("--unprivileged",),
    checks=False,
    # The filter that denies it is itself one of the limits.
    denies_io_uring=False,
    limits=(
        Limit(
            ("Can't open mapped [", "(deleted)]"),
            "memory mapped from deleted files (as of multiprocessing and DataLoader workers)",
            "do without worker processes, or run the agent as root",
        ),
        Limit(
            ("suspending seccomp failed",),
            "seccomp filters",
            "switch the job's sandbox off, or run the agent as root",
        ),
        Limit(
            ("send_fds failed (-22)",),  # the kernel hands no ring over
            "io_uring",
            "switch io_uring off in the job, or run the agent as root, which denies it to jobs",
        ),
        Limit(("fsnotify",), "inotify", "switch file watching off, or run the agent as root"),
        Limit(
            ("net: Unexpected error",),
            "connections over the machine's network",
            "submit the job with the network of its cell, or run the agent as root",
        ),
        Limit(
            ("Can't setgroups",),
            "other supplementary groups than at its start",
            "start the agent with the groups that it had then, or as root",
        ),
    ),
)


def rights() -> Rights:
    """The row that holds for this process."""
    real = _words("/proc/self/uid_map") == _WHOLE_MACHINE
    return ROOT if real and _effective() >> _SYS_ADMIN & 1 else USER


def enter_user_namespace(worker: Identity) -> None:
    """Move this process into a user namespace of its own, where it has the ids and may do all.

    Its children are born there, with the clocks. It must have one thread only. Raises OSError.
    """
    outside_uid, outside_gid = os.geteuid(), os.getegid()
    linux.unshare(linux.NEW_USERS)
    # Without this the kernel lets nobody but root map a group.
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{worker.uid} {outside_uid} 1")
    _write("/proc/self/gid_map", f"{worker.gid} {outside_gid} 1")
    clocks.go_on_from(worker.clocks)


def no_cell(mine: Rights, said: str, settings: str = "/proc/sys") -> Unsupported:
    """Why no cell could be made, given what the kernel `said`."""
    what = "the worker's cell could not be made"
    if not mine.user_namespace:
        hint = "run as root on Linux with pid, mount and network namespaces allowed"
        return Unsupported(what, why=said, hint=hint)
    who = f"an ordinary user (id {os.geteuid()}) needs a user namespace for it"
    for name, forbidding, remedy in _FORBIDDING:
        if _words(f"{settings}/{name}") == [forbidding]:
            setting = f"{name.replace('/', '.')} is {forbidding}"
            hint = f"as root: {remedy}; or run the agent as root"
            return Unsupported(what, why=f"{who}, and {setting}: {said}", hint=hint)
    if "mount proc" in said:
        # The kernel shows nobody through a new /proc what the one that he has hides from him.
        hint = "give the container a whole /proc (systempaths=unconfined), or run the agent as root"
        return Unsupported(what, why=f"{who}, and parts of /proc are hidden: {said}", hint=hint)
    hint = "allow it (in a container, by its seccomp profile), or run the agent as root"
    return Unsupported(what, why=f"{who}: {said}", hint=hint)


def limit_in(mine: Rights, log: str) -> Limit | None:
    """The limit that criu's log speaks of."""
    for line in log.splitlines():
        for limit in mine.limits:
            if all(mark in line for mark in limit.marks):
                return limit
    return None


def _effective() -> int:
    """The effective capabilities of this process, one bit each."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def _words(path: str) -> list[str]:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return file.read().split()
    return []


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
