"""Real processes out of chunks: saved, folded, put together again, and they go on bit by bit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.small_disk import small_disk

from onefleet.agent import archive
from onefleet.domain.errors import StorageFull, UpstreamFailed
from onefleet.domain.layout import Layout
from onefleet.drivers import image
from onefleet.drivers.base import WorkerState
from onefleet.drivers.chunk_store import ChunkStore

from .conftest import Bench
from .test_criu_saves import COUNTER, chain, ended, state

pytestmark = pytest.mark.criu

#: Twelve megabytes that stay as they are, and a counter.
HEAVY = "import random; held = random.Random(5).randbytes(12 << 20)\n" + textwrap.dedent(COUNTER)


class Node:
    """One worker in an agent's data folder."""

    def __init__(self, bench: Bench, root: Path) -> None:
        self.layout = Layout(root)
        self.bench = bench
        bench.folder = self.layout.worker("w", 0)
        self.told: list[dict[str, object]] = []

    def spec(self, source: str, *arguments: str):
        return self.bench.spec(source, *arguments, chunks=self.layout.chunks("w"))

    @property
    def store(self) -> ChunkStore:
        return ChunkStore(self.layout.chunks("w"))

    def image(self, name: str) -> Path:
        folder = self.bench.folder / "images"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def tidy(self) -> None:
        self.told.clear()
        archive.tidy(self.layout, self.told.append, room_bytes=0)


@pytest.fixture
def node(criu: Bench, tmp_path: Path) -> Iterator[Node]:
    node = Node(criu, tmp_path / "node")
    yield node
    criu.root = node.layout.agent
    criu.close()


def test_a_process_goes_on_out_of_chunks(node: Node) -> None:
    async def scenario() -> None:
        bench, spec = node.bench, node.spec(HEAVY, "300")
        await bench.driver.start(spec)
        bench.wait_lines(20)
        stored = []
        for number in range(3):
            target = node.image(str(number))
            saved = await bench.driver.save(bench.folder, target)
            assert saved.size_bytes > 12 << 20
            node.tidy()
            (folded,) = [told for told in node.told if told["event"] == "folded"]
            stored.append(int(str(folded["stored"])))
            assert sorted(p.name for p in target.iterdir()) == ["manifest.json", "recipe.json"]
            await bench.driver.restore(spec, target)
            bench.wait_lines(40 * (number + 1))
        assert stored[0] > 12 << 20
        # What is random stays, and so do most pages of the interpreter.
        assert stored[1] < stored[0] // 10
        assert stored[2] < stored[0] // 10
        assert await ended(bench) == 3
        assert bench.out().splitlines() == chain(300)

    asyncio.run(scenario())


