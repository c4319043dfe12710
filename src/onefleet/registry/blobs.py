"""Content-addressed files under the data folder: a file's name is the SHA-256 of its bytes.

A file grows under `downloads/` and gets its place by one rename when it is whole and on disk, so
that whatever has a digest's name has its content.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onefleet.domain.errors import Conflict, StorageFull
from onefleet.domain.ids import Digest
from onefleet.domain.layout import Layout

#: Called with (bytes done, bytes in all; 0: not known). It may be called from another thread.
Progress = Callable[[int, int], None]

#: Left free on the disk, for the pool's own database and logs.
RESERVE_BYTES = 256 << 20

CHUNK_BYTES = 4 << 20


def blob_path(layout: Layout, digest: Digest) -> Path:
    """Where the file with this digest lies, or would."""
    return layout.blobs / digest.removeprefix("sha256:")


def ensure_room(folder: Path, needed: int, what: str) -> None:
    """Raise StorageFull, with numbers, unless `needed` bytes and the reserve are free there."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed + RESERVE_BYTES:
        raise StorageFull(
            f"{what} needs {_mb(needed)} on disk, {_mb(free)} are free under {folder}",
            why=f"{_mb(RESERVE_BYTES)} stay reserved for the pool's own records",
            hint="free space there, or start the pool with another --data-dir",
        )


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in it, at any depth, while somebody may remove some, folders included."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


@contextmanager
def no_space_is_ours(folder: Path, what: str) -> Iterator[None]:
    """Turn "no space left" into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFull(
            f"the disk under {folder} became full within {what}",
            why=error.strerror or "no space left",
            hint="free space there and try again; what was complete is kept",
        ) from None


@contextmanager
def workplace(layout: Layout, name: str, *, resumes: bool = False) -> Iterator[Path]:
    """A folder under downloads/ for one piece of work, known by its name.

    resumes: it is kept when the work fails, so that the next try goes on from it.
    Raises Conflict while another process or task works on the same.
    """
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-80:]
    slug = f"{readable}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    folder = layout.downloads / slug
    layout.downloads.mkdir(parents=True, exist_ok=True)
    with (layout.downloads / f"{slug}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"{name} is being added already",
                why="one download of a model runs at a time",
                hint="wait until it is listed: onefleet model list --watch",
            ) from None
        folder.mkdir(exist_ok=True)
        done = False
        try:
            yield folder
            done = True
        finally:
            if done or not resumes:
                shutil.rmtree(folder, ignore_errors=True)


def write_hashed(target: Path, chunks: Iterable[bytes], tell: Callable[[int], None]) -> str:
    """Write the chunks, flushed to disk; return their SHA-256 in hex. tell: bytes so far."""
    digest, done = hashlib.sha256(), 0
    with target.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
            tell(done)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a few MiB at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def hash_file(path: Path) -> str:
    """SHA-256 in hex."""
    digest = hashlib.sha256()
    for chunk in read_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def adopt(layout: Layout, file: Path, hex_digest: str) -> Digest:
    """Give a whole file its place among the blobs."""
    layout.blobs.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(file, layout.blobs / hex_digest)
    place = os.open(layout.blobs, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)
    return Digest(f"sha256:{hex_digest}")


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
