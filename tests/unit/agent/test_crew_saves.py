"""What a crew makes of a save: where its files go, and what is told when nothing comes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from onefleet.agent import memory_images
from onefleet.agent.crew import Crew
from onefleet.agent.protocol import Done, Save, Start, Verb, WorkerKey
from onefleet.agent.worker import Worker
from onefleet.domain.ids import Generation, ImageId, Instant, WorkId
from onefleet.domain.layout import Layout
from onefleet.drivers.base import SavedImage
from onefleet.drivers.fake import FakeDriver
from onefleet.wire.agent import JobSpec, Observed, Order, OrderVerb

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
        limit_ms: int = 0,
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


def test_a_save_that_is_broken_off_is_told_as_the_workers_end(tmp_path: Path) -> None:
    driver = FakeDriver(takes_ms={"save": 20})
    order = Order(
        work_id=KEY.work_id, rank=0, epoch=Generation(1), verb=OrderVerb.RUN,
        job=JobSpec(name="j", tenant_id="t", command=("sleep", "9")),
    )  # fmt: skip

    async def scenario(limit_ms: int) -> Done:
        crew = Crew(Layout(tmp_path / str(limit_ms)), {"local": driver}, ())
        assert (await crew.perform(Start(KEY, order))).error == ""
        return await crew.perform(Save(KEY, ImageId("1"), limit_ms=limit_ms))

    assert not asyncio.run(scenario(21)).over
    done = asyncio.run(scenario(19))
    assert done.over and done.error == "not saved in time" and done.exit_code is None
    worker = Worker(KEY, is_job=True)
    worker.begin(Start(KEY, order))
    worker.finished(Start(KEY, order), Done(KEY, Verb.START), Instant(1))
    worker.begin(Save(KEY, ImageId("1")))
    worker.finished(Save(KEY, ImageId("1")), done, Instant(2))
    assert (worker.alive, worker.observed) == (False, Observed.ENDED)
