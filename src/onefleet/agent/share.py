"""The last level of saved images: a second chunk store in a folder that outlives the machine.

A mounted share, for one. What a node has folded is put there, too, chunk by chunk what is not
there yet. A node that is to go on with an image that it does not have takes it from there. By work:

    <work>/chunks                   packs, as on a node
    <work>/images/<rank>.<image>    manifest, recipe, and the name of the node that answers for it

That node removes it once it keeps the image no longer. Who takes an image answers for it from then
on, so that a node that never comes back leaves nothing behind for ever.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onefleet.agent import records
from onefleet.domain.layout import Layout
from onefleet.drivers import image as images
from onefleet.drivers import recipe, transfer
from onefleet.drivers.chunk_store import ChunkStore, StoreWriter
from onefleet.drivers.supervisor_files import sync_folder

_CHUNKS = "chunks"
_NODE = "node"
#: Made when it is first seen that the node keeps the image no longer.
_OVER = "over"
#: From then until it is removed.
GRACE_S = 600.0


@dataclass(frozen=True, slots=True)
class Share:
    """folder: exists when the share is mounted; it is never made. node: who speaks."""

    folder: Path
    layout: Layout
    node: str

    @property
    def is_there(self) -> bool:
        return self.folder.is_dir()

    def put(self, worker: str, image: Path) -> int | None:
        """Have a folded image there, too; bytes that it took, None when it was there already.

        worker: the name of its folder. Raises OSError, OnefleetError.
        """
        work, _, rank = worker.rpartition(".")
        target = self.folder / work / records.IMAGES / f"{rank}.{image.name}"
        if target.is_dir():
            return None
        there = ChunkStore(self.folder / work / _CHUNKS)
        before = there.size_bytes
        self._copy(ChunkStore(self.layout.chunks(work)), image, there, target)
        return there.size_bytes - before

    def take(self, worker: str, image: str) -> bool:
        """Have an image here that is there; False when it is not. Raises as `put`."""
        work, _, rank = worker.rpartition(".")
        source = self.folder / work / records.IMAGES / f"{rank}.{image}"
        if not source.is_dir():
            return False
        here = ChunkStore(self.layout.chunks(work))
        target = records.root(self.layout) / worker / records.IMAGES / image
        if not target.is_dir():
            self._copy(ChunkStore(self.folder / work / _CHUNKS), source, here, target)
        self._answer_for(source)
        return True

    def forget(self, now_s: float) -> None:
        """Remove what this node answers for and has not kept for a while. Raises OSError.

        now_s: seconds since 1970.
        """
        for work in records.subfolders(self.folder):
            if any(self._is_over(i, now_s) for i in _images(work)):
                with ChunkStore(work / _CHUNKS).writing() as writer:
                    self._clean_up(work, writer, now_s)

    def _clean_up(self, work: Path, writer: StoreWriter, now_s: float) -> None:
        for image in _images(work):
            if self._is_over(image, now_s):
                shutil.rmtree(image, ignore_errors=True)
        if left := _images(work):
            writer.collect([image / recipe.NAME for image in left])
        else:
            shutil.rmtree(work, ignore_errors=True)

    def _is_over(self, image: Path, now_s: float) -> bool:
        """Whether it is to go. One that has just been given up may be wanted by another node."""
        work, (rank, _, name) = image.parent.parent.name, image.name.partition(".")
        here = records.root(self.layout) / f"{work}.{rank}" / records.IMAGES / name
        over = image / _OVER
        with contextlib.suppress(FileNotFoundError):
            if (image / _NODE).read_text(encoding="utf-8") != self.node:
                return False
            if here.is_dir():
                over.unlink(missing_ok=True)
                return False
            if not over.exists():
                over.touch()
            return now_s - over.stat().st_mtime >= GRACE_S
        return False

    def _copy(self, source: ChunkStore, image: Path, target: ChunkStore, place: Path) -> None:
        """The image in one store to the other, and its files to `place`."""
        listing = transfer.listing(source, image / recipe.NAME)
        partial = place.with_name(place.name + images.PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        with target.writing() as writer:
            missing = target.missing(listing.digests)
            transfer.receive(writer, _Read(transfer.export(source, missing)))
            made = transfer.adopt(writer, listing)
            partial.mkdir(parents=True, mode=0o700)
            shutil.copyfile(image / images.MANIFEST, partial / images.MANIFEST)
            _sync(partial / images.MANIFEST)
            recipe.write(partial / recipe.NAME, made)
            if self.folder in place.parents:
                self._answer_for(partial)
            os.rename(partial, place)
            sync_folder(str(place.parent))

    def _answer_for(self, image: Path) -> None:
        temporary = image / f"{_NODE}.new"
        temporary.write_text(self.node, encoding="utf-8")
        os.replace(temporary, image / _NODE)


class _Read:
    """An iterator of bytes, to be read from."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = b""

    def read(self, size: int) -> bytes:
        """At most so many bytes; none when there are no more."""
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return b""
            self._rest = part
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def _images(work: Path) -> list[Path]:
    found = records.subfolders(work / records.IMAGES)
    return [image for image in found if not image.name.endswith(images.PARTIAL)]


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
