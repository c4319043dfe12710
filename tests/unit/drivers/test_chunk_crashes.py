"""A fold and a clean-up that are killed at every point: no image is lost, no rubbish stays.

Each point is a call that changes the disk. The process dies there as by SIGKILL in a power cut:
what it had not made durable by then is half there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from onefleet.drivers import image, recipe
from onefleet.drivers.chunk_store import ChunkStore

from .test_chunk_store import content, fold, in_packs, make, pages, put_together

_CALLS = ("fsync", "rename", "replace", "unlink", "rmdir")
_CRASHED = 66

CONTENTS = {
    "1": pages(*range(1, 100), 0),
    "2": pages(*range(1, 20), 0, 0, *range(200, 230)),
    "3": pages(*range(10, 25), *range(300, 330)) + b"end",
}


def prepare(root: Path) -> ChunkStore:
    """Two folded images, of which the first is to go, and one that has just been saved."""
    store = ChunkStore(root / "chunks")
    for name, pages_of_it in CONTENTS.items():
        target = make(root / name, a=pages_of_it)
        if name != "3":
            fold(store, target)
            image.drop_raw(str(target))
    return store


def work(root: Path) -> None:
    """What is done in the background after a save, from whatever state."""
    store = ChunkStore(root / "chunks")
    image.discard(str(root / "1"))
    target = root / "3"
    if not image.is_folded(str(target)):
        fold(store, target)
    image.drop_raw(str(target))
    with store.writing() as writer:
        writer.collect([root / name / recipe.NAME for name in CONTENTS])


class PowerCut:
    """Ends this process at the so manieth call that changes the disk."""

    def __init__(self, root: Path, at: int) -> None:
        self._root = root
        self._left = at
        self._old = {p.stat().st_ino for p in root.rglob("*") if p.is_file()}
        self._durable: set[int] = set()
        for name in _CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name, real):
        def call(*arguments, **more):
            if self._left == 0:
                self._cut()
            self._left -= 1
            result = real(*arguments, **more)
            if name == "fsync":
                self._durable.add(os.fstat(arguments[0]).st_ino)
            return result

        return call

    def _cut(self) -> None:
        for path in self._root.rglob("*"):
            if path.is_file() and path.stat().st_ino not in self._old | self._durable:
                os.truncate(path, path.stat().st_size // 2)
        os._exit(_CRASHED)


def cut_at(root: Path, at: int) -> bool:
    """Work in a process that dies at that point; False when it came to its end before."""
    pid = os.fork()
    if pid == 0:
        try:
            PowerCut(root, at)
            work(root)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, _CRASHED)
    return code == _CRASHED


def check_all_is_there(root: Path, store: ChunkStore) -> None:
    for name in ("2", "3"):
        copy = root / f"copy-{name}"
        shutil.copytree(root / name, copy)  # opening it puts its files there
        assert put_together(store, copy)["a"] == CONTENTS[name]
        shutil.rmtree(copy)


def test_no_crash_loses_an_image_or_leaves_rubbish(tmp_path: Path) -> None:
    at = 0
    crashed = True
    while crashed:
        root = tmp_path / str(at)
        root.mkdir()
        store = prepare(root)
        crashed = cut_at(root, at)
        check_all_is_there(root, store)
        work(root)
        check_all_is_there(root, store)
        assert sorted(os.listdir(root)) == ["2", "3", "chunks"]
        assert content(root / "3") == {}
        assert all(p.suffix == ".pack" or p.name == "lock" for p in store.folder.iterdir())
        # Pages 1 to 24, 200 to 229, 300 to 329 and the end. A crash between the changes of two
        # recipes leaves what the first had of the old pack in both packs, this once.
        assert in_packs(store) in (24 + 30 + 31, 24 + 30 + 31 + 15)
        shutil.rmtree(root)
        at += 1
    assert at > 15, "these were not all points"


def test_a_crash_after_a_crash(tmp_path: Path) -> None:
    for first in range(0, 20, 3):
        for second in range(0, 20, 4):
            root = tmp_path / f"{first}-{second}"
            root.mkdir()
            store = prepare(root)
            cut_at(root, first)
            cut_at(root, second)
            check_all_is_there(root, store)
            work(root)
            check_all_is_there(root, store)
            assert in_packs(store) <= 100
            shutil.rmtree(root)


@pytest.mark.parametrize("name", ["2", "3"])
def test_what_is_renamed_was_made_durable_before(tmp_path: Path, name: str) -> None:
    """The order that the crash test relies on, looked at directly."""
    seen: list[tuple[str, int]] = []
    real_fsync, real_rename, real_replace = os.fsync, os.rename, os.replace
    store = ChunkStore(tmp_path / "chunks")
    target = make(tmp_path / name, a=CONTENTS[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (seen.append(("sync", os.fstat(fd).st_ino)),
                                               real_fsync(fd)))  # fmt: skip
        for call, real in (("rename", real_rename), ("replace", real_replace)):
            patch.setattr(os, call, lambda a, b, real=real: (
                seen.append(("rename", os.stat(a).st_ino)), real(a, b)))  # fmt: skip
        fold(store, target)
    renamed = [inode for what, inode in seen if what == "rename"]
    assert len(renamed) == 2
    for inode in renamed:
        assert seen.index(("sync", inode)) < seen.index(("rename", inode))
    folder = store.folder.stat().st_ino
    assert seen.index(("sync", folder)) < seen.index(("rename", renamed[1]))
