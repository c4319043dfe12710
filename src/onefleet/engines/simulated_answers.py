"""What the simulated engine reads and writes on the wire: OpenAI's requests, answers, chunks.

Bytes are put together from parts made once a request, because this engine is also the upstream of
the benchmark, where its own CPU time must be small. Every answer says that it is simulated.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass

import msgspec

from onefleet.engines.simulated_text import detokenize, embed

FINGERPRINT = "simulated"

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"x-engine: simulated\r\ntransfer-encoding: chunked\r\n\r\n"
)
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_PHRASES = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    413: b"Content Too Large",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}


class Simulate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one request is to go: the body's field "simulate", or the header x-simulate.

    tokens: length of the answer. The *_after count tokens of the answer: then the process dies,
    the connection is cut, or nothing more comes. None: the engine's own setting.
    """

    tokens: int | None = None
    decode_tokens_s: int | None = None
    delay_ms: int | None = None  # before anything is done
    die_after: int | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    error_status: int | None = None  # answer this status with an OpenAI error
    refuse: bool | None = None  # close the connection without an answer

    def over(self, base: Simulate) -> Simulate:
        """These settings, and the base's where there is none here."""
        if self is base:
            return self
        mine = {f: getattr(self, f) for f in self.__struct_fields__}
        return Simulate(**{f: getattr(base, f) if v is None else v for f, v in mine.items()})


class Part(msgspec.Struct):
    text: str = ""


class Message(msgspec.Struct):
    """One message of a chat."""

    role: str
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Call(msgspec.Struct, kw_only=True):
    """What is read of any POST body; the rest is ignored."""

    messages: list[Message] | None = None
    prompt: str | list[str | int | list[int]] | None = None
    input: str | list[str | int | list[int]] | None = None
    content: str | None = None
    tokens: list[int] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    ignore_eos: bool | None = None
    encoding_format: str | None = None
    simulate: Simulate | None = None


decode_call = msgspec.json.Decoder(Call).decode


def header_simulate(value: bytes) -> Simulate:
    """Read the header: "tokens=64; delay_ms=20". Raises msgspec.ValidationError."""
    pairs = (part.partition("=") for part in value.decode("latin-1").split(";"))
    fields = {key.strip(): text.strip() for key, _, text in pairs if key.strip()}
    return msgspec.convert(fields, Simulate, strict=False)


def chat_prompt(messages: list[Message]) -> bytes:
    """The prompt that a chat template would make of the messages."""
    lines = []
    for message in messages:
        content = message.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        lines.append(f"{message.role}\n{content or ''}\n")
    return "".join(lines).encode()


def texts(value: str | list[str | int | list[int]]) -> list[bytes]:
    """The texts of a prompt or an embedding input, be they text or token ids.

    Raises OverflowError for an id that is no token.
    """
    if isinstance(value, str):
        return [value.encode()]
    ids = [item for item in value if isinstance(item, int)]
    if ids:
        return [detokenize(ids)]
    return [
        item.encode() if isinstance(item, str) else detokenize(item)
        for item in value
        if not isinstance(item, int)
    ]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Token counts of one answer."""

    prompt: int
    cached: int
    completion: int

    def usage(self) -> bytes:
        return (
            b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
            b'"prompt_tokens_details":{"cached_tokens":%d}}'
            % (self.prompt, self.completion, self.prompt + self.completion, self.cached)
        )


def response(status: int, body: bytes, *, kind: bytes = b"application/json") -> bytes:
    """A whole HTTP response."""
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\nx-engine: simulated\r\ncontent-length: %d\r\n\r\n%b"
        % (status, _PHRASES.get(status, b"Status"), kind, len(body), body)
    )


def error(status: int, message: str, code: str, *, param: str | None = None) -> bytes:
    """A whole HTTP response with OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    detail = {"message": message, "type": kind, "param": param, "code": code}
    body = msgspec.json.encode({"error": {**detail, "system_fingerprint": FINGERPRINT}})
    return response(status, body)


def plain(head: bytes, chat: bool, words: list[bytes], reason: bytes, numbers: Numbers) -> bytes:
    """A whole answer that was not asked to stream. head: see `answer_head`."""
    text = b"".join(words)
    if chat:
        content = b'"message":{"role":"assistant","content":"%b"}' % text
        kind = b"chat.completion"
    else:
        content = b'"text":"%b"' % text
        kind = b"text_completion"
    return response(
        200,
        b'%b,"object":"%b","choices":[{"index":0,%b,"logprobs":null,"finish_reason":"%b"}],'
        b'"usage":%b}' % (head, kind, content, reason, numbers.usage()),
    )


def answer_head(number: int, created: int, model: bytes) -> bytes:
    """The beginning that all objects of one answer share. model: as JSON, with its quotes."""
    return b'{"id":"sim-%d","created":%d,"model":%b,"system_fingerprint":"simulated"' % (
        number,
        created,
        model,
    )


class Stream:
    """The chunks of one streamed answer, each token an event and an HTTP chunk of its own."""

    __slots__ = ("_after", "_before", "_chat", "_close", "_head", "_usage")

    def __init__(self, head: bytes, chat: bool, include_usage: bool) -> None:
        self._head = head
        self._chat = chat
        self._usage = include_usage
        self._close = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        field = b'"delta":{"content":"' if chat else b'"text":"'
        before = b'data: %b,"choices":[{"index":0,%b' % (self._begin(), field)
        after = (b'"}' if chat else b'"') + b',"finish_reason":null}]' + self._close
        # All tokens are four bytes long, so all chunks have the same length.
        self._before = b"%x\r\n%b" % (len(before) + 4 + len(after), before)
        self._after = after + b"\r\n"

    def first(self) -> bytes:
        """The HTTP head and, in a chat, the chunk with the role."""
        if not self._chat:
            return _STREAM_HEAD
        return _STREAM_HEAD + self._chunk(
            b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}'
        )

    def tokens(self, words: list[bytes]) -> bytes:
        """One chunk for each word; there is at least one."""
        return self._before + (self._after + self._before).join(words) + self._after

    def last(self, reason: bytes, numbers: Numbers) -> bytes:
        """The chunk with the finish reason, the usage where it was asked for, and the end."""
        field = b'"delta":{}' if self._chat else b'"text":""'
        final = self._chunk(b'{"index":0,%b,"finish_reason":"%b"}' % (field, reason))
        if self._usage:
            begin = self._begin()
            usage = b'data: %b,"choices":[],"usage":%b}\n\n' % (begin, numbers.usage())
            final += b"%x\r\n%b\r\n" % (len(usage), usage)
        return final + _DONE

    def _begin(self) -> bytes:
        kind = b"chat.completion.chunk" if self._chat else b"text_completion"
        return b'%b,"object":"%b"' % (self._head, kind)

    def _chunk(self, choice: bytes) -> bytes:
        event = b'data: %b,"choices":[%b]%b' % (self._begin(), choice, self._close)
        return b"%x\r\n%b\r\n" % (len(event), event)


def embeddings(model: str, inputs: list[bytes], length: int, base64_wanted: bool) -> bytes:
    """The body of an answer to /v1/embeddings; base64 is of float32, little-endian."""
    data = []
    for index, text in enumerate(inputs):
        vector: list[float] | str = embed(text, length)
        if base64_wanted:
            vector = base64.b64encode(struct.pack(f"<{length}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(-(-len(text) // 4) for text in inputs)
    return msgspec.json.encode(
        {
            "object": "list",
            "model": model,
            "system_fingerprint": FINGERPRINT,
            "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )
