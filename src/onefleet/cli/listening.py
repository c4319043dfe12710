"""Listening sockets that outlive the processes that serve them.

The launcher binds and keeps them, its children accept on them. So while a child is started again,
clients wait in the kernel's queue instead of being refused.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from onefleet.domain.errors import Conflict, Forbidden, InvalidRequest, OnefleetError

#: Connections that wait while a child is started again.
BACKLOG = 1024
_LISTEN = "0A"  # a listening socket's state in /proc/net/tcp; see proc(5)


def bind(host: str, port: int) -> socket.socket:
    """Listen on the address; port 0: any. Raises OnefleetError that says who is there already."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise _refused(host, port, error) from error
    return listener


def _refused(host: str, port: int, error: OSError | OverflowError) -> OnefleetError:
    other = f"onefleet up --port {port + 1 if port < 65535 else 7070}, or --port 0 for any"
    if isinstance(error, OverflowError):
        return InvalidRequest(f"{port} is no port", why="ports are 0 to 65535", hint=other)
    if error.errno == errno.EADDRINUSE:
        who = holder(port) or "another process holds it (of another user, so not to be seen)"
        return Conflict(f"port {port} of {host} is in use", why=who, hint=other, code="port_in_use")
    if error.errno == errno.EACCES:
        return Forbidden(
            f"port {port} may not be opened", why="ports below 1024 are the root user's", hint=other
        )
    return InvalidRequest(f"cannot listen on {host}:{port}", why=str(error), hint=other)


def holder(port: int) -> str:
    """Who listens on the port, as "process 12 (python3 -m x) holds it"; empty if not to be seen."""
    sockets = _listening(port)
    for entry in sorted(Path("/proc").iterdir()):
        if not entry.name.isdigit():
            continue
        try:
            links = [os.readlink(f) for f in (entry / "fd").iterdir()]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # of another user, or just gone
        if any(link in sockets for link in links):
            return f"process {entry.name} ({command.strip()[:80]}) holds it"
    return ""


def _listening(port: int) -> list[str]:
    """The listening sockets of a port, as /proc/PID/fd names them."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in (row.split() for row in rows):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.append(f"socket:[{fields[9]}]")
    return found
