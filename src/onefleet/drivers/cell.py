"""A cell: the pid, mount and network namespaces that one worker lives in.

Inside a cell a worker's process ids, ports and shared memory are its own, so that it can be saved
here and restored elsewhere, or later, without meeting anybody else's. criu runs inside, too, and
then sees no foreign namespace at all, which keeps its images small and its work short.

The cell's root is assembled from the machine's top-level folders, plus two that exist only here:
/job (the work folder) and /.onefleet (the worker's folder). So a worker sees the same paths
wherever its folder lies, and nothing is created on the machine's own root. /proc, /dev/shm and the
terminals of /dev/pts are the cell's own.

The cell of a gang's worker has a host name, too, and its network is joined to those of the others
(`gang_network`).

The first process of a cell never forks (it would take process ids that an image needs) and dies
with the supervisor; the kernel ends everything in a cell with its first process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import NoReturn

from onefleet.domain.gang import GangPlace, hostname
from onefleet.drivers import linux, process_tree
from onefleet.drivers.gang_network import SETTINGS, GangNetwork, hosts, set_in_namespace
from onefleet.drivers.rights import Identity, enter_user_namespace, no_cell, rights

#: Where a worker finds its work folder and its own folder.
JOB = "/job"
OWN = "/.onefleet"
#: The process id of a worker's root inside its cell: far from those that criu uses.
ROOT_PID = 100

#: Parents of what is in a cell and not the worker's: its first process, and any outside of it.
_NOT_THE_WORKERS = (1, 0)

_SHM = "/dev/shm"  # noqa: S108  (the cell's own, made here)
_TERMINALS = "/dev/pts"
_ASSEMBLY = "/proc"  # its old contents are not needed in there, and it exists everywhere
_HOSTS = "hosts"
_NOT_CARRIED = ("proc", "job", ".onefleet", "lost+found")


class Cell:
    """The namespaces of one worker, made by and for this process (the supervisor).

    After the constructor every child of this process is born in the cell's pid namespace; `run`
    also puts it into the mount and network namespaces. There is one cell a supervisor.

    folder, work: absolute paths on the machine. last_pid: the process id after which the next
    one is given. worker: who it is, for a supervisor that is not root: it moves into a user
    namespace. place: in a gang, whose network the cell is then attached to, but not plugged into
    yet. Raises Unsupported when the machine does not allow it.
    """

    def __init__(
        self,
        folder: str,
        work: str,
        network: str,
        last_pid: int,
        worker: Identity,
        place: GangPlace | None = None,
    ) -> None:
        self.ending = False
        self.rights = rights()
        self.gang: GangNetwork | None = None
        report, answer = os.pipe()
        try:
            if place is not None:
                self.gang = GangNetwork(place, worker)
                with open(f"{folder}/{_HOSTS}", "w", encoding="ascii") as file:
                    file.write(hosts(place.workers))
            elif self.rights.user_namespace:
                enter_user_namespace(worker)
            linux.unshare(linux.NEW_PIDS)
        except OSError as error:
            raise no_cell(self.rights, str(error)) from error
        self.init = os.fork()
        if self.init == 0:
            os.close(report)
            _become_init(folder, work, network, last_pid, place, answer)
        os.close(answer)
        with os.fdopen(report, encoding="utf-8") as lines:
            said = lines.read()
        if said != "ready":
            self.destroy()
            raise no_cell(self.rights, said or "the cell's first process died at once")
        kinds = [("mnt", linux.NEW_MOUNTS)]
        if network != "host":
            kinds.append(("net", linux.NEW_NETWORK))
        if place is not None:
            kinds.append(("uts", linux.NEW_NAMES))
        self._namespaces = [
            (os.open(f"/proc/{self.init}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind)
            for name, kind in kinds
        ]
        if self.gang is not None:
            self._attach(self.gang)

    def _attach(self, gang: GangNetwork) -> None:
        try:
            gang.attach(self.init)
        except OSError as error:
            self.destroy()
            raise no_cell(self.rights, str(error)) from error

    def plug(self) -> None:
        """Join the cell to those of its gang; nothing for a cell that is alone. Raises OSError."""
        if self.gang is not None:
            self.gang.plug(self.init)

    def run(self, body: Callable[[], NoReturn]) -> int:
        """Fork a child that runs `body` inside the cell; its pid as the machine sees it."""
        pid = os.fork()
        if pid == 0:
            try:
                for namespace, kind in self._namespaces:
                    linux.enter(namespace, kind)
                body()
            finally:
                os._exit(126)
        return pid

    @property
    def shm(self) -> str:
        """The cell's /dev/shm as the machine reaches it."""
        return f"/proc/{self.init}/root{_SHM}"

    def is_alive(self) -> bool:
        """Whether its first process lives; one that is ending has no root any more."""
        return os.path.exists(f"/proc/{self.init}/root/proc")

    def pids(self) -> list[int]:
        """Process ids, as the cell sees them, of all that lives in it but its first process."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            names = os.listdir(f"/proc/{self.init}/root/proc")
            return sorted(int(n) for n in names if n.isdecimal() and n != "1")
        return []

    def living(self) -> list[int]:
        """`pids` without zombies."""
        return sorted(self._parents())

    def strangers(self) -> list[int]:
        """Process ids, as the cell sees them, that do not descend from the worker's root."""
        return outside(self._parents())

    def _parents(self) -> dict[int, int]:
        """Of all that lives in the cell but its first process, by process id."""
        proc = f"/proc/{self.init}/root/proc"
        looked = ((p, process_tree.stat_fields(p, proc)) for p in self.pids())
        return {p: int(fields[1]) for p, fields in looked if fields[:1] not in ([], ["Z"])}

    def destroy(self) -> None:
        """End everything in the cell. Its children of this process are left to be reaped."""
        if not self.ending:
            self.ending = True
            os.kill(self.init, signal.SIGKILL)


