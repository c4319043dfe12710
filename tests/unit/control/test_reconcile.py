"""A pass is idempotent, deterministic and whole; and it follows the demand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
from tests.fleets import a_deployment, a_job, a_node, a_tenant, placed
from tests.unit.control.states import NOW, a_job_record, a_model

from onefleet.control import reconcile as module
from onefleet.control.mirror import Mirror
from onefleet.control.reconcile import Inputs, Pass, reconcile
from onefleet.core import lifecycle
from onefleet.core.autoscale import DemandNow
from onefleet.core.plan import Plan
from onefleet.core.policy import DEFAULT_POLICY
from onefleet.domain.errors import InternalError
from onefleet.domain.fleet import DeviceKind, NodeState
from onefleet.domain.ids import CountingIds, Instant, NodeId, TenantId
from onefleet.domain.tenancy import Used
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Phase, Want
from onefleet.store.base import Commit, Put, Record, State
from onefleet.store.memory import MemoryStore


class World:
    """A memory store, and passes over it at times of the test's choosing."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.ids = CountingIds()
        self.mirror = Mirror()
        self.inputs = Inputs(leases={NodeId("n1"): Instant(NOW + 10**9)})

    async def put(self, *records: Record) -> None:
        await self.store.commit(Commit([Put(record) for record in records]))

    async def run(self, now: int = NOW) -> Pass:
        return await reconcile(
            self.store,
            DEFAULT_POLICY,
            Instant(now),
            random.Random(0),
            ids=self.ids,
            inputs=self.inputs,
            mirror=self.mirror,
        )

    def ask(self, active: int, waiting: int, last: int = NOW) -> None:
        demand = {a_deployment("dep-1").id: DemandNow(active, waiting, Instant(last))}
        self.inputs = replace(self.inputs, demand=demand)


def played(body: Callable[[World], Awaitable[None]]) -> None:
    asyncio.run(_play(body))


async def _play(body: Callable[[World], Awaitable[None]]) -> None:
    await body(World())


def phases(state: State) -> list[Phase]:
    return [work.phase for work in state.works.values()]


def test_a_second_pass_changes_nothing() -> None:
    async def body(world: World) -> None:
        job = a_job("job-1")
        await world.put(a_node("n1", 2), job, a_job_record(job))
        first = await world.run()
        assert first.committed
        state = await world.store.read()
        assert phases(state) == [Phase.STARTING]
        second = await world.run()
        assert (second.committed, second.plan.decisions) == (False, ())
        assert await world.store.read() is state

    played(body)


def test_it_never_waits_so_that_the_simulator_can_run_it() -> None:
    async def prepare(world: World) -> None:
        await world.put(a_node("n1", 2), a_job("job-1"))

    world = World()
    with pytest.raises(StopIteration):
        prepare(world).send(None)
    with pytest.raises(StopIteration) as done:
        world.run().send(None)
    assert done.value.value.committed


def test_the_same_state_gives_the_same_pass() -> None:
    async def once() -> tuple[Plan, State]:
        world = World()
        works = [a_job(f"job-{n}") for n in range(5)]
        deployment = a_deployment("dep-1", replicas_min=2, replicas_wanted=2)
        await world.put(a_node("n1", 4), a_model(), deployment, *works)
        done = await world.run()
        return done.plan, await world.store.read()

    assert asyncio.run(once()) == asyncio.run(once())


def test_a_pass_that_lost_its_race_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        await world.put(a_node("n1", 2), a_job("job-1"))

        def interrupted(*arguments: object) -> list[str]:
            with pytest.raises(StopIteration):
                world.put(a_job("job-2")).send(None)
            return []

        monkeypatch.setattr(module, "check_plan", interrupted)
        done = await world.run()
        assert not done.committed and "first" in done.result
        assert phases(await world.store.read()) == [Phase.PENDING, Phase.PENDING]

    played(body)


def test_an_unsound_plan_is_a_defect_and_is_not_carried_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(world: World) -> None:
        await world.put(a_node("n1", 2), a_job("job-1"))
        monkeypatch.setattr(module, "check_plan", lambda *_: ["a device is held twice"])
        with pytest.raises(InternalError) as caught:
            await world.run()
        assert "held twice" in caught.value.why
        assert phases(await world.store.read()) == [Phase.PENDING]

    played(body)


