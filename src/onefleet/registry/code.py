"""Packages a code folder by content: the same files give the same bytes and the same digest.

The package is a plain tar: entries sorted, no owner, no times, of a file's mode only "may be
executed". Unpacking trusts nothing: an entry that would land outside the target, a device, or a
link that leads out is refused before anything is written.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onefleet.domain.errors import InvalidRequest, NotFound, TooLarge
from onefleet.domain.ids import Digest
from onefleet.domain.layout import Layout
from onefleet.domain.quantities import size
from onefleet.registry.blobs import adopt, blob_path, ensure_room, no_space_is_ours, write_hashed

#: The largest package, and the largest sum of the files that one unpacks to.
PACKAGE_BYTES_MAX = 64 << 20
FILES_MAX = 20_000
PATH_BYTES_MAX = 1_000

#: Never code: history, environments, caches, what a system puts everywhere.
LEFT_OUT = (
    ".git", ".hg", ".svn", "__pycache__", "*.pyc", ".venv", "venv", ".tox", ".nox", "node_modules",
    ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints",
    "*.egg-info", ".DS_Store", ".idea", ".vscode",
)  # fmt: skip

#: A file of further patterns in the folder, one a line: a name, or a path from the folder.
IGNORE_FILE = ".onefleetignore"

#: The time of every entry: 1980-01-01, the earliest that every archive format can say.
_TIME_S = 315_532_800


@dataclass(frozen=True, slots=True)
class CodePackage:
    """A packaged folder. files: regular files and links in it."""

    digest: Digest
    data: bytes
    files: int


def pack(folder: Path) -> CodePackage:
    """Package a folder. Raises InvalidRequest, or TooLarge naming the limit and what is large."""
    if not folder.is_dir():
        raise InvalidRequest(
            f"there is no code folder at {folder}", hint="give a folder", param="code"
        )
    folder = folder.resolve()
    files = list(_walk(folder, folder, (*LEFT_OUT, *_ignored(folder))))
    _check_size(folder, files)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in files:
            _add(archive, folder, path)
    data = buffer.getvalue()
    return CodePackage(_digest(data), data, len(files))


def check(data: bytes) -> CodePackage:
    """Look at a package that came from outside. Raises InvalidRequest or TooLarge."""
    if len(data) > PACKAGE_BYTES_MAX:
        raise TooLarge(
            f"the code package has {size(len(data))}",
            why=f"the limit is {size(PACKAGE_BYTES_MAX)}",
            hint=f"leave data out with {IGNORE_FILE}, and give its path to the job instead",
            param="code",
        )
    with _open(data) as archive:
        members = _members(archive)
    return CodePackage(_digest(data), data, sum(1 for member in members if not member.isdir()))


def store(package: CodePackage, layout: Layout) -> Digest:
    """Put a checked package among the blobs. Raises StorageFull."""
    if not blob_path(layout, package.digest).is_file():
        ensure_room(layout.root, len(package.data), "the code package")
        layout.downloads.mkdir(parents=True, exist_ok=True)
        with no_space_is_ours(layout.root, "storing the code package"):
            handle, name = tempfile.mkstemp(prefix="code.", dir=layout.downloads)
            os.close(handle)
            hex_digest = write_hashed(Path(name), [package.data], lambda done: None)
            adopt(layout, Path(name), hex_digest)
    return package.digest


def unpack(layout: Layout, digest: Digest, target: Path) -> int:
    """Unpack a stored package into `target`, which appears whole or not at all; return its files.

    What was at `target` is replaced. Raises NotFound, or InvalidRequest when the package is not
    what its digest says or would write elsewhere.
    """
    path = blob_path(layout, digest)
    if not path.is_file():
        raise NotFound(f"the code package {digest[:19]}... is not on this node")
    data = path.read_bytes()
    if _digest(data) != digest:
        raise InvalidRequest(
            f"the code package {digest[:19]}... was damaged on disk",
            why=f"its bytes have the digest {_digest(data)[:19]}...",
            hint="submit the job again",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with no_space_is_ours(target.parent, "unpacking code"), _open(data) as archive:
            members = _members(archive)
            for member in members:
                _extract(archive, member, scratch)
        scratch.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sum(1 for member in members if not member.isdir())


# --- packing ------------------------------------------------------------------------------------


def _walk(root: Path, folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """Files and links below the folder, in order of their paths; no folder that is empty."""
    for path in sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name)):
        relative = path.relative_to(root).as_posix()
        if any(fnmatch.fnmatchcase(name, p) for p in patterns for name in (path.name, relative)):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(root, path, patterns)
        else:
            yield path


def _ignored(folder: Path) -> list[str]:
    file = folder / IGNORE_FILE
    if not file.is_file():
        return []
    lines = (line.strip() for line in file.read_text("utf-8", errors="replace").splitlines())
    return [line.strip("/") for line in lines if line.strip("/") and not line.startswith("#")]


def _check_size(folder: Path, files: list[Path]) -> None:
    sizes = {path: path.lstat().st_size for path in files}
    total = sum(sizes.values())
    if total <= PACKAGE_BYTES_MAX and len(files) <= FILES_MAX:
        return
    largest = sorted(files, key=lambda path: -sizes[path])[:3]
    names = ", ".join(f"{p.relative_to(folder)} ({size(sizes[p])})" for p in largest)
    raise TooLarge(
        f"the code folder {folder} has {len(files)} files of {size(total)}",
        why=f"the limits are {FILES_MAX} files and {size(PACKAGE_BYTES_MAX)}",
        hint=f"name what is not code in {folder / IGNORE_FILE}; the largest are {names}",
        param="code",
    )


def _add(archive: tarfile.TarFile, root: Path, path: Path) -> None:
    name = path.relative_to(root).as_posix()
    entry = tarfile.TarInfo(name)
    entry.mtime = _TIME_S
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        target = os.readlink(path)
        if not _stays_inside(name, target):
            raise InvalidRequest(
                f"the link {path} leads out of the code folder, to {target[:200]}",
                why="on another machine it would lead nowhere",
                hint=f"copy the file, or name the link in {IGNORE_FILE}",
                param="code",
            )
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
        archive.addfile(entry)
        return
    if not stat.S_ISREG(mode):
        raise InvalidRequest(
            f"{path} is neither file, folder nor link",
            hint=f"remove it, or name it in {IGNORE_FILE}",
            param="code",
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"cannot read {path}: {error.strerror}", hint="give it read permission", param="code"
        ) from None
    entry.mode = 0o755 if mode & 0o111 else 0o644
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _digest(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


# --- unpacking ----------------------------------------------------------------------------------


def _open(data: bytes) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=io.BytesIO(data), mode="r:")
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise _refused(f"it is no tar archive ({str(error)[:100]})") from None


def _members(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """All entries, each checked to be harmless."""
    members: list[tarfile.TarInfo] = []
    total, seen, links = 0, set(), []
    try:
        for member in archive:
            members.append(member)
            total += member.size
            if len(members) > FILES_MAX or total > PACKAGE_BYTES_MAX:
                raise _refused(f"it holds over {FILES_MAX} files or {PACKAGE_BYTES_MAX} bytes")
            _check_member(member)
            if member.name in seen:
                raise _refused(f'"{member.name[:100]}" is in it twice')
            seen.add(member.name)
            if member.issym():
                links.append(member.name)
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise _refused(f"it is damaged ({str(error)[:100]})") from None
    for link in links:
        if any(name.startswith(f"{link}/") for name in seen):
            raise _refused(f'an entry lies below the link "{link[:100]}"')
    return members


def _check_member(member: tarfile.TarInfo) -> None:
    name = member.name
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise _refused(f'"{name[:100]}" would lie outside the folder')
    if len(name.encode(errors="surrogateescape")) > PATH_BYTES_MAX:
        raise _refused(f'the path "{name[:60]}..." is over {PATH_BYTES_MAX} bytes long')
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    if not (plain or member.isdir() or member.issym()):
        raise _refused(f'"{name[:100]}" is neither file, folder nor symbolic link')
    if member.issym() and not _stays_inside(name, member.linkname):
        raise _refused(f'the link "{name[:100]}" leads out of the folder')


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    path = root / member.name
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
        return
    source = archive.extractfile(member)
    assert source is not None
    with path.open("xb") as file:
        shutil.copyfileobj(source, file)
    path.chmod(0o755 if member.mode & 0o111 else 0o644)


def _stays_inside(name: str, target: str) -> bool:
    """Whether a link at `name`, seen from the folder's root, points into the folder.

    ".." may only come first: after another link it would climb from wherever that one leads.
    """
    if not target or target.startswith("/") or "\0" in target:
        return False
    parts = PurePosixPath(target).parts
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    return climbs < len(PurePosixPath(name).parts) and ".." not in parts[climbs:]


def _refused(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"the code package is refused: {what}",
        why="it must unpack into its own folder and nowhere else",
        hint="submit the job through the onefleet command, which packages the folder",
        param="code",
    )
