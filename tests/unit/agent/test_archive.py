"""What is done with saved images in the background, from whatever state it finds."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.unit.drivers.test_chunk_store import content, make, pages, put_together

from onefleet.agent import archive, archivist, records
from onefleet.domain.layout import Layout
from onefleet.drivers import image, packs, recipe, supervisor_files
from onefleet.drivers.chunk_store import ChunkStore

FIRST, SECOND = pages(*range(1, 60)), pages(*range(1, 20), *range(200, 210))


class Node:
    """A data folder with workers' images, and what the passes told."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.told: list[dict[str, object]] = []

    def save(self, name: str, worker: str = "w.0", wanted: bool = True, **files: bytes) -> Path:
        folder = records.root(self.layout) / worker
        (folder / records.IMAGES).mkdir(parents=True, exist_ok=True)
        target = make(folder / records.IMAGES / name, **files)
        state = {"state": "saved" if wanted else "running", "image": str(target)}
        supervisor_files.write_json(str(folder / supervisor_files.STATE), state)
        return target

    def tidy(self, room_bytes: int = 0) -> list[object]:
        self.told.clear()
        archive.tidy(self.layout, self.told.append, room_bytes)
        return [event["event"] for event in self.told]

    def store(self, work: str = "w") -> ChunkStore:
        return ChunkStore(self.layout.chunks(work))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_an_image_is_folded_and_its_files_dropped(node: Node) -> None:
    target = node.save("1", a=FIRST, b=b"small")
    assert node.tidy() == ["folded"]
    assert node.told[0]["image"] == "w.0/1"
    assert node.told[0]["bytes"] == len(FIRST) + 5
    assert content(target) == {}
    assert put_together(node.store(), target) == {"a": FIRST, "b": b"small"}
    assert node.tidy() == []
    assert content(target) == {}, "what a restore put there goes again"


def test_workers_of_one_job_share_what_is_alike_and_jobs_do_not(node: Node) -> None:
    for worker in ("w.0", "w.1", "v.0"):
        node.save("1", worker, a=FIRST)
    assert node.tidy() == ["folded"] * 3
    stored = {str(event["image"]): int(str(event["stored"])) for event in node.told}
    assert stored["w.1/1"] == 0
    assert stored["v.0/1"] == stored["w.0/1"] > 0


def test_files_that_may_be_wanted_soon_stay_while_there_is_room(node: Node) -> None:
    copies = [
        archive.RawCopy(Path("/a"), 10, 1, wanted=True),
        archive.RawCopy(Path("/b"), 10, 2, wanted=True),
        archive.RawCopy(Path("/c"), 10, 3, wanted=False),
        archive.RawCopy(Path("/d"), 15, 4, wanted=True),
    ]
    for room, kept in ((100, "abd"), (25, "bd"), (24, "d"), (14, "b"), (9, "")):
        gone = archive.superfluous(copies, room)
        assert "".join(c.path.name for c in copies if c not in gone) == kept
    saved = node.save("1", a=FIRST)
    runs = node.save("1", "v.0", wanted=False, a=FIRST)
    node.tidy(1 << 20)
    assert content(saved) == {"a": FIRST}
    assert content(runs) == {}


def test_images_that_are_gone_take_their_chunks_with_them(node: Node) -> None:
    one, two = node.save("1", a=FIRST), node.save("2", a=SECOND)
    node.tidy()
    image.discard(str(one))
    assert node.tidy() == ["freed"]
    assert put_together(node.store(), two) == {"a": SECOND}
    image.discard(str(two))
    node.tidy()
    assert not node.store().folder.exists()


def test_an_image_that_comes_while_a_pass_is_on_its_way_keeps_its_chunks(node: Node) -> None:
    """A fetch, or another pass, brings a work's first image after this pass looked for works."""
    node.save("1", a=FIRST)
    come: list[Path] = []

    def comes(event: dict[str, object]) -> None:
        if event["event"] == "folded":
            come.append(node.save("1", "v.0", a=SECOND))
            node.tidy()

    archive.tidy(node.layout, comes, 0)
    (target,) = come
    assert put_together(node.store("v"), target) == {"a": SECOND}


