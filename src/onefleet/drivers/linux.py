"""The few Linux calls that Python's standard library lacks, by ctypes.

The supervisor must start fast and stay small, so there is no dependency here and no subprocess:
`unshare`, `nsenter` and `ip` would cost a process each. Every function raises OSError.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

NEW_TIME = 0x00000080
NEW_MOUNTS = 0x00020000
NEW_NAMES = 0x04000000
NEW_USERS = 0x10000000
NEW_PIDS = 0x20000000
NEW_NETWORK = 0x40000000

MS_BIND = 4096
MS_REC = 16384
MS_SLAVE = 1 << 19
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8

_DETACH = 2
_WRITE = 2
#: Nine times the share of who has no priority.
_AHEAD = -10
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_SECCOMP = 22
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION = 0x20080522
_CAP_SETUID = 7
_ADDR_NO_RANDOMIZE = 0x0040000
_SECCOMP_MODE_FILTER = 2
_SECCOMP_RET_ALLOW = 0x7FFF0000
_SECCOMP_RET_ERRNO = 0x00050000
_ENOSYS = 38
#: io_uring_setup, io_uring_enter and io_uring_register have these numbers on every architecture.
_IO_URING_FIRST, _IO_URING_LAST = 425, 427

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave namespaces. NEW_PIDS and NEW_TIME hold for the children of this process only."""
    _checked(_libc.unshare(ctypes.c_int(flags)), f"unshare {flags:#x}")


def enter(namespace: int, kind: int) -> None:
    """Join the namespace of kind `kind` behind the descriptor `namespace`."""
    _checked(_libc.setns(namespace, kind), f"setns {kind:#x}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _checked(result, f"mount {kind or source} on {target}")


def start_writing(descriptor: int) -> None:
    """Have a file's bytes on their way to the disk; an fsync waits for them."""
    zero = ctypes.c_int64(0)
    _checked(_libc.sync_file_range(descriptor, zero, zero, _WRITE), "sync_file_range")


def pivot_here() -> None:
    """Make the current directory, a mount, the root of this mount namespace; drop the old one."""
    machine = os.uname().machine
    if machine not in _PIVOT_ROOT:
        raise OSError(_ENOSYS, f"pivot_root is not known on {machine}")
    _checked(_libc.syscall(_PIVOT_ROOT[machine], b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _DETACH), "leave the old root")
    os.chdir("/")


def _prctl(option: int, argument: int, what: str) -> None:
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero), what)


def die_with_parent(signal_number: int) -> None:
    """This process gets the signal when the thread that forked it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal_number, "PR_SET_PDEATHSIG")


def adopt_orphans() -> None:
    """Orphaned descendants become children of this process; kept over exec."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "PR_SET_CHILD_SUBREAPER")


def gain_no_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")


def keep_capabilities() -> None:
    """Let what this process executes have its capabilities, although it is not uid 0.

    All but CAP_SETUID: a criu that has it takes uid 0 to restore, which a user namespace that maps
    another id does not know.
    """
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: low halves, then high
    _checked(_libc.capget(header, sets), "capget")
    sets[2], sets[5] = sets[1], sets[4]
    _checked(_libc.capset(header, sets), "capset")
    permitted = sets[1] | sets[4] << 32
    zero = ctypes.c_ulong(0)
    raise_ = ctypes.c_ulong(_PR_CAP_AMBIENT_RAISE)
    for number in range(permitted.bit_length()):
        if permitted >> number & 1 and number != _CAP_SETUID:
            result = _libc.prctl(_PR_CAP_AMBIENT, raise_, ctypes.c_ulong(number), zero, zero)
            _checked(result, "PR_CAP_AMBIENT_RAISE")


@contextlib.contextmanager
def ahead_of_others() -> Iterator[None]:
    """Let this thread, and what it starts meanwhile, have the cores before others, if it may.

    For what somebody stands still for. What criu restores has the priority that it had when saved.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, min(before, _AHEAD))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def name_process(name: str) -> None:
    """What ps shows as this process's short name; at most 15 bytes."""
    text = ctypes.create_string_buffer(name.encode()[:15])
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(_PR_SET_NAME, text, zero, zero, zero), "PR_SET_NAME")


def fix_addresses() -> None:
    """Switch address randomisation off for what this process executes.

    Images of equal jobs then share most pages, which a content-addressed store counts once.
    """
    _checked(_libc.personality(ctypes.c_ulong(_ADDR_NO_RANDOMIZE)), "ADDR_NO_RANDOMIZE")


def deny_io_uring() -> None:
    """Answer io_uring's calls with ENOSYS from here on: CRIU cannot save a ring.

    Libraries that use it (libuv under torch.distributed) fall back to epoll by themselves.
    Needs gain_no_privileges() or the right to install filters.
    """
    program = b"".join(
        struct.pack("HBBI", *step)
        for step in (
            (0x20, 0, 0, 0),  # load the number of the call
            (0x35, 0, 2, _IO_URING_FIRST),  # below: allow
            (0x25, 1, 0, _IO_URING_LAST),  # above: allow
            (0x06, 0, 0, _SECCOMP_RET_ERRNO | _ENOSYS),
            (0x06, 0, 0, _SECCOMP_RET_ALLOW),
        )
    )
    steps = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(steps))
    filter_ = ctypes.create_string_buffer(header, len(header))
    zero = ctypes.c_ulong(0)
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    _checked(_libc.prctl(_PR_SET_SECCOMP, mode, filter_, zero, zero), "PR_SET_SECCOMP")


def loopback_up() -> None:
    """Bring `lo` up in this network namespace; a job's own TCP and criu's probes need it."""
    get_flags, set_flags, up_and_running = 0x8913, 0x8914, 0x41
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, get_flags, struct.pack("16sh22x", b"lo", 0))
        flags: int = struct.unpack("16sh22x", answer)[1] | up_and_running
        fcntl.ioctl(probe, set_flags, struct.pack("16sh22x", b"lo", flags))
