"""A saved worker on disk: a folder of files, and a manifest that says what a whole one holds.

    manifest.json    sizes and checksums of the files, and everything that a restore checks
    *.img            criu's own
    shm.tar          the files of the cell's /dev/shm
    recipe.json      once it is folded: where the chunks of these files lie in the work's store

An image is built under a temporary name, made durable, and only then renamed, so that a folder
with a manifest is whole. Files are read for their checksums while the disk takes them in, so that
the worker does not stand still for these. They guard against decay: they are checked whenever it
is restored, and XXH3 does that about as fast as memory can be read (SHA-256: a tenth of it).

A save leaves the files as criu wrote them, raw. Later they are folded into a chunk store, and may
then be dropped; a restore puts them together again. Whoever needs them stay for a while locks the
folder.

The raw files may also lie in memory, on a file system there. Then the folder holds the manifest and
a link `memory` to them, and until it is folded the image is lost with the machine, as the running
process would have been.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import xxhash

from onefleet.domain.errors import Conflict, NotFound, StorageFull, UpstreamFailed
from onefleet.drivers import linux, recipe
from onefleet.drivers.intake import Intake
from onefleet.drivers.page_check import PAGES, PageCheck
from onefleet.drivers.supervisor_files import sync_folder, write_json

MANIFEST = "manifest.json"
FORMAT = 2
#: Format 1 had SHA-256 in place of XXH3, and for an image of the last second before a crash none.
_KNOWN = (1, FORMAT)
#: Suffix of an image that is being built; whatever bears it is rubbish once nobody builds it.
PARTIAL = ".partial"
#: The link to where the files are, if that is in memory.
MEMORY = "memory"

_CHUNK = 1 << 20
_NOTHING: Mapping[str, str] = MappingProxyType({})


def begin(image: str, memory: str | None = None) -> str:
    """An empty folder to put the image's files into. Raises OSError, Conflict.

    memory: where that shall be, for an image whose files are to lie in memory.
    """
    if os.path.exists(image):
        raise Conflict(
            f"image {image} already exists",
            why="an image is never overwritten",
            hint="name another",
        )
    discard_partial(image)
    partial = image + PARTIAL
    os.makedirs(partial, mode=0o700)
    if memory is not None:
        # The link first: whatever lies in memory is then found, and removed, by it.
        os.symlink(memory, f"{partial}/{MEMORY}")
        shutil.rmtree(memory, ignore_errors=True)
        os.makedirs(memory, mode=0o700)
    return raw(partial)


def raw(image: str) -> str:
    """The folder that its files are in, or would be."""
    memory = f"{image}/{MEMORY}"
    return memory if os.path.isdir(memory) else image


def is_durable(image: str) -> bool:
    """Whether it outlives the machine's next start."""
    return is_folded(image) or not os.path.islink(f"{image}/{MEMORY}")


def is_lost(image: str) -> bool:
    """Whether its files were in memory, and the machine has been started anew."""
    return not is_durable(image) and raw(image) == image


def discard(image: str) -> None:
    """Remove an image: first its name, so that nobody takes what is left for a torn one."""
    discard_partial(image)
    with contextlib.suppress(OSError):
        os.rename(image, image + PARTIAL)
    discard_partial(image)


def discard_partial(image: str) -> None:
    """Remove what there is of an image that was not finished."""
    _free_memory(image + PARTIAL)
    shutil.rmtree(image + PARTIAL, ignore_errors=True)


def _free_memory(image: str) -> None:
    """Remove what of it lies in memory; a link that leads nowhere goes, too."""
    link = f"{image}/{MEMORY}"
    with contextlib.suppress(OSError):
        memory = os.readlink(link)
        os.unlink(link)
        shutil.rmtree(memory, ignore_errors=True)


