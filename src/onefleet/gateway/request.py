"""One parsed request, from its head to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onefleet.domain.errors import OnefleetError
    from onefleet.gateway.connection import Exchange
    from onefleet.wire.gateway import KeyRoute

#: Characters that a client's own x-request-id may have; anything else is replaced by an id of ours.
_ID_CHARACTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+="
_ID_BYTES = 128


class Request:
    """What a client asked.

    path: without the query, as it came. headers: names as they came. parts: the body so far, of a
    request that is taken whole. streams: its body is passed on as it comes, to `sink`. refusal:
    it will be answered by this error. length: of the body, None when it is chunked.
    """

    # Defaults stand in the class: a request sets the few that differ, which is cheaper than all.
    http10 = False
    keep_alive = False
    hosts = 0
    length: int | None = 0
    expects = False
    credential = b""
    request_id = b""
    size = 0
    body_limit = 0
    complete = False
    streams = False
    closes = False
    sink: Exchange | None = None
    refusal: OnefleetError | None = None
    refusal_headers = b""
    key: KeyRoute | None = None
    route: Any = None  # what the service decided at the head

    def __init__(self, method: bytes, path: bytes, query: bytes) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.head_only = method == b"HEAD"
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []

    @property
    def body(self) -> bytes:
        parts = self.parts
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Take the headers, and from them what every request is judged by."""
        self.headers = headers
        for name, value in headers:
            take = _TAKERS.get(name.lower())
            if take is not None:
                take(self, value)

    def connection_line(self, closing: bool) -> bytes:
        """The `connection` header of the answer, where HTTP needs one."""
        if closing:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self.http10 else b""


def _authorization(request: Request, value: bytes) -> None:
    scheme, _, credential = value.partition(b" ")
    if scheme.lower() == b"bearer":
        request.credential = credential.strip()


def _api_key(request: Request, value: bytes) -> None:
    if not request.credential:
        request.credential = value.strip()


def _request_id(request: Request, value: bytes) -> None:
    if 0 < len(value) <= _ID_BYTES and not value.translate(None, _ID_CHARACTERS):
        request.request_id = value


def _content_length(request: Request, value: bytes) -> None:
    request.length = int(value)  # the parser has checked that it is a number


def _transfer_encoding(request: Request, value: bytes) -> None:
    request.length = None


def _expect(request: Request, value: bytes) -> None:
    request.expects = value.lower() == b"100-continue"


def _host(request: Request, value: bytes) -> None:
    request.hosts += 1


_TAKERS = {
    b"authorization": _authorization,
    b"api-key": _api_key,
    b"x-request-id": _request_id,
    b"content-length": _content_length,
    b"transfer-encoding": _transfer_encoding,
    b"expect": _expect,
    b"host": _host,
}
