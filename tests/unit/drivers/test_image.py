"""Images and what is read and written of criu's: whole or refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path

import pytest

from onefleet.domain.errors import Conflict, NotFound, UpstreamFailed
from onefleet.drivers import image, pstree, recipe
from onefleet.drivers.cell_worker import _free_pids
from onefleet.drivers.chunk_store import ChunkStore
from onefleet.drivers.criu_commands import telling_errors
from onefleet.drivers.supervisor_files import overwrite_json, read_json, write_json


def make(target: Path, **files: bytes) -> None:
    partial = Path(image.begin(str(target)))
    for name, content in files.items():
        (partial / name).write_bytes(content)
    image.commit(str(target), {"kind": "test"})


def test_an_image_is_whole_once_it_has_its_name(tmp_path: Path) -> None:
    target = tmp_path / "image"
    partial = Path(image.begin(str(target)))
    (partial / "left.img").write_bytes(b"rubbish")
    assert not target.exists()
    with pytest.raises(NotFound):
        image.read(str(target))
    make(target, a=b"one", b=b"two!")  # an earlier attempt's rubbish is not part of it
    assert not partial.exists()
    manifest = image.verify(str(target))
    assert image.total_bytes(manifest) == 7
    assert sorted(manifest["files"]) == ["a", "b"]
    with pytest.raises(Conflict, match="already exists"):
        image.begin(str(target))


def test_decay_is_seen(tmp_path: Path) -> None:
    target = tmp_path / "image"
    make(target, a=b"one" * 1_000_000, b=b"")
    image.verify(str(target))
    (target / "a").write_bytes(b"one" * 999_999 + b"onE")
    with pytest.raises(UpstreamFailed, match="torn or corrupt") as caught:
        image.verify(str(target))
    assert "a has been changed" in caught.value.why


@pytest.mark.parametrize("digest", [hashlib.sha256(b"one").hexdigest(), ""])
def test_an_image_of_the_format_before_is_restored(tmp_path: Path, digest: str) -> None:
    target = tmp_path / "image"
    make(target, a=b"one")
    manifest = image.read(str(target))
    image._write(
        str(target), {**manifest, "format": 1, "files": {"a": {"size": 3, "sha256": digest}}}
    )
    image.verify(str(target))
    (target / "a").write_bytes(b"two" if digest else b"four")
    with pytest.raises(UpstreamFailed, match="torn or corrupt"):
        image.verify(str(target))


def test_what_cannot_be_made_durable_is_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    partial = Path(image.begin(str(tmp_path / "image")))
    (partial / "a").write_bytes(b"one")
    monkeypatch.setattr(image.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        image.commit(str(tmp_path / "image"), {"kind": "test"})
    assert not (tmp_path / "image").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"manifest": {}, "sha256": ""}'])
def test_a_torn_manifest_is_told(tmp_path: Path, text: str) -> None:
    target = tmp_path / "image"
    make(target, a=b"one")
    (target / "manifest.json").write_text(text)
    with pytest.raises(UpstreamFailed, match="torn or corrupt"):
        image.read(str(target))


def in_memory(tmp_path: Path, name: str = "image") -> tuple[Path, Path]:
    """An image whose files lie in another folder, as they do for one in memory; both."""
    target, memory = tmp_path / name, tmp_path / "shm" / name
    folder = Path(image.begin(str(target), str(memory)))
    (folder / "a").write_bytes(b"one" * 5000)
    image.commit(str(target), {"kind": "test"})
    return target, memory


def test_files_in_memory_are_part_of_the_image(tmp_path: Path) -> None:
    target, memory = in_memory(tmp_path)
    assert sorted(p.name for p in target.iterdir()) == ["manifest.json", "memory"]
    assert image.raw(str(target)) == str(target / "memory")
    assert not image.is_durable(str(target))
    with image.opened(str(target), None) as manifest:
        assert image.total_bytes(manifest) == 15_000
    (memory / "a").write_bytes(b"two" * 5000)
    with pytest.raises(UpstreamFailed, match="torn or corrupt"):
        image.verify(str(target))
    image.discard(str(target))
    assert list((tmp_path / "shm").iterdir()) == []


def test_an_image_in_memory_is_lost_with_it_unless_it_is_folded(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path / "chunks")
    target, memory = in_memory(tmp_path)
    with store.writing() as writer:
        recipe.write(target / recipe.NAME, writer.fold({"a": memory / "a"}))
    lost, gone = in_memory(tmp_path, "lost")
    shutil.rmtree(tmp_path / "shm")
    with pytest.raises(UpstreamFailed, match="torn or corrupt") as caught:
        image.verify(str(lost))
    assert "started anew" in caught.value.why
    assert image.is_durable(str(target))
    with image.opened(str(target), str(store.folder)):
        assert (target / "a").read_bytes() == b"one" * 5000
    image.drop_raw(str(target))
    assert sorted(p.name for p in target.iterdir()) == ["manifest.json", "recipe.json"]
    assert not gone.exists()


def test_what_was_begun_in_memory_is_removed(tmp_path: Path) -> None:
    target, memory = tmp_path / "image", tmp_path / "shm" / "image"
    folder = Path(image.begin(str(target), str(memory)))
    (folder / "a").write_bytes(b"half")
    assert (memory / "a").exists()
    image.begin(str(target))  # the next try goes to the disk
    assert not memory.exists()
    image.begin(str(target), str(memory))
    image.discard_partial(str(target))
    assert list(tmp_path.iterdir()) == [tmp_path / "shm"]
    assert list((tmp_path / "shm").iterdir()) == []


def entry(*numbers: tuple[int, int]) -> bytes:
    return pstree._packed(list(numbers))


def test_daemons_get_a_session_with_a_leader(tmp_path: Path) -> None:
    path = tmp_path / "pstree.img"
    marks = b"12345678"
    root = entry((1, 100), (2, 0), (3, 100), (4, 100), (5, 100), (5, 300))
    own = entry((1, 40_000), (2, 100), (3, 40_000), (4, 40_000), (5, 40_000))
    daemon = entry((1, 103), (2, 100), (3, 102), (4, 102), (5, 103))
    path.write_bytes(marks + root + own)
    pstree.keep_daemons(str(path))
    assert path.read_bytes() == marks + root + own  # nothing to mend
    path.write_bytes(marks + root + own + daemon)
    pstree.keep_daemons(str(path))
    mended = entry((1, 103), (2, 100), (3, 102), (4, 100), (5, 103))
    assert path.read_bytes() == marks + root + own + mended


@pytest.mark.parametrize(
    "tail", [struct.pack("<I", 9) + b"\x08", struct.pack("<I", 2) + b"\x0a\x00", b"\x01"]
)
def test_an_unknown_process_tree_is_refused(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "pstree.img"
    path.write_bytes(b"12345678" + entry((1, 100), (4, 100)) + tail)
    with pytest.raises(UpstreamFailed, match="not a process tree"):
        pstree.keep_daemons(str(path))


def test_crius_log_is_reduced_to_what_tells() -> None:
    log = """(00.1) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self
