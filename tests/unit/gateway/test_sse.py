"""Events as they pass."""

from __future__ import annotations

import pytest

from onefleet.gateway.sse import EventCutter, payload, plain_length, split


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'data: {"a":1}\n\n', b'{"a":1}'),
        (b'data:{"a":1}\n\n', b'{"a":1}'),
        (b"event: x\nid: 1\ndata: a\ndata: b\n\n", b"a\nb"),
        (b": ping\n\n", b""),
        (b"retry: 10\n\n", b""),
        (b'error: {"error":{}}\n\n', b'{"error":{}}'),
        (b"data: [DONE]\n\n", b"[DONE]"),
    ],
)
def test_payload(event: bytes, data: bytes) -> None:
    assert payload(event) == data


def test_text_that_looks_like_marks_is_plain() -> None:
    told = b'data: {"choices":[{"delta":{"content":"\\"usage\\":{ \\"error\\" data"}}]}\n\n'
    assert plain_length(told) == len(told)


def test_what_comes_before_a_mark_is_plain() -> None:
    text = b'data: {"a":1}\n\n'
    assert plain_length(text * 2 + b"data: [DONE]\n\n") == 2 * len(text)
    assert plain_length(b"data: [DONE]\n\n") == 0
    assert plain_length(b'data: {"usage": {"x":1}}\n\n' + text) == 0
    assert plain_length(b"") == 0


def test_events_end_with_any_line_ending() -> None:
    cutter = EventCutter()
    out = b"".join(cutter.whole(bytes([byte])) for byte in b"data: a\r\n\r\ndata: b\n\ndata: c")
    assert split(out) == [b"data: a\n\n", b"data: b\n\n"]
    assert cutter.tail == b"data: c"
