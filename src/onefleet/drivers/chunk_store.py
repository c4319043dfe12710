"""Saved images by content: equal pages are kept once, zeros not at all, the rest compressed.

A store belongs to one work and holds the images of all its workers on a node: successive images of
a worker and the images of data-parallel workers are what is alike. It ends with its work as a
whole, and no tenant's pages are ever mixed with, or found by, another's.

A folder of packs and a lock. Images refer to it by recipes, which lie in the images' folders:
a chunk lives as long as a recipe names it. One process writes at a time; others may read
meanwhile, also while packs are cleaned up: a reader that finds a pack gone reads the recipe anew.
What a killed writer leaves is either whole or bears a name that says it is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import IO

import xxhash

from onefleet.domain.errors import OnefleetError, UpstreamFailed
from onefleet.drivers import packs, recipe
from onefleet.drivers.packs import CHUNKS_MAX, FRAME, Pack, PackWriter
from onefleet.drivers.recipe import CHUNK, ZEROS, Recipe, Run, Runs

#: Of a chunk that is all zeros: it is never stored.
ZERO_DIGEST = packs.digest_of(bytes(CHUNK))
_LOCK = "lock"
_READ = 1 << 20
#: Stretches that a thread takes at a time, and threads at most: more do not make memory faster.
_BLOCK = 32
_THREADS_MAX = 8
#: Frames kept in memory by whoever reads an image in its own order.
_FRAMES_KEPT = 64

#: What lies side by side in a file: file number, offset there, and the runs.
_Stretch = tuple[int, int, list[Run]]


class ChunkStore:
    """The packs of one work on one node (or on a share), as a reader sees them."""

    def __init__(self, folder: Path) -> None:
        """folder: made by the first who writes."""
        self.folder = folder

    @contextlib.contextmanager
    def writing(self) -> Iterator[StoreWriter]:
        """The right to change it, waited for. A recipe that is to live lies in its place before
        this ends. Raises OSError.
        """
        with self._lock():
            for left in self.folder.glob(f"*{packs.PARTIAL}"):
                left.unlink(missing_ok=True)
            writer = StoreWriter(self.folder)
            try:
                yield writer
            finally:
                writer.close()

    def _lock(self) -> IO[str]:
        """The lock, held. Who waits for it may find the store removed as a whole, and a new one."""
        path = self.folder / _LOCK
        while True:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
                lock = stack.enter_context(open(path, "a", encoding="ascii"))
                fcntl.flock(lock, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    stack.pop_all()
                    return lock

    @property
    def size_bytes(self) -> int:
        """What all packs take on disk."""
        return sum(path.stat().st_size for path in self.folder.glob(f"*{packs.SUFFIX}"))

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[tuple[Recipe, Sequence[Pack]]]:
        """The recipe at `path` and its packs, which can be read for as long as this lasts.

        Raises FileNotFoundError without the recipe, UpstreamFailed when it or a pack is damaged.
        """
        with contextlib.ExitStack() as stack:
            found = recipe.read(path)
            try:
                opened = self._open(found, stack)
            except FileNotFoundError:
                found = recipe.read(path)  # the packs may have been cleaned up just now
                try:
                    opened = self._open(found, stack)
                except FileNotFoundError as error:
                    raise UpstreamFailed(
                        f"saved image {path.parent} is torn or corrupt",
                        why=f"its pack {error.filename} is gone",
                        hint="restore an older image, or start anew",
                    ) from error
            yield found, opened

    def _open(self, found: Recipe, stack: contextlib.ExitStack) -> list[Pack]:
        return [
            stack.enter_context(contextlib.closing(Pack(self.folder, name))) for name in found.packs
        ]

    def unfold(self, path: Path, target: Path) -> None:
        """Put the files of the recipe at `path` together in the folder `target`, in parallel.

        A file has its name once all of them are whole. What their bytes are worth is the caller's
        to check. Raises UpstreamFailed for what is damaged, OSError (a full disk, for one).
        """
        with self.opened(path) as (found, opened):
            names = [f"{target}/{name}" for name, _ in found.files]
            files: list[int] = []
            try:
                for name in names:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                    files.append(os.open(name + packs.PARTIAL, flags, 0o600))
                _fill(found, opened, files)
                for descriptor, (_, size) in zip(files, found.files, strict=True):
                    os.ftruncate(descriptor, size)
                for name in names:
                    os.rename(name + packs.PARTIAL, name)
            finally:
                for descriptor, name in zip(files, names, strict=False):
                    os.close(descriptor)
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name + packs.PARTIAL)

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """Those of the digests whose chunks are not here, each once, in order."""
        wanted = dict.fromkeys(digests)
        wanted.pop(ZERO_DIGEST, None)
        for pack in self.packs():
            for digest in packs.digests_in(pack.digests):
                wanted.pop(digest, None)
        return list(wanted)

    def packs(self) -> Iterator[Pack]:
        """The packs that can be read, one after the other; each is open until the next comes."""
        for name in packs.names_in(self.folder):
            try:
                pack = Pack(self.folder, name)
            except (FileNotFoundError, UpstreamFailed):
                continue
            with contextlib.closing(pack):
                yield pack


class StoreWriter:
    """A store while it is locked for writing. Raises OSError; what was whole before stays so."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._packs: list[Pack] = []
        for name in packs.names_in(folder):
            # One that is damaged is no place to find chunks in; they are stored anew.
            with contextlib.suppress(UpstreamFailed):
                self._packs.append(Pack(folder, name))
        self._growing: PackWriter | None = None

    def close(self) -> None:
        """Give up what is not finished."""
        if self._growing is not None:
            self._growing.abort()
            self._growing = None
        for pack in self._packs:
            pack.close()

    def fold(self, files: Mapping[str, Path], *, afresh: bool = False) -> Recipe:
        """Take the files in; what to write beside the image. They must not change meanwhile.

        afresh: without relying on chunks that are here already.
        """
        known = len(self._packs) if afresh else 0
        runs = Runs()
        sizes = [(name, path.stat().st_size) for name, path in files.items()]
        for batch in _batches([(files[name], size) for name, size in sizes]):
            digests = [d for path, first, count in batch for d in hashed(path, first, count)]
            self._lay(batch, digests, self.find(set(digests), known), runs)
        return self.recipe_of(sizes, runs)

    def find(self, wanted: set[bytes], since: int = 0) -> dict[bytes, tuple[int, int]]:
        """Where the digests' chunks are, as far as they are here: pack and number there.

        Tables are read through instead of kept in memory: it needs little, however large a store.
        """
        found = {ZERO_DIGEST: (ZEROS, 0)}
        tables = [pack.digests for pack in self._packs[since:]]
        if self._growing is not None:
            tables.append(bytes(self._growing.digests))
        for at, table in enumerate(tables, since):
            digests = packs.digests_in(table)
            hits = wanted.intersection(digests)
            if hits:
                for number, digest in enumerate(digests):
                    if digest in hits:
                        found.setdefault(digest, (at, number))
        return found

    def add(self, digest: bytes, chunk: bytes | memoryview) -> tuple[int, int]:
        """Store a chunk that is not here; its pack and its number there."""
        if self._growing is not None and len(self._growing) == CHUNKS_MAX:
            self.finish()
        if self._growing is None:
            self._growing = PackWriter(self._folder)
        return len(self._packs), self._growing.add(digest, chunk)

    def finish(self) -> None:
        """Make all that was added durable."""
        if self._growing is not None:
            name = self._growing.finish()
            self._growing = None
            self._packs.append(Pack(self._folder, name))

    def checksums(self, found: Recipe) -> dict[str, str]:
        """XXH3 (128 bits, hex) of each file that the recipe would give, all chunks being read.

        Raises UpstreamFailed when one of its packs is damaged.
        """
        opened = {pack.name: pack for pack in self._packs}
        used = [opened[name] for name in found.packs]
        states = [xxhash.xxh3_128() for _ in found.files]
        left = [size for _, size in found.files]
        frames = _Frames(used)
        for number, _, run in found.places():
            for piece in frames.contents(run):
                states[number].update(piece[: left[number]])
                left[number] -= len(piece)
        names = [name for name, _ in found.files]
        return {name: s.hexdigest() for name, s in zip(names, states, strict=True)}

    def recipe_of(self, files: Sequence[tuple[str, int]], runs: Runs) -> Recipe:
        """The recipe of what was laid out in `runs`, once all of it is durable."""
        self.finish()
        used = sorted({run.pack for run in runs.close()} - {ZEROS})
        numbers = {pack: number for number, pack in enumerate(used)} | {ZEROS: ZEROS}
        return Recipe(
            files=tuple(files),
            packs=tuple(self._packs[pack].name for pack in used),
            runs=tuple(Run(numbers[r.pack], r.first, r.chunks) for r in runs.runs),
        )

    def _lay(
        self,
        batch: Sequence[tuple[Path, int, int]],
        digests: Sequence[bytes],
        found: dict[bytes, tuple[int, int]],
        runs: Runs,
    ) -> None:
        """Note where each chunk is; store those that are nowhere."""
        at = 0
        for path, first, count in batch:
            with open(path, "rb", buffering=0) as file:
                for number in range(first, first + count):
                    digest = digests[at]
                    place = found.get(digest)
                    if place is None:
                        chunk = os.pread(file.fileno(), CHUNK, number * CHUNK)
                        place = self.add(digest, chunk.ljust(CHUNK, b"\0"))
                        found[digest] = place
                    runs.add(*place)
                    at += 1

    # Cleaning up

    def collect(self, paths: Iterable[Path]) -> int:
        """Remove what none of the recipes at `paths` names; bytes that came free.

        A pack of which less than half is named is written anew without the rest. Recipes that do
        not exist any more count for nothing; one that cannot be read leaves everything as it is,
        because nobody knows what it names, and its error is raised.
        """
        self.finish()
        before = sum(pack.size for pack in self._packs)
        recipes: dict[Path, Recipe] = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                recipes[path] = recipe.read(path)
        marks = {pack.name: bytearray(pack.chunks) for pack in self._packs}
        for found in recipes.values():
            for run in found.runs:
                if run.pack != ZEROS and found.packs[run.pack] in marks:
                    mark = marks[found.packs[run.pack]]
                    mark[run.first : run.first + run.chunks] = b"\1" * run.chunks
        self._drop({name for name, mark in marks.items() if not any(mark)})
        sparse = [p for p in self._packs if 2 * sum(marks[p.name]) < p.chunks]
        moved = self._move(sparse, marks)
        for path, found in recipes.items():
            if not moved.keys().isdisjoint(found.packs):
                recipe.write(path, self._moved(found, moved))
        self._drop(moved.keys())
        return before - sum(pack.size for pack in self._packs)

    def _drop(self, names: Set[str]) -> None:
        """Remove packs. Dead ones go before others are written: these might get the same names."""
        for pack in self._packs:
            if pack.name in names:
                pack.path.unlink(missing_ok=True)
                pack.close()
        self._packs = [pack for pack in self._packs if pack.name not in names]

    def _move(
        self, sparse: Sequence[Pack], marks: Mapping[str, bytearray]
    ) -> dict[str, dict[int, tuple[int, int]]]:
        """Copy what is marked into a new pack; by pack, where its chunks are now.

        One with a chunk that is not what it was stored as stays where it is.
        """
        moved: dict[str, dict[int, tuple[int, int]]] = {}
        for pack in sparse:
            places: dict[int, tuple[int, int]] = {}
            try:
                for number, chunk in _marked(pack, marks[pack.name]):
                    digest = pack.digests[number * packs.DIGEST : (number + 1) * packs.DIGEST]
                    if packs.digest_of(chunk) != digest:
                        raise pack.damaged(f"its chunk {number} has been changed")
                    places[number] = self.add(digest, chunk)
            except UpstreamFailed:
                continue
            moved[pack.name] = places
        self.finish()
        return moved

    def _moved(self, found: Recipe, moved: Mapping[str, dict[int, tuple[int, int]]]) -> Recipe:
        """The same recipe, naming the places where its chunks are now."""
        numbers = {pack.name: number for number, pack in enumerate(self._packs)}
        runs = Runs()
        for run in found.runs:
            name = "" if run.pack == ZEROS else found.packs[run.pack]
            places = moved.get(name)
            for chunk in range(run.first, run.first + run.chunks):
                if places is not None:
                    runs.add(*places[chunk])
                else:
                    runs.add(numbers[name] if name else ZEROS, chunk)
        return self.recipe_of(found.files, runs)


