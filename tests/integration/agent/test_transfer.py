"""Images go from one node's door to another node, whole or not at all."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onefleet.agent import fetching, memory_images, records
from onefleet.agent.archive import tidy
from onefleet.agent.door import CONNECTIONS_MAX, Door
from onefleet.agent.protocol import WorkerKey
from onefleet.domain.errors import Conflict, NotFound, OnefleetError, Unreachable, UpstreamFailed
from onefleet.domain.ids import ImageId, NodeId, WorkId
from onefleet.domain.layout import Layout
from onefleet.drivers import image as images
from onefleet.drivers import transfer
from onefleet.drivers.chunk_store import ChunkStore
from onefleet.wire.agent import Source
from onefleet.wire.tickets import image_name, log_name, ticket
from onefleet.wire.transfer import TICKET_HEADER, image_path, log_path

KEY = WorkerKey(WorkId("job-1"), 0)
I1 = ImageId("job-1.1")
BODY = os.urandom(3 << 20)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """The door of a node that has one image and has printed something."""
    layout = Layout(tmp_path / "there")
    worker = layout.worker(KEY.work_id, KEY.rank)
    (worker / records.IMAGES).mkdir(parents=True)
    target = worker / records.IMAGES / I1
    files = Path(images.begin(str(target)))
    (files / "pages").write_bytes(BODY)
    (files / "empty").write_bytes(b"")
    images.commit(str(target), {"kind": "local"})
    (worker / "stdout").write_text("printed\n")
    (worker / "secret").write_text("not for others")
    (target / "link").symlink_to(worker / "secret")
    (target / "folder").mkdir()
    door = Door(layout)
    door.key = "key"
    yield door
    door.close()


def source(door: Door, shown: str = "") -> Source:
    good = ticket("key", image_name(KEY.work_id, KEY.rank, I1))
    return Source(node_id=NodeId("n2"), address=door.address, ticket=shown or good)


@pytest.fixture(params=["in a hurry", "by chunks"])
def hurry(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "in a hurry")


def shm(here: Layout) -> Path:
    """What stands for its file system in memory, where there is one."""
    return here.root.with_name("shm")


def fetch(here: Layout, *sources: Source, **how: Any) -> bool:
    how = {"hurry": True, "shm": shm(here), **how}
    return fetching.fetch(here, KEY, I1, sources, **how)


def mine(here: Layout) -> Path:
    return here.worker(KEY.work_id, KEY.rank) / records.IMAGES / I1


def content(here: Layout) -> bytes:
    """What is in it, once it is put together for a restore."""
    with images.opened(str(mine(here)), str(here.chunks(KEY.work_id))):
        return Path(images.raw(str(mine(here))), "pages").read_bytes()


def partial(here: Layout) -> Path:
    """Where it lies until it is whole."""
    return mine(here).with_name(f"{I1}{images.PARTIAL}")


def original(door: Door) -> Path:
    return door.layout.worker(KEY.work_id, KEY.rank) / records.IMAGES / I1


@pytest.fixture
def here(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "here")


@pytest.fixture
def roomy(here: Layout, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """The same, with room in memory."""
    shm(here).mkdir()
    monkeypatch.setattr(memory_images, "memory_bytes", lambda: (64 << 30, 60 << 30))
    return here


def test_an_image_comes_whole(door: Door, here: Layout, hurry: bool) -> None:
    assert fetch(here, source(door), hurry=hurry)
    assert content(here) == BODY
    assert (mine(here) / "empty").read_bytes() == b""
    assert images.is_folded(str(mine(here))) is not hurry
    assert images.is_durable(str(mine(here)))
    shutil.rmtree(original(door))
    assert fetch(here, source(door))  # it is here already


def test_what_is_waited_for_comes_into_memory_where_there_is_room(
    door: Door, roomy: Layout
) -> None:
    assert fetch(roomy, source(door))
    assert content(roomy) == BODY
    assert not images.is_durable(str(mine(roomy)))
    assert records.images(mine(roomy).parent.parent) == (I1,)
    (held,) = shm(roomy).rglob("pages")
    images.discard(str(mine(roomy)))
    assert not held.exists()


def test_what_was_lost_with_memory_is_fetched_anew(door: Door, roomy: Layout) -> None:
    assert not fetch(roomy, source(door), slice_s=0)
    shutil.rmtree(shm(roomy))  # the machine is started anew
    shm(roomy).mkdir()
    assert fetch(roomy, source(door))
    assert content(roomy) == BODY


def test_memory_that_others_take_meanwhile_is_done_without(
    door: Door, roomy: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(fetching._Peer, "copy", full)
        assert not fetch(roomy, source(door))
    assert not partial(roomy).exists() and not list(shm(roomy).rglob("pages"))
    shutil.rmtree(shm(roomy))
    assert fetch(roomy, source(door))
    assert images.is_durable(str(mine(roomy))) and content(roomy) == BODY


def test_what_is_folded_comes_by_chunks(door: Door, here: Layout) -> None:
    tidy(door.layout, lambda told: None, room_bytes=0)
    assert not (original(door) / "pages").exists()
    assert fetch(here, source(door), hurry=True)
    assert content(here) == BODY


def test_of_a_later_image_only_what_is_new_comes(door: Door, here: Layout) -> None:
    assert fetch(here, source(door), hurry=False)
    before = ChunkStore(here.chunks(KEY.work_id)).size_bytes
    later = ImageId("job-1.2")
    files = Path(images.begin(str(original(door).with_name(later))))
    (files / "pages").write_bytes(b"new".ljust(4096) + BODY[4096:])
    images.commit(str(original(door).with_name(later)), {"kind": "local"})
    shown = ticket("key", image_name(KEY.work_id, KEY.rank, later))
    assert fetching.fetch(here, KEY, later, [source(door, shown)], hurry=False)
    grown = ChunkStore(here.chunks(KEY.work_id)).size_bytes - before
    assert 0 < grown < len(BODY) // 100


def test_what_has_come_is_not_fetched_again(door: Door, here: Layout) -> None:
    assert not fetch(here, source(door), slice_s=0)
    (partial(here) / "pages").write_bytes(BODY[: 1 << 20])
    with (original(door) / "pages").open("r+b") as file:  # what is here already is not looked at
        file.write(b"changed")
    assert fetch(here, source(door))
    assert content(here) == BODY


def test_chunks_come_a_slice_at_a_time(
    door: Door, here: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_BATCH", 100)
    assert not fetch(here, source(door), hurry=False, slice_s=0)
    assert fetch(here, source(door), hurry=False)
    assert content(here) == BODY


def test_a_call_that_is_broken_off_waits_for_nobody(here: Layout) -> None:
    errand = fetching.Errand()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        slow = Source(node_id=NodeId("n2"), address=address, ticket="t")

        def breaks_off() -> None:
            with silent.accept()[0] as peer:
                peer.recv(1)  # it waits for the answer now
                errand.break_off()
                peer.recv(1 << 16)
                peer.recv(1)

        other = threading.Thread(target=breaks_off)
        other.start()
        assert not fetching.fetch(here, KEY, I1, [slow], hurry=False, errand=errand)
        other.join()
        assert not fetching.fetch(here, KEY, I1, [slow], hurry=False, errand=errand)


def test_what_is_not_as_it_should_be_is_thrown_away(door: Door, here: Layout) -> None:
    with (original(door) / "pages").open("r+b") as file:
        file.write(b"changed")
    with pytest.raises(UpstreamFailed, match="torn or corrupt"):
        fetch(here, source(door))
    assert list(mine(here).parent.iterdir()) == []


def test_what_changes_as_it_is_sent_is_no_image(
    door: Door, here: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = transfer.listing_of_files

    def changes(files: dict[str, Path]) -> transfer.Listing:
        found = listing(files)
        with files["pages"].open("r+b") as file:
            file.write(os.urandom(8))
        return found

    monkeypatch.setattr(transfer, "listing_of_files", changes)
    with pytest.raises(NotFound, match="chunks"):
        fetch(here, source(door), hurry=False)
    assert not mine(here).exists()


def test_another_source_is_asked_when_one_is_away_or_has_it_not(
    door: Door, here: Layout, tmp_path: Path, hurry: bool
) -> None:
    away = Source(node_id=NodeId("n3"), address=f"127.0.0.1:{free_port()}", ticket="t")
    with pytest.raises(Unreachable, match="n3"):
        fetch(here, away, slice_s=0.3)
    empty = Door(Layout(tmp_path / "empty"))
    empty.key = "key"
    try:
        with pytest.raises(NotFound, match="n2"):
            fetch(here, source(empty), slice_s=0.3)
        assert fetch(here, away, source(empty), source(door), hurry=hurry)
    finally:
        empty.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def get(door: Door, path: str, shown: str, **headers: str) -> tuple[int, bytes]:
    host, _, port = door.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("GET", path, headers={TICKET_HEADER: shown, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_nobody_is_let_in_without_the_ticket_for_that_very_thing(door: Door) -> None:
    path = image_path(KEY.work_id, KEY.rank, I1)
    good = source(door).ticket
    assert get(door, path, good)[0] == 200
    for shown in ("", "x", ticket("key", image_name(KEY.work_id, 1, I1)), ticket("no", "yes")):
        assert get(door, path, shown)[0] == 403
    assert get(door, path.replace("job-1.1", "job-1.2"), good)[0] == 403
    door.key = ""
    assert get(door, path, ticket("", image_name(KEY.work_id, KEY.rank, I1)))[0] == 403


@pytest.mark.parametrize(
    "end",
    ["../../secret", "%2e%2e/secret", "/secret", "link", "nothing", "pages/x", "..", "folder"],
)
def test_nothing_but_the_files_of_the_image_can_be_had(door: Door, end: str) -> None:
    status, body = get(
        door, f"{image_path(KEY.work_id, KEY.rank, I1)}/files/{end}", source(door).ticket
    )
    assert status in (403, 404) and b"not for others" not in body


def test_a_file_is_had_from_where_it_was_broken_off(door: Door) -> None:
    path = image_path(KEY.work_id, KEY.rank, I1) + "/files/pages"
    assert get(door, path, source(door).ticket) == (200, BODY)
    assert get(door, path, source(door).ticket, range="bytes=3000000-") == (206, BODY[3_000_000:])
    assert get(door, path, source(door).ticket, range="bytes=9000000-") == (206, b"")


def test_what_was_printed_can_be_had_with_its_own_ticket(door: Door) -> None:
    path = log_path(KEY.work_id, KEY.rank, "stdout")
    shown = ticket("key", log_name(KEY.work_id, KEY.rank))
    assert get(door, path, shown) == (200, b"printed\n")
    assert get(door, path, source(door).ticket)[0] == 403
    assert get(door, path.replace("stdout", "secret"), shown)[0] == 403


def test_too_many_at_once_are_refused_and_not_for_ever(door: Door) -> None:
    host, _, port = door.address.rpartition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(CONNECTIONS_MAX)]
    path, shown = image_path(KEY.work_id, KEY.rank, I1), source(door).ticket
    refused = until_not(lambda: tries(door, path, shown) == 200)
    for one in idle:
        one.close()
    assert refused and until_not(lambda: tries(door, path, shown) != 200)


def tries(door: Door, path: str, shown: str) -> int:
    try:
        return get(door, path, shown)[0]
    except (OSError, http.client.HTTPException):
        return 0


def until_not(bad: object, limit_s: float = 20.0) -> bool:
    done = threading.Event()
    for _ in range(int(limit_s / 0.05)):
        if not bad():  # type: ignore[operator]
            return True
        done.wait(0.05)
    return False


def test_an_address_that_is_taken_is_told(door: Door, tmp_path: Path) -> None:
    port = int(door.address.rpartition(":")[2])
    with pytest.raises(Conflict, match=str(port)):
        Door(Layout(tmp_path), port=port)
    with pytest.raises(OnefleetError):
        Door(Layout(tmp_path), host="203.0.113.1")