def commit(image: str, facts: dict[str, Any], intake: Intake | None = None) -> dict[str, Any]:
    """Make all files durable (in memory: as they are), write the manifest, give the image its name.

    intake: has followed some of the files. Returns the manifest. Raises OSError.
    """
    partial = image + PARTIAL
    folder, durable = raw(partial), is_durable(partial)
    files: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        opened = {
            name: stack.enter_context(open(f"{folder}/{name}", "rb", buffering=0))
            for name in sorted(os.listdir(folder))
        }
        for file in opened.values() if durable else ():
            linux.start_writing(file.fileno())
        for name, file in opened.items():
            known = intake.checksum(name) if intake is not None else None
            size = os.fstat(file.fileno()).st_size
            files[name] = {"size": size, "xxh3": known or checksum(file)}
        for file in opened.values() if durable else ():
            os.fsync(file.fileno())
    manifest = {"format": FORMAT, **facts, "files": files}
    _write(partial, manifest)
    os.rename(partial, image)
    sync_folder(os.path.dirname(image))
    return manifest


def read(image: str) -> dict[str, Any]:
    """The manifest. Raises NotFound without an image, UpstreamFailed for a torn one."""
    try:
        with open(f"{image}/{MANIFEST}", "rb") as file:
            wrapped = json.loads(file.read())
        manifest: dict[str, Any] = wrapped["manifest"]
        whole = wrapped["sha256"] == _digest_of(manifest)
    except FileNotFoundError as error:
        if os.path.isdir(image):
            raise damaged(image, "it has no manifest") from error
        raise NotFound(f"image {image} does not exist", hint="restore another image") from error
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(image, f"its manifest cannot be read: {error}") from error
    if not whole:
        raise damaged(image, "its manifest does not match its own digest")
    if manifest["format"] not in _KNOWN:
        raise damaged(image, f"its format {manifest['format']} is not known, only {FORMAT}")
    return manifest


def verify(image: str, known: Mapping[str, str] = _NOTHING) -> dict[str, Any]:
    """Check every file against the manifest; return it. Raises NotFound, UpstreamFailed.

    known: checksums of files that need not be read again for that.
    """
    manifest = read(image)
    _check(image, manifest["files"], known)
    return manifest


@contextlib.contextmanager
def opened(image: str, chunks: str | None) -> Iterator[dict[str, Any]]:
    """Its manifest, with all files there and checked; they stay for as long as this lasts.

    chunks: the folder of the store that it may be folded into. Raises NotFound, UpstreamFailed
    for a torn or corrupt image, StorageFull when there is no room to put it together.
    """
    with _locked(image, fcntl.LOCK_SH):
        manifest = read(image)
        _put_together(image, manifest, chunks, manifest["files"])
        yield manifest


@contextlib.contextmanager
def opened_early(image: str, chunks: str | None) -> Iterator[tuple[dict[str, Any], Verdict]]:
    """As `opened`, but pages are still being checked; nothing may come of them before `Verdict`.

    Where they turn out to be damaged, and the image is folded, it loses its raw files by that: the
    next try is made with its chunks.
    """
    with _locked(image, fcntl.LOCK_SH):
        manifest = read(image)
        files = manifest["files"]
        pages = {n: e for n, e in files.items() if n.startswith(PAGES) and "xxh3" in e}
        _put_together(image, manifest, chunks, {n: e for n, e in files.items() if n not in pages})
        folder = raw(image)
        for name, entry in pages.items():
            _check_size(image, f"{folder}/{name}", entry)
        check = PageCheck(pages, lambda name: _is_unchanged(f"{folder}/{name}", pages[name]))
        try:
            yield manifest, Verdict(image, manifest, check)
        finally:
            check.close()


class Verdict:
    """What the check of an image's pages will have found."""

    def __init__(self, image: str, manifest: dict[str, Any], check: PageCheck) -> None:
        self._image, self._manifest, self._check = image, manifest, check

    @property
    def pid(self) -> int:
        """Of the process that checks; 0: there is none."""
        return self._check.pid

    def wait(self) -> None:
        """Until all is checked. Raises UpstreamFailed."""
        if wrong := self._check.wait():
            if is_folded(self._image):
                _unlink_raw(self._image, self._manifest)
            raise damaged(self._image, wrong)


def _put_together(
    image: str, manifest: dict[str, Any], chunks: str | None, checked: dict[str, Any]
) -> None:
    """Have all files there, from chunks if need be, and `checked` of them whole."""
    if chunks is not None and is_folded(image):
        if is_raw(image, manifest):
            with contextlib.suppress(UpstreamFailed):  # its chunks may be whole
                _check(image, checked)
                return
        _unfold(image, manifest, chunks)
    _check(image, checked)


