"""Packaged code folders: taken as a stream, kept by their digest."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from onefleet.control.call import Call
from onefleet.domain.errors import InvalidRequest, OnefleetError, StorageFull, TooLarge, WorldError
from onefleet.wire.api import CodeView

#: The largest packaged code folder. Data belongs elsewhere.
CODE_BYTES_MAX = 512 << 20
FILES_MAX = 100_000
UNPACKED_BYTES_MAX = 8 << 30
#: Bytes that are gathered before a thread writes them.
_WRITE_BYTES = 1 << 20


async def upload_code(call: Call) -> CodeView:
    """Keep a tar of a code folder. The same folder twice is kept once."""
    layout = call.pool.layout
    layout.downloads.mkdir(parents=True, exist_ok=True)
    layout.blobs.mkdir(parents=True, exist_ok=True)
    part = layout.downloads / f"{call.pool.ids.new('code')}.part"
    try:
        with part.open("xb") as file:
            digest, size = await _receive(call, file)
        files = await asyncio.to_thread(_count, part)
        await asyncio.to_thread(_keep, part, layout.blobs / digest)
    except OSError as error:
        raise _explained(error, part) from error
    finally:
        part.unlink(missing_ok=True)
    return CodeView(digest=f"sha256:{digest}", size_bytes=size, files=files)


async def _receive(call: Call, file: BinaryIO) -> tuple[str, int]:
    """Write the body to a file, in pieces; its digest and size."""
    digest, size, pending = hashlib.sha256(), 0, bytearray()
    async for chunk in call.request.stream():
        size += len(chunk)
        if size > CODE_BYTES_MAX:
            raise TooLarge(
                f"the code folder is over the limit of {CODE_BYTES_MAX >> 20} MiB",
                why="it is kept for as long as a job needs it",
                hint="leave data and environments out of the folder",
            )
        digest.update(chunk)
        pending += chunk
        if len(pending) >= _WRITE_BYTES:
            await asyncio.to_thread(file.write, bytes(pending))
            pending.clear()
    await asyncio.to_thread(_finish, file, bytes(pending))
    return digest.hexdigest(), size


def _finish(file: BinaryIO, rest: bytes) -> None:
    file.write(rest)
    file.flush()
    os.fsync(file.fileno())


def _count(path: Path) -> int:
    """The number of files in the tar. Raises InvalidRequest for one that must not be unpacked."""
    count, unpacked = 0, 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise InvalidRequest(f'the tar holds "{member.name[:80]}", outside its folder')
                if not (member.isfile() or member.isdir() or member.issym()):
                    raise InvalidRequest(f'the tar holds "{member.name[:80]}", which is no file')
                count += member.isfile()
                unpacked += member.size
                if count > FILES_MAX or unpacked > UNPACKED_BYTES_MAX:
                    raise TooLarge(
                        f"the code folder has over {FILES_MAX} files or {UNPACKED_BYTES_MAX} bytes"
                    )
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise InvalidRequest(
            "the body is not a tar of a code folder", why=str(error), hint="onefleet run packs one"
        ) from error
    return count


def _keep(part: Path, blob: Path) -> None:
    """Move it to where it stays, whole or not at all."""
    os.replace(part, blob)
    folder = os.open(blob.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _explained(error: OSError, path: Path) -> OnefleetError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            f"the code folder could not be kept in {path.parent}",
            why="no space is left there",
            hint=f"free some: df -h {path.parent}",
        )
    return WorldError(f"the code folder could not be kept in {path.parent}", why=str(error))
