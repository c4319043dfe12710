"""Traces of requests to language models: Azure's, Kimi's (Mooncake), LMSYS's tenants, AIBrix's.

All four become one value, because each knows only a part: who asked is in LMSYS's alone, which
prefix in Mooncake's alone. What a trace does not know is empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from onefleet.domain.ids import Instant
from onefleet.sim.traces.lines import BadTrace, Line, Row, read_csv, read_lines

#: Tokens of one prefix block of Mooncake's trace.
BLOCK_TOKENS = 512
TOKENS_MAX = 10_000_000
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
LMSYS_COLUMNS = ("arrival_s", "client", "prompt_tokens", "output_tokens")
AIBRIX_COLUMNS = ("timestamp_ms", "prompt_tokens", "output_tokens", "prompt_chars")


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request. arrived: since the trace's first (Azure) or as the trace says.

    client: who asked; empty when the trace does not say. blocks: ids of the prompt's blocks of
    BLOCK_TOKENS tokens, from the front; equal ids are equal text behind an equal beginning.
    prompt_chars: 0 when the trace does not say.
    """

    arrived: Instant
    prompt_tokens: int
    output_tokens: int
    client: str = ""
    blocks: tuple[int, ...] = ()
    prompt_chars: int = 0


def read_azure(path: Path) -> tuple[TraceRequest, ...]:
    """Azure's conversation service: times in 100 ns, in order."""
    found: list[TraceRequest] = []
    first_us: int | None = None
    for row in read_csv(path, AZURE_COLUMNS):
        at_us = _azure_us(row)
        first_us = at_us if first_us is None else first_us
        arrived = Instant((at_us - first_us) // 1000)
        tokens = row.whole("ContextTokens", 0, TOKENS_MAX)
        request = TraceRequest(arrived, tokens, row.whole("GeneratedTokens", 0, TOKENS_MAX))
        found.append(_in_order(request, found, row.line))
    return _some(found, path)


def read_lmsys(path: Path) -> tuple[TraceRequest, ...]:
    """The virtual-token-counter paper's clients, in order."""
    found: list[TraceRequest] = []
    for row in read_csv(path, LMSYS_COLUMNS):
        request = TraceRequest(
            arrived=Instant(row.seconds_ms("arrival_s")),
            prompt_tokens=row.whole("prompt_tokens", 0, TOKENS_MAX),
            output_tokens=row.whole("output_tokens", 0, TOKENS_MAX),
            client=row.text("client"),
        )
        found.append(_in_order(request, found, row.line))
    return _some(found, path)


def read_aibrix(path: Path) -> tuple[TraceRequest, ...]:
    """AIBrix's load that rises and falls, in order."""
    found: list[TraceRequest] = []
    for row in read_csv(path, AIBRIX_COLUMNS):
        request = TraceRequest(
            arrived=Instant(row.whole("timestamp_ms")),
            prompt_tokens=row.whole("prompt_tokens", 0, TOKENS_MAX),
            output_tokens=row.whole("output_tokens", 0, TOKENS_MAX),
            prompt_chars=row.whole("prompt_chars", 0, TOKENS_MAX * 10),
        )
        found.append(_in_order(request, found, row.line))
    return _some(found, path)


_Count = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class _Mooncake(msgspec.Struct, frozen=True, kw_only=True):
    timestamp: Annotated[int, msgspec.Meta(ge=0, le=10**15)]
    input_length: _Count
    output_length: _Count
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, le=2**62)]]


def read_mooncake(path: Path) -> tuple[TraceRequest, ...]:
    """Kimi's conversation service: one JSON object a line, in order."""
    decoder = msgspec.json.Decoder(_Mooncake)
    found: list[TraceRequest] = []
    for line in read_lines(path):
        try:
            said = decoder.decode(line.text)
        except (msgspec.DecodeError, RecursionError) as error:
            line.bad(
                f"a JSON object with timestamp, input_length, output_length, hash_ids ({error})"
            )
        blocks = -(-said.input_length // BLOCK_TOKENS)
        if len(said.hash_ids) != blocks:
            line.bad(f"{blocks} hash_ids for {said.input_length} tokens", f"{len(said.hash_ids)}")
        request = TraceRequest(
            arrived=Instant(said.timestamp),
            prompt_tokens=said.input_length,
            output_tokens=said.output_length,
            blocks=tuple(said.hash_ids),
        )
        found.append(_in_order(request, found, line))
    return _some(found, path, 1)


def prefix_hits(requests: Iterator[TraceRequest] | tuple[TraceRequest, ...]) -> tuple[int, int]:
    """Blocks that a cache without limits would have had, and all blocks."""
    seen: dict[int, None] = {}
    hits = total = 0
    for request in requests:
        total += len(request.blocks)
        for block in request.blocks:
            if block not in seen:
                break
            hits += 1
        seen.update(dict.fromkeys(request.blocks))
    return hits, total


def _in_order(request: TraceRequest, before: list[TraceRequest], line: Line) -> TraceRequest:
    if before and request.arrived < before[-1].arrived:
        line.bad(f"a time not before {before[-1].arrived} ms", f"{request.arrived} ms")
    return request


def _some(found: list[TraceRequest], path: Path, first: int = 2) -> tuple[TraceRequest, ...]:
    """All of them. first: the line of the first one, behind a header or not."""
    if not found:
        raise BadTrace(f"{path.name}:{first}", "at least one request", "nothing")
    return tuple(found)


def _azure_us(row: Row) -> int:
    text = row.text("TIMESTAMP")
    head, dot, part = text.partition(".")
    if dot and not (part.isascii() and part.isdigit() and len(part) <= 9):
        row.line.bad("a time as in 2023-11-16 18:15:46.6805900", text)
    try:
        at = datetime.strptime(head, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        row.line.bad("a time as in 2023-11-16 18:15:46.6805900", text)
    return int(at.timestamp()) * 1_000_000 + int((part[:6] or "0").ljust(6, "0"))
