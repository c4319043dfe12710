"""One answer of a model as it comes: the tokens, and how fast they came."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onefleet.domain.errors import UpstreamFailed
from onefleet.wire.client import Client

CHAT = "/v1/chat/completions"
DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came. Times in seconds since the request was sent; first_s is 0 when nothing came."""

    text: str
    first_s: float
    total_s: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: str

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, which the prompt's work delays."""
        writing_s = self.total_s - self.first_s
        return (self.completion_tokens - 1) / writing_s if self.completion_tokens > 1 else 0.0


def speak(
    pool: Client,
    request: dict[str, Any],
    show: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Answer:
    """Stream one chat completion. Raises what the gateway answers, and UpstreamFailed for an
    error inside the stream or a stream that stops without its end.
    """
    import msgspec

    body = {**request, "stream": True, "stream_options": {"include_usage": True}}
    started, first = clock(), 0.0
    pieces: list[str] = []
    usage: dict[str, Any] = {}
    finish, ended = "", False
    for line in pool.lines("POST", CHAT, body):
        if line == DONE:
            ended = True
            continue
        event = msgspec.json.decode(line)
        if error := event.get("error"):
            raise UpstreamFailed(
                str(error.get("message", "the answer broke off")),
                why=str(error.get("why") or f"code {error.get('code')}"),
                hint="ask again; onefleet why DEPLOYMENT",
            )
        usage = event.get("usage") or usage
        for choice in event.get("choices", ())[:1]:
            finish = choice.get("finish_reason") or finish
            text = (choice.get("delta") or {}).get("content")
            if text:
                first = first or clock() - started
                pieces.append(text)
                show(text)
    if not ended:
        raise UpstreamFailed("the answer stopped without its end", why="the connection was closed")
    return Answer(
        text="".join(pieces),
        first_s=first,
        total_s=clock() - started,
        prompt_tokens=usage.get("prompt_tokens", 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        finish_reason=finish,
    )
