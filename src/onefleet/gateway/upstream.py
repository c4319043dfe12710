"""The other leg: kept-alive connections to an engine or to the control plane, one answer at a time.

A connection is reused last in, first out, and closed some time before the other side would close
it. Whoever asked is a `Listener`; it hears of the head, of each read, and of the end or the loss.
Leaving an answer closes its connection, which is how an engine learns that nobody waits.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from onefleet.gateway.limits import GatewayLimits

#: Answers that have no body whatever their head says.
_BODILESS = (204, 304)


class Listener(Protocol):
    """Whoever asked an upstream. link: the connection that works for it, while there is one."""

    link: UpstreamConnection | None

    def head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head of the answer."""

    def read(self, data: bytes, ended: bool) -> None:
        """What one read brought of the body, without its framing. ended: the answer is whole."""

    def lost(self, connected: bool, started: bool, reason: str) -> None:
        """No whole answer will come. connected: the request was sent. started: a head came."""

    def drained(self) -> None:
        """It is connected, or has caught up: more of a streamed request may be written."""

    def choked(self) -> None:
        """The upstream reads slower than it is written to."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to an upstream; it serves one listener at a time."""

    __slots__ = (
        "_ended",
        "_feed",
        "_fields",
        "_head",
        "_headers",
        "_keeps",
        "_listener",
        "_lost_reason",
        "_once",
        "_orderly",
        "_parser",
        "_parts",
        "_retry",
        "_started",
        "_upstream",
        "idle_since",
        "on_body",
        "on_header",
        "transport",
    )

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._listener: Listener | None = None
        # The parser's calls that only keep things do so without a frame of Python.
        self._fields: dict[bytes, bytes] = {}
        self._headers: list[tuple[bytes, bytes]] = []
        self.on_header: Callable[[bytes, bytes], None] = (
            self._add_header if upstream.repeated_headers else self._fields.__setitem__
        )
        self._parts: list[bytes] = []
        self.on_body = self._parts.append
        self._started = self._ended = False
        self._head: tuple[int, list[tuple[bytes, bytes]]] = (0, [])
        self._once = self._keeps = False
        self._retry: bytes | None = None
        self._lost_reason = "it closed the connection"
        self._orderly = True
        self.idle_since = 0
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        listener = self._listener
        if listener is None:
            self.transport.abort()  # nobody asked
            return
        self._retry = None
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._orderly = False
            self._lost_reason = f"it does not speak HTTP/1.1: {error}"
            self.transport.abort()
            self._drop()
            return
        if self._listener is not listener:
            return  # it left while it was told of the head
        parts = self._parts
        if parts:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
        elif self._ended:
            body = b""
        else:
            return
        if self._ended:
            self._reuse()
            listener.read(body, True)
        else:
            listener.read(body, False)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.gone(self)
        if exc is not None:
            self._orderly = False
            self._lost_reason = f"the connection broke: {exc}"
        self._drop()

    def pause_writing(self) -> None:
        if self._listener is not None:
            self._listener.choked()

    def resume_writing(self) -> None:
        if self._listener is not None:
            self._listener.drained()

    # --- the parser's side

    def _add_header(self, name: bytes, value: bytes) -> None:
        if not self._started:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers = self._headers or list(self._fields.items())
        self._headers = []
        self._fields.clear()
        if status < 200:
            return  # interim: the answer is still to come
        self._started = True
        self._head = (status, headers)
        if self._listener is not None:
            self._listener.head(status, headers)

    def on_message_complete(self) -> None:
        if self._started:
            self._ended = True
            self._keeps = self._parser.should_keep_alive()

    # --- what the pool and listeners use

    def ask(self, listener: Listener, payload: bytes, reused: bool, once: bool = False) -> None:
        """Send a request (or its first part) for `listener`. once: then close."""
        self._once = once
        self._listener = listener
        listener.link = self
        self._started = self._ended = False
        if self._fields:
            self._fields.clear()  # trailers of the answer before
        self._lost_reason = "it closed the connection"
        self._retry = payload if reused else None
        self.transport.write(payload)

    def write(self, data: bytes) -> None:
        """Send more of a streamed request."""
        self._retry = None
        self.transport.write(data)

    def pause(self) -> None:
        """Read no more of the answer for now."""
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def leave(self) -> None:
        """Stop this answer at once."""
        if self._listener is not None:
            self._listener.link = None
            self._listener = None
        self.transport.abort()

    def _reuse(self) -> None:
        """The answer is whole: keep the connection, if the other side does."""
        if self._listener is not None:
            self._listener.link = None
            self._listener = None
        self._parts.clear()
        if self._keeps and not self._once:
            self._upstream.keep(self)
        else:
            self.transport.close()

    def _drop(self) -> None:
        listener = self._listener
        if listener is None:
            return
        listener.link = None
        self._listener = None
        if self._retry is not None:
            # The other side closed it while it was idle: nothing of the request was answered.
            payload, self._retry = self._retry, None
            self._upstream.ask_fresh(listener, payload)
        elif self._started and self._orderly and not _framed(*self._head):
            listener.read(b"".join(self._parts), True)
        else:
            listener.lost(True, self._started, self._lost_reason)


