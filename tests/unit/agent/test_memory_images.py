"""Images in memory: only where there is room, durable soon, gone when the room is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.drivers.test_chunk_store import put_together

from onefleet.agent import archive, memory_images, records
from onefleet.domain.errors import UpstreamFailed
from onefleet.drivers import image, supervisor_files

from .test_archive import FIRST, Node

GB = 1 << 30


class InMemory(Node):
    """A node of 64 GB, 60 of them free, with images in memory."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "data")
        self.shm = root / "shm"
        self.shm.mkdir()

    def save_in_memory(self, name: str, worker: str = "w.0") -> Path:
        place = memory_images.place(self.layout, worker, name, len(FIRST), self.shm)
        assert place is not None
        folder = records.root(self.layout) / worker
        target = folder / records.IMAGES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        files = Path(image.begin(str(target), str(place)))
        (files / "a").write_bytes(FIRST)
        image.commit(str(target), {"kind": "criu"})
        state = {"state": "saved", "image": str(target)}
        supervisor_files.write_json(str(folder / supervisor_files.STATE), state)
        return target

    def tidy(self, room_bytes: int = 0) -> list[object]:
        self.told.clear()
        archive.tidy(self.layout, self.told.append, room_bytes, shm=self.shm)
        return [event["event"] for event in self.told]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    sizes = {"total": 64 * GB, "free": 60 * GB}
    monkeypatch.setattr(memory_images, "memory_bytes", lambda: (sizes["total"], sizes["free"]))
    return sizes


@pytest.fixture
def node(tmp_path: Path, machine: dict[str, int]) -> InMemory:
    return InMemory(tmp_path)


def test_an_image_becomes_durable_and_stays_in_memory_while_there_is_room(
    node: InMemory, machine: dict[str, int]
) -> None:
    target = node.save_in_memory("1")
    assert not image.is_durable(str(target))
    assert node.tidy() == ["folded", "in_memory"]
    assert node.told[1]["bytes"] == len(FIRST)
    assert image.is_durable(str(target))
    assert (target / "memory" / "a").read_bytes() == FIRST
    machine["free"] = 6 * GB  # less than a tenth: somebody needs it
    assert node.tidy() == []
    assert memory_images.used_bytes(node.layout, node.shm) == 0
    assert put_together(node.store(), target) == {"a": FIRST}


def test_what_is_lost_with_the_machine_is_no_image(node: InMemory) -> None:
    folder = records.root(node.layout) / "w.0"
    node.save_in_memory("1")
    node.tidy()
    lost = node.save_in_memory("2")
    assert records.images(folder) == ("1", "2")
    for entry in sorted(memory_images.root(node.layout, node.shm).rglob("*"), reverse=True):
        entry.rmdir() if entry.is_dir() else entry.unlink()
    assert records.images(folder) == ("1",)
    with pytest.raises(UpstreamFailed, match="torn"):
        image.verify(str(lost))
    assert put_together(node.store(), folder / "images" / "1")


@pytest.mark.parametrize(
    ("free", "memory", "fits"),
    [(60 * GB, 14 * GB, True), (60 * GB, 15 * GB, False), (7 * GB, GB, False)],
)
def test_there_must_be_room(
    node: InMemory,
    machine: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    memory: int,
    fits: bool,
) -> None:
    monkeypatch.setattr(memory_images.os, "statvfs", lambda _path: _FileSystem(100 * GB))
    machine["free"] = free
    place = memory_images.place(node.layout, "w.0", "1", memory, node.shm)
    assert (place is not None) is fits
    monkeypatch.setattr(memory_images.os, "statvfs", lambda _path: _FileSystem(64 << 20))
    assert memory_images.place(node.layout, "w.0", "1", 1 << 30, node.shm) is None


class _FileSystem:
    def __init__(self, free: int) -> None:
        self.f_bavail, self.f_frsize = free // 4096, 4096


def test_a_folder_that_others_may_write_to_is_not_used(node: InMemory) -> None:
    folder = memory_images.root(node.layout, node.shm)
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    assert memory_images.place(node.layout, "w.0", "1", 1, node.shm) is None
    folder.rmdir()
    (node.shm / "elsewhere").mkdir()
    folder.symlink_to(node.shm / "elsewhere")
    assert memory_images.place(node.layout, "w.0", "1", 1, node.shm) is None
    assert memory_images.place(node.layout, "w.0", "1", 1, node.shm / "none") is None


def test_pruned_and_retired_workers_leave_nothing_in_memory(node: InMemory) -> None:
    node.save_in_memory("1")
    node.save_in_memory("2")
    folder = records.root(node.layout) / "w.0"
    records.prune(folder, ("2",))  # type: ignore[arg-type]
    assert memory_images.used_bytes(node.layout, node.shm) == len(FIRST)
    records.retire(folder)
    assert memory_images.used_bytes(node.layout, node.shm) == 0
    node.tidy()
    assert list(node.shm.iterdir()) == []


def test_what_nobody_leads_to_is_swept(node: InMemory) -> None:
    target = node.save_in_memory("1")
    (target / "memory").unlink()
    half = records.root(node.layout) / "w.0" / "images" / "2"
    place = memory_images.place(node.layout, "w.0", "2", 1, node.shm)
    image.begin(str(half), str(place))
    memory_images.sweep(node.layout, node.shm)
    assert place is not None
    assert place.is_dir(), "it is being built"
    assert not place.with_name("1").exists()
