"""Held calls: logs, events and orders come when there is something to say, and not before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tests.integration.control.rig import Control, FakeNode

from onefleet.domain.ids import Generation
from onefleet.wire.agent import NodeOrders
from onefleet.wire.api import EventView, JobView, LogChunk, NewJob, Page
from onefleet.wire.client import Client
from onefleet.wire.gateway import GatewayReport, RouteTable

T = TypeVar("T")


class Held:
    """A call in a thread of its own, and how long it took."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.answer: T | None = None
        self.took_s = 0.0
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], T]) -> None:
        began = time.monotonic()
        self.answer = call()
        self.took_s = time.monotonic() - began

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(30)
        assert self.over


def submit(api: Client, name: str) -> JobView:
    return api.post("/api/v1/jobs", NewJob(command=("train",), name=name), JobView)


def log(api: Client, name: str, query: str) -> LogChunk:
    return api.get(f"/api/v1/jobs/{name}/logs?{query}", LogChunk)


def test_a_log_is_read_in_pieces_and_followed(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    job = submit(api, "talker")
    assert log(api, "talker", "") == LogChunk(text="", offset=0, next_offset=0, ended=False)
    node.until("it runs", lambda: control.job(job.id).phase == "running")
    folder = control.layout.worker(job.id, 0)
    folder.mkdir(parents=True)
    out = folder / "stdout"
    whole = "step 1: ünïcode ☃\n".encode()
    out.write_bytes(whole[:-3])  # the snowman is cut
    first = log(api, "talker", "offset=0")
    assert first.text == "step 1: ünïcode " and first.next_offset == len(whole) - 4
    held = Held(lambda: log(api, "talker", f"offset={len(whole)}&wait_ms=20000"))
    out.write_bytes(whole + b"step 2\n")
    held.join()
    assert held.answer is not None and held.answer.text == "step 2\n" and held.took_s < 10
    rest = log(api, "talker", f"offset={first.next_offset}")
    assert rest.text == "☃\nstep 2\n" and not rest.ended
    assert log(api, "talker", "offset=-7").text == "step 2\n"
    (folder / "stderr").write_bytes(b"oops \xff\xe2\x98")
    assert log(api, "talker", "stream=stderr").text == "oops \ufffd"
    node.end(job.id, 0)
    node.until("it ended", lambda: control.job(job.id).phase == "ended")
    last = log(api, "talker", "stream=stderr&wait_ms=20000")
    assert last.text == "oops \ufffd\ufffd" and last.ended
    assert log(api, "talker", f"offset={10**9}").ended


def test_a_log_longer_than_a_piece_comes_whole(control: Control) -> None:
    api = control.admin()
    job = submit(api, "long")
    folder = control.layout.worker(job.id, 0)
    folder.mkdir(parents=True)
    text = "".join(f"line {n} ☃\n" for n in range(60_000))
    (folder / "stdout").write_text(text)
    offset, found = 0, ""
    while True:
        chunk = log(api, "long", f"offset={offset}")
        if not chunk.text:
            break
        found += chunk.text
        offset = chunk.next_offset
    assert found == text


def test_events_are_waited_for(control: Control) -> None:
    api = control.admin()
    last = api.get("/api/v1/events?after=0", Page[EventView]).data[-1].sequence
    none = api.get(f"/api/v1/events?after={last}&wait_ms=200", Page[EventView])
    assert none.data == ()
    held = Held(lambda: api.get(f"/api/v1/events?after={last}&wait_ms=20000", Page[EventView]))
    job = submit(api, "news")
    held.join()
    assert held.answer is not None and held.took_s < 10
    assert held.answer.data[0].subject == job.id
    pages = api.get("/api/v1/events?after=0&limit=1", Page[EventView]).data
    assert [e.sequence for e in pages] == [1]


def test_orders_are_held_until_there_are_new_ones(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    idle = Held(lambda: node.sync(wait_ms=600))
    idle.join()
    assert idle.took_s >= 0.5
    held = Held(lambda: node.sync(wait_ms=10_000))
    time.sleep(0.1)
    job = submit(api, "now")
    held.join()
    assert held.took_s < 5
    answer = held.answer
    assert isinstance(answer, NodeOrders)
    assert [order.work_id for order in answer.orders] == [job.id]


def test_a_peers_newer_call_lets_go_of_its_older_one(control: Control) -> None:
    node = FakeNode(control)
    node.sync()
    older = Held(lambda: node.sync(wait_ms=10_000))
    time.sleep(0.2)
    newer = Held(lambda: node.sync(wait_ms=500))
    older.join()
    newer.join()
    assert older.took_s < 5

    def poll(wait_ms: int, seen: int) -> RouteTable:
        report = GatewayReport(gateway_id="gw", seen=Generation(seen), wait_ms=wait_ms)
        return control.internal().post("/internal/gateway/sync", report, RouteTable)

    generation = poll(0, 0).generation
    held = Held(lambda: poll(1_500, generation))
    time.sleep(0.2)
    poll(0, generation)  # the lane that hands over usage
    assert not held.over
    held.join()
    assert held.took_s > 1


def test_held_calls_are_answered_when_it_goes_down(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    last = api.get("/api/v1/events?after=0", Page[EventView]).data[-1].sequence
    calls = [
        Held(lambda: node.sync(wait_ms=10_000)),
        Held(lambda: api.get(f"/api/v1/events?after={last}&wait_ms=20000", Page[EventView])),
    ]
    time.sleep(0.3)
    began = time.monotonic()
    assert control.stop() == 0
    assert time.monotonic() - began < 4
    for call in calls:
        call.join()
        assert call.answer is not None
