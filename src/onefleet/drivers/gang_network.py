"""The private network of a gang: a bridge in a namespace of its own, and a cable to each cell.

The supervisors of a gang on one machine live in that namespace, and nothing else does. So the
network is there from the first of them to the last, however they end, and there is nothing to
clean up; the machine's own devices and packet filters never see it. They find each other by a
small file that is named after the gang, whichever agent or data folder they belong to: a worker
can move between two of them.

An ordinary user's supervisors share a user namespace as well, because only its own root may join
devices in two namespaces.

A worker's cell is plugged in (its cable joined to the bridge) when its sockets are there: a packet
for a connection that is not restored yet would be answered with a reset, which ends it.

Between machines the bridges are joined by a vxlan tunnel (UDP, port TUNNEL_PORT). It is neither
encrypted nor authenticated: it belongs into a network that the pool has to itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from onefleet.domain.errors import Conflict, Unsupported, UpstreamFailed
from onefleet.domain.gang import DEVICE, PREFIX_BITS, WORKERS_MAX, GangPlace, address, hostname
from onefleet.drivers import clocks, linux, process_tree
from onefleet.drivers.netlink import Links, pack
from onefleet.drivers.rights import Identity, enter_user_namespace, rights

TUNNEL_PORT = 4789
_BRIDGE, _TUNNEL = "gang", "tunnel"
#: What fits through a tunnel over the usual 1500. The same without one: a worker that moves to
#: another machine must find the device that it had.
_MTU = 1450
#: A worker that is being moved does not answer for a while. Its peers ask again at least this
#: often, so that they notice soon when it is back, and for long enough that a connection lasts
#: (255 times 2 s). Not on every kernel; without it, they ask ever more rarely.
SETTINGS = (
    ("net/ipv4/tcp_rto_max_ms", 2000),
    ("net/ipv4/tcp_retries2", 255),
    # No addresses that depend on the device and come and go.
    ("net/ipv6/conf/default/disable_ipv6", 1),
)
_ARP, _REPLY, _ETHERNET, _IPV4 = 0x0806, 2, 1, 0x0800
_BROADCAST = b"\xff" * 6


class GangNetwork:
    """This supervisor's part in its gang's network, which it joins for the rest of its life.

    To be made before the cell, by a process with one thread: the process changes its network
    namespace, and as an ordinary user its user namespace. who: whom a new user namespace is for.
    Raises OSError, Conflict, Unsupported, UpstreamFailed.
    """

    def __init__(self, place: GangPlace, who: Identity) -> None:
        if not 0 <= place.rank < place.workers <= WORKERS_MAX:
            why = f"rank {place.rank} of {place.workers}"
            raise Conflict("there is no such place in a gang", why=why)
        self.place = place
        self._user = rights().user_namespace
        if self._user and place.nodes:
            raise Unsupported(
                f"gang {place.gang} cannot reach other machines from here",
                why="a tunnel between machines needs root",
                hint="run the agent as root, or place the gang on one machine",
            )
        machine = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._outside = Links()
        self._meeting = _Meeting(place.gang, os.fstat(machine).st_ino)
        os.close(machine)
        self._cable = 0
        with self._meeting as members:
            if members:
                self._join(members[0], who)
            else:
                self._create(who)
            self._links = Links()
            self.connect(place.node, place.nodes)
            self._meeting.enter()

    def _create(self, who: Identity) -> None:
        if self._user:
            enter_user_namespace(who)
        linux.unshare(linux.NEW_NETWORK)
        set_in_namespace(SETTINGS)
        links = Links()
        links.add_bridge(_BRIDGE)
        links.close()

    def _join(self, member: int, who: Identity) -> None:
        kinds = [("net", linux.NEW_NETWORK)]
        if self._user:
            kinds.insert(0, ("user", linux.NEW_USERS))
            with open(f"/proc/{member}/uid_map", encoding="ascii") as file:
                mapped = int(file.read().split()[0])
            if mapped != who.uid:
                raise Conflict(
                    f"gang {self.place.gang} has workers of two users on this machine",
                    why=f"user {who.uid} meets user {mapped}",
                    hint="run the agent as root",
                )
        for name, kind in kinds:
            namespace = os.open(f"/proc/{member}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            linux.enter(namespace, kind)
            os.close(namespace)
        if self._user:
            clocks.go_on_from(who.clocks)

    def attach(self, cell_pid: int) -> None:
        """Give the cell of this process its device; it is not plugged in yet."""
        rank = self.place.rank
        # Of this cell alone: the device of an earlier cell of the rank may still be on its way out.
        name = f"r{rank}p{os.getpid()}"
        self._links.add_pair(name, DEVICE, cell_pid, mac(rank), _MTU)
        self._cable = self._links.index(name)
        with self._inside(cell_pid):
            links = Links()
            try:
                device = links.index(DEVICE)
                links.set_up(device)
                links.add_address(device, address(rank), PREFIX_BITS)
                others = (r for r in range(self.place.workers) if r != rank)
                links.add_neighbours(device, ((address(r), mac(r)) for r in others))
            finally:
                links.close()

    def plug(self, cell_pid: int) -> None:
        """Join the cell to the others, and tell all bridges that it is here now."""
        self._links.join(self._cable, self._links.index(_BRIDGE))
        self._links.send_to_port(self._cable, mac(self.place.rank))
        with self._inside(cell_pid), contextlib.suppress(OSError):
            _announce(self.place.rank)

    def unplug(self) -> None:
        self._links.join(self._cable, 0)

    @contextlib.contextmanager
    def _inside(self, pid: int) -> Iterator[None]:
        """Be in the network namespace of a process for a moment, in which nobody joins us there."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._meeting)
            there, back = (
                os.open(f"/proc/{who}/ns/net", os.O_RDONLY | os.O_CLOEXEC) for who in (pid, "self")
            )
            stack.callback(os.close, there)
            stack.callback(os.close, back)
            linux.enter(there, linux.NEW_NETWORK)
            stack.callback(linux.enter, back, linux.NEW_NETWORK)
            yield

    def connect(self, node: str, nodes: Sequence[str]) -> None:
        """Join the bridges of these other machines, too; `node` is this machine's address."""
        if not nodes:
            return
        if not node:
            why = "its own address is not given"
            raise Conflict(f"this machine cannot reach gang {self.place.gang}", why=why)
        try:
            tunnel = self._links.index(_TUNNEL)
        except OSError:
            tunnel = self._add_tunnel(node)
        for other in nodes:
            with contextlib.suppress(FileExistsError):
                self._links.flood_to(tunnel, other)

    def _add_tunnel(self, node: str) -> int:
        number = int.from_bytes(_digest(self.place.gang)[:3], "big")
        here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            pack(node)
            self._outside.add_tunnel(_TUNNEL, here, number, node, TUNNEL_PORT)
        except FileExistsError as error:
            raise UpstreamFailed(
                f"gang {self.place.gang} cannot reach other machines from here",
                why=f"tunnel number {number} is taken on this machine",
                hint="submit the job again: the number follows from its id",
            ) from error
        finally:
            os.close(here)
        tunnel = self._links.index(_TUNNEL)
        self._links.join(tunnel, self._links.index(_BRIDGE))
        return tunnel

    def leave(self) -> None:
        """Take the worker's cable away, and this process off the list; before it ends."""
        with contextlib.suppress(OSError), self._meeting:
            self._meeting.leave()