def _batches(files: Iterable[tuple[Path, int]]) -> Iterator[list[tuple[Path, int, int]]]:
    """All files' chunks as (path, first chunk, chunks), in lists of CHUNKS_MAX chunks at most."""
    batch: list[tuple[Path, int, int]] = []
    room = CHUNKS_MAX
    for path, size in files:
        first, end = 0, recipe.chunks_of(size)
        while first < end:
            count = min(end - first, room)
            batch.append((path, first, count))
            first, room = first + count, room - count
            if room == 0:
                yield batch
                batch, room = [], CHUNKS_MAX
    if batch:
        yield batch


def hashed(path: Path, first: int, count: int) -> Iterator[bytes]:
    """The digests of a file's chunks."""
    buffer = bytearray(_READ)
    view = memoryview(buffer)
    with open(path, "rb") as file:
        file.seek(first * CHUNK)
        while count > 0:
            size = file.readinto(view[: min(_READ, count * CHUNK)])
            if not size:
                raise UpstreamFailed(f"{path} became shorter while it was read")
            padded = recipe.chunks_of(size) * CHUNK
            buffer[size:padded] = bytes(padded - size)
            for at in range(0, padded, CHUNK):
                yield packs.digest_of(view[at : at + CHUNK])
            count -= padded // CHUNK


