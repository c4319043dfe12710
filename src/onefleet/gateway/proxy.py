"""What is not of the data plane goes to the control plane: its API and the console, both ways.

Bodies are streamed in both directions with back-pressure. ``/internal`` is never passed on,
however it is spelled, and the header that opens it is taken out of what clients send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from onefleet.domain.errors import OnefleetError, Unreachable, UpstreamFailed
from onefleet.gateway import replies
from onefleet.gateway.request import Request
from onefleet.gateway.upstream import UpstreamConnection

if TYPE_CHECKING:
    from onefleet.gateway.app import Gateway
    from onefleet.gateway.connection import ClientConnection

INTERNAL_HEADER = b"x-onefleet-internal"

#: Of one hop only (RFC 9110, 7.6.1), or set anew here.
_OWN = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        b"expect",
        b"x-request-id",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        INTERNAL_HEADER,
    )
)


def is_passed_on(path: bytes) -> bool:
    """Whether a path goes to the control plane. Only plainly spelled paths do."""
    plain = unquote_to_bytes(path)
    if b"%" in plain or b"\\" in plain or b"//" in plain or b"\0" in plain:
        return False
    parts = plain.lower().split(b"/")
    if len(parts) < 2 or parts[0] or b".." in parts or b"." in parts:
        return False
    return parts[1] not in (b"internal", b"v1")


class ControlProxy:
    """One request that the control plane answers."""

    __slots__ = (
        "_chunked_answer",
        "_chunked_request",
        "_client",
        "_ended",
        "_gateway",
        "_heard_at",
        "_kept",
        "_paused",
        "_pending",
        "_request",
        "_sent",
        "link",
    )

    def __init__(self, gateway: Gateway, request: Request, client: ClientConnection) -> None:
        self._gateway = gateway
        self._request = request
        self._client = client
        self.link: UpstreamConnection | None = None
        self._pending: list[bytes] = []
        self._chunked_request = request.length is None
        self._chunked_answer = False
        self._sent = self._paused = self._ended = False
        self._kept = True
        self._heard_at = gateway.now

    def start(self) -> None:
        """Ask the control plane, with what there is of the body."""
        request = self._request
        payload = self._head() + b"".join(self._framed(part) for part in request.parts)
        if request.complete:
            payload += self._last()
            request.parts.clear()
        control = self._gateway.control
        if request.method in (b"GET", b"HEAD") and request.complete:
            control.ask(self, payload)
        else:
            # Not over a connection that may just have been closed: it would have to be repeated.
            control.ask_fresh(self, payload, once=not request.complete)

    # --- the control plane's side

    def head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._heard_at = self._gateway.now
        if self._paused and self.link is not None:
            self.link.pause()  # the client has not read the answer before this one
        request = self._request
        lines = [replies.status_line(status)]
        length: bytes | None = None
        for name, value in headers:
            lowered = name.lower()
            if lowered == b"content-length":
                length = value
            elif lowered not in _OWN:
                lines.append(b"%b: %b\r\n" % (name, value))
        lines.append(b"x-request-id: %b\r\n" % request.request_id)
        if length is not None:
            lines.append(b"content-length: %b\r\n" % length)
        elif status not in (204, 304):
            self._chunked_answer = not request.http10
            if self._chunked_answer:
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self._kept = False
        closing = not request.keep_alive or not request.complete or not self._kept
        self._kept = not closing
        lines.append(request.connection_line(closing))
        lines.append(b"\r\n")
        self._sent = True
        self._gateway.metrics.answered(status)
        self._client.write(b"".join(lines))
        if request.head_only:
            self._gateway.control.leave(self)
            self._finish()

    def read(self, data: bytes, ended: bool) -> None:
        self._heard_at = self._gateway.now
        if data:
            self._client.write(replies.chunk(data) if self._chunked_answer else data)
        if ended:
            if self._chunked_answer:
                self._client.write(replies.LAST_CHUNK)
            self._finish()

    def lost(self, connected: bool, started: bool, reason: str) -> None:
        self._gateway.log.warning("control_lost", why=reason)
        error: OnefleetError
        if connected:
            error = UpstreamFailed("the control plane did not finish its answer", why=reason)
        else:
            error = Unreachable(
                "the control plane does not answer",
                why=reason,
                hint="models are served meanwhile; ask again",
                retry_after_ms=1_000,
            )
        self._fail(error)

    def choked(self) -> None:
        self._client.hold_reading()

    def drained(self) -> None:
        pending, self._pending = self._pending, []
        if self.link is not None:
            for data in pending:
                self.link.write(data)
        self._client.go_on_reading()

    # --- the client's side

    def feed(self, data: bytes) -> None:
        self._write(self._framed(data))

    def fed(self) -> None:
        last = self._last()
        if last:
            self._write(last)

    def pause(self) -> None:
        self._paused = True
        if self.link is not None:
            self.link.pause()

    def resume(self) -> None:
        self._paused = False
        self._heard_at = self._gateway.now
        if self.link is not None:
            self.link.resume()

    def leave(self) -> None:
        self._gateway.control.leave(self)

    def probe(self) -> bytes | None:
        if not self._sent:
            return None
        # A size of the next chunk may have leading zeros; to a body of known length nothing can
        # be added, so there a client that left is noticed by the next write.
        return b"0" if self._chunked_answer else b""

    def tick(self, now: int) -> None:
        limit = self._gateway.limits.quiet_ms
        if self._request.complete and not self._paused and now - self._heard_at > limit:
            self._fail(
                UpstreamFailed(
                    "the control plane said nothing in time", why=f"the limit quiet_ms is {limit}"
                )
            )

    # --- inside

    def _head(self) -> bytes:
        request = self._request
        method = b"GET" if request.head_only else request.method
        target = b"%b?%b" % (request.path, request.query) if request.query else request.path
        lines = [b"%b %b HTTP/1.1\r\n" % (method, target)]
        for name, value in request.headers:
            if name.lower() not in _OWN:
                lines.append(b"%b: %b\r\n" % (name, value))
        peer = self._client.transport.get_extra_info("peername")
        address = str(peer[0]).encode() if peer else b"unknown"
        secure = self._client.transport.get_extra_info("sslcontext") is not None
        lines.append(
            b"x-request-id: %b\r\nx-forwarded-for: %b\r\nx-forwarded-proto: %b\r\n"
            % (request.request_id, address, b"https" if secure else b"http")
        )
        if self._chunked_request:
            lines.append(b"transfer-encoding: chunked\r\n")
        elif request.length or method in (b"POST", b"PUT", b"PATCH"):
            lines.append(b"content-length: %d\r\n" % (request.length or 0))
        if request.hosts == 0:
            lines.append(b"host: localhost\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _framed(self, data: bytes) -> bytes:
        return replies.chunk(data) if self._chunked_request else data

    def _last(self) -> bytes:
        return replies.LAST_CHUNK if self._chunked_request else b""

    def _write(self, data: bytes) -> None:
        if self.link is not None and not self._pending:
            self.link.write(data)
        elif not self._ended:
            self._pending.append(data)
            self._client.hold_reading()

    def _finish(self) -> None:
        self._ended = True
        self._client.finish(self._kept)

    def _fail(self, error: OnefleetError) -> None:
        self._gateway.control.leave(self)
        if self._sent:
            self._client.transport.abort()  # the answer is visibly not whole
            return
        closing = not self._request.keep_alive or not self._request.complete
        self._client.write(self._gateway.refuse(self._request, error, closing))
        self._ended = True
        self._client.finish(not closing)
