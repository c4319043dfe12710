"""A plain answer put together from a stream, so that leaving it stops the engine.

Some engines run a plain request to its end even when nobody waits for it. They are asked for a
stream, and this makes of it what they would have answered.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import msgspec

from onefleet.gateway import sse
from onefleet.gateway.exchange import EngineExchange
from onefleet.gateway.usage import UsageSum, legacy
from onefleet.wire.openai import Chunk, ChunkChoice

_decode = msgspec.json.Decoder(Chunk).decode
_encode = msgspec.json.Encoder().encode


class _Tool:
    """One tool call, growing."""

    __slots__ = ("arguments", "id", "kind", "name")

    def __init__(self) -> None:
        self.id = self.name = ""
        self.kind = "function"
        self.arguments: list[str] = []


class _Choice:
    """One choice, growing."""

    __slots__ = (
        "content",
        "finish_reason",
        "legacy",
        "logprobs",
        "reasoning",
        "refusal",
        "refusal_logprobs",
        "role",
        "tools",
    )

    def __init__(self) -> None:
        self.role = "assistant"
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.tools: dict[int, _Tool] = {}
        self.finish_reason: str | None = None
        self.logprobs: list[msgspec.Raw] | None = None
        self.refusal_logprobs: list[msgspec.Raw] | None = None
        self.legacy: dict[str, list[Any]] | None = None

    def add(self, piece: ChunkChoice) -> None:
        if piece.text:
            self.content.append(piece.text)
        if piece.finish_reason is not None:
            self.finish_reason = piece.finish_reason
        delta = piece.delta
        if delta is not None:
            if delta.content:
                self.content.append(delta.content)
            if delta.role:
                self.role = delta.role
            if delta.reasoning_content or delta.reasoning:
                self.reasoning.append(delta.reasoning_content or delta.reasoning or "")
            if delta.refusal:
                self.refusal.append(delta.refusal)
            for call in delta.tool_calls or ():
                tool = self.tools.setdefault(call.index, _Tool())
                tool.id = call.id or tool.id
                tool.kind = call.type or tool.kind
                if call.function is not None:
                    tool.name += call.function.name or ""
                    tool.arguments.append(call.function.arguments or "")
        if piece.logprobs is not None:
            self._add_logprobs(piece)

    def _add_logprobs(self, piece: ChunkChoice) -> None:
        logprobs = piece.logprobs
        assert logprobs is not None
        if logprobs.content is not None:
            self.logprobs = (self.logprobs or []) + logprobs.content
        if logprobs.refusal is not None:
            self.refusal_logprobs = (self.refusal_logprobs or []) + logprobs.refusal
        if logprobs.tokens is not None:
            shape = self.legacy = self.legacy or {
                "tokens": [],
                "token_logprobs": [],
                "top_logprobs": [],
                "text_offset": [],
            }
            shape["tokens"] += logprobs.tokens
            shape["token_logprobs"] += logprobs.token_logprobs or []
            shape["top_logprobs"] += logprobs.top_logprobs or []
            shape["text_offset"] += logprobs.text_offset or []

    def chat(self, index: int) -> dict[str, Any]:
        content = "".join(self.content)
        message: dict[str, Any] = {
            "role": self.role,
            "content": content if content or not self.tools else None,
        }
        if self.refusal:
            message["refusal"] = "".join(self.refusal)
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.tools:
            message["tool_calls"] = [
                {
                    "id": tool.id,
                    "type": tool.kind,
                    "function": {"name": tool.name, "arguments": "".join(tool.arguments)},
                }
                for _, tool in sorted(self.tools.items())
            ]
        logprobs = None
        if self.logprobs is not None or self.refusal_logprobs is not None:
            logprobs = {"content": self.logprobs, "refusal": self.refusal_logprobs}
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }

    def completion(self, index: int) -> dict[str, Any]:
        logprobs = self.legacy
        if self.logprobs is not None:
            logprobs = legacy(self.logprobs, 0)
        return {
            "index": index,
            "text": "".join(self.content),
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }


class StreamGather(EngineExchange):
    """A plain chat or completion answer, from a stream."""

    def prepare(self, usage: UsageSum, chat: bool) -> None:
        self.usage = usage
        self.chat = chat
        self.restart()

    def restart(self) -> None:
        self._cutter = sse.EventCutter()
        self._choices: dict[int, _Choice] = {}
        self._first: Chunk | None = None
        self._events = self._size = 0
        self._done = False
        self.usage.clear()

    def answer(self, data: bytes, ended: bool) -> None:
        if not self._done:
            self._size += len(data)
            for event in sse.split(self._cutter.whole(data)) if data else ():
                if not self._take(sse.payload(event)):
                    return
            limits = self.gateway.limits
            if self._size > limits.answer_bytes or len(self._cutter.tail) > limits.event_bytes:
                self.broken("its answer is over the limit answer_bytes or event_bytes")
                return
        if ended:
            if not self._done:
                self.broken("it ended the stream before the answer was whole")
                return
            self.send_whole(self._whole())

    def used(self) -> tuple[int, int, int]:
        return self.usage.billed(self.prompt_estimate, self._events)

    def _take(self, data: bytes) -> bool:
        """Take one event. False: the exchange has ended, or begun again."""
        if not data or data == b"null":
            return True
        if data == b"[DONE]":
            self._done = True
            return True
        try:
            chunk = _decode(data)
        except msgspec.MsgspecError as error:
            self.broken(f"an event of the stream is not what it should be: {error}")
            return False
        if chunk.error is not None:
            self.faulted(chunk.error)
            return False
        if chunk.usage is not None:
            self.usage.add(chunk.usage)
        if self._first is None:
            self._first = chunk
        if b'"prompt_progress"' in data:
            return True
        for piece in chunk.choices:
            if not self.first_at:
                self.first_at = perf_counter()
            choice = self._choices.get(piece.index)
            if choice is None:
                choice = self._choices[piece.index] = _Choice()
            choice.add(piece)
            self._events += 1
        return True

    def _whole(self) -> bytes:
        first = self._first or Chunk()
        choices = sorted(self._choices.items())
        body: dict[str, Any] = {
            "id": first.id,
            "object": "chat.completion" if self.chat else "text_completion",
            "created": first.created,
            "model": first.model,
            "choices": [
                choice.chat(index) if self.chat else choice.completion(index)
                for index, choice in choices
            ],
            "usage": self.usage.total(),
        }
        if first.system_fingerprint is not None:
            body["system_fingerprint"] = first.system_fingerprint
        if first.service_tier is not None:
            body["service_tier"] = first.service_tier
        return _encode(body)
