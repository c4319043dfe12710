"""Network devices, by the kernel's own protocol (rtnetlink): only what a gang's network needs.

`ip` is not on every machine, and would cost a process a step. A `Links` speaks to the network
namespace that its process was in when it was made, wherever the process goes afterwards. Every
function raises OSError.

Numbers are from linux/rtnetlink.h, if_link.h, if_addr.h and neighbour.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable

_NEW_LINK, _DELETE_LINK, _GET_LINK, _SET_LINK, _NEW_ADDRESS, _NEW_NEIGHBOUR = 16, 17, 18, 19, 20, 28
_REQUEST, _ACK, _REPLACE, _EXCLUSIVE, _CREATE, _APPEND = 1, 4, 0x100, 0x200, 0x400, 0x800
_ERROR = 2
#: Of a link.
_ADDRESS, _NAME, _MTU, _MASTER, _INFO, _NS_PID, _NS_FD = 1, 3, 4, 10, 18, 19, 28
_KIND, _DATA = 1, 2
_UP = 1
#: Of a veth and of a vxlan.
_PEER = 1
_VX_ID, _VX_LOCAL, _VX_LEARNING, _VX_AGEING, _VX_PORT, _VX_LOCAL6 = 1, 4, 7, 8, 15, 17
#: Of an address, and of a neighbour.
_LOCAL = 2
_DESTINATION, _MAC = 1, 2
_PERMANENT, _NO_ARP = 0x80, 0x40
_SELF, _OF_MASTER = 2, 4

_ANSWER_MAX = 65_536
#: Messages sent at once: they fit into the smallest send buffer.
_BATCH = 256


class Links:
    """The devices of one network namespace. Close it after use."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._number = 0

    def close(self) -> None:
        self._socket.close()

    def index(self, name: str) -> int:
        """The number of a device. Raises OSError (ENODEV) when there is none."""
        answer = self._ask(_GET_LINK, 0, _link() + _text(_NAME, name))
        return int(struct.unpack_from("=i", answer, 20)[0])

    def add_bridge(self, name: str) -> None:
        body = _link(up=True) + _text(_NAME, name) + _info("bridge")
        self._ask(_NEW_LINK, _CREATE | _EXCLUSIVE, body)

    def add_pair(self, name: str, far: str, far_pid: int, mac: bytes, mtu: int) -> None:
        """Two joined devices: `name` here, `far` with the MAC in the namespace of a process."""
        peer = _link() + _text(_NAME, far) + _attribute(_ADDRESS, mac)
        peer += _number(_MTU, mtu) + _number(_NS_PID, far_pid)
        body = _link(up=True) + _text(_NAME, name) + _number(_MTU, mtu)
        body += _info("veth", _attribute(_PEER, peer))
        self._ask(_NEW_LINK, _CREATE | _EXCLUSIVE, body)

    def add_tunnel(self, name: str, namespace: int, tunnel: int, local: str, port: int) -> None:
        """A vxlan over this namespace's network, put into the one behind the descriptor."""
        inner = _number(_VX_ID, tunnel) + _attribute(_VX_PORT, struct.pack("!H", port))
        inner += _attribute(_VX_LEARNING, b"\1") + _number(_VX_AGEING, 0)
        packed = pack(local)
        inner += _attribute(_VX_LOCAL if len(packed) == 4 else _VX_LOCAL6, packed)
        body = _link() + _text(_NAME, name) + _number(_NS_FD, namespace) + _info("vxlan", inner)
        self._ask(_NEW_LINK, _CREATE | _EXCLUSIVE, body)

    def delete(self, name: str) -> None:
        self._ask(_DELETE_LINK, 0, _link() + _text(_NAME, name))

    def set_up(self, index: int) -> None:
        self._ask(_SET_LINK, 0, _link(index=index, up=True))

    def join(self, index: int, bridge: int) -> None:
        """Make the device a port of the bridge; 0: of none."""
        self._ask(_SET_LINK, 0, _link(index=index, up=True) + _number(_MASTER, bridge))

    def add_address(self, index: int, address: str, bits: int) -> None:
        body = struct.pack("=BBBBi", socket.AF_INET, bits, 0, 0, index)
        packed = pack(address)
        body += _attribute(_LOCAL, packed) + _attribute(_DESTINATION, packed)
        self._ask(_NEW_ADDRESS, _CREATE | _REPLACE, body)

    def add_neighbours(self, index: int, neighbours: Iterable[tuple[str, bytes]]) -> None:
        """Addresses and their MACs, known for ever: nobody is asked for them."""
        head = struct.pack("=BxxxiHBB", socket.AF_INET, index, _PERMANENT, 0, 0)
        bodies = [
            head + _attribute(_DESTINATION, pack(address)) + _attribute(_MAC, mac)
            for address, mac in neighbours
        ]
        for first in range(0, len(bodies), _BATCH):
            self._ask_all(_NEW_NEIGHBOUR, _CREATE | _REPLACE, bodies[first : first + _BATCH])

    def send_to_port(self, index: int, mac: bytes) -> None:
        """Have the bridge send whatever is for the MAC out of this port of it."""
        head = struct.pack("=BxxxiHBB", socket.AF_BRIDGE, index, _NO_ARP, _OF_MASTER, 0)
        self._ask(_NEW_NEIGHBOUR, _CREATE | _REPLACE, head + _attribute(_MAC, mac))

    def flood_to(self, index: int, machine: str) -> None:
        """Have the tunnel send what it knows no way for to this machine, too."""
        state = _PERMANENT | _NO_ARP
        head = struct.pack("=BxxxiHBB", socket.AF_BRIDGE, index, state, _SELF, 0)
        body = head + _attribute(_MAC, bytes(6)) + _attribute(_DESTINATION, pack(machine))
        self._ask(_NEW_NEIGHBOUR, _CREATE | _APPEND, body)

    def _ask(self, kind: int, flags: int, body: bytes) -> bytes:
        return self._ask_all(kind, flags, [body])

    def _ask_all(self, kind: int, flags: int, bodies: list[bytes]) -> bytes:
        """Send messages of one kind at once; the first answer that is not a mere "done"."""
        messages = b""
        for body in bodies:
            self._number += 1
            head = (16 + len(body), kind, flags | _REQUEST | _ACK, self._number, 0)
            messages += struct.pack("=IHHII", *head) + body
        self._socket.send(messages)
        told, waiting = b"", len(bodies)
        while waiting:
            answers = self._socket.recv(_ANSWER_MAX)
            while answers:
                size, kind_back = struct.unpack_from("=IH", answers)
                if kind_back == _ERROR:
                    waiting -= 1
                    (error,) = struct.unpack_from("=i", answers, 16)
                    if error:
                        raise OSError(-error, f"netlink request {kind}: {os.strerror(-error)}")
                else:
                    told = told or answers[:size]
                answers = answers[(size + 3) & ~3 :]
        return told


def pack(address: str) -> bytes:
    """The bytes of an IPv4 or IPv6 address. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address)


def _link(index: int = 0, up: bool = False) -> bytes:
    flags = _UP if up else 0
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _info(kind: str, data: bytes = b"") -> bytes:
    return _attribute(_INFO, _text(_KIND, kind) + _attribute(_DATA, data))
