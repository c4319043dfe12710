"""Who is told to wait for a turn, and that nothing else is done with a worker at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path

import pytest

from onefleet.agent import turn_taker
from onefleet.agent.protocol import Freeze, Hold, HoldKind, WorkerKey
from onefleet.agent.turn_taker import TurnTaker
from onefleet.agent.worker import Worker
from onefleet.domain.errors import Conflict
from onefleet.domain.fleet import Device, DeviceKind
from onefleet.domain.ids import DeviceId, ImageId, Instant, WorkId
from onefleet.drivers.base import WorkerState, WorkerStatus
from onefleet.wire.agent import Observed

CPU, GPU, TOY = (DeviceId(f"n/{name}") for name in ("cpu0", "gpu0", "toy0"))
DEVICES = (
    Device(CPU, DeviceKind.CPU, 0, "a core", 1),
    Device(GPU, DeviceKind.GPU, 0, "a GPU", 1),
    Device(TOY, DeviceKind.CPU, 1, "a core", 1, simulated=True),
)
A, B = WorkerKey(WorkId("a"), 0), WorkerKey(WorkId("b"), 0)
RUNS = WorkerStatus(WorkerState.RUNNING, pid=1)


def a_worker(key: WorkerKey, device: DeviceId = CPU, milli: int = 500) -> Worker:
    return Worker(
        key, is_job=True, alive=True, observed=Observed.RUNNING, devices=(device,), milli=milli
    )


class Node:
    """A taker whose workers all use all that they get, and a driver that answers when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        self.pauses: list[tuple[WorkerKey, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.refused = False
        self.taker = TurnTaker(self.pause, DEVICES, lambda: Instant(self.now), self.spawn)
        monkeypatch.setattr(turn_taker.process_tree, "tree", lambda pid: [pid])
        monkeypatch.setattr(turn_taker.process_tree, "core_time_ms", lambda pids: (self.now, 0))

    async def pause(self, key: WorkerKey, limit_ms: int) -> None:
        self.pauses.append((key, limit_ms))
        await self.gate.wait()
        if self.refused:
            raise Conflict("it does not run")

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        self.tasks.add(asyncio.create_task(work))

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def share(self, *workers: Worker, ms: int = 1_000) -> None:
        """They are seen to share a core for so long."""
        self.taker.see(workers)
        for begun in range(2):
            self.now += begun * ms
            for worker in workers:
                await self.taker.measure(worker.key, RUNS)
        await self.settle()


def test_the_second_that_could_use_all_of_a_core_is_told_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch)
        await node.share(a_worker(A), a_worker(B))
        assert node.pauses == [(B, 5_000)]
        assert node.taker.takers(A) == node.taker.takers(B) == 2
        node.taker.see([a_worker(A)])
        await node.settle()
        assert node.taker.takers(A) == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "other",
    [
        a_worker(B, milli=1_000),
        a_worker(B, device=GPU),
        a_worker(B, device=TOY),
        replace(a_worker(B), is_job=False),
        replace(a_worker(B), frozen=True),
        replace(a_worker(B), settling=True),
        replace(a_worker(B), doing=Freeze(B)),
        replace(a_worker(B), condemned="it is not fit"),
        replace(a_worker(B), hold=Hold(HoldKind.SAVE, ImageId("i"))),
        replace(a_worker(B), observed=Observed.STARTING),
        replace(a_worker(B), alive=False, observed=Observed.ENDED),
    ],
    ids=str,
)
def test_who_must_not_wait_is_let_alone(monkeypatch: pytest.MonkeyPatch, other: Worker) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch)
        await node.share(a_worker(A), other)
        assert node.pauses == []

    asyncio.run(scenario())


def test_nothing_else_is_done_with_a_worker_until_its_pause_is_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch)
        node.gate.clear()
        await node.share(a_worker(A), a_worker(B))
        assert node.pauses == [(B, 5_000)]
        node.taker.see([a_worker(A), replace(a_worker(B), doing=Freeze(B))])
        waits = asyncio.create_task(node.taker.settled(B))
        await node.settle()
        assert not waits.done()
        await node.taker.settled(A)
        node.gate.set()
        await waits
        assert node.pauses == [(B, 5_000)], "it is not told to go on: that is ended by the freeze"

    asyncio.run(scenario())


def test_who_cannot_be_paused_takes_no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch)
        node.refused = True
        await node.share(a_worker(A), a_worker(B))
        assert node.pauses == [(B, 5_000)]
        assert node.taker.takers(B) == 0

    asyncio.run(scenario())


def test_a_turn_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch)
        loop = asyncio.create_task(node.taker.run())
        await node.share(a_worker(A), a_worker(B))
        node.now += 10_000
        await node.taker.measure(A, RUNS)  # something happens, so that the time is looked at
        await node.settle()
        assert node.pauses[:2] == [(B, 5_000), (A, 5_000)] and (B, 0) in node.pauses
        loop.cancel()

    asyncio.run(scenario())
