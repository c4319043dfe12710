"""A pack: many chunks of saved images in one file, compressed, each found by its number.

Chunks are compressed in frames of 64, because a page alone compresses badly and costs a call.

    magic, frames..., table: where each frame begins, the SHA-256 of each chunk; trailer

A pack grows under a temporary name and gets its own, made of its digests, when it is whole and on
disk. It never changes after that. Its table has a checksum, and so has each compressed frame; a
frame that compression would not shrink lies there as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import sys
from array import array
from pathlib import Path

import xxhash

from onefleet.domain.errors import UpstreamFailed
from onefleet.drivers.recipe import CHUNK
from onefleet.drivers.supervisor_files import sync_folder

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Chunks in a frame; the last of a pack may have fewer.
FRAME = 64
#: Bytes of a digest. Whole: who runs a job chooses its pages, and might look for two alike.
DIGEST = 32
#: The most chunks in a pack (1 GiB), which bounds what cleaning up one of them costs.
CHUNKS_MAX = 1 << 18
SUFFIX = ".pack"
PARTIAL = ".partial"

_MAGIC = b"onefpck1"
_TRAILER = struct.Struct("<QI16s8s")  # where the table begins, chunks, checksum of the table
_LEVEL = 1


def digest_of(chunk: bytes | memoryview) -> bytes:
    """What a chunk is known by: the same for the same bytes, and for no others."""
    return hashlib.sha256(chunk).digest()


def digests_in(table: bytes) -> list[bytes]:
    """The single digests of many in a row."""
    return [table[at : at + DIGEST] for at in range(0, len(table), DIGEST)]


def compressed(raw: bytes | bytearray | memoryview) -> bytes:
    """A frame as it lies in a pack: shorter than `raw`, or just these bytes."""
    packed = zstd.compress(raw, options=_OPTIONS)
    return packed if len(packed) < len(raw) else bytes(raw)


def decompressed(frame: bytes, chunks: int) -> bytes:
    """The bytes of that many chunks. Raises ValueError for what is no frame of theirs."""
    if len(frame) == chunks * CHUNK:
        return frame
    try:
        raw = zstd.decompress(frame)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from error
    if len(raw) != chunks * CHUNK:
        raise ValueError(f"it has {len(raw)} bytes instead of {chunks * CHUNK}")
    return raw


_OPTIONS = {
    int(zstd.CompressionParameter.compression_level): _LEVEL,
    int(zstd.CompressionParameter.checksum_flag): 1,
}


class PackWriter:
    """One pack as it grows. Raises OSError; `abort` then removes what there is of it."""

    def __init__(self, folder: Path) -> None:
        self.digests = bytearray()
        self._folder = folder
        self._path = folder / f"{os.urandom(8).hex()}{SUFFIX}{PARTIAL}"
        self._file = open(self._path, "xb")  # noqa: SIM115  (closed by finish and abort)
        self._file.write(_MAGIC)
        self._offsets = array("Q")
        self._frame = bytearray()

    def __len__(self) -> int:
        return len(self.digests) // DIGEST

    def add(self, digest: bytes, chunk: bytes | memoryview) -> int:
        """Take one chunk in; its number in this pack."""
        number = len(self)
        self.digests += digest
        self._frame += chunk
        if len(self._frame) == FRAME * CHUNK:
            self._flush()
        return number

    def finish(self) -> str:
        """Make it durable and give it its name, which is returned."""
        self._flush()
        begins = self._file.tell()
        self._offsets.append(begins)
        table = self._offsets.tobytes() + self.digests
        check = xxhash.xxh3_128_digest(table)
        self._file.write(table)
        self._file.write(_TRAILER.pack(begins, len(self), check, _MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        name = hashlib.sha256(self.digests).hexdigest()[:32]
        os.rename(self._path, self._folder / f"{name}{SUFFIX}")
        sync_folder(str(self._folder))
        return name

    def abort(self) -> None:
        """Remove what there is of it. Does nothing after `finish`."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._frame:
            self._offsets.append(self._file.tell())
            self._file.write(compressed(self._frame))
            self._frame.clear()


class Pack:
    """A whole pack, open for reading; it can be read on when it has been removed meanwhile.

    Threads may share one. Raises FileNotFoundError where there is none of that name, UpstreamFailed
    for a torn or corrupt one.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / f"{name}{SUFFIX}"
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(self._descriptor).st_size
            if size < len(_MAGIC) + _TRAILER.size:
                raise self.damaged("it is too short")
            trailer = os.pread(self._descriptor, _TRAILER.size, size - _TRAILER.size)
            begins, self.chunks, check, magic = _TRAILER.unpack(trailer)
            frames = -(-self.chunks // FRAME)
            offsets = (frames + 1) * 8
            if magic != _MAGIC or begins + offsets + self.chunks * DIGEST != size - _TRAILER.size:
                raise self.damaged("it does not end as a pack does")
            table = os.pread(self._descriptor, size - _TRAILER.size - begins, begins)
            if xxhash.xxh3_128_digest(table) != check:
                raise self.damaged("the checksum of its table differs")
        except UpstreamFailed:
            self.close()
            raise
        self.size = size
        self.digests = table[offsets:]
        self._offsets = array("Q", table[:offsets])

    def frame(self, number: int) -> bytes:
        """The chunks of a frame. Raises UpstreamFailed when they do not decompress."""
        try:
            return decompressed(self.stored(number), min(FRAME, self.chunks - number * FRAME))
        except ValueError as error:
            raise self.damaged(f"its frame {number} cannot be read: {error}") from error

    def stored(self, number: int) -> bytes:
        """A frame as it lies in the pack."""
        begins, ends = self._offsets[number], self._offsets[number + 1]
        return os.pread(self._descriptor, ends - begins, begins)

    def damaged(self, why: str) -> UpstreamFailed:
        return UpstreamFailed(
            f"pack {self.path} of saved images is torn or corrupt",
            why=why,
            hint="restore an older image, or start anew",
        )

    def close(self) -> None:
        """Give its descriptor back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def names_in(folder: Path) -> list[str]:
    """The whole packs in a folder, sorted."""
    return sorted(entry.name.removesuffix(SUFFIX) for entry in folder.glob(f"*{SUFFIX}"))
