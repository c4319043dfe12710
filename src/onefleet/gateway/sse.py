"""Server-sent events as they pass: whole events out of reads, and which of them matter.

A read is passed on as it came unless something in it must be looked at: the end, an error, usage,
an engine's own progress events. That is decided by a few substring searches, which cannot be
fooled by generated text: inside a JSON string a quote is always escaped.
"""

from __future__ import annotations

DONE = b"data: [DONE]\n\n"


class EventCutter:
    """Cuts a byte stream into whole events; the rest waits for the next read."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def whole(self, data: bytes) -> bytes:
        """The whole events of this read and what waited; empty when no event is whole yet."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if data.endswith(b"\n\n"):
            return data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
            if data.endswith(b"\r"):
                self._tail = b"\r"
                data = data[:-1]
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            end = 0
        self._tail = data[end:] + self._tail
        return data[:end]

    @property
    def waiting(self) -> int:
        """Bytes of an event that is not whole."""
        return len(self._tail)


def is_plain(events: bytes) -> bool:
    """Nothing in these whole events must be looked at."""
    return not (
        b"[DONE]" in events
        or b'"usage":{' in events
        or b'"usage": {' in events
        or b'"error"' in events
        or b'"prompt_progress"' in events
        or b"data: null" in events
        or events[:1] != b"d"
    )


def split(events: bytes) -> list[bytes]:
    """Whole events, each with its end."""
    return [event + b"\n\n" for event in events.split(b"\n\n") if event]


def payload(event: bytes) -> bytes:
    """The data of one event; empty for a comment. Also of llama.cpp's older ``error: {...}``."""
    lines = []
    for line in event.split(b"\n"):
        name, colon, value = line.partition(b":")
        if colon and name in (b"data", b"error"):
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines)