def _marked(pack: Pack, mark: bytearray) -> Iterator[tuple[int, memoryview]]:
    """The marked chunks of a pack, with their numbers."""
    for begins in range(0, pack.chunks, FRAME):
        chosen = [n for n in range(begins, min(begins + FRAME, pack.chunks)) if mark[n]]
        if chosen:
            view = memoryview(pack.frame(begins // FRAME))
            for number in chosen:
                yield number, view[(number - begins) * CHUNK : (number - begins + 1) * CHUNK]


class _Frames:
    """The frames of packs, the last few of them kept."""

    def __init__(self, opened: Sequence[Pack]) -> None:
        self._opened = opened
        self._kept: dict[tuple[int, int], memoryview] = {}

    def contents(self, run: Run) -> list[memoryview]:
        """The bytes of a run, a frame or less a piece.

        An image that changed a little each time has tens of thousands of short runs.
        """
        pack, first, left = run
        number, within = divmod(first, FRAME)
        if pack != ZEROS and within + left <= FRAME:
            return [self._frame(pack, number)[within * CHUNK : (within + left) * CHUNK]]
        pieces = []
        while left:
            count = min(left, FRAME - within)
            if pack == ZEROS:
                pieces.append(memoryview(bytes(count * CHUNK)))
            else:
                frame = self._frame(pack, number)
                pieces.append(frame[within * CHUNK : (within + count) * CHUNK])
            number, within, left = number + 1, 0, left - count
        return pieces

    def _frame(self, pack: int, number: int) -> memoryview:
        key = pack, number
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = memoryview(self._opened[pack].frame(number))
            if len(self._kept) > _FRAMES_KEPT:
                del self._kept[next(iter(self._kept))]
        return found


def _fill(found: Recipe, opened: Sequence[Pack], files: Sequence[int]) -> None:
    """Write all chunks to their places, many at a time: a call costs as much as copying a page.

    Images are stored in their own order, so that a frame is used up soon after it is first needed.
    """
    stretches = _stretches(found)
    taking = threading.Lock()
    failed: list[Exception] = []

    def next_block() -> list[_Stretch]:
        with taking:
            return list(islice(stretches, _BLOCK))

    def work() -> None:
        frames = _Frames(opened)
        try:
            while not failed and (block := next_block()):
                for file, offset, runs in block:
                    pieces = [piece for run in runs for piece in frames.contents(run)]
                    _write_all(files[file], pieces, offset)
        except (OnefleetError, OSError) as error:
            failed.append(error)

    blocks = found.size_bytes // (_BLOCK * FRAME * CHUNK) + 1
    count = min(_THREADS_MAX, len(os.sched_getaffinity(0)), blocks)
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def _stretches(found: Recipe) -> Iterator[_Stretch]:
    """What lies side by side in a file, without zeros, cut into pieces of a frame's size."""
    file, offset, size = -1, 0, 0
    runs: list[Run] = []
    for number, at, run in found.places():
        first, left = run.first, run.chunks if run.pack != ZEROS else 0
        if left and size + left <= FRAME and (number, at) == (file, offset + size * CHUNK):
            runs.append(run)
            size += left
            continue
        while left:
            if size == FRAME or (number, at) != (file, offset + size * CHUNK):
                if runs:
                    yield file, offset, runs
                file, offset, size, runs = number, at, 0, []
            count = min(left, FRAME - size)
            runs.append(Run(run.pack, first, count))
            first, left = first + count, left - count
            at, size = at + count * CHUNK, size + count
    if runs:
        yield file, offset, runs


def _write_all(descriptor: int, pieces: Sequence[memoryview], offset: int) -> None:
    written = os.pwritev(descriptor, pieces, offset)
    if written < sum(map(len, pieces)):  # a nearly full disk, say: the next try tells
        view = memoryview(b"".join(pieces))
        while written < len(view):
            written += os.pwrite(descriptor, view[written:], offset + written)