def test_a_torn_chunk_is_refused_and_the_image_before_is_whole(node: Node) -> None:
    async def scenario() -> None:
        bench, spec = node.bench, node.spec(COUNTER, "400")
        await bench.driver.start(spec)
        bench.wait_lines(20)
        await bench.driver.save(bench.folder, node.image("1"))
        node.tidy()
        await bench.driver.restore(spec, node.image("1"))
        bench.wait_lines(60)
        await bench.driver.save(bench.folder, node.image("2"))
        (before,) = node.store.folder.glob("*.pack")
        node.tidy()
        (new,) = set(node.store.folder.glob("*.pack")) - {before}
        content = bytearray(new.read_bytes())
        content[len(content) // 3] ^= 1
        new.write_bytes(content)
        with pytest.raises(UpstreamFailed, match="torn or corrupt"):
            await bench.driver.restore(spec, node.image("2"))
        assert await state(bench) is WorkerState.SAVED
        await bench.driver.restore(spec, node.image("1"))
        assert await ended(bench) == 3

    asyncio.run(scenario())


def test_a_process_goes_on_out_of_memory_and_out_of_its_chunks(node: Node, tmp_path: Path) -> None:
    async def scenario() -> None:
        bench, spec = node.bench, node.spec(HEAVY, "300")
        await bench.driver.start(spec)
        bench.wait_lines(20)
        target, memory = node.image("1"), tmp_path / "memory" / "1"
        await bench.driver.save(bench.folder, target, memory=memory)
        assert sorted(p.name for p in target.iterdir()) == ["manifest.json", "memory"]
        assert (memory / "pages-1.img").stat().st_size > 12 << 20
        await bench.driver.restore(spec, target)
        bench.wait_lines(60)
        target, memory = node.image("2"), tmp_path / "memory" / "2"
        await bench.driver.save(bench.folder, target, memory=memory)
        node.tidy()
        shutil.rmtree(memory)  # as a restart of the machine does
        await bench.driver.restore(spec, target)
        bench.wait_lines(100)
        await bench.driver.save(bench.folder, node.image("3"), memory=tmp_path / "memory" / "3")
        shutil.rmtree(tmp_path / "memory")
        with pytest.raises(UpstreamFailed, match="torn or corrupt") as caught:
            await bench.driver.restore(spec, node.image("3"))
        assert "started anew" in caught.value.why
        assert await state(bench) is WorkerState.SAVED
        await bench.driver.restore(spec, target)
        assert await ended(bench) == 3
        assert bench.out().splitlines() == chain(300)

    asyncio.run(scenario())


def test_raw_files_that_decayed_give_way_to_the_chunks(node: Node) -> None:
    """The pages are being checked while criu reads them: what it made of them never runs."""

    async def scenario() -> None:
        bench, spec = node.bench, node.spec(HEAVY, "300")
        await bench.driver.start(spec)
        bench.wait_lines(20)
        target = node.image("1")
        await bench.driver.save(bench.folder, target)
        archive.tidy(node.layout, node.told.append, room_bytes=1 << 30)
        pages = target / "pages-1.img"
        flipped = bytearray(pages.read_bytes())
        flipped[len(flipped) // 2] ^= 1
        pages.write_bytes(flipped)
        assert image.is_folded(str(target))
        await bench.driver.restore(spec, target)
        bench.wait_lines(60)
        assert await ended(bench) == 3
        assert bench.out().splitlines() == chain(300)
        assert pages.read_bytes() != bytes(flipped)

    asyncio.run(scenario())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds one raw image of the counter, and not two."""
    with small_disk(tmp_path / "node", "24m") as place:
        yield place


def test_a_full_disk_leaves_the_job_running_and_the_image_usable(disk: Path, node: Node) -> None:
    async def scenario() -> None:
        bench, spec = node.bench, node.spec(COUNTER, "600")
        await bench.driver.start(spec)
        bench.wait_lines(20)
        filler = disk / "filler"
        await bench.driver.save(bench.folder, node.image("1"))
        fill(filler)
        node.tidy()  # no room to fold: the files stay
        assert [told["event"] for told in node.told] == ["not_kept"]
        assert not image.is_folded(str(node.image("1")))
        filler.unlink()
        await bench.driver.restore(spec, node.image("1"))
        bench.wait_lines(60)
        fill(filler)
        with pytest.raises(StorageFull, match="no space left"):
            await bench.driver.save(bench.folder, node.image("2"))
        assert await state(bench) is WorkerState.RUNNING
        filler.unlink()
        await bench.driver.save(bench.folder, node.image("2"))
        node.tidy()
        fill(filler)
        with pytest.raises(StorageFull, match="no space left"):  # no room to put it together
            await bench.driver.restore(spec, node.image("2"))
        filler.unlink()
        assert await state(bench) is WorkerState.SAVED
        await bench.driver.restore(spec, node.image("2"))
        assert await ended(bench) == 3
        assert bench.out().splitlines() == chain(600)

    asyncio.run(scenario())


def fill(path: Path) -> None:
    """Leave a few kilobytes: enough for state files, not for an image or a pack."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(path, path.stat().st_size - 64 * 1024)
