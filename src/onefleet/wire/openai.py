"""The OpenAI API as far as the gateway reads it: requests it checks, chunks it looks into.

The gateway passes a request's fields on as they came; these types name only what it decides by.
Unknown fields are passed on untouched, a field of the wrong type is the caller's error.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct, field

Positive = Annotated[int, Meta(ge=1)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Text = Annotated[str, Meta(min_length=1)]

#: One text, texts, token ids or lists of token ids; `decode_prompt` sees to it that they are alike.
Prompt = str | list[str | int | list[int]]


#: A raw field that is absent.
NOTHING = Raw()


class StreamOptions(Struct):
    include_usage: bool | None = None


class Message(Struct):
    """role is all that is checked; the engine's chat template judges the rest."""

    role: str


class ChatCall(Struct, kw_only=True):
    """POST /v1/chat/completions."""

    model: Text
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    n: Choices | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Raw] | None = None
    user: str | None = None


class CompletionCall(Struct, kw_only=True):
    """POST /v1/completions."""

    model: Text
    prompt: Raw
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: int | None = None
    echo: bool | None = None
    user: str | None = None


class EmbeddingCall(Struct, kw_only=True):
    """POST /v1/embeddings. encoding_format: "float" or "base64" (float32, little-endian)."""

    model: Text
    input: Raw
    encoding_format: str | None = None
    dimensions: Positive | None = None
    user: str | None = None


class TokenizeCall(Struct, kw_only=True):
    """POST /tokenize, in any of the dialects that clients speak. Exactly one text is set."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    text: str | None = None
    add_special_tokens: bool | None = None


class DetokenizeCall(Struct, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


class CachedDetails(Struct):
    cached_tokens: int | None = None


class Usage(Struct):
    """What an engine says that an answer cost, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: CachedDetails | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else 0


class EngineFault(Struct):
    """An engine's error object, of whatever dialect."""

    message: str = ""
    type: str | None = None
    code: int | str | None = None
    param: str | None = None


class FunctionDelta(Struct):
    name: str | None = None
    arguments: str | None = None


class ToolDelta(Struct):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class Delta(Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolDelta] | None = None


class ChoiceLogprobs(Struct):
    """content: the chat shape. The rest: the shape of /v1/completions."""

    content: list[Raw] | None = None
    refusal: list[Raw] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None


class TokenLogprob(Struct):
    token: str = ""
    logprob: float = 0.0
    top_logprobs: list[TokenLogprob] | None = None


class ChunkChoice(Struct):
    """delta: of a chat chunk; text: of a completion chunk."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None


class Chunk(Struct):
    """One event of a stream, chat or completion."""

    id: str = ""
    created: int = 0
    model: str = ""
    system_fingerprint: str | None = None
    service_tier: str | None = None
    choices: list[ChunkChoice] = []
    usage: Usage | None = None
    error: EngineFault | str | None = None


class ChunkSummary(Struct):
    """What a relay must know of an event that it does not pass on untouched."""

    choices: list[Raw] = []
    usage: Usage | None = None
    error: EngineFault | str | None = None
    prompt_progress: Raw = NOTHING


class ChunkMarks(Struct, gc=False):
    """Which of the fields that keep an event from being passed on untouched it has."""

    usage: Raw = NOTHING
    error: Raw = NOTHING
    progress: Raw = field(default=NOTHING, name="prompt_progress")


class Answer(Struct):
    """What a relay must know of a plain answer."""

    usage: Usage | None = None


class Embedding(Struct):
    """embedding: numbers, or base64 of float32 little-endian."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingAnswer(Struct):
    data: list[Embedding]
    model: str = ""
    usage: Usage | None = None
    object: str = "list"


class EngineErrorBody(Struct):
    error: EngineFault | str = ""
    message: str = ""  # of engines that do not wrap it
    detail: Raw = NOTHING


_AT = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_NAMED = re.compile(r"field `([^`]+)`")


def parameter_at_fault(message: str) -> str | None:
    """The field that a msgspec validation message is about: "messages[0].role", or None."""
    found = _AT.search(message)
    path = found.group(1) if found else ""
    named = _NAMED.search(message)
    if named:
        return f"{path}.{named.group(1)}" if path else named.group(1)
    return path.replace("[...]", "") or None


def readable(message: str) -> str:
    """A msgspec validation message without its path: that stands in `param`."""
    return _AT.sub("", message)


def decode_prompt(raw: Raw, field: str) -> Prompt:
    """Read `prompt` or `input`. Raises msgspec.ValidationError naming the field."""
    try:
        prompt: Prompt = msgspec.json.decode(raw, type=Prompt)
    except msgspec.ValidationError:
        prompt = []
    if not prompt and prompt != "":
        raise msgspec.ValidationError(f"Expected {_PROMPTS} - at `$.{field}`")
    if isinstance(prompt, list) and any(type(item) is not type(prompt[0]) for item in prompt):
        raise msgspec.ValidationError(f"Expected {_PROMPTS}, not a mixture - at `$.{field}`")
    return prompt


_PROMPTS = "a string, strings, token ids or lists of token ids"
