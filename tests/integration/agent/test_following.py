"""An image is fetched while it is made, and is whole only when it counts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onefleet.agent import fetching, records
from onefleet.agent.door import Door
from onefleet.agent.protocol import WorkerKey
from onefleet.domain.errors import UpstreamFailed
from onefleet.domain.ids import ImageId, NodeId, WorkId
from onefleet.domain.layout import Layout
from onefleet.drivers import image as images
from onefleet.wire.agent import Source
from onefleet.wire.tickets import image_name, ticket

KEY = WorkerKey(WorkId("job-1"), 0)
I1 = ImageId("job-1.1")
PAGES = "pages-1.img"
FIRST, SECOND = os.urandom(3 << 20), os.urandom(2 << 20)
LIMIT_S = 20.0


class Save:
    """What criu and the supervisor leave in the folder of an image, step by step."""

    def __init__(self, there: Layout) -> None:
        self.target = there.worker(KEY.work_id, KEY.rank) / records.IMAGES / I1

    def begin(self) -> Save:
        self.files = Path(images.begin(str(self.target)))
        (self.files / "core.img").write_bytes(b"written twice")
        return self

    def write(self, data: bytes) -> None:
        with (self.files / PAGES).open("ab") as file:
            file.write(data)

    def commit(self) -> None:
        (self.files / "core.img").write_bytes(b"core")
        images.commit(str(self.target), {"kind": "criu"})

    def fail(self) -> None:
        images.discard(str(self.target))
        images.discard_partial(str(self.target))


class Target:
    """The node that the worker is going to."""

    def __init__(self, here: Layout, door: Door) -> None:
        shown = ticket("key", image_name(KEY.work_id, KEY.rank, I1))
        self.sources = (Source(node_id=NodeId("n2"), address=door.address, ticket=shown),)
        self.here = here
        self.image = here.worker(KEY.work_id, KEY.rank) / records.IMAGES / I1
        self.partial = self.image.with_name(f"{I1}{images.PARTIAL}")

    def fetch(self, errand: fetching.Errand, slice_s: float = LIMIT_S) -> bool:
        nowhere = self.here.root / "no-memory"
        return fetching.fetch(
            self.here, KEY, I1, self.sources, hurry=True, slice_s=slice_s, errand=errand,
            shm=nowhere,
        )  # fmt: skip

    def has(self, size: int) -> Callable[[], bool]:
        file = self.partial / PAGES
        return lambda: file.exists() and file.stat().st_size == size

    def is_whole_but_for_its_name(self) -> bool:
        return (self.partial / images.MANIFEST).exists() and (self.partial / "core.img").exists()

    def content(self) -> bytes:
        with images.opened(str(self.image), None):
            return (self.image / PAGES).read_bytes()


class Following:
    """A fetch under way in a thread of its own."""

    def __init__(self, target: Target) -> None:
        self.errand = fetching.Errand(coming=True)
        self.said: list[bool] = []
        work = lambda: self.said.append(target.fetch(self.errand))  # noqa: E731
        self._thread = threading.Thread(target=work)
        self._thread.start()

    def broken_off(self) -> bool:
        self.errand.break_off()
        return self.ended()

    def ended(self) -> bool:
        self._thread.join(LIMIT_S)
        return self.said[0]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(Layout(tmp_path / "there"))
    door.key = "key"
    yield door
    door.close()


@pytest.fixture
def save(door: Door) -> Save:
    return Save(door.layout)


@pytest.fixture
def target(door: Door, tmp_path: Path) -> Target:
    return Target(Layout(tmp_path / "here"), door)


def test_its_pages_come_while_it_is_made_and_it_is_whole_when_it_counts(
    save: Save, target: Target
) -> None:
    following = Following(target)  # before there is anything
    save.begin()
    for upto in (1 << 20, 2 << 20, len(FIRST)):
        save.write(FIRST[upto - (1 << 20) : upto])
        until(target.has(upto))
    assert not (target.partial / "core.img").exists()
    save.commit()
    until(target.is_whole_but_for_its_name)
    assert not target.image.exists()
    following.errand.count()
    assert following.ended()
    assert target.content() == FIRST
    assert sorted(f.name for f in target.image.iterdir()) == ["core.img", images.MANIFEST, PAGES]


def test_what_was_followed_into_nothing_is_not_mixed_with_what_follows(
    save: Save, target: Target
) -> None:
    following = Following(target)
    save.begin().write(FIRST)
    until(target.has(len(FIRST)))
    save.fail()
    save.begin().write(SECOND + FIRST)  # longer than what is there, and other bytes
    until(target.has(len(SECOND + FIRST)))
    save.commit()
    following.errand.count()
    if not following.ended():  # it was thrown away, unless it was seen in time that it failed
        assert target.fetch(fetching.Errand())
    assert target.content() == SECOND + FIRST


def test_a_whole_image_that_did_not_count_makes_way_for_the_next_of_its_name(
    save: Save, target: Target
) -> None:
    following = Following(target)
    save.begin().write(FIRST)
    save.commit()
    until(target.is_whole_but_for_its_name)
    assert not following.broken_off()
    save.fail()  # as when another worker of its gang could not be saved
    save.begin().write(SECOND)
    save.commit()
    assert target.fetch(fetching.Errand())
    assert target.content() == SECOND


def test_an_agent_that_dies_as_it_follows_leaves_what_the_next_goes_on_from(
    save: Save, target: Target
) -> None:
    following = Following(target)
    save.begin().write(FIRST)
    until(target.has(len(FIRST)))
    assert not following.broken_off()
    save.write(SECOND)
    save.commit()
    assert target.fetch(fetching.Errand())
    assert target.content() == FIRST + SECOND


def test_what_is_never_made_is_waited_for_and_no_failure(target: Target) -> None:
    assert not target.fetch(fetching.Errand(coming=True), slice_s=0)
    assert not target.image.parent.exists()


def test_what_decays_where_it_was_made_is_told_in_the_end(save: Save, target: Target) -> None:
    following = Following(target)
    save.begin().write(FIRST)
    until(target.has(len(FIRST)))
    assert not following.broken_off()
    save.commit()
    with (save.target / PAGES).open("r+b") as file:
        file.write(b"decayed")
    (target.partial / PAGES).unlink()
    assert not target.fetch(fetching.Errand())  # it may be another's: all of it is fetched anew
    with pytest.raises(UpstreamFailed, match="torn or corrupt"):
        target.fetch(fetching.Errand())
