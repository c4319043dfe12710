"""Plain answers: passed on whole after a look at their usage; embeddings and tokens adapted."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Callable
from typing import Any

import msgspec

from onefleet.gateway.exchange import EngineExchange
from onefleet.wire.openai import Answer, Embedding, EmbeddingAnswer, Usage

_decode_answer = msgspec.json.Decoder(Answer).decode
_decode_embeddings = msgspec.json.Decoder(EmbeddingAnswer).decode
_encode = msgspec.json.Encoder().encode

#: Makes the client's body of the engine's.
Adapter = Callable[[bytes], bytes]


class PlainRelay(EngineExchange):
    """A plain answer of an engine that stops when a plain request is left."""

    adapter: Adapter | None = None
    _parts: list[bytes] | None = None
    _size = 0
    _usage: Usage | None = None

    def restart(self) -> None:
        self._parts = None
        self._size = 0

    def answer(self, data: bytes, ended: bool) -> None:
        self._size += len(data)
        limit = self.gateway.limits.answer_bytes
        if self._size > limit:
            self.broken(f"its answer is over the limit answer_bytes of {limit}")
            return
        body = data
        if not ended or self._parts is not None:
            if self._parts is None:
                self._parts = []
            self._parts.append(data)
            if not ended:
                return
            body = b"".join(self._parts)
        try:
            self._usage = _decode_answer(body).usage
            if self.adapter is not None:
                body = self.adapter(body)
        except msgspec.MsgspecError as error:
            self.broken(f"its answer is not what it should be: {error}")
            return
        self.send_whole(body)

    def used(self) -> tuple[int, int, int]:
        usage = self._usage
        if usage is None:
            return 0, 0, 0
        return usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens


def as_base64(body: bytes) -> bytes:
    """Embeddings as base64 of float32 little-endian, also from an engine that gives numbers."""
    answer = _decode_embeddings(body)
    for item in answer.data:
        if isinstance(item.embedding, list):
            item.embedding = base64.b64encode(_floats(item.embedding)).decode("ascii")
    return _encode(answer)


def as_numbers(body: bytes) -> bytes:
    """Embeddings as numbers, also from an engine that gives base64."""
    answer = _decode_embeddings(body)
    for item in answer.data:
        if isinstance(item.embedding, str):
            item.embedding = _numbers(item)
    return _encode(answer)


def _floats(numbers: list[float]) -> bytes:
    packed = array("f", numbers)
    if packed.itemsize != 4:
        raise AssertionError("a C float has 4 bytes on every platform that this runs on")
    return packed.tobytes()


def _numbers(item: Embedding) -> list[float]:
    assert isinstance(item.embedding, str)
    try:
        return list(array("f", base64.b64decode(item.embedding, validate=True)))
    except ValueError as error:
        raise msgspec.ValidationError(f"an embedding is not base64 of floats: {error}") from error


def token_answer(context_length: int) -> Adapter:
    """An engine's tokens as every client reads them: with their count and the context length."""

    def adapt(body: bytes) -> bytes:
        tokens = msgspec.json.decode(body, type=dict[str, Any]).get("tokens", [])
        return _encode({"tokens": tokens, "count": len(tokens), "max_model_len": context_length})

    return adapt


def text_answer(body: bytes) -> bytes:
    """An engine's text of tokens under the names that clients know it by."""
    answer = msgspec.json.decode(body, type=dict[str, Any])
    text = answer.get("content", answer.get("prompt", ""))
    return _encode({"prompt": text, "content": text})
