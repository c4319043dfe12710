"""A saved worker on disk: a folder of files, and a manifest that says what a whole one holds.

    manifest.json    sizes and digests of the files, and everything that a restore checks
    *.img            criu's own
    shm.tar          the files of the cell's /dev/shm

An image is built under a temporary name, made durable, and only then renamed, so that a folder
with a manifest is whole. Digests follow within a second or so (`seal`): they guard against decay,
not against a crash, and a worker does not stand still for them. Files are named with their digests,
the shape that a content-addressed store takes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from typing import Any

from onefleet.domain.errors import Conflict, NotFound, UpstreamFailed
from onefleet.drivers.supervisor_files import sync_folder, write_json

MANIFEST = "manifest.json"
FORMAT = 1
#: Suffix of an image that is being built; whatever bears it is rubbish once nobody builds it.
PARTIAL = ".partial"

_CHUNK = 1 << 20


def begin(image: str) -> str:
    """An empty folder to build the image in, beside its final name. Raises OSError, Conflict."""
    if os.path.exists(image):
        raise Conflict(
            f"image {image} already exists",
            why="an image is never overwritten",
            hint="name another",
        )
    partial = image + PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial, mode=0o700)
    return partial


def discard(image: str) -> None:
    """Remove an image."""
    shutil.rmtree(image, ignore_errors=True)


def discard_partial(image: str) -> None:
    """Remove what there is of an image that was not finished."""
    shutil.rmtree(image + PARTIAL, ignore_errors=True)


def commit(image: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Make all files durable, write the manifest, give the image its name. Raises OSError.

    Returns the manifest.
    """
    partial = image + PARTIAL
    files: dict[str, dict[str, Any]] = {}
    for name in sorted(os.listdir(partial)):
        descriptor = os.open(f"{partial}/{name}", os.O_RDONLY)
        try:
            os.fsync(descriptor)
            files[name] = {"size": os.fstat(descriptor).st_size, "sha256": ""}
        finally:
            os.close(descriptor)
    manifest = {"format": FORMAT, **facts, "files": files}
    _write(partial, manifest)
    os.rename(partial, image)
    sync_folder(os.path.dirname(image))
    return manifest


def seal(image: str) -> None:
    """Add the digests of the files. Somebody may have taken the image away meanwhile: no error."""
    with contextlib.suppress(FileNotFoundError, NotFound):
        manifest = read(image)
        for name, entry in manifest["files"].items():
            entry["sha256"] = _digest(f"{image}/{name}")
        _write(image, manifest)


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
    if manifest["format"] != FORMAT:
        raise damaged(image, f"its format {manifest['format']} is not known, only {FORMAT}")
    return manifest


def verify(image: str) -> dict[str, Any]:
    """Check every file against the manifest; return it. Raises NotFound, UpstreamFailed."""
    manifest = read(image)
    for name, entry in manifest["files"].items():
        path = f"{image}/{name}"
        try:
            size = os.stat(path).st_size
            if size != entry["size"]:
                raise damaged(image, f"{name} has {size} bytes instead of {entry['size']}")
            if entry["sha256"] and _digest(path) != entry["sha256"]:
                raise damaged(image, f"{name} has been changed: its digest differs")
        except OSError as error:
            raise damaged(image, f"{name} cannot be read: {error.strerror}") from error
    return manifest


def total_bytes(manifest: dict[str, Any]) -> int:
    return sum(int(entry["size"]) for entry in manifest["files"].values())


def damaged(image: str, why: str) -> UpstreamFailed:
    return UpstreamFailed(
        f"image {image} is torn or corrupt", why=why, hint="restore an older image, or start anew"
    )


def _write(folder: str, manifest: dict[str, Any]) -> None:
    wrapped = {"manifest": manifest, "sha256": _digest_of(manifest)}
    write_json(f"{folder}/{MANIFEST}", wrapped)


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
