"""A stream, passed on as it comes: whole events, in the bytes that the engine wrote.

Only what must differ is touched: usage is always asked for and shown only to those who asked, in
one event of its own before the end; an engine's progress events stay inside; an engine's error or
death becomes one error event, and nothing after it says that the answer was whole.
"""

from __future__ import annotations

from time import perf_counter

import msgspec

from onefleet.domain.errors import OnefleetError
from onefleet.gateway import replies, sse
from onefleet.gateway.exchange import EngineExchange
from onefleet.gateway.usage import UsageSum, legacy_logprobs
from onefleet.wire.openai import NOTHING, ChunkMarks, ChunkSummary, EngineFault

_decode_summary = msgspec.json.Decoder(ChunkSummary).decode
_decode_marks = msgspec.json.Decoder(ChunkMarks).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_NEWLINE = 10
_NO_CHOICES = msgspec.Raw(b"[]")


class _EngineFailedError(Exception):
    """An event says so (an EngineFault), or cannot be read (why)."""

    def __init__(self, fault: EngineFault | str) -> None:
        super().__init__(fault)
        self.fault = fault


class StreamRelay(EngineExchange):
    """A streamed chat or completion answer. shows_usage: the client asked for usage."""

    _commented_at = 0
    _flows = False  # the head is sent, and whole events may be passed on as they are

    def prepare(self, usage: UsageSum, shows: bool, shows_each: bool, legacy: bool) -> None:
        """shows_each: usage in every event as the engine gives it. legacy: /v1/completions
        logprobs, which some engines give in the shape of chat."""
        self.usage = usage
        self.shows_usage = shows
        self.shows_each_usage = shows_each
        self.converts_logprobs = legacy
        self._chunked = not self.request.http10
        if not self._chunked:
            self.request.keep_alive = False
        self.restart()

    def restart(self) -> None:
        self._cutter = sse.EventCutter()
        self._events = 0
        self._done = False
        self._last_usage = b""
        self._offsets: dict[int, int] = {}
        self.usage.clear()

    def read(self, data: bytes, ended: bool) -> None:
        # Most reads are one event of text in a stream that is under way. To decode the few fields
        # that matter costs a quarter of searching for them.
        if (
            self._flows
            and not ended
            and data[:7] == b"data: {"
            and data.find(b"\n") == len(data) - 2
            and data[-1] == _NEWLINE
            and not self._cutter.tail
        ):
            try:
                marks = _decode_marks(data[6:-2])
            except msgspec.MsgspecError:
                super().read(data, ended)
                return
            if marks.usage is NOTHING and marks.error is NOTHING and marks.progress is NOTHING:
                self._events += 1
                self._heard_at = self.gateway.now
                self.client.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
                return
        super().read(data, ended)

    def answer(self, data: bytes, ended: bool) -> None:
        if self._done:
            out = b""
        else:
            events = self._cutter.whole(data) if data else b""
            if not events:
                out = b""
            else:
                length = 0 if self.converts_logprobs else sse.plain_length(events)
                if length == len(events):
                    self._events += events.count(b"\n\n")
                    out = events
                else:
                    looked_at = self._looked_at(events, length)
                    if looked_at is None:
                        return
                    out = looked_at
        if len(self._cutter.tail) > self.gateway.limits.event_bytes:
            limit = self.gateway.limits.event_bytes
            self.broken(f"an event of the stream is over the limit event_bytes of {limit}")
        elif ended:
            self._end(out)
        elif out:
            self._send(out)

    def used(self) -> tuple[int, int, int]:
        return self.usage.billed(self.prompt_estimate, self._events)

    def cut(self, error: OnefleetError) -> None:
        event = replies.error_event(error)
        self.client.write(replies.chunk(event) + replies.LAST_CHUNK if self._chunked else event)

    def probe(self) -> bytes | None:
        if not self._sent:
            return None
        return replies.chunk(b":\n\n") if self._chunked else b":\n\n"

    def tick(self, now: int) -> None:
        super().tick(now)
        quiet = now - max(self._heard_at, self._commented_at)
        if self._flows and not self._paused and quiet > self.gateway.limits.comment_ms:
            self._commented_at = now
            self.client.write(replies.chunk(b":\n\n"))

    # --- inside

    def _send(self, out: bytes) -> None:
        if self._chunked:
            out = b"%x\r\n%b\r\n" % (len(out), out)
        if not self._sent:
            out = self._head() + out
        self.client.transport.write(out)

    def _head(self) -> bytes:
        self._sent = True
        self._flows = self._chunked and not self.converts_logprobs
        self.first_at = perf_counter()
        self.gateway.metrics.answered(200)
        return replies.stream_head(self.request.request_id, self.answer_headers(), self._chunked)

    def _end(self, out: bytes) -> None:
        """The engine's answer is over."""
        if not self._done:
            if out:
                self._send(out)
            self.broken("it ended the stream before the answer was whole")
            return
        if self._chunked:
            out = replies.chunk(out) + replies.LAST_CHUNK if out else replies.LAST_CHUNK
        if out:
            self.client.write(out if self._sent else self._head() + out)
        self.succeed()

    def _looked_at(self, events: bytes, length: int) -> bytes | None:
        """The events of a read as they go on; those after `length` bytes must be looked at.

        None: the exchange has ended by an error, or another engine was asked.
        """
        out = []
        if length:
            out.append(events[:length])
            self._events += events.count(b"\n\n", 0, length)
        for event in sse.split(events[length:]):
            data = sse.payload(event)
            if not data or data == b"null":
                continue
            if data == b"[DONE]":
                self._done = True
                self._flows = False
                if self.shows_usage and self._last_usage:
                    out.append(self._last_usage)
                self.bill()
                out.append(sse.DONE)
                break
            try:
                kept = self._judged(event, data)
            except _EngineFailedError as failed:
                if self._sent and out:
                    self._send(b"".join(out))
                if isinstance(failed.fault, str):
                    self.broken(failed.fault)
                else:
                    self.faulted(failed.fault)
                return None
            if kept:
                self._events += 1
                out.append(kept)
        return b"".join(out)

    def _judged(self, event: bytes, data: bytes) -> bytes:
        """One event as it goes on; empty: it does not. Raises _EngineFailedError."""
        try:
            summary = _decode_summary(data)
        except msgspec.MsgspecError as error:
            why = f"an event of the stream is not what it should be: {error}"
            raise _EngineFailedError(why) from error
        if summary.error is not None:
            fault = summary.error
            raise _EngineFailedError(EngineFault(fault) if isinstance(fault, str) else fault)
        if bytes(summary.prompt_progress):
            return b""
        if summary.usage is None:
            return self._converted(data, event)
        if not summary.choices or not self.shows_each_usage:
            self.usage.add(summary.usage, bool(summary.choices) and self.shows_each_usage)
            self._last_usage = self._usage_event(event, data, bool(summary.choices))
        else:
            self.usage.replace(summary.usage)
        if not summary.choices:
            return b""
        if self.shows_each_usage:
            return event
        fields = _decode_fields(data)
        del fields["usage"]
        fields.pop("timings", None)
        stripped = _encode(fields)
        event = b"data: %b\n\n" % stripped
        return self._converted(stripped, event)

    def _converted(self, data: bytes, event: bytes) -> bytes:
        return legacy_logprobs(data, event, self._offsets) if self.converts_logprobs else event

    def _usage_event(self, event: bytes, data: bytes, has_choices: bool) -> bytes:
        """The one usage event that a client who asked for it gets before the end."""
        if not has_choices and self.usage.single:
            return event
        fields = _decode_fields(data)
        fields["choices"] = _NO_CHOICES
        fields["usage"] = msgspec.Raw(_encode(self.usage.total()))
        fields.pop("timings", None)
        return b"data: %b\n\n" % _encode(fields)