def test_a_work_that_is_over_leaves_no_store(node: Node) -> None:
    node.save("1", a=FIRST)
    node.tidy()
    records.retire(records.root(node.layout) / "w.0")
    node.tidy()
    assert list(node.layout.chunk_stores.iterdir()) == []


def test_what_cannot_be_folded_stays_as_it_is(node: Node) -> None:
    """A cooperative image has no files; one that has decayed is not made to last."""
    node.save("1", worker="c.0")
    target = node.save("1", worker="d.0", a=FIRST)
    (target / "a").write_bytes(SECOND)
    node.save("1", worker="e.0", a=FIRST)
    assert node.tidy() == ["not_kept", "folded"]
    assert "torn or corrupt" in str(node.told[0]["reason"])
    assert content(target) == {"a": SECOND}


def test_an_image_is_not_folded_into_chunks_that_have_decayed(node: Node) -> None:
    node.save("1", a=FIRST)
    node.tidy()
    (pack,) = node.store().folder.glob("*.pack")
    damaged = bytearray(pack.read_bytes())
    damaged[2000] ^= 1
    pack.write_bytes(damaged)
    two = node.save("2", a=SECOND)
    node.tidy()
    assert content(two) == {}
    assert put_together(node.store(), two) == {"a": SECOND}


def test_a_full_disk_is_told_and_harms_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    target = node.save("1", a=FIRST)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packs.os, "fsync", full)
        assert node.tidy() == ["not_kept"]
    assert "No space" in str(node.told[0]["reason"])
    assert content(target) == {"a": FIRST}
    assert node.tidy() == ["folded"]


def test_an_image_that_is_being_restored_keeps_its_files(node: Node) -> None:
    target = node.save("1", a=FIRST)
    with image.opened(str(target), str(node.store().folder)):
        assert node.tidy() == ["folded"]
        assert content(target) == {"a": FIRST}
    node.tidy()
    assert content(target) == {}


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_image_that_is_pruned_meanwhile_is_no_error(
    node: Node, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    target = node.save("1", a=FIRST)
    verify = image.verify

    def prunes(path: str) -> object:
        manifest = verify(path)
        image.discard(str(target))
        if when == "before":  # its files were going as it was looked at
            raise image.damaged(path, "a cannot be read")
        return manifest

    monkeypatch.setattr(archive.images, "verify", prunes)
    assert node.tidy() == []


def test_the_process_does_a_pass_with_the_least_priority(node: Node) -> None:
    target = node.save("1", a=FIRST)
    command = archivist.command(node.layout)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout.splitlines()[0])["event"] == "folded"
    assert (target / recipe.NAME).exists()
    orphan = [*command[:-1], "1"]
    assert subprocess.run(orphan, timeout=60, check=False).returncode == 1


def test_hints_lead_to_passes_and_cancelling_ends_the_process(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    source = (
        "import sys, time; open(sys.argv[1], 'a').write('x'); "
        'print(\'{"event": "folded"}\', flush=True); time.sleep(float(sys.argv[2]))'
    )

    def passes() -> int:
        return len(mark.read_text()) if mark.exists() else 0

    async def until(count: int) -> None:
        deadline = time.monotonic() + 30
        while passes() < count:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    async def scenario() -> None:
        quick = archivist.Archivist((sys.executable, "-c", source, str(mark), "0"), pause_s=0)
        task = asyncio.create_task(quick.run())
        await asyncio.sleep(0.05)
        assert passes() == 0
        quick.hint()
        await until(1)
        quick.hint()
        await until(2)
        task.cancel()
        slow = archivist.Archivist((sys.executable, "-c", source, str(mark), "1000"), pause_s=0)
        task = asyncio.create_task(slow.run())
        slow.hint()
        await until(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert str(mark).encode() not in entry.read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
        missing = archivist.Archivist((os.fspath(tmp_path / "none"),), pause_s=0)
        missing.hint()
        task = asyncio.create_task(missing.run())
        await asyncio.sleep(0.05)
        assert not task.done(), "that there is no such program ends nothing else"
        task.cancel()

    asyncio.run(scenario())
