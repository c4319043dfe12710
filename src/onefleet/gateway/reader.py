"""Bytes of a client in, requests out: the parser's side of a connection, with its limits.

Requests wait in `queue` in the order in which they came; the newest may still be missing its
body. What cannot be served is a request too, with the refusal that answers it, so that answers
stay in order. After the body of a request that ends the connection (`last`) nothing is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import httptools

from onefleet.domain.errors import InvalidRequest, OnefleetError, TooLarge, Unsupported
from onefleet.gateway import replies
from onefleet.gateway.limits import GatewayLimits
from onefleet.gateway.request import Request

_VERSIONS = ("1.1", "1.0")

#: Bytes of framing that a chunked body may have for each of its own: one byte a chunk has six.
_FRAMING = 9


class BrokenBody(Exception):
    """The rest of a body that is being passed on will not come."""


class RequestReader:
    """Parses one connection's requests. judge: sets body_limit, streams and refusal of a head."""

    __slots__ = (
        "_fatal",
        "_fresh",
        "_head_bytes",
        "_headers",
        "_judge",
        "_limits",
        "_parser",
        "_raw",
        "_read",
        "_url",
        "in_head",
        "incoming",
        "last",
        "queue",
        "started",
    )

    def __init__(self, limits: GatewayLimits, judge: Callable[[Request], None]) -> None:
        self._limits = limits
        self._judge = judge
        self._parser = httptools.HttpRequestParser(self)
        self._fatal: OnefleetError | None = None
        self._head_bytes = self._raw = self._read = 0
        self._fresh = False  # what the read under way is counted to has only begun in it
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self.queue: deque[Request] = deque()
        self.incoming: Request | None = None  # its body is being read
        self.in_head = False
        self.last = False
        self.started = False  # a head has begun since this was last set to False

    def parse(self, data: bytes) -> None:
        """Take what was read. Raises BrokenBody when a body that is passed on is malformed."""
        self._fresh = False
        self._read = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Another protocol is only offered: HTTP/1.1 goes on after the head.
            rest = data[upgrade.args[0] :]
            if rest and not self.over:
                self.parse(rest)
            return
        except httptools.HttpParserError as error:
            if not self.over:
                self._malformed(error)
        if self._fatal is None and not self._fresh:
            self._bound(self._read)
        if self._fatal is not None and not self.over:
            self._refuse_rest(self._fatal)

    @property
    def over(self) -> bool:
        """Nothing that is still to come is read: the last request is whole, or is given up."""
        return self.last and (self.incoming is None or self.incoming.closes)

    # --- the parser's calls

    def on_message_begin(self) -> None:
        self.in_head = self.started = self._fresh = True
        self._head_bytes = 0
        self._url = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url
        limit = self._limits.url_bytes
        if len(self._url) > limit and self._fatal is None:
            self._url = b"/"
            self._fatal = replies.UrlTooLong(
                "the URL is too long", why=f"the limit url_bytes is {limit}"
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # a trailer carries nothing that counts
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.in_head = False
        self._fresh = True
        self._raw = 0
        if self._fatal is not None or self.last:
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
            self.last = True
        self.incoming = request
        self.queue.append(request)
        headers = self._headers
        request.read_headers(headers)
        error = None
        limits = self._limits
        if (
            self._head_bytes + self._read > limits.header_bytes
            or len(headers) > limits.header_count
            or request.hosts != 1
            or version != "1.1"
        ):
            error = _head_error(request, version, len(headers), limits)
        if error is None and request.length != 0 and parser.should_upgrade():
            error = Unsupported("this server upgrades to no other protocol")
        if error is not None:
            request.refusal = error
            request.closes = True
            return
        self._judge(request)
        length = request.length
        if length is not None and length > request.body_limit and request.refusal is None:
            request.refusal = _too_large(request)
        if request.refusal is not None and (
            length is None or length > limits.drain_bytes or request.expects
        ):
            request.closes = True

    def on_body(self, data: bytes) -> None:
        request = self.incoming
        if request is None:
            return
        request.size += len(data)
        if request.refusal is not None:
            return
        if request.size > request.body_limit:
            request.parts.clear()
            request.closes = True
            request.refusal = _too_large(request)
            if request.sink is not None:
                raise BrokenBody
        elif request.sink is not None:
            request.sink.feed(data)
        else:
            request.parts.append(data)

    def on_message_complete(self) -> None:
        request, self.incoming = self.incoming, None
        if request is not None:
            request.complete = True
            if request.sink is not None:
                request.sink.fed()

    # --- inside

    def _refuse_rest(self, error: OnefleetError) -> None:
        """Answer by an error what is being read, and read nothing after it."""
        request = self.incoming
        if request is None or request.refusal is not None:
            request = Request(b"GET", b"/", b"")
            self.queue.append(request)
        request.refusal, request.closes, request.keep_alive = error, True, False
        self.last = True

    def _bound(self, read: int) -> None:
        """Bound what a parser keeps of a head, or of the trailers and chunk heads of a body."""
        limit = self._limits.header_bytes
        if self.in_head:
            self._head_bytes += read
            over = self._head_bytes > limit
        elif self.incoming is not None and self.incoming.length is None:
            self._raw += read
            over = self._raw > _FRAMING * self.incoming.size + 2 * limit
        else:
            return
        if over:
            if self.incoming is not None and self.incoming.sink is not None:
                raise BrokenBody
            self._fatal = replies.HeadTooLarge(
                "the headers are too large", why=f"the limit header_bytes is {limit}"
            )

    def _malformed(self, error: Exception) -> None:
        if self.incoming is not None and self.incoming.sink is not None:
            raise BrokenBody from error
        self._fatal = InvalidRequest(
            "this is not HTTP/1.1", why=str(error) or "it could not be parsed", code="bad_request"
        )


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
