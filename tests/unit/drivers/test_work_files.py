"""What of a worker's files goes into its image, and when it is brought back."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from onefleet.domain.errors import UpstreamFailed
from onefleet.drivers import work_files
from onefleet.drivers.work_files import WorkFiles


class Place:
    """A worker's folders on one machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder, self.work = root / "w", root / "w" / "work"
        (self.folder / "checkpoint").mkdir(parents=True)
        self.work.mkdir()
        (self.work / "train.py").write_text("print()")
        (self.folder / "stdout").write_text("")
        time.sleep(0.02)  # the clock of files ticks that slowly
        self.origin = root / "code"
        with tarfile.open(self.origin, "w") as tar:
            tar.add(self.work / "train.py", "train.py")
        self.files = WorkFiles(str(self.folder), str(self.work), str(self.origin))

    def image(self, name: str) -> tuple[str, dict[str, Any]]:
        folder = self.root / name
        folder.mkdir()
        return str(folder), self.files.pack(str(folder))

    def back(self, image: tuple[str, dict[str, Any]], image_id: str) -> bool:
        changed = self.files.bring_back(image[0], image_id, image[1])
        self.files.arrive()
        return changed


@pytest.fixture
def here(tmp_path: Path) -> Place:
    place = Place(tmp_path / "here")
    place.files.arrive()
    return place


@pytest.fixture
def there(tmp_path: Path) -> Place:
    return Place(tmp_path / "there")


def test_what_the_worker_wrote_goes_along_and_its_code_does_not(here: Place, there: Place) -> None:
    (here.work / "out").mkdir()
    (here.work / "out" / "model").write_bytes(b"weights" * 1000)
    (here.work / "out" / "model").chmod(0o640)
    os.utime(here.work / "out" / "model", ns=(10**18, 10**18 + 1000))
    (here.work / "last").symlink_to("out/model")
    os.link(here.work / "out" / "model", here.work / "same")
    os.link(here.work / "out" / "model", here.folder / "checkpoint" / "best")
    os.mkfifo(here.work / "pipe")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(here.work / "door"))
    (here.folder / "checkpoint" / "n").write_text("7")
    (here.folder / "stdout").write_text("hello\n")
    image = here.image("image")
    assert image[1]["count"] == 7
    (there.work / "train.py").write_text("print()  # its own copy")
    assert there.back(image, "a")
    assert (there.work / "out" / "model").read_bytes() == b"weights" * 1000
    status = (there.work / "out" / "model").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert abs(status.st_mtime_ns - 10**18) < 10_000
    assert os.readlink(there.work / "last") == "out/model"
    assert (there.work / "same").samefile(there.work / "out" / "model")
    assert (there.folder / "checkpoint" / "best").read_bytes() == b"weights" * 1000
    assert stat.S_ISFIFO((there.work / "pipe").stat().st_mode)
    assert not (there.work / "door").exists()
    assert (there.folder / "checkpoint" / "n").read_text() == "7"
    assert (there.folder / "stdout").read_text() == "hello\n"
    assert "its own copy" in (there.work / "train.py").read_text()
    # From there it moves on with all of it.
    assert there.image("next")[1]["count"] == 7


def test_nothing_is_touched_if_nothing_has_happened_since(here: Place) -> None:
    (here.work / "log").write_text("1\n")
    image = here.image("image")
    here.files.belong_to("a")
    (here.work / "log").write_text("1\nsomebody else's\n")
    assert not here.back(image, "a")
    assert "somebody" in (here.work / "log").read_text()


def test_back_in_time_all_of_it_is_as_it_was(here: Place) -> None:
    """From an older image, or from one that the worker ran on after."""
    (here.work / "log").write_text("1\n")
    (here.folder / "stdout").write_text("one\n")
    (here.work / "state").mkdir()
    (here.work / "state" / "n").write_text("1")
    image = here.image("image")
    here.files.belong_to("a")
    assert not here.back(image, "a")
    (here.work / "log").write_text("2\n")
    (here.folder / "stdout").write_text("one\ntwo\n")
    (here.work / "state" / "n").unlink()
    (here.work / "state").rmdir()
    (here.work / "state").symlink_to(here.root)  # a link leads out of the folder
    (here.work / "later").mkdir()
    (here.work / "later" / "journal").write_text("2")
    (here.work / "train.py").write_text("changed for the first time")
    here.files.belong_to("b")
    assert here.back(image, "a")
    assert (here.work / "log").read_text() == "1\n"
    assert (here.folder / "stdout").read_text() == "one\n"
    assert (here.work / "state" / "n").read_text() == "1"
    assert not (here.root / "n").exists()
    assert sorted(path.name for path in here.work.iterdir()) == ["log", "state", "train.py"]
    assert (here.work / "train.py").read_text() == "print()"