def outside(parents: Mapping[int, int]) -> list[int]:
    """Those of a cell's processes that do not descend from the worker's root.

    parents: by process id, as they were read one after the other. A parent that is missing in it
    has ended meanwhile, as those of busy programs do: its children are the root's by now, which
    adopts them. Outside the tree are only those that the cell's first process has, and those that
    came from outside the cell.
    """
    found: list[int] = []
    for pid in sorted(parents):
        ancestor = pid
        while ancestor != ROOT_PID and ancestor in parents:
            ancestor = parents[ancestor]
        if ancestor in _NOT_THE_WORKERS:
            found.append(pid)
    return found


def _become_init(
    folder: str, work: str, network: str, last_pid: int, place: GangPlace | None, report: int
) -> NoReturn:
    """Set the namespaces up from inside, say so, then wait for the end."""
    try:
        linux.die_with_parent(signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # Ignored, so that the kernel reaps whatever is orphaned to this process.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        linux.unshare(linux.NEW_MOUNTS | (linux.NEW_NETWORK if network != "host" else 0))
        if place is not None:
            linux.unshare(linux.NEW_NAMES)
            socket.sethostname(hostname(place.rank))
            set_in_namespace(SETTINGS)
        _assemble_root(folder, work, named=place is not None)
        if network != "host":
            linux.loopback_up()
            # Its ports are its own, the low ones too.
            _set("net/ipv4/ip_unprivileged_port_start", 0)
        _set("kernel/ns_last_pid", last_pid)
        linux.name_process("onefleet-cell")
        os.write(report, b"ready")
        os.closerange(0, 1024)
        while True:
            signal.pause()
    except OSError as error:
        os.write(report, str(error).encode())
    finally:
        os._exit(1)


def _set(name: str, value: int) -> None:
    with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
        file.write(str(value))


def _assemble_root(folder: str, work: str, named: bool) -> None:
    """Build the cell's root on a small tmpfs, bind the machine's folders into it, move there.

    named: whether the worker's folder has a list of names to show as /etc/hosts.
    """
    linux.mount("", "/", flags=linux.MS_REC | linux.MS_SLAVE)
    source_folder, source_work = (os.open(p, os.O_PATH | os.O_DIRECTORY) for p in (folder, work))
    entries = sorted(e.name for e in os.scandir("/") if e.name not in _NOT_CARRIED)
    linux.mount("onefleet", _ASSEMBLY, "tmpfs", linux.MS_NOSUID, "mode=755,size=1m")
    for name in entries:
        _carry(f"/{name}", f"{_ASSEMBLY}/{name}")
    os.mkdir(f"{_ASSEMBLY}/proc")
    hardened = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("proc", f"{_ASSEMBLY}/proc", "proc", hardened)
    for source, name in ((source_work, JOB), (source_folder, OWN)):
        # By descriptor: the path may lie under a folder that is covered by now.
        os.mkdir(_ASSEMBLY + name)
        os.fchdir(source)
        linux.mount(".", _ASSEMBLY + name, flags=linux.MS_BIND | linux.MS_REC)
        os.close(source)
    if named and os.path.exists(f"{_ASSEMBLY}/etc/hosts"):
        own = f"{_ASSEMBLY}{OWN}/{_HOSTS}"
        linux.mount(own, f"{_ASSEMBLY}/etc/hosts", flags=linux.MS_BIND)
    shared = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("shm", _ASSEMBLY + _SHM, "tmpfs", shared, "mode=1777")
    if os.path.isdir(_ASSEMBLY + _TERMINALS):
        _own_terminals(_ASSEMBLY)
    os.chdir(_ASSEMBLY)
    linux.pivot_here()


def _own_terminals(root: str) -> None:
    """A terminal is known by its number, and on the machine that may be another's after a save."""
    hardened = linux.MS_NOSUID | linux.MS_NOEXEC
    linux.mount("devpts", root + _TERMINALS, "devpts", hardened, "mode=620,ptmxmode=666")
    if not os.path.islink(f"{root}/dev/ptmx"):  # the machine's belongs to nobody whom a user knows
        linux.mount(f"{root}{_TERMINALS}/ptmx", f"{root}/dev/ptmx", flags=linux.MS_BIND)


def _carry(source: str, target: str) -> None:
    """Show one top-level entry of the machine in the cell, as it is."""
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
    elif os.path.isdir(source):
        os.mkdir(target)
        linux.mount(source, target, flags=linux.MS_BIND | linux.MS_REC)
    elif os.path.isfile(source):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        linux.mount(source, target, flags=linux.MS_BIND)
