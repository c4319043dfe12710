"""From a /v1 request's body to what an engine is asked, and by whom it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import xxhash

from onefleet.core.routing import PREFIX_BYTES
from onefleet.domain.errors import InvalidRequest, TooLarge
from onefleet.domain.serving import Purpose
from onefleet.gateway.exchange import EngineExchange
from onefleet.gateway.gather import StreamGather
from onefleet.gateway.plain import (
    PlainRelay,
    as_base64,
    as_numbers,
    text_answer,
    token_answer,
)
from onefleet.gateway.relay import StreamRelay
from onefleet.gateway.request import Request
from onefleet.gateway.target import Target
from onefleet.gateway.usage import UsageSum
from onefleet.wire.openai import (
    ChatCall,
    CompletionCall,
    DetokenizeCall,
    EmbeddingCall,
    TokenizeCall,
    decode_prompt,
    parameter_at_fault,
    readable,
)

if TYPE_CHECKING:
    from onefleet.gateway.app import Gateway
    from onefleet.gateway.connection import ClientConnection

CallT = TypeVar("CallT")

_chat = msgspec.json.Decoder(ChatCall).decode
_completion = msgspec.json.Decoder(CompletionCall).decode
_embedding = msgspec.json.Decoder(EmbeddingCall).decode
_tokenize = msgspec.json.Decoder(TokenizeCall).decode
_detokenize = msgspec.json.Decoder(DetokenizeCall).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode

_TRUE = msgspec.Raw(b"true")
_FALSE = msgspec.Raw(b"false")
_INCLUDE_USAGE = msgspec.Raw(b'{"include_usage":true}')
_FLOAT = msgspec.Raw(b'"float"')

#: Bytes of text a token: what an estimate before tokenisation goes by.
_TOKEN_BYTES = 4


def chat(gateway: Gateway, request: Request, client: ClientConnection) -> EngineExchange:
    """POST /v1/chat/completions."""
    body = request.body
    call = parsed(_chat, body)
    target = gateway.target(request, call.model)
    if target.route.purpose is not Purpose.CHAT:
        raise _wrong_purpose(target, "chat completions", "chat")
    fields = _fields(body)
    messages = memoryview(fields["messages"])
    if "max_completion_tokens" in fields:
        fields["max_tokens"] = fields.pop("max_completion_tokens")
    most = call.max_completion_tokens or call.max_tokens
    choices = call.n or 1
    exchange = _generation(gateway, request, client, target, fields, "chat", call, 1, choices)
    _size(exchange, messages, len(messages) // _TOKEN_BYTES + 1, most, choices)
    return exchange


def completion(gateway: Gateway, request: Request, client: ClientConnection) -> EngineExchange:
    """POST /v1/completions."""
    body = request.body
    call = parsed(_completion, body)
    target = gateway.target(request, call.model)
    if target.route.purpose is Purpose.EMBEDDING:
        raise _wrong_purpose(target, "completions", "completion")
    if call.echo:
        raise _not_possible("echo", "the engines give no tokens of the prompt back")
    fields = _fields(body)
    count, tokens = _prompts(gateway, call.prompt, "prompt")
    choices = max(call.n or 1, call.best_of or 1)
    exchange = _generation(
        gateway,
        request,
        client,
        target,
        fields,
        "text_completion",
        call,
        count,
        call.n or 1,
    )
    _size(exchange, memoryview(call.prompt), tokens, call.max_tokens, choices * count)
    return exchange


def embedding(gateway: Gateway, request: Request, client: ClientConnection) -> EngineExchange:
    """POST /v1/embeddings."""
    body = request.body
    call = parsed(_embedding, body)
    target = gateway.target(request, call.model)
    if target.route.purpose is not Purpose.EMBEDDING:
        raise _wrong_purpose(target, "embeddings", "embedding")
    wanted = call.encoding_format or "float"
    if wanted not in ("float", "base64"):
        raise InvalidRequest(
            f'encoding_format "{wanted}" is not known',
            why="it is float or base64",
            param="encoding_format",
        )
    if call.dimensions is not None:
        raise _not_possible("dimensions", "a model's embeddings have the one length that it gives")
    _, tokens = _prompts(gateway, call.input, "input")
    fields = _fields(body)
    fields["model"] = target.name_json
    fields["encoding_format"] = _FLOAT
    exchange = PlainRelay(
        gateway, request, client, target, "embeddings", b"/v1/embeddings", _encode(fields)
    )
    exchange.adapter = as_base64 if wanted == "base64" else as_numbers
    _size(exchange, memoryview(call.input), tokens, 0, 1)
    return exchange


def tokenize(gateway: Gateway, request: Request, client: ClientConnection) -> EngineExchange:
    """POST /tokenize, /v1/tokenize."""
    call = parsed(_tokenize, request.body)
    texts = [text for text in (call.prompt, call.content, call.text) if text is not None]
    if len(texts) != 1:
        raise InvalidRequest(
            f"there are {len(texts)} texts to tokenize",
            why='one of "prompt", "content" and "text" is the text',
            param="prompt",
        )
    target = _some_target(gateway, request, call.model)
    dialect = target.dialect
    asked: dict[str, Any] = {"model": target.route.name, dialect.tokenize_field: texts[0]}
    if call.add_special_tokens is not None:
        asked["add_special_tokens"] = asked["add_special"] = call.add_special_tokens
    path = dialect.tokenize_path.encode()
    exchange = PlainRelay(gateway, request, client, target, "tokenize", path, _encode(asked))
    exchange.adapter = token_answer(target.route.context_length)
    return exchange


def detokenize(gateway: Gateway, request: Request, client: ClientConnection) -> EngineExchange:
    """POST /detokenize, /v1/detokenize."""
    call = parsed(_detokenize, request.body)
    target = _some_target(gateway, request, call.model)
    asked = {"model": target.route.name, "tokens": call.tokens}
    exchange = PlainRelay(
        gateway, request, client, target, "detokenize", b"/detokenize", _encode(asked)
    )
    exchange.adapter = text_answer
    return exchange


def parsed(decode: Any, body: bytes) -> Any:
    """Decode a body. Raises InvalidRequest that names the field at fault."""
    try:
        if not body.isascii():
            body.decode("utf-8")
        return decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        param = parameter_at_fault(message)
        what = f'the field "{param}" is wrong' if param else "the body is wrong"
        raise InvalidRequest(what, why=readable(message), param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        why = str(error) if body else "it is empty"
        raise InvalidRequest("the body is not JSON", why=why, code="invalid_json") from error
    except RecursionError as error:
        raise InvalidRequest(
            "the body is nested too deeply", why=str(error), code="invalid_json"
        ) from error


def _generation(
    gateway: Gateway,
    request: Request,
    client: ClientConnection,
    target: Target,
    fields: dict[str, msgspec.Raw],
    operation: str,
    call: ChatCall | CompletionCall,
    prompts: int,
    choices: int,
) -> StreamRelay | StreamGather | PlainRelay:
    """Who answers a chat or completion call, and with which body the engine is asked."""
    dialect = target.dialect
    path = b"/v1/chat/completions" if operation == "chat" else b"/v1/completions"
    fields["model"] = target.name_json
    for name, value in dialect.generation_fields:
        fields[name] = msgspec.Raw(value.encode())
    if not call.stream and dialect.cancels_plain:
        fields["stream"] = _FALSE
        fields.pop("stream_options", None)
        plain = PlainRelay(gateway, request, client, target, operation, path, _encode(fields))
        return plain
    options = call.stream_options
    shows_each = False
    if call.stream and options is not None:
        merged = _fields(fields["stream_options"])
        shows_each = bytes(merged.get("continuous_usage_stats", b"false")) == b"true"
        merged["include_usage"] = _TRUE
        fields["stream_options"] = msgspec.Raw(_encode(merged))
    else:
        fields["stream_options"] = _INCLUDE_USAGE
    fields["stream"] = _TRUE
    body = _encode(fields)
    if not call.stream:
        gather = StreamGather(gateway, request, client, target, operation, path, body)
        gather.prepare(UsageSum(prompts, choices), operation == "chat")
        return gather
    relay = StreamRelay(gateway, request, client, target, operation, path, body)
    legacy = operation != "chat" and bool(call.logprobs)
    usage = UsageSum(prompts, choices)
    relay.prepare(usage, bool(options and options.include_usage), shows_each, legacy)
    return relay


def _size(
    exchange: EngineExchange, prompt: memoryview, tokens: int, most: int | None, answers: int
) -> None:
    """Estimate the cost in tokens, and hash the prompt's beginnings for routing."""
    route = exchange.target.route
    if most is None:
        most = exchange.gateway.limits.completion_estimate
    completion = most * answers
    if route.context_length:
        completion = min(completion, route.context_length * answers)
    exchange.prompt_estimate = tokens
    exchange.estimate = tokens + completion
    if len(prompt) >= PREFIX_BYTES[0] and len(exchange.target.engines) > 1:
        key = exchange.request.key
        assert key is not None
        # The seed keeps tenants apart: what one asked is no hint to where another is sent.
        exchange.prefixes = prefix_hashes(prompt, xxhash.xxh32_intdigest(key.tenant_id.encode()))


