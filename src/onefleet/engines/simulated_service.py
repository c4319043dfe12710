"""The simulated engine as a running thing: the pure model, a clock, and who waits for an answer.

A `Reply` is one request whose answer is under way; it turns the model's tokens into bytes for its
connection and misbehaves as it was told to.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Protocol

import msgspec

from onefleet.domain.ids import Instant
from onefleet.engines import simulated_answers as answers
from onefleet.engines.simulated_answers import Call, Numbers, Simulate, Stream
from onefleet.engines.simulated_model import (
    Cancel,
    Emit,
    EngineEvent,
    EngineModel,
    EngineShape,
    Refuse,
    Submit,
    Tick,
)
from onefleet.engines.simulated_text import block_hashes, count_tokens, voice, words

#: The exit status of a process that was told to die.
DIED = 70

#: Between the last token and the death, so that the token is sent and not lost in a buffer.
_LAST_WORDS_S = 0.01


@dataclass(frozen=True, slots=True)
class Settings:
    """What the process was started with."""

    served_name: str
    shape: EngineShape
    answer_tokens: int
    embedding_length: int
    simulate: Simulate


@dataclass(slots=True)
class Stats:
    """Counted since the start. cancelled: the client left before its answer was complete."""

    requests: int = 0
    finished: int = 0
    refused: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Client(Protocol):
    """The connection that a reply writes to."""

    def write(self, data: bytes) -> None: ...

    def done(self) -> None:
        """The answer is complete; the next request may follow."""
        ...

    def cut(self) -> None:
        """Close at once."""
        ...


class Reply:
    """One answer under way."""

    __slots__ = (
        "_chat", "_client", "_head", "_reason", "_service", "_simulate", "_stalled", "_stream",
        "_voice", "_written", "complete", "delay", "number", "submit",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        client: Client,
        submit: Submit,
        call: Call,
        prompt: bytes,
        reason: bytes,
        simulate: Simulate,
    ) -> None:
        self._service = service
        self._client = client
        self._reason = reason
        self._simulate = simulate
        self._chat = call.messages is not None
        self._voice = voice(prompt)
        self._head = answers.answer_head(submit.request, int(time.time()), service.model_json)
        self._stream: Stream | None = None
        if call.stream:
            options = call.stream_options
            usage = options is not None and bool(options.include_usage)
            self._stream = Stream(self._head, self._chat, usage)
        self._written = 0
        self._stalled = False
        self.complete = False  # or given up: the client need not tell when it leaves
        self.submit = submit
        self.number = submit.request
        self.delay: asyncio.TimerHandle | None = None

    def emit(self, count: int, cached: int, finished: bool) -> None:
        """Take the next tokens of the answer; write what the client is to see of them."""
        if self._stalled:
            return
        wrong = self._wrong_after()
        last = wrong is not None and self._written + count >= wrong[0]
        if wrong is not None and last:
            count = max(0, wrong[0] - self._written)
        start, self._written = self._written, self._written + count
        numbers = Numbers(self.submit.prompt_tokens, cached, self.submit.answer_tokens)
        if self._stream is not None:
            data = b"" if start else self._stream.first()
            if count:
                data += self._stream.tokens(words(self._voice, start, count))
            if finished and not last:
                data += self._stream.last(self._reason, numbers)
            self._client.write(data)
        elif finished and not last:
            text = words(self._voice, 0, self._written)
            self._client.write(answers.plain(self._head, self._chat, text, self._reason, numbers))
        if wrong is not None and last:
            self._go_wrong(wrong[1])
        elif finished:
            self.complete = True
            self._service.finish(self, numbers)
            self._client.done()

    def refuse(self, refusal: Refuse) -> None:
        status, code = (503, "overloaded") if refusal.busy else (400, "context_length_exceeded")
        self.complete = True
        self._service.stats.refused += 1
        self._client.write(answers.error(status, refusal.why, code))
        self._client.done()

    def _wrong_after(self) -> tuple[int, str] | None:
        simulate = self._simulate
        for name in ("die_after", "cut_after", "stall_after"):
            count = getattr(simulate, name)
            if count is not None:
                return count, name
        return None

    def _go_wrong(self, how: str) -> None:
        self._stalled = True
        if how == "die_after":
            self._service.die()
        if how == "cut_after":
            self.complete = True
            self._service.abandon(self)
            self._client.cut()


class Service:
    """Everything that connections share."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.stats = Stats()
        self.model = EngineModel(settings.shape)
        self.model_json = msgspec.json.encode(settings.served_name)
        self._loop = loop
        self._instant = settings.shape.instant
        self._replies: dict[int, Reply] = {}
        self._numbers = 0
        self._timer: asyncio.TimerHandle | None = None

    def answer(self, client: Client, call: Call, prompt: bytes, simulate: Simulate) -> Reply:
        """Start to answer. The reply may be complete when this returns."""
        shape = self.settings.shape
        self._numbers += 1
        prompt_tokens = count_tokens(prompt) or 1
        natural = self.settings.answer_tokens if simulate.tokens is None else simulate.tokens
        limit = call.max_completion_tokens or call.max_tokens
        room = max(1, shape.context_length - prompt_tokens)
        wanted = limit if limit and (call.ignore_eos or limit < natural) else max(1, natural)
        submit = Submit(
            self._numbers,
            prompt_tokens,
            min(wanted, room),
            block_hashes(prompt) if shape.kv_tokens else (),
            simulate.decode_tokens_s,
        )
        reason = b"stop" if wanted == natural and wanted <= room else b"length"
        reply = Reply(self, client, submit, call, prompt, reason, simulate)
        self.stats.requests += 1
        timed = simulate.decode_tokens_s or simulate.delay_ms
        if self._instant and not timed and prompt_tokens < shape.context_length:
            reply.emit(submit.answer_tokens, 0, True)
            return reply
        self._replies[reply.number] = reply
        if simulate.delay_ms:
            reply.delay = self._loop.call_later(simulate.delay_ms / 1000, self._feed, submit)
        else:
            self._feed(submit)
        return reply

    def leave(self, reply: Reply) -> None:
        """The client of an incomplete reply is gone: stop its work."""
        self.stats.cancelled += 1
        self.abandon(reply)

    def abandon(self, reply: Reply) -> None:
        """Forget a reply and stop its work, without counting it as left."""
        if reply.delay is not None:
            reply.delay.cancel()
        if self._replies.pop(reply.number, None) is not None:
            self._feed(Cancel(reply.number))

    def die(self) -> None:
        """End the process as if it crashed, once what was written is on its way."""
        self._loop.call_later(_LAST_WORDS_S, os._exit, DIED)

    def finish(self, reply: Reply, numbers: Numbers) -> None:
        """Count a complete answer."""
        stats = self.stats
        stats.finished += 1
        stats.prompt_tokens += numbers.prompt
        stats.cached_tokens += numbers.cached
        stats.completion_tokens += numbers.completion

    def _feed(self, event: EngineEvent) -> None:
        effects = self.model.handle(event, self._now())
        for effect in effects:
            match effect:
                case Refuse(request):
                    self._replies.pop(request).refuse(effect)
                case Emit(request, count, cached, finished):
                    # A connection that failed while we wrote may have taken its reply away.
                    reply = self._replies.get(request)
                    if finished:
                        self._replies.pop(request, None)
                    if reply is not None:
                        reply.emit(count, cached, finished)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.model.next_deadline()
        if deadline is not None:
            self._timer = self._loop.call_at(deadline / 1000, self._feed, Tick())

    def _now(self) -> Instant:
        return Instant(int(self._loop.time() * 1000))