def test_what_the_worker_removed_of_its_code_does_not_come_back(here: Place, there: Place) -> None:
    (here.work / "train.py").rename(here.work / "done.py")
    image = here.image("image")
    there.back(image, "a")
    assert [path.name for path in there.work.iterdir()] == ["done.py"]


def test_names_of_one_file_stay_names_of_one_file(here: Place) -> None:
    (here.work / "a").write_text("1")
    os.link(here.work / "a", here.work / "b")
    image = here.image("image")
    (here.work / "b").unlink()
    (here.work / "b").write_text("2")
    assert here.back(image, "a")
    (here.work / "a").write_text("3")
    assert (here.work / "b").read_text() == "3"


@contextmanager
def only_an_owners_rights() -> Iterator[None]:
    """Root may write anywhere; without these two capabilities only where its files let it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    fewer = (ctypes.c_uint32 * 6)(*before)
    fewer[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH of the effective ones
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def test_an_ordinary_user_gets_what_is_read_only_back(here: Place, there: Place) -> None:
    folder, fixed = here.work / "folder", here.work / "fixed"
    folder.mkdir()
    (folder / "inner").write_text("1")
    folder.chmod(0o555)
    fixed.write_text("1")
    fixed.chmod(0o444)
    image = here.image("image")
    fixed.unlink()
    fixed.write_text("2")
    fixed.chmod(0o444)
    for place in (here, there):
        with only_an_owners_rights():
            assert place.back(image, "a")
        assert (place.work / "fixed").read_text() == "1"
        assert (place.work / "folder" / "inner").read_text() == "1"
        modes = [stat.S_IMODE((place.work / name).stat().st_mode) for name in ("fixed", "folder")]
        assert modes == [0o444, 0o555]


def test_back_in_time_its_code_is_as_it_was(here: Place, there: Place) -> None:
    """The image does not have what was as at first; whatever became of it later is undone."""
    image = first = here.image("image")
    (here.work / "train.py").unlink()
    assert here.back(image, "a")
    assert (here.work / "train.py").read_text() == "print()"
    # It had been there before, and ran on from this image until it went back once more.
    there.files.arrive()
    (there.work / "train.py").unlink()
    (there.work / "train.py").mkdir()
    (there.work / "train.py" / "deep").write_text("2")
    assert there.back(image, "a")
    assert (there.work / "train.py").read_text() == "print()"
    # What it changed before the image is of the image, not of the code.
    (here.work / "train.py").write_text("own")
    image = here.image("later")
    (here.work / "train.py").write_text("more")
    assert here.back(image, "b")
    assert (here.work / "train.py").read_text() == "own"
    # Where there is no such archive it stays as it is.
    here.origin.unlink()
    assert here.back(first, "a")
    assert (here.work / "train.py").read_text() == "own"


def test_a_folder_in_a_files_way_makes_room(here: Place) -> None:
    (here.work / "x").write_text("file")
    (here.work / "y").mkdir()
    image = here.image("image")
    (here.work / "x").unlink()
    (here.work / "x").mkdir()
    (here.work / "x" / "deep").write_text("")
    (here.work / "y").rmdir()
    (here.work / "y").write_text("")
    assert here.back(image, "a")
    assert (here.work / "x").read_text() == "file"
    assert (here.work / "y").is_dir()


def test_of_a_long_output_the_end_goes_along(
    here: Place, there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_files, "_TAIL_BYTES", 4)
    (here.folder / "stdout").write_text("0123456789")
    image = here.image("image")
    there.back(image, "a")
    assert (there.folder / "stdout").read_bytes() == b"\0" * 6 + b"6789"
    (here.folder / "stdout").write_text("0123456789ab")
    here.back(image, "a")  # it is only cut where the rest is
    assert (here.folder / "stdout").read_text() == "0123456789"


def test_too_much_stays_and_says_so(
    here: Place, there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_files, "LIMIT_BYTES", 100)
    (here.work / "big").write_bytes(bytes(101))
    image = here.image("image")
    assert not (Path(image[0]) / work_files.ARCHIVE).exists()
    with pytest.raises(UpstreamFailed, match="only where it was made") as caught:
        there.back(image, "a")
    assert "1 files of 101 bytes" in caught.value.why
    assert here.back(image, "a")  # nothing to bring; the caller cuts what has grown
    assert (here.work / "big").exists()


def test_a_full_disk_does_not_hide_whose_files_these_are(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, value: object) -> None:
        raise OSError(28, "No space left on device")

    image = here.image("image")
    monkeypatch.setattr(work_files, "write_json", full)
    here.files.belong_to("a")
    assert not here.files.bring_back(image[0], "a", image[1])
