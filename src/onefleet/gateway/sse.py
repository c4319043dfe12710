"""Server-sent events as they pass: whole events out of reads, and which of them matter.

A read is passed on as it came unless something in it must be looked at: the end, an error, usage,
an engine's own progress events. That is decided by a few substring searches, which cannot be
fooled by generated text: inside a JSON string a quote is always escaped.
"""

from __future__ import annotations

DONE = b"data: [DONE]\n\n"

#: What may stand in an event that must be looked at.
_MARKS = (b"[DONE]", b'"usage":{', b'"usage": {', b'"error"', b'"prompt_progress"', b"data: null")


class EventCutter:
    """Cuts a byte stream into whole events; the rest waits for the next read."""

    __slots__ = ("tail",)

    def __init__(self) -> None:
        self.tail = b""  # the beginning of an event that is not whole

    def whole(self, data: bytes) -> bytes:
        """The whole events of this read and what waited; empty when no event is whole yet."""
        if self.tail:
            data = self.tail + data
            self.tail = b""
        if data.endswith(b"\n\n"):
            return data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
            if data.endswith(b"\r"):
                self.tail = b"\r"
                data = data[:-1]
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            end = 0
        self.tail = data[end:] + self.tail
        return data[:end]


def plain_length(events: bytes) -> int:
    """How many bytes of these whole events need not be looked at; the rest does."""
    first = len(events)
    for mark in _MARKS:
        at = events.find(mark, 0, first)
        if at >= 0:
            first = at
    if first == len(events):
        return first
    end = events.rfind(b"\n\n", 0, first)
    return end + 2 if end >= 0 else 0


def split(events: bytes) -> list[bytes]:
    """Whole events, each with its end."""
    return [event + b"\n\n" for event in events.split(b"\n\n") if event]


def payload(event: bytes) -> bytes:
    """The data of one event; empty for a comment. Also of llama.cpp's older ``error: {...}``."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    lines = []
    for line in event.split(b"\n"):
        name, colon, value = line.partition(b":")
        if colon and name in (b"data", b"error"):
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines)