def test_replicas_follow_the_demand_up_and_down() -> None:
    async def body(world: World) -> None:
        deployment = a_deployment("dep-1", replicas_wanted=0, replicas_max=2, slots=2)
        await world.put(a_node("n1", 4), a_model(), deployment)
        assert not (await world.run()).committed
        world.ask(0, 3)
        await world.run()
        state = await world.store.read()
        assert [d.replicas_wanted for d in state.deployments.values()] == [2]
        assert phases(state) == [Phase.STARTING, Phase.STARTING]
        assert list(state.replicas) == list(state.works)
        for work in state.works.values():
            await world.put(lifecycle.apply(work, lifecycle.Started(), NOW))
        later = NOW + DEFAULT_POLICY.idle_ms
        world.ask(0, 0, NOW)
        await world.run(later)
        state = await world.store.read()
        assert sorted(phases(state)) == [Phase.RUNNING, Phase.STOPPING]
        await world.run(later)
        stopping = [w for w in (await world.store.read()).works.values() if w.want is Want.STOP]
        for work in stopping:
            await world.put(lifecycle.apply(work, lifecycle.ProcessEnded(0, ""), Instant(later)))
        await world.run(later)
        await world.run(later)
        assert len((await world.store.read()).replicas) < 2

    played(body)


def test_a_removed_deployment_goes_with_its_last_replica() -> None:
    async def body(world: World) -> None:
        deployment = a_deployment("dep-1", replicas_min=1)
        await world.put(a_node("n1", 4), a_model(), deployment)
        await world.run()
        state = await world.store.read()
        (known,) = state.deployments.values()
        (work,) = state.works.values()
        running = lifecycle.apply(work, lifecycle.Started(), NOW)
        await world.put(replace(known, removed_at=NOW), running)
        await world.run()
        state = await world.store.read()
        (work,) = state.works.values()
        assert (work.phase, len(state.deployments)) == (Phase.STOPPING, 1)
        await world.put(lifecycle.apply(work, lifecycle.ProcessEnded(0, ""), NOW))
        await world.run()
        state = await world.store.read()
        assert (state.works, state.replicas, state.deployments) == ({}, {}, {})
        assert not (await world.run()).committed

    played(body)


def test_a_node_that_was_not_heard_of_is_fenced_and_its_work_given_up() -> None:
    async def body(world: World) -> None:
        job = placed(a_job("job-1"), ("n1", "0"))
        await world.put(a_node("n1", 2), a_node("n2", 2), replace(job, generation=0))
        world.inputs = Inputs(
            leases={NodeId("n1"): Instant(NOW - 60_000), NodeId("n2"): Instant(NOW + 60_000)}
        )
        await world.run()
        state = await world.store.read()
        assert state.nodes[NodeId("n1")].state is NodeState.LOST
        assert state.nodes[NodeId("n2")].state is NodeState.READY
        (lost,) = state.works.values()
        assert lost.phase is Phase.PENDING and lost.epoch > job.epoch
        kinds = [event.kind for event in await world.store.events(0, 10)]
        assert kinds == ["node.lost", "job.pending"]

    played(body)


def test_the_oldest_ended_jobs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDED_JOBS_KEPT", 3)

    async def body(world: World) -> None:
        records: Sequence[Record] = [
            record
            for n in range(6)
            for job in [replace(a_job(f"job-{n}", tier=Tier.BASIC), recent_ms=10**n)]
            for record in (_ended(job, 100 - n) if n != 2 else job, a_job_record(job))
        ]
        await world.put(*records, a_tenant("a"))
        await world.run()
        state = await world.store.read()
        assert state.tenants[TenantId("a")].used == (Used(Tier.BASIC, DeviceKind.CPU, 110_000),)
        kept = ["job-0", "job-1", "job-2", "job-3"]  # three that ended, and the one that has not
        assert list(state.jobs) == list(state.works) == kept
        await world.run()
        assert list((await world.store.read()).jobs) == kept

    played(body)


def _ended(job: object, at: int) -> Record:
    from onefleet.domain.work import Work

    assert isinstance(job, Work)
    work = lifecycle.apply(job, lifecycle.WantChanged(Want.STOP), Instant(at))
    return lifecycle.apply(work, lifecycle.StopOrdered("cancelled"), Instant(at))
