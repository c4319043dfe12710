"""How an answer looks on the wire: status lines, heads, chunks and OpenAI error bodies as bytes."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from onefleet.domain.errors import OnefleetError, QuotaExceeded
from onefleet.wire.api import ErrorBody, ErrorDetail

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"

LAST_CHUNK = b"0\r\n\r\n"

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}

_encode = msgspec.json.Encoder().encode


def status_line(status: int) -> bytes:
    """The first line of an answer, with its end."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Other\r\n" % status


def whole(
    status: int, kind: bytes, body: bytes, request_id: bytes, extra: bytes = b"", bare: bool = False
) -> bytes:
    """A whole answer. extra: more header lines, each with its end. bare: the head only (HEAD)."""
    return b"%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b" % (
        status_line(status),
        kind,
        len(body),
        request_id,
        extra,
        b"" if bare else body,
    )


def good(body: bytes, request_id: bytes, extra: bytes) -> bytes:
    """A whole answer of status 200 with a JSON body."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"x-request-id: %b\r\n%b\r\n%b" % (len(body), request_id, extra, body)
    )


def stream_head(request_id: bytes, extra: bytes, chunked: bool) -> bytes:
    """The head of a 200 event stream. Not chunked: for HTTP/1.0, ended by closing."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncache-control: no-cache\r\n"
        b"x-accel-buffering: no\r\n%bx-request-id: %b\r\n%b\r\n"
        % (EVENTS, b"transfer-encoding: chunked\r\n" if chunked else b"", request_id, extra)
    )


def chunk(data: bytes) -> bytes:
    """Frame `data`, which is not empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def error_body(error: OnefleetError) -> bytes:
    """The OpenAI error object, with our `why` and `hint` beside its four keys."""
    parts = (error.what, error.why, error.hint and f"try: {error.hint}")
    detail = ErrorDetail(
        message="; ".join(part for part in parts if part),
        type=_TYPES.get(error.status)
        or ("invalid_request_error" if error.status < 500 else "server_error"),
        param=error.param,
        code=error.error_code,
        why=error.why,
        hint=error.hint,
    )
    return _encode(ErrorBody(detail))


def error_headers(error: OnefleetError) -> bytes:
    """Header lines that tell a client whether and when trying again makes sense."""
    wait = error.retry_after_ms
    if wait is not None:
        seconds = max(1, -(-wait // 1000))
        return b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (seconds, max(1, wait))
    if error.status < 500 or error.status == 501:
        return b"x-should-retry: false\r\n"
    return b""


def error_event(error: OnefleetError) -> bytes:
    """The one event that ends a stream which cannot be finished."""
    return b"data: %b\n\n" % error_body(error)


def rate_headers(kind: bytes, limit: int, remaining: int, reset_ms: int) -> bytes:
    """x-ratelimit-* of "requests" or "tokens"; the reset is a duration such as `1500ms`."""
    return (
        b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\n"
        b"x-ratelimit-reset-%b: %dms\r\n"
        % (kind, limit, kind, remaining if remaining > 0 else 0, kind, reset_ms)
    )


class MethodNotAllowed(OnefleetError):
    """The route exists, but not for this method."""

    code = "method_not_allowed"
    status = 405
    exit_code = 2
    fault = "caller"


class HeadTooLarge(OnefleetError):
    """The request line or the headers are over a named limit."""

    code = "headers_too_large"
    status = 431
    exit_code = 2
    fault = "caller"


class UrlTooLong(OnefleetError):
    """The URL is over a named limit."""

    code = "url_too_long"
    status = 414
    exit_code = 2
    fault = "caller"


class TooSlow(OnefleetError):
    """The client did not send its request within a named time."""

    code = "request_timeout"
    status = 408
    exit_code = 124
    fault = "caller"


class VersionNotSupported(OnefleetError):
    """Not HTTP/1.0 or HTTP/1.1."""

    code = "http_version_not_supported"
    status = 505
    exit_code = 2
    fault = "caller"


class EngineBusy(QuotaExceeded):
    """An engine said 429; its own words and times are passed on."""
