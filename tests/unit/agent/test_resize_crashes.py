"""An agent dies as it gives a worker other devices, and what was ordered is not what follows.

Each change of devices is made with the agent killed before, amid and after each of its driver's
calls and each write of its record; then comes the same order again, one back to the devices before,
one to others still, a save, a cancel, or the end of the program. The device that was left is given
to another job at once. Whatever happens, no two jobs are on one device, each worker comes onto its
own, and the record says what is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.fleets import a_job
from tests.unit.agent.nodes import Moment, TestNode, TestPool
from tests.unit.control.states import a_job_record

from onefleet.agent import records
from onefleet.agent.protocol import WorkerKey
from onefleet.core import lifecycle
from onefleet.domain.ids import DeviceId, NodeId, WorkId
from onefleet.domain.work import Phase, Slot, Want

HERE = NodeId("n1")
OTHER = WorkId("other")
#: Enough for a turn of each worker.
ROUNDS = 60


@dataclass
class Scene:
    """A job of so many workers on devices of one kind, and another that is to have device 1."""

    pool: TestPool
    kind: str
    workers: int
    frozen: bool  # its devices are changed while it stands still

    @property
    def node(self) -> TestNode:
        return self.pool.nodes[HERE]

    def slots(self, *numbers: int) -> tuple[Slot, ...]:
        """Of a job of one worker, the last."""
        found = tuple(Slot(HERE, (DeviceId(f"n1/{self.kind}{n}"),)) for n in numbers)
        return found[-self.workers :]

    async def round(self) -> None:
        await self.pool.round()
        self.pool.now = type(self.pool.now)(self.pool.now + 400)
        there = self.there()
        shared = {
            d for d in there.values() if len({w for (w, _), e in there.items() if e == d}) > 1
        }
        assert not shared, f"two jobs on {shared}: {there}"

    def there(self) -> dict[tuple[WorkId, int], str]:
        """Who computes where."""
        driver, found = self.node.driver, {}
        for work in self.pool.state.works.values():
            for rank in range(work.demand.workers):
                folder = self.node.folder(work, rank)
                if self.kind == "gpu" and driver.is_on(folder):
                    found[work.id, rank] = driver.gpus[folder][0]
                elif self.kind == "cpu" and driver.runs(folder):
                    found[work.id, rank] = str(driver.pinned[folder][0])
        return found

    async def until(self, good: Callable[[], bool], why: str) -> None:
        for _ in range(ROUNDS):
            if good():
                return
            await self.round()
        raise AssertionError(f"{why}: {self.pool.work}, {self.there()}")

    async def phase(self, phase: Phase) -> None:
        await self.until(lambda: self.pool.work.phase is phase, f"not {phase}")

    async def stands_still(self) -> None:
        folders = [self.node.folder(self.pool.work, rank) for rank in range(self.workers)]
        await self.until(lambda: not any(map(self.node.driver.runs, folders)), "it runs")

    async def give(self, *numbers: int) -> None:
        """Order that it has these devices."""
        if self.workers == 1 or self.frozen:
            if self.pool.work.phase is not Phase.FROZEN:
                self.pool.apply(lifecycle.Froze("room"))
            await self.stands_still()
            self.pool.apply(lifecycle.Thawed(self.slots(*numbers)))
        else:
            self.pool.apply(lifecycle.Resized(self.slots(*numbers)))

    def admit(self) -> None:
        """The other job is placed on device 1."""
        other = a_job(OTHER)
        other = lifecycle.apply(
            other, lifecycle.Placed(self.slots(0, 1)[-1:], False), self.pool.now
        )
        jobs = {**self.pool.state.jobs, OTHER: replace(a_job_record(other))}
        self.pool.state = replace(self.pool.state, jobs=jobs)
        self.pool._write({OTHER: other})

    def has(self, *numbers: int) -> bool:
        """Whether its record says that it has these devices, and nothing is under way."""
        found = [
            self.node.machine.get(WorkerKey(self.pool.work.id, r)) for r in range(self.workers)
        ]
        wanted = [slot.devices for slot in self.slots(*numbers)]
        idle = all(worker is not None and worker.doing is None for worker in found)
        return idle and [worker.devices for worker in found if worker] == wanted

    def recorded(self) -> list[object]:
        folders = [self.node.folder(self.pool.work, rank) for rank in range(self.workers)]
        found = [record for folder in folders if (record := records.read(folder)) is not None]
        return [(record.order.devices, record.binding) for record in found]

    async def check(self, *numbers: int) -> None:
        """It comes onto these devices, all of it in turn, and its record says so."""
        slots, seen = self.slots(*numbers), set[tuple[WorkId, int]]()
        wanted = {
            (self.pool.work.id, rank): slot.devices[0].removeprefix("n1/")
            for rank, slot in enumerate(slots)
        }
        if OTHER in self.pool.state.works:
            wanted[OTHER, 0] = f"{self.kind}1"

        def all_seen() -> bool:
            for who, device in self.there().items():
                if wanted[who].removeprefix(self.kind) == device.removeprefix("GPU-"):
                    seen.add(who)
            return seen >= wanted.keys()

        await self.until(all_seen, f"not all came onto {wanted}, but {seen}")
        await self.until(
            lambda: self.recorded() == [(s.devices, ()) for s in slots], "not recorded"
        )
        assert (self.pool.work.attempts, self.pool.work.lost_ms) == (1, 0)
        assert self.pool.counted() == self.pool.ticks, "every step is in it"

    async def gone(self) -> None:
        """The job is over, and the other has its device."""
        await self.phase(Phase.ENDED)

        def has_it() -> bool:
            return list(self.there()) == [(OTHER, 0)]

        await self.until(has_it, "the other job has not its device, or not alone")


Follow = Callable[[Scene], Awaitable[None]]


async def the_same(scene: Scene) -> None:
    await scene.check(0, 1)


async def back(scene: Scene) -> None:
    await _elsewhere(scene, 0, 0)


async def to_others(scene: Scene) -> None:
    await _elsewhere(scene, 0, 2)


async def _elsewhere(scene: Scene, *numbers: int) -> None:
    if scene.workers == 1 or scene.frozen:
        scene.pool.apply(lifecycle.Froze("room"))
        scene.admit()
        await scene.give(*numbers)
    else:
        await scene.give(*numbers)
        scene.admit()
    await scene.check(*numbers)


async def saved(scene: Scene) -> None:
    scene.pool.apply(lifecycle.SaveOrdered("room"))
    await scene.phase(Phase.SUSPENDED)
    scene.admit()
    scene.pool.apply(lifecycle.Placed(scene.slots(0, 0), True))
    await scene.phase(Phase.RUNNING)
    await scene.check(0, 0)


async def cancelled(scene: Scene) -> None:
    stop = lifecycle.StopOrdered("its owner wants it")
    scene.pool.apply(lifecycle.WantChanged(Want.STOP), stop)
    await scene.stands_still()
    scene.admit()
    await scene.gone()


async def ended(scene: Scene) -> None:
    for rank in range(scene.workers):
        scene.node.driver.end(scene.node.folder(scene.pool.work, rank), 0)
    scene.admit()
    await scene.gone()


FOLLOWS: Sequence[Follow] = (the_same, back, to_others, saved, cancelled, ended)


async def told(scene: Scene, follow: Follow, step: int, moment: Moment) -> None:
    pool = scene.pool
    await pool.up()
    pool.apply(lifecycle.Placed(scene.slots(0, 2), False))
    await scene.phase(Phase.RUNNING)
    await scene.give(0, 0)
    await scene.check(0, 0)
    pool.nodes[HERE].fuse.arm(step, moment)
    await scene.give(0, 1)
    for _ in range(ROUNDS):
        if scene.node.fuse.blown or scene.has(0, 1):
            break
        await scene.round()
    await follow(scene)
    scene.node.close()


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("follow", FOLLOWS)
@pytest.mark.parametrize(
    ("kind", "workers", "frozen"),
    [("gpu", 2, False), ("gpu", 2, True), ("gpu", 1, True), ("cpu", 2, False), ("cpu", 1, True)],
)
def test_whatever_follows_a_death_amid_a_change_of_devices_each_has_its_own(
    kind: str,
    workers: int,
    frozen: bool,
    follow: Follow,
    moment: Moment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for step in itertools.count(1):
        with monkeypatch.context() as patch:
            pool = TestPool(tmp_path / str(step), workers, patch)
            asyncio.run(told(Scene(pool, kind, workers, frozen), follow, step, moment))
        if not pool.nodes[HERE].fuse.blown:
            break
    assert step > 1