def _check(image: str, files: dict[str, Any], known: Mapping[str, str] = _NOTHING) -> None:
    folder = raw(image)
    if is_lost(image):
        raise damaged(image, "its files were in memory, and the machine has been started anew")
    for name, entry in files.items():
        path = f"{folder}/{name}"
        _check_size(image, path, entry)
        try:
            if known.get(name, "") != entry.get("xxh3") and not _is_unchanged(path, entry):
                raise damaged(image, f"{name} has been changed: its checksum differs")
        except OSError as error:
            raise damaged(image, f"{name} cannot be read: {error.strerror}") from error


def _check_size(image: str, path: str, entry: dict[str, Any]) -> None:
    name = os.path.basename(path)
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise damaged(image, f"{name} cannot be read: {error.strerror}") from error
    if size != entry["size"]:
        raise damaged(image, f"{name} has {size} bytes instead of {entry['size']}")


def is_folded(image: str) -> bool:
    """Whether it has a recipe."""
    return os.path.exists(f"{image}/{recipe.NAME}")


def is_raw(image: str, manifest: dict[str, Any]) -> bool:
    """Whether all files are there as criu wrote them."""
    folder = raw(image)
    return all(os.path.exists(f"{folder}/{name}") for name in manifest["files"])


def is_only_folded(image: str) -> bool:
    """Whether it is there as chunks alone."""
    return is_folded(image) and not is_raw(image, read(image))


def drop_raw(image: str) -> bool:
    """Remove the files of a folded image; False when somebody needs them just now."""
    assert is_folded(image), f"{image} would be lost"
    try:
        with _locked(image, fcntl.LOCK_EX | fcntl.LOCK_NB):
            _unlink_raw(image, read(image))
    except BlockingIOError:
        return False
    return True


def _unlink_raw(image: str, manifest: dict[str, Any]) -> None:
    _free_memory(image)
    for name in manifest["files"]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{image}/{name}")


def kind(image: str) -> str:
    """The driver that made it. Raises as `read`."""
    return str(read(image)["kind"])


def total_bytes(manifest: dict[str, Any]) -> int:
    return sum(int(entry["size"]) for entry in manifest["files"].values())


def damaged(image: str, why: str) -> UpstreamFailed:
    return UpstreamFailed(
        f"image {image} is torn or corrupt", why=why, hint="restore an older image, or start anew"
    )


def _unfold(image: str, manifest: dict[str, Any], chunks: str) -> None:
    # Here: only this needs the library that decompresses.
    from onefleet.drivers.chunk_store import ChunkStore

    try:
        ChunkStore(Path(chunks)).unfold(Path(image) / recipe.NAME, Path(raw(image)))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise damaged(image, f"its chunks cannot be read: {error}") from error
        raise StorageFull(
            f"image {image} cannot be put together: no space left on its disk",
            why=f"its files have {total_bytes(manifest)} bytes",
            hint="free some space and restore it again; the image was not harmed",
        ) from error


@contextlib.contextmanager
def _locked(image: str, how: int) -> Iterator[None]:
    """Lock its folder. Raises NotFound, BlockingIOError."""
    try:
        folder = os.open(image, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"image {image} does not exist", hint="restore another image") from error
    try:
        fcntl.flock(folder, how)
        yield
    finally:
        os.close(folder)


def _write(folder: str, manifest: dict[str, Any]) -> None:
    wrapped = {"manifest": manifest, "sha256": _digest_of(manifest)}
    write_json(f"{folder}/{MANIFEST}", wrapped)


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _is_unchanged(path: str, entry: dict[str, Any]) -> bool:
    with open(path, "rb", buffering=0) as file:
        if "xxh3" in entry:
            return bool(checksum(file) == entry["xxh3"])
        digest = entry["sha256"]
        return not digest or bool(hashlib.file_digest(file, "sha256").hexdigest() == digest)


def checksum(file: io.FileIO) -> str:
    """XXH3 (128 bits) of a file from its start, in hex. Raises OSError."""
    state = xxhash.xxh3_128()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    while count := file.readinto(buffer):
        state.update(view[:count])
    return state.hexdigest()
