"""What a folded image is made of: its files, and where each of their chunks lies.

Packs are named and chunks numbered, so that nothing is looked up to put the files together again.
Chunks that follow each other in a pack and in the image are one run, and a run of zeros lies
nowhere. So an image of a gigabyte has a recipe of some kilobytes, and at most a few megabytes. The
runs are packed: a program that changes some pages at each step makes hundreds of thousands of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zlib
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from onefleet.domain.errors import UpstreamFailed
from onefleet.drivers.supervisor_files import write_json

NAME = "recipe.json"
#: Bytes of a chunk: one page of memory. Larger ones would find far less that is equal: a page is
#: what a program changes, and where equal pages lie differs from image to image. The last one of a
#: file is filled up with zeros.
CHUNK = 4096
FORMAT = 2
#: Format 1 had the runs as a list of numbers.
_KNOWN = (1, FORMAT)
#: In place of a pack's number, for chunks that are all zeros.
ZEROS = -1


class Run(NamedTuple):
    """Chunks in a row. pack: its number among the recipe's packs, or ZEROS."""

    pack: int
    first: int
    chunks: int


class Runs:
    """Runs as they grow, chunk by chunk."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self._pack, self._first, self._count = ZEROS, 0, 0

    def add(self, pack: int, number: int) -> None:
        """One more chunk: it continues the last run or begins a new one."""
        continues = pack == self._pack and (pack == ZEROS or number == self._first + self._count)
        if continues:
            self._count += 1
            return
        self.close()
        self._pack, self._first, self._count = pack, number, 1

    def close(self) -> list[Run]:
        """All runs; the last one is complete."""
        if self._count:
            self.runs.append(Run(self._pack, self._first, self._count))
        self._count = 0
        return self.runs


@dataclass(frozen=True, slots=True)
class Recipe:
    """files: names and sizes. packs: names. runs: the chunks of all files, one after the other."""

    files: tuple[tuple[str, int], ...]
    packs: tuple[str, ...]
    runs: tuple[Run, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(size for _, size in self.files)

    def places(self) -> Iterator[tuple[int, int, Run]]:
        """Each file's runs as (file number, offset in the file, run), cut where files end."""
        runs = iter(self.runs)
        left: Run | None = None
        for number, (_, size) in enumerate(self.files):
            done, chunks = 0, chunks_of(size)
            while done < chunks:
                run = left or next(runs)
                room = chunks - done
                run, left = (run, None) if run.chunks <= room else _cut(run, room)
                yield number, done * CHUNK, run
                done += run.chunks


def _cut(run: Run, chunks: int) -> tuple[Run, Run]:
    """So many of its chunks, and the rest."""
    rest = Run(run.pack, run.first + chunks, run.chunks - chunks)
    return Run(run.pack, run.first, chunks), rest


def chunks_of(size: int) -> int:
    """How many chunks a file of that size has."""
    return -(-size // CHUNK)


def write(path: Path, recipe: Recipe) -> None:
    """Replace the file as a whole and make it durable. Raises OSError."""
    body = {
        "format": FORMAT,
        "files": recipe.files,
        "packs": recipe.packs,
        "runs": _packed(recipe.runs),
    }
    write_json(str(path), {"recipe": body, "sha256": _digest(body)})


def read(path: Path) -> Recipe:
    """The recipe. Raises FileNotFoundError, UpstreamFailed for a torn or corrupt one."""
    try:
        wrapped = json.loads(path.read_bytes())
        body = wrapped["recipe"]
        if wrapped["sha256"] != _digest(body) or body["format"] not in _KNOWN:
            raise ValueError("its digest or format differs")
        numbers: Sequence[int] = body["runs"] if body["format"] == 1 else _unpacked(body["runs"])
        recipe = Recipe(
            files=tuple((str(name), int(size)) for name, size in body["files"]),
            packs=tuple(body["packs"]),
            runs=tuple(
                map(Run._make, zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
            ),
        )
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise UpstreamFailed(
            f"recipe {path} is torn or corrupt",
            why=str(error),
            hint="restore an older image, or start anew",
        ) from error
    _check(path, recipe)
    return recipe


def _check(path: Path, recipe: Recipe) -> None:
    """A recipe names files of its folder alone, and as many chunks as these have."""
    bad = [name for name, _ in recipe.files if name != os.path.basename(name) or not name]
    chunks = sum(chunks_of(size) for _, size in recipe.files)
    if bad or chunks != sum(run.chunks for run in recipe.runs):
        why = f"file name {bad[0]!r}" if bad else "its runs do not make up its files"
        raise UpstreamFailed(f"recipe {path} makes no sense", why=why)


def _packed(runs: Iterable[Run]) -> str:
    """All numbers in a row, four bytes each, the lowest first."""
    numbers = array("i", (n for run in runs for n in run))
    if sys.byteorder == "big":
        numbers.byteswap()
    return b64encode(zlib.compress(numbers.tobytes(), 1)).decode("ascii")


def _unpacked(text: str) -> Sequence[int]:
    numbers = array("i", zlib.decompress(b64decode(text, validate=True)))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
