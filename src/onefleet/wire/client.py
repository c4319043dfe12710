"""The one HTTP client: what the command line, the console's tests and the agent call the pool with.

Synchronous and standard library only, and it imports what it needs when it is first used: a
command's start-up time is felt by a person. One connection a call, so an object may be shared
between threads. Bodies are msgspec types both ways; an `ErrorBody` comes back as the
`OnefleetError` that the other side raised.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from onefleet.domain import errors

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

T = TypeVar("T")
Body = object | None
Query = Mapping[str, str | int | bool | None]

#: Tries of a GET that nothing answered, and the pauses before the second and third.
GET_TRIES = 3
BACKOFF_S = (0.1, 0.3)
#: The largest answer that is read whole, and the longest line of a stream.
ANSWER_BYTES_MAX = 256 << 20
LINE_BYTES_MAX = 16 << 20
#: Read at a time of an answer that goes into a file.
PIECE_BYTES = 1 << 20


class Client:
    """Calls one pool. key: an API key. internal_token: for calls between the pool's own processes.

    Every method raises Unreachable when nothing answers, TimedOut after timeout_s without a byte,
    UpstreamFailed for an answer that breaks its schema, and else the error of the other side.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        internal_token: str | None = None,
        timeout_s: float = 30,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._parts = urlsplit(self.base_url)
        self._headers = {"accept": "application/json", "user-agent": "onefleet"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        if internal_token:
            self._headers["x-onefleet-internal"] = internal_token
        self._timeout_s = timeout_s
        self._live: dict[int, HTTPConnection] = {}

    def abort(self) -> None:
        """End the calls that other threads have under way: they raise Unreachable."""
        import socket

        for connection in list(self._live.values()):
            sock = connection.sock
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def get(self, path: str, type_: type[T], query: Query | None = None) -> T:
        """Read; the only method that tries again by itself when nothing answers."""
        target = with_query(path, query)
        for pause_s in (*BACKOFF_S[: GET_TRIES - 1], None):
            try:
                return self._call("GET", target, None, type_)
            except errors.Unreachable:
                if pause_s is None:
                    raise
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def post(self, path: str, body: Body, type_: type[T]) -> T:
        """Send a msgspec type (None: no body). `type_` may be NoneType for an empty answer."""
        return self._call("POST", path, _encode(body), type_)

    def delete(self, path: str, type_: type[T]) -> T:
        """Remove what the path names."""
        return self._call("DELETE", path, None, type_)

    def upload(self, path: str, file: Path | IO[bytes], type_: type[T]) -> T:
        """POST a file's bytes as they are, without reading it into memory."""
        if isinstance(file, Path):
            with file.open("rb") as opened:
                return self.upload(path, opened, type_)
        file.seek(0, 2)
        size = file.tell()
        file.seek(0)
        headers = {"content-type": "application/octet-stream", "content-length": str(size)}
        with self._exchange("POST", path, file, headers) as response:
            return _decode(_read(response), type_)

    def download(self, path: str, into: IO[bytes]) -> None:
        """GET an answer's bytes as they are, into a file."""
        import http.client

        with self._exchange("GET", path, None, {}) as response:
            while True:
                try:
                    chunk = response.read(PIECE_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise self._lost(error) from error
                if not chunk:
                    return
                into.write(chunk)

    def lines(self, method: str, path: str, body: Body = None) -> Iterator[bytes]:
        """Yield the lines of a streamed answer as they arrive, without their line ends.

        Of an event stream: the data of each event ("[DONE]" included). Empty lines are skipped.
        """
        payload = _encode(body)
        with self._exchange(method, path, payload, _content(payload)) as response:
            events = "text/event-stream" in (response.headers.get("content-type") or "")
            while line := self._line(response):
                text = line.rstrip(b"\r\n")
                if events:
                    if not text.startswith(b"data:"):
                        continue
                    text = text[5:].removeprefix(b" ")
                if text:
                    yield text

    # --- one call ------------------------------------------------------------------------------

    def _call(self, method: str, path: str, payload: bytes | None, type_: type[T]) -> T:
        with self._exchange(method, path, payload, _content(payload)) as response:
            try:
                raw = _read(response)
            except OSError as error:
                raise self._lost(error) from error
            return _decode(raw, type_)

    def _connection(self) -> HTTPConnection:
        import http.client

        parts: SplitResult = self._parts
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise errors.InvalidRequest(
                f"not an address: {self.base_url}", hint="http://127.0.0.1:7070 for example"
            )
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        return kind(parts.hostname, parts.port, timeout=self._timeout_s)

    @contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        payload: bytes | IO[bytes] | None,
        headers: Mapping[str, str],
    ) -> Iterator[HTTPResponse]:
        """Send the request; give the answer's head, or raise what it says. Closed after use."""
        import http.client

        with closing(self._connection()) as connection, self._listed(connection):
            try:
                with suppress(BrokenPipeError):  # it answered before it read the whole body
                    connection.request(
                        method, self._parts.path + path, payload, {**self._headers, **headers}
                    )
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._lost(error) from error
            with closing(response):
                if response.status >= 400:
                    retry_after = response.headers.get("retry-after")
                    raise error_of(response.status, _read(response), retry_after)
                yield response

    @contextmanager
    def _listed(self, connection: HTTPConnection) -> Iterator[None]:
        """Known to `abort` for as long as it lasts."""
        self._live[id(connection)] = connection
        try:
            yield
        finally:
            del self._live[id(connection)]

    def _line(self, response: HTTPResponse) -> bytes:
        import http.client

        try:
            line = response.readline(LINE_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        if len(line) == LINE_BYTES_MAX:
            raise errors.UpstreamFailed(f"a line of the answer is over {LINE_BYTES_MAX} bytes")
        return line

    def _lost(self, error: Exception) -> errors.OnefleetError:
        if isinstance(error, TimeoutError):
            return errors.TimedOut(
                f"{self.base_url} did not answer within {self._timeout_s:g} s",
                why="it is busy, or it hangs",
                hint="onefleet status; the logs are in the data folder's log/",
            )
        return errors.Unreachable(
            f"nothing answers at {self.base_url}",
            why=str(error) or type(error).__name__,
            hint="onefleet up, if it is not running",
        )


def with_query(path: str, query: Query | None) -> str:
    """The path with its query string; a value of None is left out."""
    pairs = [
        (name, str(value).lower() if isinstance(value, bool) else str(value))
        for name, value in (query or {}).items()
        if value is not None
    ]
    return f"{path}?{urlencode(pairs)}" if pairs else path


def segment(text: str) -> str:
    """Text as one segment of a path: names of models and deployments hold ``:`` and ``/``."""
    return quote(text, safe=":")


def error_of(status: int, raw: bytes, retry_after: str | None = None) -> errors.OnefleetError:
    """The error that an answer of this status and body stands for.

    retry_after: the header's value, in seconds. A body that is not an `ErrorBody` is quoted.
    """
    import msgspec

    from onefleet.wire.api import ErrorBody, ErrorDetail

    try:
        detail = msgspec.json.decode(raw, type=ErrorBody).error
    except msgspec.DecodeError:
        text = raw[:200].decode("utf-8", "replace").strip()
        detail = ErrorDetail(
            message=f"the answer was HTTP {status}", type="", param=None, code=None, why=text
        )
    return _class_of(status, detail.code)(
        detail.message,
        why=detail.why,
        hint=detail.hint,
        param=detail.param,
        code=detail.code,
        retry_after_ms=_seconds_to_ms(retry_after),
    )


def _class_of(status: int, code: str | None) -> type[errors.OnefleetError]:
    """The class of the tree with this status; its code decides between several."""
    classes = list(_classes(errors.OnefleetError))
    same = [c for c in classes if c.status == status]
    for kind in (k for k in same if k.code == code and "code" in vars(k)):
        return kind
    concrete = [c for c in same if c not in (errors.OnefleetError, errors.CallerError)]
    if concrete:
        return concrete[0]
    return errors.InvalidRequest if status < 500 else errors.UpstreamFailed


def _classes(root: type[errors.OnefleetError]) -> Iterator[type[errors.OnefleetError]]:
    yield root
    for child in root.__subclasses__():
        yield from _classes(child)


def _seconds_to_ms(text: str | None) -> int | None:
    return int(float(text) * 1000) if text and text.replace(".", "", 1).isdigit() else None


def _encode(body: Body) -> bytes | None:
    if body is None:
        return None
    import msgspec

    return msgspec.json.encode(body)


def _content(payload: bytes | None) -> Mapping[str, str]:
    return {} if payload is None else {"content-type": "application/json"}


def _read(response: HTTPResponse) -> bytes:
    import http.client

    try:
        raw = response.read(ANSWER_BYTES_MAX + 1)
    except http.client.HTTPException as error:
        raise errors.UpstreamFailed("the answer broke off", why=repr(error)) from error
    if len(raw) > ANSWER_BYTES_MAX:
        raise errors.UpstreamFailed(f"the answer is over {ANSWER_BYTES_MAX} bytes")
    return raw


def _decode(raw: bytes, type_: type[T]) -> T:
    import msgspec

    try:
        return msgspec.json.decode(raw or b"null", type=type_)
    except msgspec.DecodeError as error:
        raise errors.UpstreamFailed(
            "the answer breaks its schema", why=str(error), hint="is it the same version?"
        ) from error
