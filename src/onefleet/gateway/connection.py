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
from collections import deque
from typing import Protocol, cast

import httptools

from onefleet.domain.errors import InvalidRequest, OnefleetError, Overloaded, TooLarge, Unsupported
from onefleet.gateway import replies
from onefleet.gateway.limits import GatewayLimits
from onefleet.gateway.request import Request

#: TCP_CLOSE of Linux's tcp_states.h: the first byte of struct tcp_info of a reset connection.
_TCP_CLOSE = 7

#: When a client that shut down its sending side is looked at first, after it was asked.
_PROBE_SECONDS = (0.005, 0.03)

_INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_VERSIONS = ("1.1", "1.0")


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
        "_eof",
        "_exchange",
        "_fatal",
        "_head_bytes",
        "_headers",
        "_in_head",
        "_incoming",
        "_last",
        "_lingering",
        "_mark",
        "_parser",
        "_paused_at",
        "_queue",
        "_raw",
        "_reading",
        "_request",
        "_running",
        "_service",
        "_started",
        "_tls",
        "_url",
        "transport",
    )

    def __init__(self, service: Service) -> None:
        self._service = service
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._incoming: Request | None = None  # its body is being read
        self._request: Request | None = None  # it is being answered
        self._exchange: Exchange | None = None
        self._busy = self._running = False
        self._ahead = bytearray()
        self._reading = True
        self._eof = self._last = self._tls = False
        self._lingering = False
        self._fatal: OnefleetError | None = None
        self._in_head = False
        self._head_bytes = self._raw = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
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
        self._last = self._lingering = True
        self._queue.clear()
        exchange, self._exchange = self._exchange, None
        self._busy = False
        if exchange is not None:
            exchange.leave()

    def data_received(self, data: bytes) -> None:
        self._mark = self._service.now
        if self._lingering:
            self._raw += len(data)
            if self._raw > self._service.limits.linger_bytes:
                self.transport.abort()
            return
        if self._last:
            return
        if self._busy and self._incoming is None:
            self._ahead += data
            if len(self._ahead) > self._service.limits.pipeline_bytes and self._reading:
                self.hold_reading()
            return
        self._parse(data)
        if not self._busy or self._queue:
            self._run()

    def eof_received(self) -> bool:
        self._eof = True
        waiting = self._busy or any(request.complete for request in self._queue)
        if self._lingering or self._tls or not waiting or self._incoming is not None:
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

    # --- the parser's side

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._url = b""
        self._headers = []
        self._started = self._service.now

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url
        limit = self._service.limits.url_bytes
        if len(self._url) > limit and self._fatal is None:
            self._url = b"/"
            self._fatal = replies.UrlTooLong(
                "the URL is too long", why=f"the limit url_bytes is {limit}"
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer carries nothing that counts
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._raw = 0
        if self._fatal is not None or self._last:
            return
        parser = self._parser
        path, _, query = self._url.partition(b"?")
        if not path.startswith(b"/"):
            path = _path_of(path)
        request = Request(parser.get_method(), path, query)
        version = parser.get_http_version()
        request.http10 = version == "1.0"
        request.keep_alive = parser.should_keep_alive()
        if not request.keep_alive:
            self._last = True
        self._incoming = request
        self._queue.append(request)
        headers = self._headers
        request.read_headers(headers)
        error = _head_error(request, version, len(headers), self._service.limits)
        if error is not None:
            request.refusal = error
            request.closes = True
            return
        if parser.should_upgrade() and request.length != 0:
            request.refusal = Unsupported("this server upgrades to no other protocol")
            request.closes = True
            return
        self._service.judge(request)
        length = request.length
        if length is not None and length > request.body_limit and request.refusal is None:
            request.refusal = _too_large(request)
        if request.refusal is not None and (
            length is None or length > self._service.limits.drain_bytes or request.expects
        ):
            request.closes = True

    def on_body(self, data: bytes) -> None:
        request = self._incoming
        if request is None:
            return
        request.size += len(data)
        if request.refusal is not None:
            return
        if request.size > request.body_limit:
            request.parts.clear()
            request.closes = True
            request.refusal = _too_large(request)
        elif request.sink is not None:
            request.sink.feed(data)
        else:
            request.parts.append(data)

    def on_message_complete(self) -> None:
        request, self._incoming = self._incoming, None
        if request is not None:
            request.complete = True
            if request.sink is not None:
                request.sink.fed()

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
            self._shut(not request.complete or bool(self._ahead) or bool(self._queue))
        else:
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
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Another protocol is only offered: HTTP/1.1 goes on after the head.
            rest = data[upgrade.args[0] :]
            if rest and not self._last:
                self._parse(rest)
            return
        except httptools.HttpParserError as error:
            if not self._last:
                self._malformed(error)
        if self._fatal is None:
            self._bound(len(data))
        if self._fatal is not None and not self._last:
            request = self._incoming
            if request is None or request.refusal is not None:
                request = Request(b"GET", b"/", b"")
                self._queue.append(request)
            request.refusal, request.closes, request.keep_alive = self._fatal, True, False
            self._last = True

    def _bound(self, read: int) -> None:
        """Bound what a parser keeps of a head, or of the trailers and chunk heads of a body."""
        limit = self._service.limits.header_bytes
        if self._in_head:
            self._head_bytes += read
            over = self._head_bytes > limit
        elif self._incoming is not None and self._incoming.length is None:
            self._raw += read
            over = self._raw > 9 * self._incoming.size + 2 * limit
        else:
            return
        if over:
            self._fatal = replies.HeadTooLarge(
                "the headers are too large", why=f"the limit header_bytes is {limit}"
            )

    def _malformed(self, error: Exception) -> None:
        sink = self._incoming.sink if self._incoming is not None else None
        if sink is not None:
            self.transport.abort()  # the rest of a body that was passed on is not to be had
            return
        self._fatal = InvalidRequest(
            "this is not HTTP/1.1", why=str(error) or "it could not be parsed", code="bad_request"
        )

    def _run(self) -> None:
        """Answer what can be answered, in order, without recursion."""
        if self._running:
            return
        self._running = True
        while not self._lingering:
            self._begin_next()
            if self._busy or not self._ahead or self._last:
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
        queue = self._queue
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
        self._last = True
        self._raw = 0
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
        elif self._in_head:
            if now - self._started > limits.header_ms:
                self._too_slow("header_ms", limits.header_ms)
        elif self._incoming is not None:
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
        self.transport.write(self._service.refuse(self._incoming, error, True))
        self._shut(True)

    @property
    def idle(self) -> bool:
        """Nothing of this client is under way; it may be closed."""
        return not self._busy and not self._queue and not self._in_head

    def end_after_answer(self) -> None:
        """Serve what is under way, then close: the process is stopping."""
        if self.idle:
            self.transport.close()
            self._lingering = True
        elif self._request is not None:
            self._request.keep_alive = False


def _path_of(target: bytes) -> bytes:
    """The path of a target in absolute form (``http://host/path``), as a proxy's client sends."""
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        return target
    _, slash, path = rest.partition(b"/")
    return slash + path or b"/"


def _too_large(request: Request) -> TooLarge:
    return TooLarge(
        f"the body of {request.method.decode()} {request.path.decode('latin-1')} is too large",
        why=f"the limit {'upload_bytes' if request.streams else 'body_bytes'} is"
        f" {request.body_limit} bytes"
        + (f", it has {request.length}" if request.length is not None else ""),
    )


def _head_error(
    request: Request, version: str, count: int, limits: GatewayLimits
) -> OnefleetError | None:
    if version not in _VERSIONS:
        return replies.VersionNotSupported(f"HTTP/{version} is not spoken here", why="HTTP/1.1 is")
    if count > limits.header_count:
        return replies.HeadTooLarge(
            f"there are {count} headers", why=f"the limit header_count is {limits.header_count}"
        )
    if sum(len(name) + len(value) for name, value in request.headers) > limits.header_bytes:
        return replies.HeadTooLarge(
            "the headers are too large", why=f"the limit header_bytes is {limits.header_bytes}"
        )
    if request.hosts != 1 and not (request.http10 and not request.hosts):
        return InvalidRequest(f"there are {request.hosts} Host headers", why="there must be one")
    return None
