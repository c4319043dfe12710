"""Images on a share: what a node has folded outlives it, and goes when nobody answers for it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from tests.unit.drivers.test_chunk_store import content, pages, put_together

from onefleet.agent import archive, records
from onefleet.agent.share import GRACE_S, Share
from onefleet.domain.errors import OnefleetError
from onefleet.drivers import image
from onefleet.drivers.chunk_store import ChunkStore

from .test_archive import FIRST, SECOND, Node


class Sharing(Node):
    """A node with the share of all."""

    def __init__(self, root: Path, name: str) -> None:
        super().__init__(root / name)
        self.share = Share(root / "share", self.layout, name)

    def tidy(self, room_bytes: int = 0) -> list[object]:
        self.told.clear()
        archive.tidy(self.layout, self.told.append, room_bytes, self.share)
        return [event["event"] for event in self.told]


@pytest.fixture
def one(tmp_path: Path) -> Sharing:
    (tmp_path / "share").mkdir()
    return Sharing(tmp_path, "one")


@pytest.fixture
def two(tmp_path: Path) -> Sharing:
    return Sharing(tmp_path, "two")


def kept(sharing: Sharing) -> list[str]:
    return sorted(p.name for p in (sharing.share.folder / "w" / "images").glob("*"))


def test_an_image_goes_there_and_comes_back_on_another_node(one: Sharing, two: Sharing) -> None:
    one.save("1", a=FIRST)
    assert one.tidy() == ["folded", "shared"]
    one.save("2", a=SECOND)
    one.tidy()
    assert kept(one) == ["0.1", "0.2"]
    stored = [int(str(told["stored"])) for told in one.told if told["event"] == "shared"]
    assert stored[0] < ChunkStore(one.share.folder / "w" / "chunks").size_bytes // 3
    shutil.rmtree(one.layout.root)  # the machine is gone
    assert two.share.take("w.0", "2")
    assert two.share.take("w.0", "2"), "again: it is here"
    target = records.root(two.layout) / "w.0" / records.IMAGES / "2"
    assert content(target) == {}
    assert put_together(two.store(), target) == {"a": SECOND}
    assert not two.share.take("w.0", "3")
    assert not two.share.take("v.0", "2")


def test_what_nobody_keeps_goes_after_a_while(
    one: Sharing, two: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = one.save("1", a=FIRST), one.save("2", a=SECOND)
    one.tidy()
    assert two.share.take("w.0", "2")
    shutil.rmtree(first.parent)
    one.tidy()
    two.tidy()
    assert kept(one) == ["0.1", "0.2"], "another node may want it just now"
    later = time.time() + GRACE_S
    monkeypatch.setattr(archive.time, "time", lambda: later)
    one.tidy()
    assert kept(one) == ["0.2"], "two answers for the other"
    two.tidy()
    assert put_together(two.store(), records.root(two.layout) / "w.0" / "images" / "2")
    shutil.rmtree(records.root(two.layout) / "w.0")
    two.tidy()
    later += GRACE_S
    two.tidy()
    assert list(one.share.folder.iterdir()) == []
    assert not second.exists()


def test_an_image_that_comes_back_in_time_is_kept(one: Sharing) -> None:
    target = one.save("1", a=FIRST)
    one.tidy()
    target.rename(target.with_name("away"))
    one.tidy()
    target.with_name("away").rename(target)
    one.tidy()
    over = one.share.folder / "w" / "images" / "0.1" / "over"
    assert not over.exists()
    assert kept(one)[0] == "0.1"


def test_a_share_that_is_not_mounted_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    node = Sharing(tmp_path, "one")
    node.save("1", a=FIRST)
    assert node.tidy() == ["folded", "not_kept"]
    assert "may not be mounted" in str(node.told[1]["reason"])
    assert not node.share.folder.exists()


def test_chunks_that_decayed_on_the_share_are_not_taken(one: Sharing, two: Sharing) -> None:
    one.save("1", a=os.urandom(4096 * 80))
    one.tidy()
    (pack,) = (one.share.folder / "w" / "chunks").glob("*.pack")
    damaged = bytearray(pack.read_bytes())
    damaged[6000] ^= 1
    pack.write_bytes(damaged)
    with pytest.raises(OnefleetError):
        two.share.take("w.0", "1")
    assert not list((records.root(two.layout) / "w.0").rglob("manifest.json"))


def test_a_put_that_was_killed_is_done_again(one: Sharing, monkeypatch: pytest.MonkeyPatch) -> None:
    target = one.save("1", a=FIRST)

    def killed(_here: str, _there: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        one_rename = os.rename
        patch.setattr(
            os, "rename", lambda a, b: killed(a, b) if "share" in str(b) else one_rename(a, b)
        )
        with pytest.raises(KeyboardInterrupt):
            one.tidy()
    assert one.tidy()[-1] == "shared"
    assert kept(one) == ["0.1"]
    assert image.is_folded(str(target))


def test_workers_share_what_is_alike_there_too(one: Sharing) -> None:
    for worker in ("w.0", "w.1"):
        one.save("1", worker, a=pages(*range(1, 50)))
    one.tidy()
    shared = [told for told in one.told if told["event"] == "shared"]
    assert [told["image"] for told in shared] == ["w.0/1", "w.1/1"]
    assert shared[1]["stored"] == 0
