"""The socket in a worker's folder on which its supervisor takes commands, one JSON line each way.

A client that says nothing, or too much, or goes away, does no harm and keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
from typing import Any

from onefleet.domain.errors import InternalError, InvalidRequest, OnefleetError
from onefleet.drivers import supervisor_files as files

_BACKLOG = 16

Client = socket.socket


class CommandSocket:
    """Listens in the current directory; its sockets are watched by the selector that is given."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._held: dict[Client, bytes] = {}
        with contextlib.suppress(FileNotFoundError):
            os.unlink(files.SOCKET)
        # A relative name: a socket's path may have 107 bytes, a folder's has no such limit.
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(files.SOCKET)
        os.chmod(files.SOCKET, 0o600)
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ)

    def read(self, ready: Client) -> tuple[dict[str, Any], Client] | None:
        """A command, once one is whole, and whom to answer, of a socket that has become readable.

        Whoever gets it answers it by `send`, at some time.
        """
        if ready is self._listener:
            with contextlib.suppress(BlockingIOError):
                client, _ = self._listener.accept()
                client.setblocking(False)
                self._held[client] = b""
                self._selector.register(client, selectors.EVENT_READ)
            return None
        try:
            data = ready.recv(files.LINE_LIMIT)
        except OSError:
            data = b""
        held = self._held[ready] = self._held.get(ready, b"") + data
        if data and b"\n" not in held and len(held) < files.LINE_LIMIT:
            return None
        self._selector.unregister(ready)
        del self._held[ready]
        if b"\n" not in held:
            ready.close()
            return None
        try:
            command = json.loads(held)
            if not isinstance(command, dict):
                raise ValueError("not an object")
        except ValueError as error:
            refuse(ready, InvalidRequest(f"bad command: {error}"))
            return None
        return command, ready

    def close(self) -> None:
        """Nobody can ask any more. Those who wait for an answer still get it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(files.SOCKET)
        self._listener.close()


def send(client: Client, answer: dict[str, Any]) -> None:
    """Answer, and hang up. The client may have gone."""
    with contextlib.suppress(OSError):
        client.setblocking(True)
        client.sendall(json.dumps(answer).encode() + b"\n")
    client.close()


def refuse(client: Client, error: OnefleetError | OSError) -> None:
    send(client, {"ok": False, "error": told(error)})


def told(error: OnefleetError | OSError) -> dict[str, str]:
    """An error as it goes over the socket."""
    if not isinstance(error, OnefleetError):
        error = InternalError("the supervisor could not do it", why=str(error))
    names = [kind.__name__ for kind in type(error).__mro__]
    return {"kind": names[0], "what": error.what, "why": error.why, "hint": error.hint}


def line(error: OnefleetError | OSError) -> str:
    """An error as a person's line."""
    said = told(error)
    return f"{said['what']}: {said['why']}" if said["why"] else said["what"]
