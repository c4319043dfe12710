"""Nodes for tests: the agent's own crew and machine around a driver without processes, and a
control plane that is the pure parts of the real one.

An agent can be killed at any of its steps, before or after it; the next one finds its files. A
program counts: a gang's, only while all of it runs, so that what was saved at two moments shows.
Workers of a gang take turns on GPUs, by the agent's own turn taker.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from tests.fleets import a_job
from tests.unit.control.states import a_state

from onefleet.agent import crew, fetching, gpu_turns, memory_images, records
from onefleet.agent.crew import Crew
from onefleet.agent.gpu_meter import Use
from onefleet.agent.gpu_turns import CrewGpus, GpuTurnTaker
from onefleet.agent.protocol import Act, OrdersReceived, Report, Tick, WorkerKey
from onefleet.agent.worker_machine import WorkerMachine
from onefleet.control.leases import Sightings
from onefleet.control.observe import observe
from onefleet.control.orders import Orders
from onefleet.core import lifecycle, turns
from onefleet.domain.errors import OnefleetError
from onefleet.domain.fleet import CheckpointMode, Device, DeviceKind, Node
from onefleet.domain.gang import CUT_LIMIT_MS
from onefleet.domain.ids import DeviceId, Generation, ImageId, Instant, NodeId
from onefleet.domain.layout import Layout
from onefleet.domain.work import Phase, Slot, Work
from onefleet.drivers import image as images
from onefleet.drivers.base import SavedImage, WorkerSpec, WorkerState, WorkerStatus
from onefleet.drivers.fake import FakeDriver
from onefleet.store.base import Delete
from onefleet.wire.agent import NodeReport

NODES = ("n1", "n2")
CORES = 3
GPUS = 3


class Killed(BaseException):
    """The agent dies here."""


class Moment(Enum):
    """When an agent dies, seen from a call of its driver or a write of its record. AMID: the call
    has been made, and goes on without it."""

    BEFORE = 1
    AMID = 2
    AFTER = 3


class Fuse:
    """Kills the agent at its n-th step; 0: never."""

    def __init__(self) -> None:
        self.left = 0
        self.moment = Moment.BEFORE
        self.steps = 0
        self.blown = False

    def arm(self, step: int, moment: Moment) -> None:
        self.left, self.moment, self.blown, self.steps = step, moment, False, 0

    def burn(self, moment: Moment) -> None:
        """A step has come this far."""
        if moment is self.moment and not self.blown:
            self.steps += 1
            if self.steps == self.left:
                self.blown = True
                raise Killed


_FUSED = ("start", "save", "restore", "finish", "freeze", "thaw", "pin", "off", "on", "stop")
_SEEN_AMID = {
    "start": WorkerState.STARTING,
    "save": WorkerState.SAVING,
    "restore": WorkerState.RESTORING,
    "stop": WorkerState.STOPPING,
}


class DiskDriver(FakeDriver):
    """A fake whose images lie in folders, and whose programs count."""

    name = "criu"

    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self.fuse = fuse
        self.counts: dict[Path, int] = {}
        self._amid: dict[Path, Callable[[], Awaitable[object]]] = {}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in _FUSED:
            return found

        async def fused(*words: Any, **options: Any) -> Any:
            self.fuse.burn(Moment.BEFORE)
            try:
                self.fuse.burn(Moment.AMID)
            except Killed:
                self._leave_amid(name, words, lambda: found(*words, **options))
                raise
            told = await found(*words, **options)
            self._throw_away()
            self.fuse.burn(Moment.AFTER)
            return told

        return fused

    def _leave_amid(self, name: str, words: Any, call: Callable[[], Awaitable[object]]) -> None:
        """The call goes on, and is done after the next look."""
        folder = getattr(words[0], "folder", words[0])
        before = self._workers.get(folder)

        async def go_on() -> None:
            if before is None:
                self._workers.pop(folder, None)
            else:
                self._workers[folder] = before
            with suppress(OnefleetError):  # it fails, and nobody hears that
                await call()
            self._throw_away()

        self._amid[folder] = go_on
        if name in _SEEN_AMID:
            known = before or WorkerStatus(_SEEN_AMID[name])
            self._workers[folder] = replace(known, state=_SEEN_AMID[name])

    async def status(self, folder: Path) -> WorkerStatus:
        status = await super().status(folder)
        if (go_on := self._amid.pop(folder, None)) is not None:
            await go_on()
        return status

    def runs(self, folder: Path) -> bool:
        status = self._workers.get(folder)
        return status is not None and status.state is WorkerState.RUNNING

    def is_on(self, folder: Path) -> bool:
        """Whether it has memory on its GPUs."""
        return self._lives(folder) and bool(self.gpus[folder]) and folder not in self.off_gpus

    def read(self, gpus: Sequence[str]) -> dict[str, Use]:
        """As a `GpuMeter`: who is on a GPU computes there."""
        found: dict[str, set[int]] = {gpu: set() for gpu in gpus}
        for folder in filter(self.is_on, list(self._workers)):
            for gpu in self.gpus[folder]:
                found.setdefault(gpu, set()).add(self._workers[folder].pid or 0)
        return {gpu: Use(frozenset(pids), frozenset(pids)) for gpu, pids in found.items()}

    def holders(self, gpus: Sequence[str]) -> dict[str, frozenset[int] | None]:
        return {gpu: use.holders for gpu, use in self.read(gpus).items()}

    def is_alive(self, folder: Path) -> bool:
        return self._lives(folder)

    def is_held(self, folder: Path) -> bool:
        status = self._workers.get(folder)
        held = (WorkerState.SAVE_HELD, WorkerState.RESTORE_HELD)
        return status is not None and status.state in held

    async def start(self, spec: WorkerSpec) -> None:
        if not self._lives(spec.folder):
            self.counts[spec.folder] = 0
        await super().start(spec)

    async def save(self, folder: Path, image: Path, **options: Any) -> SavedImage:
        count = self.counts[folder]
        fresh = image not in self._images
        saved = await super().save(folder, image, **options)
        if fresh:
            target = images.begin(str(image))
            Path(target, "count").write_text(str(count))
            images.commit(str(image), {"kind": self.name, "writable": [], "frozen_ms": 0})
        return saved

    async def restore(self, spec: WorkerSpec, image: Path, **options: Any) -> None:
        if not self._lives(spec.folder):
            images.verify(str(image))
            self._images.setdefault(image, spec.folder)
            self.counts[spec.folder] = int((image / "count").read_text())
        await super().restore(spec, image, **options)

    def _throw_away(self) -> None:
        """Images that the fake has given up leave the disk, and the other way round."""
        for worker in list(self._workers):
            folder = worker / records.IMAGES
            for found in folder.iterdir() if folder.is_dir() else ():
                if found.name in self._given_up and found not in self._images:
                    shutil.rmtree(found)
        for gone in [image for image in self._images if not image.is_dir()]:
            del self._images[gone]

    @property
    def _given_up(self) -> set[str]:
        held = (hold for hold in self._holds.values() if not hold.restores)
        return {hold.image.name for hold in held if hold.commit is not True}


class TestNode:
    """One node: what outlives its agent, and its agent."""

    __test__ = False

    def __init__(self, root: Path, name: str) -> None:
        self.id = NodeId(name)
        self.layout = Layout(root / name)
        self.fuse = Fuse()
        self.driver = DiskDriver(self.fuse)
        self.devices = tuple(
            Device(DeviceId(f"{name}/cpu{i}"), DeviceKind.CPU, i, "a core", 1 << 30)
            for i in range(CORES)
        ) + tuple(
            Device(DeviceId(f"{name}/gpu{i}"), DeviceKind.GPU, i, "a GPU", 1, uuid=f"GPU-{i}")
            for i in range(GPUS)
        )
        self.deaths = 0
        self.seen = Generation(0)
        self.now = Instant(0)

    async def boot(self) -> None:
        """An agent starts and adopts what is here."""
        self.crew = Crew(self.layout, {"criu": self.driver, "local": self.driver}, self.devices)
        self.machine = WorkerMachine()
        self.layout.agent.mkdir(parents=True, exist_ok=True)
        await self.crew.prove()
        self.queue: list[Act] = []
        self.later: list[Act] = []
        self.turns: list[Coroutine[None, None, None]] = []
        gpus = CrewGpus(self.crew, self.devices)
        self.taker = GpuTurnTaker(
            gpus, self.driver, self._unfit, lambda: self.now, self.turns.append
        )
        for found in await self.crew.adopt():
            self.take(self.machine.handle(found, Instant(0)))

    def take(self, effects: Any) -> None:
        self.machine.check()
        self.queue += [e for e in effects if not isinstance(e, Report)]
        self.taker.see(self.machine.workers())

    def _unfit(self, key: WorkerKey, reason: str) -> None:
        raise AssertionError(f"{key} is unfit: {reason}")

    async def _take_turns(self) -> None:
        """Before anything else is done with the workers, as the agent waits for that, too."""
        while self.turns:
            await self.turns.pop(0)

    async def settle(self, now: Instant) -> None:
        """Do what is to be done, and look at the workers, until nothing is left."""
        self.now = now
        try:
            self.queue, self.later = [*self.later, *self.queue], []
            await self._take_turns()
            while self.queue:
                act = self.queue.pop(0)
                done = await self.crew.perform(act)
                effects = self.machine.handle(done, now)
                if done.more:  # it is under way until the next round
                    self.later += [e for e in effects if not isinstance(e, Report)]
                else:
                    self.take(effects)
                await self._take_turns()
            for worker in list(self.machine.workers()):
                if worker.alive and worker.doing is None:
                    seen, _ = await self.crew.status(worker.key, worker.ran)
                    self.take(self.machine.handle(seen, now))
            self.take(self.machine.handle(Tick(), now))
            await self.taker.measure()
            self.taker._feed(turns.Tick())
            await self._take_turns()
        except Killed:
            self.deaths += 1
            self.close()
            await self.boot()

    def close(self) -> None:
        """Nothing comes of the turns that are still to be given."""
        for turn in self.turns:
            turn.close()

    def report(self) -> NodeReport:
        workers = [w.report() for w in self.machine.workers() if w.observed is not None]
        return NodeReport(
            node_id=self.id, name=self.id, devices=self.devices, memory_bytes=1 << 30,
            memory_free_bytes=1, cpu_busy_permille=0, checkpoint_mode=CheckpointMode.CRIU,
            checkpoint_reason="", seen=self.machine.generation, wait_ms=0,
            workers=tuple(workers), sent_at=Instant(0), address=f"{self.id}:1",
        )  # fmt: skip

    def folder(self, work: Work, rank: int) -> Path:
        return self.layout.worker(work.id, rank)


class TestPool:
    """One job on two nodes, and the state that its control plane keeps of it."""

    __test__ = False

    def __init__(self, root: Path, workers: int, monkeypatch: Any) -> None:
        self.now = Instant(1_000_000)
        self.nodes = {NodeId(name): TestNode(root, name) for name in NODES}
        work = a_job("job", workers=workers)
        self.state = a_state(work, nodes={})
        self.state = replace(self.state, generation=Generation(1))
        self.sightings = Sightings(self.now)
        self.ticks = 0
        self.followed = False  # some of an image came before it counted
        self.lapsed = False  # what was done after that may be undone
        monkeypatch.setattr(crew, "nvidia_driver", lambda: "590.44")
        monkeypatch.setattr(fetching, "fetch", self._fetch)
        monkeypatch.setattr(records, "write", self._fused(records.write))
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        monkeypatch.setattr(gpu_turns.process_tree, "tree", lambda pid: [pid])
        monkeypatch.setattr(memory_images, "place", lambda *_: None)

    def _fused(self, write: Callable[..., None]) -> Callable[..., None]:
        def fused(folder: Path, record: Any) -> None:
            fuse = next(n.fuse for n in self.nodes.values() if n.layout.root in folder.parents)
            fuse.burn(Moment.BEFORE)
            write(folder, record)
            fuse.burn(Moment.AFTER)

        return fused

    def _fetch(
        self, layout: Layout, key: WorkerKey, image: ImageId, sources: Any, **how: Any
    ) -> bool:
        fuse = next(n.fuse for n in self.nodes.values() if n.layout == layout)
        fuse.burn(Moment.BEFORE)
        source = self.nodes[sources[0].node_id]
        found = source.layout.worker(key.work_id, key.rank) / records.IMAGES / image
        target = layout.worker(key.work_id, key.rank) / records.IMAGES / image
        counts = how["errand"].counts
        if not target.exists():
            partial = target.with_name(f"{image}{images.PARTIAL}")
            shutil.rmtree(partial, ignore_errors=True)
            if found.is_dir():
                shutil.copytree(found, partial)
                self.followed |= not counts
            if counts:
                partial.rename(target)
        fuse.burn(Moment.AFTER)
        return target.exists()

    @property
    def work(self) -> Work:
        return next(iter(self.state.works.values()))

    async def up(self) -> None:
        for node in self.nodes.values():
            await node.boot()

    def apply(self, *events: lifecycle.Event) -> None:
        work = self.work
        for event in events:
            work = lifecycle.apply(work, event, self.now)
        lifecycle.check(work)
        self._write({work.id: work})

    def _write(self, works: Any, nodes: Any = None) -> None:
        self.state = replace(
            self.state,
            generation=Generation(self.state.generation + 1),
            works={**self.state.works, **works},
            nodes={**self.state.nodes, **(nodes or {})},
        )

    async def round(self) -> None:
        """Every node reports, is told, and does; and the programs count once."""
        for node in self.nodes.values():
            report = node.report()
            seen = self.sightings.see(report, self.state, self.now)
            lease = Instant(self.now + 30_000)
            commit = observe(self.state, report, seen, lease, self.now)
            written = [c.record for c in commit.changes if not isinstance(c, Delete)]
            if written:
                works = {r.id: r for r in written if isinstance(r, Work)}
                nodes = {r.id: r for r in written if isinstance(r, Node)}
                for work in works.values():
                    lifecycle.check(work)
                self._write(works, nodes)
            orders = Orders(self.state).of(node.id)
            node.take(node.machine.handle(OrdersReceived(orders, self.now), self.now))
            await node.settle(self.now)
        self.count()
        self.now = Instant(self.now + 100)

    def count(self) -> None:
        """The program makes a step, if all of it runs."""
        ranks = [self.find(rank) for rank in range(self.work.demand.workers)]
        if all(found is not None for found in ranks):
            for node, folder in (found for found in ranks if found is not None):
                node.driver.counts[folder] += 1
            self.ticks += 1
        counts = [n.driver.counts[f] for n, f in (x for x in ranks if x is not None)]
        assert len(set(counts)) <= 1 or None in ranks, f"workers of two moments: {counts}"

    def find(self, rank: int) -> tuple[TestNode, Path] | None:
        """Where a rank runs; nowhere twice."""
        found = [
            (node, node.folder(self.work, rank))
            for node in self.nodes.values()
            if node.driver.runs(node.folder(self.work, rank))
        ]
        assert len(found) <= 1, f"rank {rank} runs twice"
        return found[0] if found else None

    async def until(self, good: Callable[[Work], bool], rounds: int = 80) -> None:
        for _ in range(rounds):
            if good(self.work):
                return
            await self.round()
        told = [n.report().workers for n in self.nodes.values()]
        raise AssertionError(f"not within {rounds} rounds: {self.work}\n{told}")

    async def place(self, *slots: tuple[str, str], restore: bool = False) -> None:
        """Put it there, and wait until it runs."""
        placement = tuple(Slot(NodeId(n), (DeviceId(f"{n}/cpu{d}"),)) for n, d in slots)
        self.apply(lifecycle.Placed(placement, restore))
        await self.until(lambda work: work.phase is Phase.RUNNING)

    def lapse(self, node_id: NodeId) -> None:
        """The time of the holds on this node is over, which is longer than a cut may take."""
        node = self.nodes[node_id]
        self.now = Instant(self.now + CUT_LIMIT_MS)
        for rank in range(self.work.demand.workers):
            folder = node.folder(self.work, rank)
            if node.driver.is_held(folder):
                node.driver.lapse(folder)
                self.lapsed = True

    def counted(self) -> int:
        """How far the program has come, all of it being at the same point."""
        found = [self.find(rank) for rank in range(self.work.demand.workers)]
        counts = {node.driver.counts[folder] for node, folder in (f for f in found if f)}
        assert None not in found and len(counts) == 1, f"{found}: {counts}"
        return counts.pop()
