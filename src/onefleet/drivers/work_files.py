"""The files of a worker that belong to its state: they go into its image, and come back with it.

A worker's memory knows what it has written: how far a log has grown, which file holds what. So an
image holds those of its files that changed since the worker was first started here: of its work
folder, of its checkpoint folder, and its output. A restore leaves the folder alone if nothing has
happened in it since that very image was made; else (on another machine, from an older image,
after the worker ran on past the image) it brings every file to what it was then, and removes those
that came later: a journal of tomorrow beside a database of today would be worse than neither.

Beyond LIMIT_BYTES the files do not go along. Such an image can be restored only where it was made,
and there, as nobody keeps the files' older contents, the growing ones are cut to their size.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onefleet.domain.errors import UpstreamFailed
from onefleet.drivers.supervisor_files import (
    CHECKPOINT,
    PLACE,
    STDERR,
    STDOUT,
    overwrite_json,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    import tarfile  # imported where it is needed: the supervisor starts without it

ARCHIVE = "files.tar"
#: They are copied while the worker stands still: a second or so.
LIMIT_BYTES = 1 << 30
_WORK = "work"
#: Of an output file, what goes along: its end. The rest of a longer one is a hole elsewhere.
_TAIL_BYTES = 16 << 20
_OUTPUTS = (STDOUT, STDERR)
#: What the owner of a folder needs to put something into it.
_OWNER = 0o700
#: A list of all files there were, changed or not.
_NAMES = "names"


class WorkFiles:
    """The files of one worker. folder: the worker's own; work: its work folder, and origin an
    archive of what that held at first."""

    def __init__(self, folder: str, work: str, origin: str | None = None) -> None:
        self._folder = folder
        self._origin = origin
        self._roots = ((_WORK, work), (CHECKPOINT, f"{folder}/{CHECKPOINT}"))
        self._path = f"{folder}/{PLACE}"

    def arrive(self) -> None:
        """Begin to tell what changes here from what was here before. Raises OSError.

        To be called before the worker's first process runs, and again before any later one does:
        its files are then those of no image any more, as it changes them.
        """
        place = self._found()
        if place["image"]:
            self._keep({**place, "image": ""})

    def _found(self) -> dict[str, Any]:
        """What is known of this place; a new one from now on."""
        place = self._place()
        if not place:
            write_json(self._path, {})
            now = os.stat(self._path).st_ctime_ns
            place = {"place": os.urandom(16).hex(), "since_ns": now, "image": ""}
            self._keep(place)
        return place

    def belong_to(self, image_id: str) -> None:
        """The worker is saved: from here on the files are exactly those of this image."""
        self._keep({**self._place(), "image": image_id})

    def pack(self, folder: str) -> dict[str, Any]:
        """Put the files into an image's folder; what its manifest says of them. Raises OSError."""
        place = self._place()
        since = int(place.get("since_ns", 0))
        everything = list(self._all())
        changed = [f for f in everything if os.lstat(f[1]).st_ctime_ns >= since]
        size = sum(os.lstat(path).st_size for _, path in changed)
        outputs = {}
        for name in _OUTPUTS:
            with contextlib.suppress(FileNotFoundError):
                end = os.stat(f"{self._folder}/{name}").st_size
                outputs[name] = [max(end - _TAIL_BYTES, 0), end]
        facts = {"place": place.get("place", ""), "count": len(changed), "bytes": size}
        if size > LIMIT_BYTES:
            return {**facts, "left": f"{len(changed)} files of {size} bytes"}
        import tarfile

        with tarfile.open(f"{folder}/{ARCHIVE}", "w") as tar:
            names = json.dumps([name for name, _ in everything]).encode()
            member = tarfile.TarInfo(_NAMES)
            member.size = len(names)
            tar.addfile(member, io.BytesIO(names))
            for name, path in changed:
                with contextlib.suppress(FileNotFoundError):
                    _add(tar, name, path)
            for name, (first, end) in outputs.items():
                with open(f"{self._folder}/{name}", "rb") as file:
                    file.seek(first)
                    member = tar.gettarinfo(arcname=name, fileobj=file)
                    member.size = end - first
                    tar.addfile(member, file)
        return {**facts, "left": "", "outputs": outputs}

    def bring_back(self, image: str, image_id: str, facts: dict[str, Any]) -> bool:
        """Make the files those of the image; False when they are already.

        facts: what `pack` said. Raises OSError, UpstreamFailed when the image does not have them.
        """
        place = self._found()
        if place["image"] == image_id:
            return False
        here = facts["place"] == place["place"]
        if facts["left"]:
            if here:
                return True
            raise UpstreamFailed(
                f"image {image} can be restored only where it was made",
                why=f"its work folder held {facts['left']} that the job wrote; up to "
                f"{LIMIT_BYTES} bytes move with an image",
                hint="restore it there, or have the job write less into its work folder",
            )
        self._unpack(f"{image}/{ARCHIVE}", int(place["since_ns"]))
        for name, (first, end) in facts["outputs"].items():
            self._bring_output(image, name, first, end, here)
        return True

    def is_foreign(self, facts: dict[str, Any]) -> bool:
        """Whether the image was made in another folder than this."""
        return bool(facts["place"] != self._place().get("place"))

    def _unpack(self, archive: str, since_ns: int) -> None:
        import tarfile

        roots = dict(self._roots)
        with tarfile.open(archive) as tar:
            held = tar.extractfile(_NAMES)
            assert held is not None, f"{_NAMES} is a regular file in the archive"
            names = set(json.loads(held.read()))
            self._remove_others(names)
            self._unpack_origin(names.difference(tar.getnames()), since_ns)
            # As an attribute: Python before 3.11.4 has no argument for it. Our own, and checked.
            tar.extraction_filter = lambda member, _: member
            closed = []
            for member in tar:
                kind, slash, rest = member.name.partition("/")
                if not slash:
                    continue
                _clear(roots[kind], rest, member)
                member.name = rest
                if member.isdir() and member.mode & _OWNER != _OWNER:
                    closed.append((f"{roots[kind]}/{rest}", member.mode))
                    member.mode |= _OWNER
                tar.extract(member, roots[kind], numeric_owner=True)
            for path, mode in closed:  # they are filled now
                os.chmod(path, mode)

    def _remove_others(self, names: set[str]) -> None:
        """Remove what was not there then: it was made later, or is of the code that a new place
        begins with, and the worker had removed it.
        """
        for name, path in reversed(list(self._all())):  # what is in a folder before the folder
            if name not in names:
                is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
                with contextlib.suppress(OSError):  # a folder that still holds something else
                    (os.rmdir if is_folder else os.unlink)(path)

    def _unpack_origin(self, names: set[str], since_ns: int) -> None:
        """Undo later changes to what was still as at first.

        names: of all such files. What has changed here since the worker first ran here is not
        what the image knows.
        """
        root = dict(self._roots)[_WORK]
        kept = [rest for kind, _, rest in (name.partition("/") for name in names) if kind == _WORK]
        later = {rest for rest in kept if _is_changed(f"{root}/{rest}", since_ns)}
        if not later or self._origin is None or not os.path.exists(self._origin):
            return
        import tarfile

        with tarfile.open(self._origin) as tar:
            tar.extraction_filter = lambda member, _: member
            for member in tar:
                if member.name in later:
                    _clear(root, member.name, member)
                    tar.extract(member, root)

    def _bring_output(self, image: str, name: str, first: int, end: int, here: bool) -> None:
        """Cut an output file to its size then; write it anew where it was never written."""
        import tarfile

        with open(os.open(f"{self._folder}/{name}", os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            if not here or file.seek(0, os.SEEK_END) < end:
                file.truncate(0)
                file.seek(first)
                with tarfile.open(f"{image}/{ARCHIVE}") as tar:
                    held = tar.extractfile(name)
                    assert held is not None, f"{name} is a regular file in the archive"
                    while chunk := held.read(1 << 20):
                        file.write(chunk)
            file.truncate(end)

    def _all(self) -> Iterator[tuple[str, str]]:
        """(name in the archive, path) of all that is in the folders, parents first."""
        for kind, root in self._roots:
            for parent, folders, names in os.walk(root):
                folders.sort()
                for name in (*folders, *sorted(names)):
                    path = f"{parent}/{name}"
                    with contextlib.suppress(FileNotFoundError):
                        if not stat.S_ISSOCK(os.lstat(path).st_mode):
                            yield f"{kind}/{os.path.relpath(path, root)}", path

    def _place(self) -> dict[str, Any]:
        try:
            return read_json(self._path)
        except ValueError:
            return {}

    def _keep(self, place: dict[str, Any]) -> None:
        try:
            write_json(self._path, place)
        except OSError:  # a full disk has room for it in place
            overwrite_json(self._path, place)


def cut(files: Sequence[Sequence[Any]], root: str) -> None:
    """Cut growing files of a manifest, seen from `root`, to what they were then."""
    for name, size, _, grows in files:
        with contextlib.suppress(FileNotFoundError):
            if grows and os.stat(root + name).st_size > size:
                os.truncate(root + name, size)


def _add(tar: tarfile.TarFile, name: str, path: str) -> None:
    member = tar.gettarinfo(path, name)
    if member.islnk():  # a further name of a file that the archive has already
        kind, _, rest = member.linkname.partition("/")
        if name.startswith(f"{kind}/"):
            member.linkname = rest  # from the folder that it is unpacked into
        else:
            member.type, member.size = b"0", os.stat(path).st_size
    if not member.isreg():
        tar.addfile(member)
        return
    with open(path, "rb") as file:
        tar.addfile(member, file)


def _clear(root: str, name: str, member: tarfile.TarInfo) -> None:
    """Make way for a member of an archive: nothing of another kind has its name, and no link leads
    elsewhere. A file is written in place: to a program that knows its number it is still the same.
    """
    parts = name.split("/")
    for number in range(1, len(parts) + 1):
        path = "/".join((root, *parts[:number]))
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            inside = number < len(parts)
            if stat.S_ISDIR(status.st_mode):
                if not inside and not member.isdir():
                    shutil.rmtree(path)
            elif inside or not member.isreg() or not _is_one_file(status):
                os.unlink(path)


def _is_changed(path: str, since_ns: int) -> bool:
    """Whether it has changed since then, or is gone."""
    try:
        return os.lstat(path).st_ctime_ns >= since_ns
    except (FileNotFoundError, NotADirectoryError):
        return True


def _is_one_file(status: os.stat_result) -> bool:
    """Whether it can be written in place; who is not root cannot write to what is read-only."""
    mode = status.st_mode
    return stat.S_ISREG(mode) and status.st_nlink == 1 and bool(mode & stat.S_IWUSR)