class _Meeting:
    """The file by which the supervisors of one gang find each other; locked inside `with`.

    Gangs of the same name on two machines, as network namespaces stand for them, do not meet.
    """

    def __init__(self, gang: str, machine: int) -> None:
        self._path = f"{_folder()}/{_digest(gang).hex()[:24]}-{machine}"
        self._file = -1
        self._members: list[tuple[int, int]] = []

    def __enter__(self) -> list[int]:
        """Pids of the living members."""
        _sweep(os.path.dirname(self._path))
        self._file = _locked(self._path)
        self._members = _living(self._file)
        return [pid for pid, _ in self._members]

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def enter(self) -> None:
        me = os.getpid()
        self._keep([*self._members, (me, process_tree.born_at(me))])

    def leave(self) -> None:
        self._keep([member for member in self._members if member[0] != os.getpid()])

    def _keep(self, members: list[tuple[int, int]]) -> None:
        if not members:
            os.unlink(self._path)
            return
        data = json.dumps(members).encode()
        os.pwrite(self._file, data, 0)
        os.truncate(self._file, len(data))


def _folder() -> str:
    """Where supervisors of this user meet on this machine, whatever their data folder."""
    user = os.geteuid()
    run = "/run" if user == 0 else f"/run/user/{user}"
    folder = f"{run}/onefleet-gangs" if os.access(run, os.W_OK) else f"/tmp/onefleet-gangs-{user}"  # noqa: S108
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    status = os.lstat(folder)
    if status.st_uid != user or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
        why = f"{folder} belongs to somebody else, or others may write there"
        raise Conflict("the gang's workers cannot meet", why=why, hint=f"remove {folder}")
    return folder


def _locked(path: str) -> int:
    """The file, made if need be, locked for this process; a descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                return file
        os.close(file)  # its last member took it away meanwhile


def _living(file: int) -> list[tuple[int, int]]:
    try:
        members: list[Any] = json.loads(os.pread(file, os.fstat(file).st_size, 0) or b"[]")
        return [(int(p), int(b)) for p, b in members if b and process_tree.born_at(p) == b]
    except (ValueError, TypeError):
        return []  # torn: nobody who wrote it whole is known


def _sweep(folder: str) -> None:
    """Remove the files of gangs whose supervisors were all killed."""
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            file = os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _living(file):
                    os.unlink(f"{folder}/{name}")
            finally:
                os.close(file)


def set_in_namespace(settings: Sequence[tuple[str, int]]) -> None:
    """Settings of this process's network namespace; those that the kernel lacks are left out."""
    for name, value in settings:
        with contextlib.suppress(OSError), open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
            file.write(str(value))


def hosts(workers: int) -> str:
    """What a cell's /etc/hosts says: every rank's name."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address(rank)} {hostname(rank)}" for rank in range(workers)]
    return "\n".join(lines) + "\n"


def mac(rank: int) -> bytes:
    """The MAC of a rank's device: locally administered, the address in its end."""
    return b"\x02\x0f" + pack(address(rank))


def _announce(rank: int) -> None:
    """Say on the network where the rank is (an ARP reply that nobody asked for).

    The bridges of other machines would else go on sending to where it was.
    """
    me, ip = mac(rank), pack(address(rank))
    frame = _BROADCAST + me + struct.pack("!HHHBBH", _ARP, _ETHERNET, _IPV4, 6, 4, _REPLY)
    frame += me + ip + _BROADCAST + ip
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as raw:
        raw.bind((DEVICE, 0))
        raw.send(frame)


def _digest(gang: str) -> bytes:
    return hashlib.sha256(gang.encode()).digest()