def prefix_hashes(prompt: memoryview, seed: int) -> tuple[int, ...]:
    """Hashes of the first 256, 512, ... bytes, as many as the prompt has."""
    state = xxhash.xxh3_64(seed=seed)
    hashes = []
    start = 0
    for end in PREFIX_BYTES:
        if end > len(prompt):
            break
        state.update(prompt[start:end])
        hashes.append(state.intdigest())
        start = end
    return tuple(hashes)


def _prompts(gateway: Gateway, raw: msgspec.Raw, field: str) -> tuple[int, int]:
    """How many prompts there are, and an estimate of their tokens."""
    try:
        prompt = decode_prompt(raw, field)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidRequest(
            f'the field "{field}" is wrong', why=readable(str(error)), param=field
        ) from error
    if isinstance(prompt, str):
        return 1, len(memoryview(raw)) // _TOKEN_BYTES + 1
    if isinstance(prompt[0], int):
        return 1, len(prompt)
    limit = gateway.limits.prompts
    if len(prompt) > limit:
        raise TooLarge(
            f'there are {len(prompt)} prompts in "{field}"',
            why=f"the limit prompts is {limit}",
            param=field,
        )
    if isinstance(prompt[0], str):
        return len(prompt), len(memoryview(raw)) // _TOKEN_BYTES + 1
    return len(prompt), sum(len(item) for item in prompt if isinstance(item, list))


def _some_target(gateway: Gateway, request: Request, model: str | None) -> Target:
    """The named deployment, or the only one that the key sees."""
    if model is not None:
        target = gateway.target(request, model)
    else:
        visible = gateway.visible(request)
        if len(visible) != 1:
            raise InvalidRequest(f"there are {len(visible)} models: say which one", param="model")
        target = visible[0]
    if not target.dialect.tokenize_path:
        raise InvalidRequest(
            f'the engine of deployment "{target.route.name}" does not show its tokens',
            param="model",
        )
    return target


def _not_possible(param: str, why: str) -> InvalidRequest:
    """For what would change the answer, so that leaving it out silently would be a lie."""
    return InvalidRequest(
        f'the field "{param}" is not supported',
        why=why,
        hint="leave it out",
        param=param,
        code="unsupported_parameter",
    )


def _wrong_purpose(target: Target, wanted: str, purpose: str) -> InvalidRequest:
    route = target.route
    return InvalidRequest(
        f'the model "{route.name}" does not answer {wanted}',
        why=f"its purpose is {route.purpose.value}",
        hint=f"choose one of GET /v1/models whose purpose is {purpose}",
        param="model",
        code="model_not_supported",
    )
