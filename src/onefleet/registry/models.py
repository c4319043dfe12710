"""Adds models to the pool and removes them: from a source text to a described file among the blobs.

/path/to/model.gguf, /path/to/folder    a file, or a Hugging Face folder (converted)
demo:NAME                               a pinned demo model
hf:ORG/NAME[/FILE]                      from the hub
simulated:NAME                          no weights: for the simulated engine
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from onefleet.domain.errors import InvalidRequest
from onefleet.domain.ids import Digest, Instant, ModelId
from onefleet.domain.layout import Layout
from onefleet.domain.serving import Model, ModelShape, Purpose
from onefleet.registry import demo
from onefleet.registry.blobs import Progress, blob_path, no_space_is_ours
from onefleet.registry.gguf import read_head
from onefleet.registry.gguf_facts import GgufFacts, facts
from onefleet.registry.hub import Hub
from onefleet.registry.sources import (
    SIMULATED,
    SIMULATED_SHAPE,
    Fetched,
    Kind,
    Source,
    fetch,
    parse,
)

#: A model's name: what may stand in a URL's path as one segment and in a request's "model".
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}){0,2}")


@dataclass(frozen=True, slots=True)
class Preview:
    """What is known of a model before it is fetched. shape, purpose: None when it is not."""

    source: str
    download_bytes: int
    weights_bytes: int
    shape: ModelShape | None
    purpose: Purpose | None


async def preview(source: str) -> Preview:
    """Look at a source without fetching it, for a memory plan.

    Raises InvalidRequest or NotFound for a source that cannot be.
    """
    parsed = parse(source)
    match parsed.kind:
        case Kind.DEMO:
            known = demo.demo(parsed.name)
            sizes = (known.download_bytes, known.size_bytes)
            return Preview(source, *sizes, known.shape, known.purpose)
        case Kind.FILE:
            found = await asyncio.to_thread(_describe, Path(parsed.name))
            return Preview(source, 0, found.weights_bytes, found.shape, found.purpose)
        case Kind.SIMULATED:
            return Preview(source, 0, 0, SIMULATED_SHAPE, Purpose.CHAT)
        case Kind.FOLDER | Kind.HUB:
            return Preview(source, 0, 0, None, None)


async def add_model(
    source: str,
    name: str | None,
    layout: Layout,
    now: Instant,
    progress: Progress,
    hub: Hub | None = None,
) -> Model:
    """Fetch, check and describe a model; its file lies among the blobs when this returns.

    name: None takes the source's own. progress: bytes done and in all; it may be called from
    another thread. Adding the same source again fetches nothing anew. Raises InvalidRequest,
    NotFound, Forbidden, Unreachable, UpstreamFailed, StorageFull, or Conflict while another adds
    the same.
    """
    parsed = parse(source)
    chosen = _checked_name(name or parsed.default_name)
    if parsed.kind is Kind.SIMULATED:
        return _simulated(parsed, chosen, now)
    with no_space_is_ours(layout.root, f"adding {chosen}"):
        fetched = await fetch(parsed, layout, progress, hub or Hub())
    path = blob_path(layout, fetched.digest)
    try:
        found = await asyncio.to_thread(_describe, path)
    except InvalidRequest:
        path.unlink(missing_ok=True)
        raise
    return _model(parsed, chosen, fetched, found, path, now)


def remove_model(model: Model, layout: Layout, still_used: Collection[Digest]) -> int:
    """Delete the model's file unless another model has the same; return the bytes freed.

    still_used: the revisions of all other models.
    """
    if model.revision in still_used or model.format == SIMULATED:
        return 0
    path = blob_path(layout, model.revision)
    freed = path.stat().st_size if path.exists() else 0
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.licence.html").unlink(missing_ok=True)
    return freed


def _describe(path: Path) -> GgufFacts:
    return facts(read_head(path), path)


def _model(
    source: Source, name: str, fetched: Fetched, found: GgufFacts, path: Path, now: Instant
) -> Model:
    return Model(
        id=ModelId(name),
        family=fetched.family or _family(found),
        purpose=found.purpose,
        revision=fetched.digest,
        format="gguf",
        path=str(path),
        size_bytes=path.stat().st_size,
        shape=found.shape,
        source=source.text,
        licence=fetched.licence or found.licence,
        created_at=now,
    )


def _simulated(source: Source, name: str, now: Instant) -> Model:
    purpose = Purpose.EMBEDDING if source.name == "embedding" else Purpose.CHAT
    return Model(
        id=ModelId(name),
        family=SIMULATED,
        purpose=purpose,
        revision=Digest("sha256:" + hashlib.sha256(source.text.encode()).hexdigest()),
        format=SIMULATED,
        path="",
        size_bytes=0,
        shape=SIMULATED_SHAPE,
        source=source.text,
        licence="Apache-2.0",
        created_at=now,
    )


def _family(found: GgufFacts) -> str:
    """The model's own name without size and variant, else its architecture."""
    words = re.split(r"[\s_-]+", found.name.rpartition("/")[2].lower())
    return words[0] if words[0] else found.shape.architecture


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f'"{name[:140]}" cannot be the name of a model',
            why="a name has letters, digits and . _ : @ + - in up to three parts with / between",
            hint="choose one with --name",
            param="name",
        )
    return name