(00.2) Warn  (criu/x.c:1): nothing
(00.3) Error (criu/sockets.c:628): sockets: Can't get 1:16 opt
(00.4) Error (criu/cr-dump.c:1681): Dump files (pid: 100) failed with -1
(00.5) Error (criu/cr-dump.c:2111): Dumping FAILED.
"""
    said = telling_errors(log)
    assert said.startswith("(00.3) Error (criu/sockets.c:628)")
    assert said.endswith("failed with -1")
    assert telling_errors("") == "it said nothing"
    assert telling_errors("no such option\n") == "no such option"
    assert telling_errors("(00.5) Error (a.c:1): Dumping FAILED.\n").endswith("FAILED.")


def test_criu_gets_process_ids_that_the_image_does_not_need() -> None:
    assert _free_pids([100, 101]) == 30_000
    assert _free_pids([100, 30_000, 30_063]) == 30_064
    assert _free_pids([100, 30_064]) == 30_000
    assert _free_pids([30_010, 30_070, 30_140]) == 30_071
    assert _free_pids([100, *range(30_000, 32_768, 50)]) == 300  # a tree that has been all round


def test_a_state_file_is_replaced_or_overwritten_never_mixed(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    assert read_json(path) == {}
    overwrite_json(path, {"a": 1})  # nothing there: no error, nothing made
    assert read_json(path) == {}
    write_json(path, {"state": "running", "reason": "a long reason"})
    overwrite_json(path, {"state": "saved"})
    assert read_json(path) == {"state": "saved"}
    (tmp_path / "state.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="object"):
        read_json(path)