def _framed(status: int, headers: list[tuple[bytes, bytes]]) -> bool:
    """The head says where the body ends; otherwise the end of the connection does."""
    return status in _BODILESS or any(
        name.lower() in (b"content-length", b"transfer-encoding") for name, _ in headers
    )


class Upstream:
    """The connections to one address."""

    def __init__(
        self,
        host: str,
        port: int,
        limits: GatewayLimits,
        idle_close_ms: int,
        repeated_headers: bool = False,
    ) -> None:
        """idle_close_ms: when the other side closes an idle connection; 0: never.

        repeated_headers: headers of an answer that come more than once are all kept.
        """
        self.repeated_headers = repeated_headers
        self.host = host
        self.port = port
        self.opened = 0  # connections so far
        keep = idle_close_ms - limits.idle_margin_ms if idle_close_ms else limits.engine_idle_ms
        self._keep_ms = max(0, min(keep, limits.engine_idle_ms))
        self._connect_ms = limits.connect_ms
        self._most_idle = limits.idle_connections
        self._idle: list[UpstreamConnection] = []
        self._connecting: dict[Listener, asyncio.Task[None]] = {}
        self._closed = False
        self._now = time.monotonic_ns() // 1_000_000

    def ask(self, listener: Listener, payload: bytes) -> None:
        """Send a request; the listener hears the rest. Reuses a connection where there is one."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.transport.is_closing():
                continue
            connection.ask(listener, payload, True)
            return
        self.ask_fresh(listener, payload)

    def ask_fresh(self, listener: Listener, payload: bytes, once: bool = False) -> None:
        """Send a request over a new connection. once: it is not kept after the answer."""
        self._connecting[listener] = asyncio.get_running_loop().create_task(
            self._connect(listener, payload, once)
        )

    def leave(self, listener: Listener) -> None:
        """Stop its answer at once. It hears nothing more."""
        task = self._connecting.pop(listener, None)
        if task is not None:
            task.cancel()
        if listener.link is not None:
            listener.link.leave()

    def keep(self, connection: UpstreamConnection) -> None:
        """A connection has answered and may be reused."""
        if self._closed or not self._keep_ms or len(self._idle) >= self._most_idle:
            connection.transport.close()
            return
        connection.idle_since = self._now
        self._idle.append(connection)

    def gone(self, connection: UpstreamConnection) -> None:
        """A connection is closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def tick(self, now: int) -> None:
        """Close connections that were idle for too long. now: milliseconds, monotonic."""
        self._now = now
        idle = self._idle
        if idle and now - idle[0].idle_since >= self._keep_ms:
            fresh = [one for one in idle if now - one.idle_since < self._keep_ms]
            stale = [one for one in idle if now - one.idle_since >= self._keep_ms]
            self._idle = fresh
            for connection in stale:
                connection.transport.close()

    def close(self) -> None:
        """No new request comes here; what is under way goes on."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.transport.close()

    async def _connect(self, listener: Listener, payload: bytes, once: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_ms / 1000):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self), self.host, self.port
                )
        except TimeoutError:
            reason = f"no connection within {self._connect_ms} ms (limit connect_ms)"
        except OSError as error:
            reason = f"no connection: {error.strerror or error}"
        else:
            self._connecting.pop(listener, None)
            self.opened += 1
            connection.ask(listener, payload, False, once)
            listener.drained()
            return
        self._connecting.pop(listener, None)
        listener.lost(False, False, reason)
