from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from onefleet.domain.errors import InvalidRequest, NotFound, TooLarge
from onefleet.domain.ids import Digest
from onefleet.domain.layout import Layout
from onefleet.registry import code
from onefleet.registry.blobs import blob_path


def folder_of(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def archive_of(*entries: tarfile.TarInfo, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(data.ljust(entry.size)))
    return buffer.getvalue()


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def test_the_same_files_give_the_same_digest(tmp_path: Path) -> None:
    files = {"train.py": "print(1)", "lib/b.py": "b", "lib/a.py": "a"}
    first = folder_of(tmp_path / "one", files)
    second = folder_of(tmp_path / "two", dict(reversed(files.items())))
    os.utime(second / "train.py", (1, 1))
    assert code.pack(first) == code.pack(second)
    assert code.pack(first).files == 3
    (second / "train.py").chmod(0o755)
    assert code.pack(first).digest != code.pack(second).digest


def test_what_is_never_code_is_left_out(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        {
            "keep.py": "",
            ".git/config": "",
            "a/__pycache__/x.pyc": "",
            ".venv/bin/python": "",
            "data/big.bin": "",
            "notes.tmp": "",
            ".onefleetignore": "# comment\ndata/\n*.tmp\n",
        },
    )
    with tarfile.open(fileobj=io.BytesIO(code.pack(folder).data)) as archive:
        assert archive.getnames() == [".onefleetignore", "keep.py"]


def test_a_package_goes_round(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "code", {"train.py": "x = 1\n", "lib/käse.txt": "y"})
    (folder / "train.py").chmod(0o700)
    (folder / "lib" / "up").symlink_to("../train.py")
    layout = Layout(tmp_path / "pool")
    package = code.check(code.pack(folder).data)
    assert code.store(package, layout) == code.store(package, layout) == package.digest
    target = tmp_path / "job" / "work"
    folder_of(target, {"old.txt": "gone"})
    assert code.unpack(layout, package.digest, target) == 3
    assert sorted(path.name for path in target.rglob("*")) == ["käse.txt", "lib", "train.py", "up"]
    assert (target / "lib" / "up").read_text() == "x = 1\n"
    assert (target / "train.py").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in target.parent.iterdir()] == ["work"]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (entry("../evil"), "outside"),
        (entry("/etc/passwd"), "outside"),
        (entry("a/../../evil"), "outside"),
        (entry("device", tarfile.CHRTYPE), "neither file"),
        (entry("pipe", tarfile.FIFOTYPE), "neither file"),
        (entry("hard", tarfile.LNKTYPE, "/etc/passwd"), "neither file"),
        (entry("link", tarfile.SYMTYPE, "/etc"), "leads out"),
        (entry("a/link", tarfile.SYMTYPE, "../../etc"), "leads out"),
        (entry("a/link", tarfile.SYMTYPE, "b/../../.."), "leads out"),
        (entry("x" * 1001), "1000 bytes"),
    ],
)
def test_an_entry_that_would_harm_is_refused(bad: tarfile.TarInfo, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        code.check(archive_of(bad))


def test_nothing_is_written_through_a_link() -> None:
    data = archive_of(entry("dir", tarfile.SYMTYPE, "other"), entry("dir/file"))
    with pytest.raises(InvalidRequest, match="below the link"):
        code.check(data)


def test_the_same_path_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        code.check(archive_of(entry("a"), entry("a")))


@pytest.mark.parametrize("data", [b"not a tar" * 100, archive_of(entry("a", size=600))[:700]])
def test_a_damaged_package_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        code.check(data)


def test_the_limit_is_named_with_what_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "PACKAGE_BYTES_MAX", 1_000_000)
    folder = folder_of(tmp_path, {"model.bin": "x" * 1_200_000, "a.py": ""})
    with pytest.raises(TooLarge) as caught:
        code.pack(folder)
    assert "1.0 MB" in caught.value.why and "model.bin (1.2 MB)" in caught.value.hint
    with pytest.raises(TooLarge):
        code.check(b"x" * 1_000_001)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("/etc")
    with pytest.raises(InvalidRequest, match="leads out"):
        code.pack(tmp_path)


def test_a_pipe_in_the_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match="neither file"):
        code.pack(tmp_path)


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no code folder"):
        code.pack(tmp_path / "nowhere")


def test_a_package_that_is_not_there_or_damaged(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "pool")
    with pytest.raises(NotFound):
        code.unpack(layout, Digest("sha256:" + "0" * 64), tmp_path / "work")
    package = code.pack(folder_of(tmp_path / "code", {"a": "1"}))
    code.store(package, layout)
    blob_path(layout, package.digest).write_bytes(b"other")
    with pytest.raises(InvalidRequest, match="damaged"):
        code.unpack(layout, package.digest, tmp_path / "work")
    assert not (tmp_path / "work").exists()
