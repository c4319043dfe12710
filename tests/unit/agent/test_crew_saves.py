"""Where a save puts an image's files: into memory when that was ordered and there is room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from onefleet.agent import memory_images
from onefleet.agent.crew import Crew
from onefleet.agent.protocol import Save, Start, WorkerKey
from onefleet.domain.ids import Generation, ImageId, WorkId
from onefleet.domain.layout import Layout
from onefleet.drivers.base import SavedImage
from onefleet.drivers.fake import FakeDriver
from onefleet.wire.agent import JobSpec, Order, OrderVerb

KEY = WorkerKey(WorkId("w-1"), 0)


class Remembers(FakeDriver):
    """A fake that remembers where the files of images were to lie."""

    def __init__(self) -> None:
        super().__init__(memory_bytes=1 << 20)
        self.places: list[Path | None] = []

    async def save(
        self,
        folder: Path,
        image: Path,
        *,
        hold: bool = False,
        leave_running: bool = False,
        memory: Path | None = None,
    ) -> SavedImage:
        """See Driver.save."""
        self.places.append(memory)
        return await super().save(folder, image, hold=hold, leave_running=leave_running)


@pytest.mark.parametrize(
    ("in_memory", "free", "goes_there"),
    [(True, 1 << 40, True), (True, 0, False), (False, 1 << 40, False)],
)
def test_files_go_to_memory_when_ordered_and_there_is_room(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_memory: bool,
    free: int,
    goes_there: bool,
) -> None:
    monkeypatch.setattr(memory_images, "memory_bytes", lambda: (1 << 40, free))
    layout, driver = Layout(tmp_path), Remembers()
    order = Order(
        work_id=KEY.work_id, rank=0, epoch=Generation(1), verb=OrderVerb.RUN,
        job=JobSpec(name="j", tenant_id="t", command=("sleep", "9")),
    )  # fmt: skip

    async def scenario() -> None:
        crew = Crew(layout, {"local": driver}, ())
        assert (await crew.perform(Start(KEY, order))).error == ""
        done = await crew.perform(Save(KEY, ImageId("1"), in_memory=in_memory))
        assert done.error == ""

    asyncio.run(scenario())
    expected = memory_images.root(layout) / "w-1.0" / "1"
    assert driver.places == [expected if goes_there else None]
    memory_images.sweep(layout)
    assert not memory_images.root(layout).exists() or list(expected.parent.parent.iterdir()) == []
    if memory_images.root(layout).exists():
        memory_images.root(layout).rmdir()
