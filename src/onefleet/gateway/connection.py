"""One client's connection: a correct HTTP/1.1 server under whatever answers the requests.

Requests are parsed as they come (llhttp), answered one at a time and in order. What is read ahead
of the answer under way waits as raw bytes, within a limit. Whoever answers is an `Exchange`; the
connection tells it when the client slows down, comes back or leaves.

A client that shuts down its sending side may have left, or may still wait for its answer (TCP
says the same of both). It is asked: an interim answer, or an empty comment in a stream, makes the
host of a client that left reset the connection, and the state of the socket then says so.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol, cast

from onefleet.domain.errors import OnefleetError, Overloaded
from onefleet.gateway import replies
from onefleet.gateway.limits import GatewayLimits
from onefleet.gateway.reader import BrokenBody, RequestReader
from onefleet.gateway.request import Request

#: TCP_CLOSE of Linux's tcp_states.h: the first byte of struct tcp_info of a reset connection.
_TCP_CLOSE = 7

#: When a client that shut down its sending side is looked at first, after it was asked.
_PROBE_SECONDS = (0.005, 0.03)

_INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Exchange(Protocol):
    """Whoever answers one request. It ends by `ClientConnection.finish`, or is left."""

    def pause(self) -> None:
        """The client reads slower than it is written to: write no more for now."""

    def resume(self) -> None:
        """The client has caught up."""

    def leave(self) -> None:
        """The client is gone: stop at once what works for it; write nothing."""

    def feed(self, data: bytes) -> None:
        """A piece of the body, of a request that `streams`."""

    def fed(self) -> None:
        """The body is whole, of a request that `streams`."""

    def probe(self) -> bytes | None:
        """Bytes that change nothing for the client, where it is in its answer; None: nowhere."""

    def tick(self, now: int) -> None:
        """Look at time limits. now: milliseconds of the service's clock."""


class Service(Protocol):
    """What a connection serves: it judges heads and begins exchanges."""

    limits: GatewayLimits
    now: int  # milliseconds, monotonic, as of the last tick

    def joined(self, connection: ClientConnection) -> bool:
        """A client connected. False: there are too many."""

    def left(self, connection: ClientConnection) -> None:
        """It is gone."""

    def judge(self, request: Request) -> None:
        """A head is whole: set body_limit, streams and, when it shall not pass, refusal."""

    def begin(self, request: Request, connection: ClientConnection) -> Exchange | None:
        """Answer it. None: it is answered already."""

    def refuse(self, request: Request | None, error: OnefleetError, closing: bool) -> bytes:
        """The bytes of an error's answer; it is counted."""


