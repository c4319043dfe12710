"""What /proc says about a tree of processes: who is in it, what it costs, what it has open.

Read by the supervisor and, for figures, by the agent. A process that ends while it is read is
left out: that is not an error, it is the nature of /proc.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

_TICKS = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
_WRITABLE = os.O_WRONLY | os.O_RDWR
#: Rounds of killing; each catches what was forked during the one before.
_KILL_ROUNDS = 2000
_KILL_PAUSE_S = 0.005


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def children(pid: int) -> list[int]:
    """Direct children of a process, zombies included, oldest first."""
    found: list[int] = []
    with contextlib.suppress(*_GONE):
        for thread in sorted(os.listdir(f"/proc/{pid}/task")):
            with contextlib.suppress(*_GONE):
                found += [int(p) for p in _text(f"/proc/{pid}/task/{thread}/children").split()]
    return found


def tree(root: int) -> list[int]:
    """`root` and all its descendants, parents first; empty when root does not exist."""
    if not os.path.exists(f"/proc/{root}"):
        return []
    found = [root]
    for pid in found:  # grows while it is walked
        found += children(pid)
    return found


def threads(pid: int) -> list[int]:
    try:
        return sorted(int(t) for t in os.listdir(f"/proc/{pid}/task"))
    except _GONE:
        return []


def stat_fields(pid: int, proc: str = "/proc") -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on; empty when it is gone.

    [0] state, [1] parent, [11:15] user, system, children's user, children's system ticks.
    """
    try:
        return _text(f"{proc}/{pid}/stat").rpartition(")")[2].split()
    except _GONE:
        return []


def born_at(pid: int) -> int:
    """When the process started, in ticks since boot: with the pid its identity; 0: it is gone."""
    fields = stat_fields(pid)
    return 0 if fields[:1] in ([], ["Z"]) else int(fields[19])


def core_time_ms(pids: list[int]) -> tuple[int, int]:
    """What the threads have used of the processor, and how long they were ready for it while others
    had it. (0, 0) where the kernel does not count it (CONFIG_SCHED_INFO).
    """
    used_ns = kept_ns = 0
    for pid in pids:
        for thread in threads(pid):
            with contextlib.suppress(*_GONE):
                used, kept, _ = _text(f"/proc/{pid}/task/{thread}/schedstat").split()
                used_ns, kept_ns = used_ns + int(used), kept_ns + int(kept)
    return used_ns // 1_000_000, kept_ns // 1_000_000


def memory_bytes(pids: list[int]) -> int:
    """Resident memory that is the processes' own (anonymous and shared, not mapped files)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(*_GONE):
            for line in _text(f"/proc/{pid}/status").splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += int(line.split()[1]) * 1024
    return total


def cpu_ms(pids: list[int]) -> int:
    """CPU time of the processes and of those of their children that have ended."""
    ticks = 0
    for pid in pids:
        fields = stat_fields(pid)
        ticks += sum(int(f) for f in fields[11:15])
    return ticks * 1000 // _TICKS


def pin(pids: list[int], cpus: list[int]) -> None:
    """Bind every thread to `cpus`; twice, for threads that were born in between."""
    for _ in range(2):
        for pid in pids:
            for thread in threads(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, cpus)


def kill_tree(root: int, keep_root: bool = False) -> None:
    """SIGKILL the descendants of `root`, and root itself unless it is to stay."""
    for _ in range(_KILL_ROUNDS):
        doomed = [p for p in tree(root) if p != root or not keep_root]
        alive = [p for p in doomed if stat_fields(p)[:1] not in ([], ["Z"])]
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not alive:
            return
        time.sleep(_KILL_PAUSE_S)


def writable_files(pids: list[int]) -> list[tuple[str, int, int, bool]]:
    """Regular files that are open for writing: (path, size, offset, grows) by path.

    The path is the one that the process sees. grows: its next write lands at the end of the
    file, so that whatever comes after `size` was written later.
    """
    found: dict[str, tuple[str, int, int, bool]] = {}
    for pid in pids:
        for number in _listed(f"/proc/{pid}/fd"):
            with contextlib.suppress(*_GONE):
                fields = dict(
                    line.split(":", 1)
                    for line in _text(f"/proc/{pid}/fdinfo/{number}").splitlines()
                )
                flags = int(fields["flags"], 8)
                link = f"/proc/{pid}/fd/{number}"
                path = os.readlink(link)
                if not flags & _WRITABLE or not path.startswith("/") or path in found:
                    continue
                status = os.stat(link)
                if status.st_nlink == 0 or not _is_regular(status.st_mode):
                    continue
                size, offset = status.st_size, int(fields["pos"])
                found[path] = (path, size, offset, bool(flags & os.O_APPEND) or offset == size)
    return [found[path] for path in sorted(found)]


def programs(pids: list[int]) -> dict[str, int]:
    """Files that the processes execute (programs and libraries, not mapped data): sizes now."""
    found: dict[str, int] = {}
    for pid in pids:
        with contextlib.suppress(*_GONE):
            for line in _text(f"/proc/{pid}/maps").splitlines():
                fields, slash, rest = line.partition(" /")
                path = "/" + rest
                executable = slash and "x" in fields.split()[1]
                if not executable or path in found or path.endswith(" (deleted)"):
                    continue
                with contextlib.suppress(OSError):
                    found[path] = os.stat(f"/proc/{pid}/root{path}").st_size
    return dict(sorted(found.items()))


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except _GONE:
        return []


def _is_regular(mode: int) -> bool:
    return mode & 0o170000 == 0o100000
