"""Workers of a gang on one GPU: one is on it at a time, whatever else is done and whoever dies."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.agent.nodes import Fuse, Killed, Moment

from onefleet.agent import gpu_turns, records
from onefleet.agent.crew import Crew
from onefleet.agent.gpu_meter import Use
from onefleet.agent.gpu_turns import CrewGpus, GpuTurnTaker
from onefleet.agent.protocol import Freeze, Hold, HoldKind, WorkerKey
from onefleet.agent.worker import Worker
from onefleet.domain.errors import UpstreamFailed
from onefleet.domain.fleet import CheckpointMode, Device, DeviceKind
from onefleet.domain.ids import DeviceId, Generation, ImageId, Instant, WorkId
from onefleet.domain.layout import Layout
from onefleet.drivers.base import WorkerSpec, WorkerState
from onefleet.drivers.fake import FakeDriver, FakeFaults
from onefleet.wire.agent import JobSpec, Observed, Order, OrderVerb

GPU, CPU = DeviceId("n/gpu0"), DeviceId("n/cpu0")
DEVICES = (
    Device(GPU, DeviceKind.GPU, 0, "a GPU", 1, uuid="GPU-0"),
    Device(CPU, DeviceKind.CPU, 0, "a core", 1),
)
LOOK_MS = 200


class Gpu(FakeDriver):
    """A driver whose workers count while they are on their GPU, which has room for one."""

    name = "criu"

    def __init__(self, fuse: Fuse) -> None:
        super().__init__(faults=FakeFaults())
        self.fuse = fuse
        self.counts: dict[Path, int] = {}
        self.fresh: set[Path] = set()  # it came on by itself, and has not been off yet
        self.full: Path | None = None  # for whom there is no room

    def is_on(self, folder: Path) -> bool:
        return self._lives(folder) and folder not in self.off_gpus

    async def off(self, folder: Path, towards: Sequence[str] = ()) -> None:
        await self._fused(super().off(folder, towards))
        self.fresh.discard(folder)

    async def on(self, folder: Path, gpus: Sequence[str] = ()) -> None:
        there = [other for other in self.counts if self.is_on(other) and other != folder]
        assert there in ([], [o for o in there if o in self.fresh]), f"{folder} beside {there}"
        if folder == self.full:
            raise UpstreamFailed("the worker does not fit on GPU GPU-0", why="none is free")
        await self._fused(super().on(folder, gpus))

    async def is_off(self, folder: Path) -> bool:
        await self._fused(asyncio.sleep(0))
        return await super().is_off(folder)

    async def _fused(self, call: Awaitable[None]) -> None:
        """A call that has begun goes on when the agent dies amid it."""
        try:
            self.fuse.burn(Moment.BEFORE)
        except Killed:
            await asyncio.create_task(_no(call))
            raise
        await call
        self.fuse.burn(Moment.AMID)
        self.fuse.burn(Moment.AFTER)


async def _no(call: Awaitable[None]) -> None:
    if asyncio.iscoroutine(call):
        call.close()


class Node:
    """Workers 0, 1, .. of a gang on one GPU, and the taker of an agent that may die."""

    def __init__(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, ranks: int = 2, device: DeviceId = GPU
    ) -> None:
        self.now = 10_000
        self.fuse = Fuse()
        self.driver = Gpu(self.fuse)
        self.crew = Crew(Layout(root), {"criu": self.driver, "local": self.driver}, DEVICES)
        self.workers = [self._worker(rank, ranks, device) for rank in range(ranks)]
        self.idle: set[WorkerKey] = set()  # whose process computes nothing
        self.unfit: list[tuple[WorkerKey, str]] = []
        self.metered = True
        self.reads = 0
        self.deaths = 0
        self.tasks: set[asyncio.Task[None]] = set()
        monkeypatch.setattr(gpu_turns.process_tree, "tree", lambda pid: [pid])

    def _worker(self, rank: int, ranks: int, device: DeviceId) -> Worker:
        key = WorkerKey(WorkId("job"), rank)
        spec = JobSpec(name="job", tenant_id="t", command=("true",), workers=ranks)
        order = Order(
            work_id=key.work_id, rank=rank, epoch=Generation(1), verb=OrderVerb.RUN,
            devices=(device,), job=spec,
        )  # fmt: skip
        record = records.Record(
            work_id=key.work_id, rank=rank, epoch=Generation(1), driver="criu", order=order
        )
        self.crew._records[key] = record
        return Worker(
            key, is_job=True, alive=True, observed=Observed.RUNNING, devices=(device,), order=order
        )

    async def start(self, *off: int) -> None:
        for worker in self.workers:
            folder = self.crew.folder(worker.key)
            spec = WorkerSpec(folder, ("true",), folder, gpus=("GPU-0",), takes_turns=True)
            await self.driver.start(spec)
            self.driver.counts[folder] = 0
            if worker.key.rank in off:
                self.driver.off_gpus.add(folder)
            else:
                self.driver.fresh.add(folder)
        self.boot()

    def boot(self) -> None:
        """An agent starts, and sees who is here."""
        for task in self.tasks:
            task.cancel()
        self.taker = GpuTurnTaker(
            CrewGpus(self.crew, DEVICES),
            self,
            lambda key, why: self.unfit.append((key, why)),
            lambda: Instant(self.now),
            self.spawn,
        )
        self.spawn(self.taker.run())
        self.taker.see(self.workers)

    def spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, Killed):
                raise error
            self.deaths += 1
            self.boot()

    def read(self, gpus: Sequence[str]) -> Mapping[str, Use]:
        self.reads += 1
        return self._seen()

    def _seen(self) -> Mapping[str, Use]:
        if not self.metered:
            return {}
        on = [w for w in self.workers if self.is_on(w.key.rank)]
        pids = {w.key: self._pid(w.key) for w in on}
        busy = frozenset(pid for key, pid in pids.items() if key not in self.idle)
        return {"GPU-0": Use(frozenset(pids.values()), busy)}

    def holders(self, gpus: Sequence[str]) -> Mapping[str, frozenset[int] | None]:
        return {gpu: use.holders for gpu, use in self._seen().items()}

    def _pid(self, key: WorkerKey) -> int:
        pid = self.driver._workers[self.crew.folder(key)].pid
        assert pid is not None
        return pid

    def is_on(self, rank: int) -> bool:
        return self.driver.is_on(self.crew.folder(self.workers[rank].key))

    @property
    def on(self) -> list[int]:
        return [w.key.rank for w in self.workers if self.is_on(w.key.rank)]

    async def go(self, ms: int) -> list[list[int]]:
        """So much time passes; who was on the GPU, look by look, without repetitions."""
        seen = [self.on]
        for _ in range(0, ms, LOOK_MS):
            self.now += LOOK_MS
            await self.taker.measure()
            await self.settle()
            for rank in self.on:
                self.driver.counts[self.crew.folder(self.workers[rank].key)] += 1
            seen += [self.on] if self.on != seen[-1] else []
        return seen

    async def settle(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    def close(self) -> None:
        for task in self.tasks:
            task.remove_done_callback(self._ended)
            task.cancel()


Story = Callable[[Node], Awaitable[None]]


def play(node: Node, story: Story) -> None:
    async def all_of_it() -> None:
        asyncio.get_running_loop().slow_callback_duration = 60
        try:
            await story(node)
        finally:
            node.close()

    asyncio.run(all_of_it())


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(asyncio, "to_thread", _at_once)
    return Node(tmp_path, monkeypatch)


async def _at_once(call: Callable[..., Any], *words: Any) -> Any:
    return call(*words)


def test_of_workers_that_started_together_one_at_a_time_stays_on(node: Node) -> None:
    async def story(node: Node) -> None:
        await node.start()
        assert node.on == [0, 1]
        seen = await node.go(6_000)
        assert seen[:6] == [[0, 1], [0], [1], [0], [1], [0]]
        assert [node.taker.takers(w.key) for w in node.workers] == [2, 2]

    play(node, story)


def test_who_only_waits_gives_its_turn_up(node: Node) -> None:
    async def story(node: Node) -> None:
        await node.start(1)
        node.idle.add(node.workers[0].key)
        await node.go(1_000)
        assert node.on == [1]
        node.metered = False  # nobody can tell: turns last as long as they may
        node.idle.clear()
        assert [len(at) for at in await node.go(5_000)] == [1] * 6

    play(node, story)


def test_a_worker_alone_is_put_on_and_stays(node: Node) -> None:
    async def story(node: Node) -> None:
        node.workers = node.workers[:1]
        await node.start(0)
        assert await node.go(10_000) == [[], [0]]
        assert node.taker.takers(node.workers[0].key) == 0

    play(node, story)


@pytest.mark.parametrize(
    "change",
    [
        {"doing": Freeze(WorkerKey(WorkId("job"), 1))},
        {"hold": Hold(HoldKind.MAKING, ImageId("i"))},
        {"settling": True},
        {"condemned": "it is not fit"},
        {"observed": Observed.STARTING},
        {"frozen": True},
    ],
    ids=str,
)
def test_while_one_is_in_other_hands_nobody_is_moved(node: Node, change: dict[str, Any]) -> None:
    async def story(node: Node) -> None:
        await node.start(1)
        await node.go(400)
        node.taker.see([node.workers[0], replace(node.workers[1], **change)])
        assert await node.go(20_000) == [[0]]
        node.taker.see(node.workers)
        assert await node.go(1_000) == [[0], [1]], "its turn is long over"

    play(node, story)


def test_nothing_is_done_with_a_worker_until_its_switch_is_over(node: Node) -> None:
    async def story(node: Node) -> None:
        await node.start(1)
        await node.go(400)
        gate = asyncio.Event()

        async def slow(seconds: float) -> None:
            await gate.wait()

        node.driver._sleep = slow
        await node.go(1_000)
        changed = [replace(w, doing=Freeze(w.key)) for w in node.workers]
        node.taker.see(changed)
        waits = asyncio.create_task(node.taker.settled(node.workers[0].key))
        await node.settle()
        assert not waits.done()
        await node.taker.settled(node.workers[1].key)
        gate.set()
        await waits
        assert await node.go(3_000) == [[]], "and the next is not put on"

    play(node, story)


def test_who_cannot_be_put_on_again_is_unfit(node: Node) -> None:
    async def story(node: Node) -> None:
        await node.start(1)
        node.driver.full = node.crew.folder(node.workers[1].key)
        await node.go(8_000)
        assert node.unfit == [], "others may make room"
        await node.go(6_000)
        ((key, why),) = node.unfit
        assert (key.rank, why) == (
            1,
            "it could not be put on its GPUs again: the worker does not fit on GPU GPU-0: "
            "none is free",
        )
        assert node.on == [0], "the other goes on meanwhile"

    play(node, story)


def test_who_finds_no_room_for_a_while_comes_on_later(node: Node) -> None:
    async def story(node: Node) -> None:
        await node.start(1)
        node.driver.full = node.crew.folder(node.workers[1].key)
        await node.go(8_000)
        node.driver.full = None
        await node.go(8_000)
        assert node.unfit == [] and node.driver.counts[node.crew.folder(node.workers[1].key)] > 0

    play(node, story)


def test_where_it_is_is_found_without_a_word_of_who_computed(node: Node) -> None:
    """Else the look at who computes would miss what was used until then."""

    async def story(node: Node) -> None:
        await node.start(1)
        node.metered = False
        before = node.reads
        node.taker.see([node.workers[0], replace(node.workers[1], settling=True)])
        node.taker.see(node.workers)
        await node.settle()
        assert (node.reads, node.taker.takers(node.workers[1].key)) == (before, 2)

    play(node, story)


def test_who_computed_during_a_rest_is_not_told_of_the_turn_after_it(node: Node) -> None:
    async def story(node: Node) -> None:
        await node.start(1)
        await node.go(400)
        node.taker.see([replace(worker, settling=True) for worker in node.workers])
        before = node.reads
        await node.go(1_000)
        assert node.reads == before + 5, "what was seen is thrown away"

    play(node, story)


def test_where_one_cannot_be_taken_off_both_are_on_if_they_fit(node: Node) -> None:
    async def story(node: Node) -> None:
        await node.start(1)
        node.driver.faults.errors["off"] = [UpstreamFailed("no")] * 3
        node.driver.fresh.add(node.crew.folder(node.workers[0].key))
        await node.go(5_000)
        assert (node.on, node.unfit) == ([0, 1], [])
        assert [node.taker.takers(w.key) for w in node.workers] == [0, 0]

    play(node, story)


@pytest.mark.parametrize("kind", ["on cores", "alone", "saves itself"])
def test_who_takes_no_turns_on_gpus_is_let_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    ranks, device = (1 if kind == "alone" else 2), (CPU if kind == "on cores" else GPU)
    node = Node(tmp_path, monkeypatch, ranks, device)
    if kind == "saves itself":
        for key, record in node.crew._records.items():
            node.crew._records[key] = records.Record(
                work_id=key.work_id, rank=key.rank, epoch=record.epoch, driver="local",
                order=record.order,
            )  # fmt: skip
            assert node.crew.mode(key) is CheckpointMode.COOPERATIVE

    async def story(node: Node) -> None:
        await node.start()
        on = list(range(ranks))
        assert await node.go(5_000) == [on]

    play(node, story)


@pytest.mark.parametrize("moment", Moment)
def test_an_agent_may_die_at_any_step_of_a_turn(
    moment: Moment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three workers; whoever dies when, each goes on, and no two are put on (see `Gpu.on`)."""
    monkeypatch.setattr(asyncio, "to_thread", _at_once)
    for step in itertools.count(1):
        node = Node(tmp_path / str(step), monkeypatch, ranks=3)
        node.fuse.arm(step, moment)

        async def story(node: Node) -> None:
            await node.start()
            await node.go(12_000)
            before = dict(node.driver.counts)
            await node.go(6_000)
            for folder, count in node.driver.counts.items():
                assert count > before[folder], f"{folder} stands still"
                assert (await node.driver.status(folder)).state is WorkerState.RUNNING

        play(node, story)
        assert node.deaths == node.fuse.blown
        if not node.fuse.blown:
            break
    assert step > 15
