"""Where models come from: reads a source text, and gets its GGUF file into the blobs."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from onefleet.domain.errors import InvalidRequest
from onefleet.domain.ids import Digest
from onefleet.domain.layout import Layout
from onefleet.domain.serving import ModelShape
from onefleet.registry import demo, hub
from onefleet.registry.blobs import (
    Progress,
    adopt,
    ensure_room,
    hash_file,
    no_space_is_ours,
    read_chunks,
    workplace,
    write_hashed,
)
from onefleet.registry.convert import convert
from onefleet.registry.gguf import read_head
from onefleet.registry.gguf_facts import facts
from onefleet.registry.hf_folder import read_folder

SIMULATED = "simulated"

#: What the simulated engine pretends to be.
SIMULATED_SHAPE = ModelShape(SIMULATED, 0, 1, 131_072, 64, 1, 64)

_HUB_SOURCE = re.compile(r"hf:([\w.-]{1,96})/([\w.-]{1,96})(?:/(.{1,400}))?")


class Kind(StrEnum):
    FILE = "file"
    FOLDER = "folder"
    DEMO = "demo"
    HUB = "hub"
    SIMULATED = "simulated"


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed source. name: the path, the demo's name, or "org/name"; file: of the hub's."""

    kind: Kind
    text: str
    name: str
    file: str = ""

    @property
    def default_name(self) -> str:
        """What the model is called when nobody chose a name."""
        if self.kind in (Kind.FILE, Kind.FOLDER):
            stem = Path(self.name).name.removesuffix(".gguf")
            return re.sub(r"[^A-Za-z0-9._+-]", "-", stem).lstrip(".-_+")[:128] or "model"
        return f"hf:{self.name}" if self.kind is Kind.HUB else self.text


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file among the blobs. family, licence: empty when only the file itself can say."""

    digest: Digest
    family: str = ""
    licence: str = ""


def parse(text: str) -> Source:
    """Read a source text. Raises InvalidRequest or NotFound, saying what would be one."""
    if text.startswith(demo.PREFIX):
        return Source(Kind.DEMO, text, demo.demo(text.removeprefix(demo.PREFIX)).name)
    if text.startswith(f"{SIMULATED}:"):
        return Source(Kind.SIMULATED, text, text.removeprefix(f"{SIMULATED}:"))
    if text.startswith("hf:"):
        found = _HUB_SOURCE.fullmatch(text)
        if found is None or ".." in text:
            raise InvalidRequest(
                f'"{text[:200]}" is no model of the hub',
                why="it is hf:ORG/NAME or hf:ORG/NAME/FILE",
                hint="for instance hf:HuggingFaceTB/SmolLM2-135M-Instruct",
                param="source",
            )
        return Source(Kind.HUB, text, f"{found[1]}/{found[2]}", found[3] or "")
    path = Path(text).expanduser()
    if "\0" in text or not path.is_absolute() or not path.exists():
        raise InvalidRequest(
            f'there is no model at "{text[:300]}"',
            why="it is no existing absolute path, and begins with neither demo: nor hf:",
            hint="give the path of a GGUF file or a model folder, demo:smollm2, or hf:ORG/NAME",
            param="source",
        )
    return Source(Kind.FOLDER if path.is_dir() else Kind.FILE, text, str(path))


async def fetch(source: Source, layout: Layout, progress: Progress, access: hub.Hub) -> Fetched:
    """Get the source's GGUF file into the blobs. Errors: see `models.add_model`."""
    match source.kind:
        case Kind.DEMO:
            known = demo.demo(source.name)
            digest = await demo.fetch(known, layout, progress)
            return Fetched(digest, known.family, known.licence)
        case Kind.FILE:
            return await asyncio.to_thread(_copy, Path(source.name), layout, progress)
        case Kind.FOLDER:
            return await asyncio.to_thread(_convert, Path(source.name), layout)
        case Kind.HUB:
            return await asyncio.to_thread(_from_hub, source, layout, progress, access)
        case Kind.SIMULATED:
            raise AssertionError("a simulated model has no file")


def _copy(path: Path, layout: Layout, progress: Progress) -> Fetched:
    """Copy a file: the pool's own copy does not change under it."""
    facts(read_head(path), path)  # before gigabytes are copied
    size = path.stat().st_size
    ensure_room(layout.root, size, str(path))
    with workplace(layout, str(path)) as folder, no_space_is_ours(layout.root, f"copying {path}"):
        whole = folder / "whole"
        digest = write_hashed(whole, read_chunks(path), lambda done: progress(done, size))
        return Fetched(adopt(layout, whole, digest))


def _convert(path: Path, layout: Layout) -> Fetched:
    folder = read_folder(path)
    size = sum(tensor.size_bytes for tensor in folder.tensors.values())
    ensure_room(layout.root, 2 * size, str(path))  # float16 vectors become twice as large
    with workplace(layout, str(path)) as place, no_space_is_ours(layout.root, f"converting {path}"):
        whole = place / "whole"
        convert(path, whole)
        return Fetched(adopt(layout, whole, hash_file(whole)), licence=folder.licence)


def _from_hub(source: Source, layout: Layout, progress: Progress, access: hub.Hub) -> Fetched:
    listing = hub.list_files(access, source.name)
    chosen = hub.choose(listing, source.file)
    size = sum(file.size_bytes for file in chosen)
    ensure_room(layout.root, 2 * size, source.text)
    with (
        workplace(layout, source.text, resumes=True) as place,
        no_space_is_ours(layout.root, f"the download of {source.text}"),
    ):
        folder = place / "files"
        hub.download(access, listing, chosen, folder, progress)
        whole = folder / chosen[0].name
        if len(chosen) > 1 or not whole.name.endswith(".gguf"):
            whole = place / "whole"
            convert(folder, whole)
        return Fetched(adopt(layout, whole, hash_file(whole)), licence=listing.licence)
