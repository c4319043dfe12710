"""What engines say of usage, brought into the one form that clients and the bill know."""

from __future__ import annotations

from typing import Any

import msgspec

from onefleet.wire.openai import CachedDetails, ChoiceLogprobs, TokenLogprob, Usage

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_content = msgspec.json.Decoder(ChoiceLogprobs).decode
_NULL = msgspec.Raw(b"null")
_encode = msgspec.json.Encoder().encode


class UsageSum:
    """Usage of one request. An engine may report once, or once for each choice of each prompt.

    choices: answers asked for a prompt; their prompt is counted once, as OpenAI does.
    """

    __slots__ = ("_cached", "_completion", "_prompt", "_reports", "choices", "prompts")

    def __init__(self, prompts: int, choices: int) -> None:
        self.prompts = prompts
        self.choices = choices
        self.clear()

    def clear(self) -> None:
        self._reports = self._prompt = self._cached = self._completion = 0

    def add(self, usage: Usage, keep_single: bool = False) -> None:
        """One report more. keep_single: it stands for all before it."""
        if keep_single:
            self.clear()
        self._reports += 1
        self._prompt += usage.prompt_tokens
        self._cached += usage.cached_tokens
        self._completion += usage.completion_tokens

    def replace(self, usage: Usage) -> None:
        """A running total, which stands for all before it."""
        self.add(usage, True)

    @property
    def single(self) -> bool:
        return self._reports == 1

    def counts(self) -> tuple[int, int, int]:
        """Prompt, cached and completion tokens."""
        share = self.choices if self._reports > self.prompts else 1
        return self._prompt // share, self._cached // share, self._completion

    def billed(self, prompt_estimate: int, events: int) -> tuple[int, int, int]:
        """`counts`; of an answer that broke off before any report, a token an event."""
        if self._reports:
            return self.counts()
        return (prompt_estimate, 0, events) if events else (0, 0, 0)

    def total(self) -> Usage:
        """As an answer carries it."""
        prompt, cached, completion = self.counts()
        return Usage(prompt, completion, prompt + completion, CachedDetails(cached))


def legacy(entries: list[msgspec.Raw], offset: int) -> dict[str, Any]:
    """Chat-shaped token logprobs in the shape of /v1/completions; offset: of the text so far."""
    tokens, logprobs, tops, offsets = [], [], [], []
    for raw in entries:
        entry = msgspec.json.decode(raw, type=TokenLogprob)
        tokens.append(entry.token)
        logprobs.append(entry.logprob)
        tops.append({top.token: top.logprob for top in entry.top_logprobs or ()})
        offsets.append(offset)
        offset += len(entry.token)
    return {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def legacy_logprobs(data: bytes, event: bytes, offsets: dict[int, int]) -> bytes:
    """A completion event with its logprobs in their own shape; `event` itself if they are.

    offsets: characters so far by choice; they are moved on.
    """
    if b'"logprobs":{"content"' not in data and b'"logprobs": {"content"' not in data:
        return event
    fields = _decode_fields(data)
    choices = _decode_choices(fields["choices"])
    for choice in choices:
        raw = choice.get("logprobs", _NULL)
        if b'"content"' not in bytes(raw):
            continue
        index = int(bytes(choice.get("index", b"0")))
        start = offsets.get(index, 0)
        shape = legacy(_decode_content(raw).content or [], start)
        offsets[index] = start + sum(len(token) for token in shape["tokens"])
        choice["logprobs"] = msgspec.Raw(_encode(shape))
    fields["choices"] = msgspec.Raw(_encode(choices))
    return b"data: %b\n\n" % _encode(fields)
