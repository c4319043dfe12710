"""Chunks between two stores: what the other side lacks, and nothing else.

The side that has an image tells its listing. The other says which chunks it lacks, gets these as
a stream, and makes a recipe of its own, because its packs are others. A listing can also be made
of files that are not folded yet. Whoever receives computes every digest itself: a chunk is what its
bytes are, whatever the sender says.

    sender: listing, or listing_of_files             receiver: store.missing(listing.digests)
    sender: export, or export_files                  receiver: receive, then adopt, in `writing()`

The stream: frames as in a pack, each after its count of chunks and its size; a zero for each of
these ends it, so that one that was broken off is seen.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onefleet.domain.errors import NotFound, UpstreamFailed
from onefleet.drivers import packs
from onefleet.drivers.chunk_store import ZERO_DIGEST, ChunkStore, StoreWriter, hashed
from onefleet.drivers.packs import DIGEST, FRAME
from onefleet.drivers.recipe import CHUNK, ZEROS, Recipe, Runs, chunks_of

_HEAD = struct.Struct("<HI")
#: How many chunks are looked up at a time (64 MiB).
_BATCH = 1 << 14


class Stream(Protocol):
    """What can be read from: a file, a socket's file, the answer to an HTTP request."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none: it is over."""
        ...


@dataclass(frozen=True, slots=True)
class Listing:
    """An image by its content: names and sizes of its files, the digests of all their chunks."""

    files: tuple[tuple[str, int], ...]
    digests: tuple[bytes, ...]

    def encoded(self) -> bytes:
        """As it crosses to another node: a line of JSON, then the digests."""
        return json.dumps(self.files).encode() + b"\n" + b"".join(self.digests)


def decoded(data: bytes) -> Listing:
    """What `encoded` gave. Raises UpstreamFailed for what no listing is."""
    head, _, table = data.partition(b"\n")
    try:
        files = tuple((str(name), int(size)) for name, size in json.loads(head))
        digests = tuple(packs.digests_in(table))
        bad = [name for name, _ in files if name != os.path.basename(name) or not name]
        if bad or len(table) != DIGEST * sum(chunks_of(size) for _, size in files):
            raise ValueError(f"file name {bad[0]!r}" if bad else "digests and files do not match")
    except (ValueError, TypeError) as error:
        raise UpstreamFailed("the listing of an image makes no sense", why=str(error)) from error
    return Listing(files, digests)


def listing(store: ChunkStore, recipe: Path) -> Listing:
    """Of a folded image. Raises as `ChunkStore.opened`."""
    with store.opened(recipe) as (found, opened):
        tables = [pack.digests for pack in opened]
        digests: list[bytes] = []
        for run in found.runs:
            if run.pack == ZEROS:
                digests += [ZERO_DIGEST] * run.chunks
            else:
                begins = run.first * DIGEST
                ends = begins + run.chunks * DIGEST
                digests += packs.digests_in(tables[run.pack][begins:ends])
        return Listing(found.files, tuple(digests))


def listing_of_files(files: Mapping[str, Path]) -> Listing:
    """Of files as they are. Raises OSError."""
    sizes = tuple((name, path.stat().st_size) for name, path in files.items())
    digests = [d for name, size in sizes for d in hashed(files[name], 0, chunks_of(size))]
    return Listing(sizes, tuple(digests))


def export(store: ChunkStore, digests: Iterable[bytes]) -> Iterator[bytes]:
    """The stream of these chunks. Raises NotFound at its end when some were not there."""
    wanted = set(digests) - {ZERO_DIGEST}
    picked = _Picked()
    for pack in store.packs():
        table = packs.digests_in(pack.digests)
        hits = wanted.intersection(table)
        wanted -= hits
        for number in range(-(-pack.chunks // FRAME) if hits else 0):
            begins = number * FRAME
            here = [n for n, d in enumerate(table[begins : begins + FRAME]) if d in hits]
            hits.difference_update(table[begins + n] for n in here)
            if len(here) == min(FRAME, pack.chunks - begins):
                yield from _framed(len(here), pack.stored(number))
            elif here:
                view = memoryview(pack.frame(number))
                for n in here:
                    yield from picked.add(view[n * CHUNK : (n + 1) * CHUNK])
    yield from picked.rest()
    yield _HEAD.pack(0, 0)
    if wanted:
        raise NotFound(f"{len(wanted)} chunks are not in store {store.folder}")


def export_files(
    files: Mapping[str, Path], of: Listing, digests: Iterable[bytes]
) -> Iterator[bytes]:
    """The same out of files, whose listing is `of`."""
    wanted = set(digests) - {ZERO_DIGEST}
    picked = _Picked()
    at = 0
    for name, size in of.files:
        with open(files[name], "rb", buffering=0) as file:
            for number in range(chunks_of(size)):
                digest = of.digests[at + number]
                if digest in wanted:
                    wanted.remove(digest)
                    chunk = os.pread(file.fileno(), CHUNK, number * CHUNK)
                    yield from picked.add(chunk.ljust(CHUNK, b"\0"))
        at += chunks_of(size)
    yield from picked.rest()
    yield _HEAD.pack(0, 0)


def receive(writer: StoreWriter, stream: Stream) -> int:
    """Store what comes and is not here; how many chunks that were. They are durable after.

    Raises UpstreamFailed when the stream is broken off or no such stream; then nothing is kept.
    """
    count, batch = 0, dict[bytes, memoryview]()
    while True:
        chunks, size = _HEAD.unpack(_exactly(stream, _HEAD.size))
        if chunks > FRAME or size > FRAME * CHUNK:
            raise UpstreamFailed("a stream of chunks makes no sense", why=f"{chunks} in {size}")
        try:
            raw = memoryview(packs.decompressed(_exactly(stream, size), chunks))
        except ValueError as error:
            why = f"a frame cannot be read: {error}"
            raise UpstreamFailed("a stream of chunks makes no sense", why=why) from error
        for at in range(0, len(raw), CHUNK):
            piece = raw[at : at + CHUNK]
            batch[packs.digest_of(piece)] = piece
        if chunks == 0 or len(batch) >= _BATCH:
            known = writer.find(set(batch))
            for digest, piece in batch.items():
                if digest not in known:
                    writer.add(digest, piece)
                    count += 1
            batch.clear()
        if chunks == 0:
            writer.finish()
            return count


def adopt(writer: StoreWriter, of: Listing) -> Recipe:
    """The recipe of an image all of whose chunks are here. Raises NotFound when some are not."""
    found = writer.find(set(of.digests))
    runs = Runs()
    for digest in of.digests:
        if digest not in found:
            lacking = len(set(of.digests) - found.keys())
            raise NotFound(f"{lacking} chunks of the image are not here", hint="get them first")
        runs.add(*found[digest])
    return writer.recipe_of(of.files, runs)


class _Picked:
    """Chunks that are put into frames of their own."""

    def __init__(self) -> None:
        self._frame = bytearray()

    def add(self, chunk: bytes | memoryview) -> Iterator[bytes]:
        self._frame += chunk
        if len(self._frame) == FRAME * CHUNK:
            yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        if self._frame:
            yield from _framed(len(self._frame) // CHUNK, packs.compressed(self._frame))
            self._frame.clear()


def _framed(chunks: int, frame: bytes) -> Sequence[bytes]:
    return _HEAD.pack(chunks, len(frame)), frame


def _exactly(stream: Stream, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = stream.read(size)
        if not part:
            raise UpstreamFailed("a stream of chunks was broken off", hint="ask for it again")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
