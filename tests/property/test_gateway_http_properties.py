"""Whatever bytes come in whatever pieces: no crash, the same answers, and never two at once."""

from __future__ import annotations

import asyncio
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.integration.gateway.rig import DIALECTS, KEY, chat, deployment, request, table

from onefleet.gateway.app import Gateway
from onefleet.gateway.connection import ClientConnection
from onefleet.gateway.limits import GatewayLimits
from onefleet.gateway.metering import Meter
from onefleet.gateway.sse import EventCutter, plain_length, split
from onefleet.gateway.upstream import Upstream
from onefleet.wire.gateway import RouteTable

LIMITS = GatewayLimits(header_bytes=2_000, body_bytes=500, url_bytes=200, header_count=20)


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def answers(pieces: list[bytes]) -> bytes:
    """What one connection answers to these reads, with ids taken out."""

    async def main() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            meter = Meter(Path(folder), LIMITS, lambda code, why: None)
            control = Upstream("127.0.0.1", 1, LIMITS, 0)
            gateway = Gateway(LIMITS, DIALECTS, meter, control, lambda: None)
            routes: RouteTable = table(deployment("tiny"))  # no replica: chats are held
            gateway.apply(routes)
            connection, wire = ClientConnection(gateway), Wire()
            connection.connection_made(wire)
            for piece in pieces:
                if wire.closed:
                    break
                connection.data_received(piece)
            written = wire.written
            connection.connection_lost(None)
            gateway.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            return written.replace(gateway._id_prefix, b"id")

    return asyncio.run(main())


GOOD = [
    request("GET", "/health"),
    request("GET", "/v1/models"),
    request("HEAD", "/v1/models"),
    request("POST", "/v1/chat/completions", b"{"),
    request("POST", "/v1/embeddings", {"model": "tiny", "input": "a"}),
    request("POST", "/v1/chat/completions", b" " * 600),
    request("GET", "/v1/models", api_key=None),
    request("GET", "/nope/../x"),
    request("POST", "/v1/chat/completions", chat()),
    b"POST /v1/nope HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /health HTTP/1.0\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 30 + b"\r\n",
]
BITS = [
    b"GET ",
    b"POST ",
    b"/v1/chat/completions",
    b" HTTP/1.1\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"host: a\r\n",
    b"content-length: 5\r\n",
    b"transfer-encoding: chunked\r\n",
    b"expect: 100-continue\r\n",
    b"connection: close\r\n",
    b"upgrade: h2c\r\nconnection: upgrade\r\n",
    f"authorization: Bearer {KEY}\r\n".encode(),
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"{}",
    b"a" * 3_000,
]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from(GOOD), st.sampled_from(BITS), st.binary(max_size=30)), max_size=8
    ),
    st.lists(st.integers(0, 10_000), max_size=12),
)
@example([GOOD[0], GOOD[8], GOOD[0]], [3])
@example([b"GET /" + b"a" * 3_000], [10, 500, 1_000])
def test_any_bytes_in_any_pieces(parts: list[bytes], places: list[int]) -> None:
    data = b"".join(parts)
    whole = answers([data])
    pieces = cut(data, places)
    apart = answers(pieces)
    for one in (whole, apart):
        assert b"HTTP/1.1 500 " not in one
        assert one == b"" or one.startswith(b"HTTP/1.1 ")
    if len(data) <= LIMITS.url_bytes and b"expect" not in data:
        assert whole == apart


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(GOOD[:8]), min_size=1, max_size=6),
    st.lists(st.integers(0, 5_000), max_size=20),
)
def test_good_requests_get_the_same_answers_for_any_split(
    parts: list[bytes], places: list[int]
) -> None:
    data = b"".join(parts)
    whole = answers([data])
    assert answers(cut(data, places)) == whole
    assert answers(cut(data, list(range(0, len(data), 7)))) == whole


@given(
    st.lists(
        st.sampled_from(
            [
                b'data: {"a":1}\n\n',
                b": ping\n\n",
                b"data: [DONE]\n\n",
                b'data: {"usage":{"x":1}}\n\n',
                b'data: {"c":"\\"usage\\":{"}\n\n',
                b'event: x\ndata: {"error":1}\n\n',
            ]
        ),
        max_size=10,
    ),
    st.lists(st.integers(0, 500), max_size=20),
)
def test_events_are_cut_at_their_ends_and_none_that_matters_is_missed(
    events: list[bytes], places: list[int]
) -> None:
    data = b"".join(events)
    cutter = EventCutter()
    out = []
    for piece in cut(data, places):
        whole = cutter.whole(piece)
        assert whole == b"" or whole.endswith(b"\n\n")
        length = plain_length(whole)
        assert whole[:length] == b"" or whole[:length].endswith(b"\n\n")
        for event in split(whole[:length]):
            assert b"[DONE]" not in event
            assert b'"usage":{' not in event
            assert b'"error"' not in event
        out += split(whole)
    assert out == events
    assert cutter.tail == b""