class ClientConnection(asyncio.Protocol):
    """The server's side of one connection."""

    __slots__ = (
        "_ahead",
        "_busy",
        "_drained",
        "_eof",
        "_exchange",
        "_lingering",
        "_mark",
        "_paused_at",
        "_reader",
        "_reading",
        "_request",
        "_running",
        "_service",
        "_started",
        "_tls",
        "transport",
    )

    def __init__(self, service: Service) -> None:
        self._service = service
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._reader = RequestReader(service.limits, service.judge)
        self._request: Request | None = None  # it is being answered
        self._exchange: Exchange | None = None
        self._busy = self._running = False
        self._ahead = bytearray()
        self._reading = True
        self._eof = self._tls = self._lingering = False
        self._drained = 0
        self._started = self._mark = service.now
        self._paused_at = 0

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls = transport.get_extra_info("sslcontext") is not None
        if not self._service.joined(self):
            limit = self._service.limits.connections
            error = Overloaded(
                f"{limit} connections are open",
                why=f"the limit connections is {limit}",
                retry_after_ms=1000,
            )
            self.transport.write(self._service.refuse(None, error, True))
            self._shut(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.left(self)
        self._reader.last = self._lingering = True
        self._reader.queue.clear()
        exchange, self._exchange = self._exchange, None
        self._busy = False
        if exchange is not None:
            exchange.leave()

    def data_received(self, data: bytes) -> None:
        self._mark = self._service.now
        if self._lingering:
            self._drained += len(data)
            if self._drained > self._service.limits.linger_bytes:
                self.transport.abort()
            return
        if self._reader.over:
            return
        if self._busy and self._reader.incoming is None:
            self._ahead += data
            if len(self._ahead) > self._service.limits.pipeline_bytes and self._reading:
                self.hold_reading()
            return
        self._parse(data)
        if not self._busy or self._reader.queue:
            self._run()

    def eof_received(self) -> bool:
        self._eof = True
        waiting = self._busy or any(request.complete for request in self._reader.queue)
        if self._lingering or self._tls or not waiting or self._reader.incoming is not None:
            return False
        return not self._busy or self._probe()

    def pause_writing(self) -> None:
        self._paused_at = self._service.now
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._paused_at = 0
        if self._exchange is not None:
            self._exchange.resume()

    # --- what exchanges use

    def write(self, data: bytes) -> None:
        """Send bytes of the answer, framed."""
        self.transport.write(data)

    def finish(self, keep: bool = True) -> None:
        """The answer is written whole. keep: the connection may serve another request."""
        request = self._request
        self._exchange = None
        self._busy = False
        self._mark = self._started = self._service.now
        if request is None or self._lingering:
            return
        request.sink = None
        if not keep or not request.keep_alive or not request.complete:
            self._shut(not request.complete or bool(self._ahead) or bool(self._reader.queue))
        elif self._reader.queue or self._ahead or self._eof or not self._reading:
            self._run()

    def hold_reading(self) -> None:
        """Read no more for now: what was read is not used up."""
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def go_on_reading(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    # --- inside

    def _parse(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.parse(data)
        except BrokenBody:
            self.transport.abort()
        if reader.started:
            reader.started = False
            self._started = self._service.now

    def _run(self) -> None:
        """Answer what can be answered, in order, without recursion."""
        if self._running:
            return
        self._running = True
        while not self._lingering:
            self._begin_next()
            if self._busy or not self._ahead or self._reader.last:
                break
            data = bytes(self._ahead)
            self._ahead.clear()
            self._parse(data)
        self._running = False
        if self._eof and not self._busy and not self._lingering:
            self.transport.close()
        elif not self._busy and not self._lingering:
            self.go_on_reading()

    def _begin_next(self) -> None:
        queue = self._reader.queue
        while queue and not self._busy and not self._lingering:
            request = queue[0]
            if request.refusal is not None:
                if not request.complete and not request.closes:
                    return  # its short body is read first, so that the connection can be kept
                queue.popleft()
                closing = request.closes or not request.keep_alive
                self.transport.write(self._service.refuse(request, request.refusal, closing))
                if closing:
                    self._shut(True)
                continue
            if not request.complete:
                if request.expects:
                    request.expects = False
                    self.transport.write(_CONTINUE)
                if not request.streams:
                    return
            queue.popleft()
            self._request = request
            self._busy = True
            exchange = self._service.begin(request, self)
            if self._busy:
                self._exchange = exchange
                if self._paused_at and exchange is not None:
                    exchange.pause()

    def _shut(self, linger: bool) -> None:
        """Send what is written and close. linger: the client may still be sending; it would not
        get the answer if the connection were closed under what it sends."""
        self._reader.last = True
        if self._eof or self._tls or not linger or not self.transport.can_write_eof():
            self.transport.close()
            self._lingering = True
            return
        self._lingering = True
        self._mark = self._service.now
        self.transport.write_eof()
        self.go_on_reading()

    def _probe(self) -> bool:
        """Ask a client that shut down its sending side whether it is there. False: do not wait."""
        request, exchange = self._request, self._exchange
        probe = exchange.probe() if exchange is not None else None
        if probe is None:
            if request is None or request.http10:
                return False
            probe = _INTERIM
        self.transport.write(probe)
        loop = asyncio.get_running_loop()
        for delay in _PROBE_SECONDS:
            loop.call_later(delay, self._look)
        return True

    def _look(self) -> None:
        """Abort if the client's host has reset the connection since it was asked."""
        if self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)
        if info[0] == _TCP_CLOSE:
            self.transport.abort()

    # --- time

    def tick(self, now: int) -> None:
        """Look at the time limits. now: milliseconds of the service's clock."""
        limits = self._service.limits
        if self._lingering:
            if now - self._mark > limits.linger_ms:
                self.transport.abort()
        elif self._paused_at and now - self._paused_at > limits.stall_ms:
            self.transport.abort()
        elif self._busy:
            if self._exchange is not None:
                self._exchange.tick(now)
            if self._eof or not self._reading:
                self._look()
        elif self._reader.in_head:
            if now - self._started > limits.header_ms:
                self._too_slow("header_ms", limits.header_ms)
        elif self._reader.incoming is not None:
            if now - self._mark > limits.body_idle_ms:
                self._too_slow("body_idle_ms", limits.body_idle_ms)
            elif now - self._started > limits.body_ms:
                self._too_slow("body_ms", limits.body_ms)
        elif now - self._mark > limits.idle_ms:
            self.transport.close()
            self._lingering = True

    def _too_slow(self, name: str, limit: int) -> None:
        error = replies.TooSlow(
            "the request did not arrive in time", why=f"the limit {name} is {limit}"
        )
        self.transport.write(self._service.refuse(self._reader.incoming, error, True))
        self._shut(True)

    @property
    def idle(self) -> bool:
        """Nothing of this client is under way; it may be closed."""
        return not self._busy and not self._reader.queue and not self._reader.in_head

    def end_after_answer(self) -> None:
        """Serve what is under way, then close: the process is stopping."""
        if self.idle:
            self.transport.close()
            self._lingering = True
        elif self._request is not None:
            self._request.keep_alive = False
