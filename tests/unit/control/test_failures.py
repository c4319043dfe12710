"""The fleet's failures are learnt, last over restarts, and steer how often jobs are saved."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.fleets import a_job, a_node, placed
from tests.unit.control.states import a_job_record

from onefleet.control import views
from onefleet.control.failures import LOST, WATCHED
from onefleet.control.pool import HELD_WRITE_MS, Pool
from onefleet.core.checkpointing import PRIOR_NODE_MS, Failures
from onefleet.core.policy import DEFAULT_POLICY
from onefleet.domain.fleet import NodeState
from onefleet.domain.ids import CountingIds, Instant, NodeId
from onefleet.domain.layout import Layout
from onefleet.domain.work import Phase
from onefleet.store.base import Commit, Put
from onefleet.store.memory import MemoryStore

DAY_MS = 24 * 3_600_000
START = Instant(1_000_000_000_000)


class Clock:
    def __init__(self) -> None:
        self.at = START

    def now(self) -> Instant:
        return self.at


class Fleet:
    """A control plane over a store that outlives it, and two nodes with a job on the first."""

    def __init__(self, root: Path) -> None:
        self.clock, self.store, self.layout = Clock(), MemoryStore(), Layout(root)

    async def begin(self) -> None:
        job = replace(placed(a_job("job-1"), ("n1", "0")), generation=0)
        nodes = a_node("n1", 1), a_node("n2", 1)
        await self.store.commit(Commit([Put(r) for r in (*nodes, job, a_job_record(job))]))
        await self.boot()

    async def boot(self) -> None:
        """A control plane starts."""

        async def none(*_: Any) -> Any:
            raise AssertionError("no model is added")

        self.pool = await Pool.load(
            self.store, self.layout, self.clock, CountingIds(), DEFAULT_POLICY, none
        )
        await self.pool.run_pass()

    async def go_on(self, ms: int, *heard: str) -> None:
        """So long, in which these nodes are heard of."""
        until = self.clock.at + ms
        while self.clock.at < until:
            self.clock.at = Instant(min(self.clock.at + HELD_WRITE_MS, until))
            for name in heard:
                self.pool.sightings.renew(NodeId(name), self.clock.at)
            await self.pool.run_pass()

    async def marks(self) -> tuple[int, int]:
        marks = (await self.store.read()).marks
        return marks.get(WATCHED, 0), marks.get(LOST, 0)

    async def every_ms(self) -> int:
        """How often a job is saved that runs on one node."""
        state = await self.store.read()
        work = replace(placed(a_job("job-1"), ("n2", "0")), suspendable=True)
        scene = self.pool.scene(replace(state, works={work.id: work}))
        found = views.job_view(state.jobs[work.id], scene).checkpoint_every_ms
        assert found is not None
        return found


def test_node_time_and_losses_are_kept_and_jobs_are_saved_more_often(tmp_path: Path) -> None:
    async def main() -> None:
        fleet = Fleet(tmp_path)
        await fleet.begin()
        await fleet.go_on(3 * HELD_WRITE_MS, "n1", "n2")
        assert await fleet.marks() == (3 * HELD_WRITE_MS, 0), "n2 holds no work"
        calm = await fleet.every_ms()
        await fleet.pool.close()
        await fleet.boot()
        await fleet.go_on(HELD_WRITE_MS, "n1", "n2")
        assert await fleet.marks() == (4 * HELD_WRITE_MS, 0), "the time between them is not watched"

        await fleet.go_on(2 * HELD_WRITE_MS, "n2")  # nobody hears of n1
        state = await fleet.store.read()
        assert state.nodes[NodeId("n1")].state is NodeState.LOST
        (work,) = state.works.values()
        assert work.phase is Phase.STARTING and work.placement[0].node_id == "n2"
        watched, lost = await fleet.marks()
        assert lost == 1 and 4 * HELD_WRITE_MS < watched <= 6 * HELD_WRITE_MS
        mttf = fleet.pool.policy_of(state).node_mttf_ms
        assert mttf == Failures(watched, 1).node_mttf_ms() <= PRIOR_NODE_MS // 2
        assert await fleet.every_ms() < calm
        before = watched
        await fleet.go_on(HELD_WRITE_MS, "n2")
        assert (await fleet.marks())[0] == before + HELD_WRITE_MS

    asyncio.run(main())


def test_a_node_that_held_no_work_is_no_failure(tmp_path: Path) -> None:
    async def main() -> None:
        fleet = Fleet(tmp_path)
        await fleet.begin()
        await fleet.go_on(2 * HELD_WRITE_MS, "n1")
        state = await fleet.store.read()
        assert state.nodes[NodeId("n2")].state is NodeState.LOST
        assert await fleet.marks() == (2 * HELD_WRITE_MS, 0)

    asyncio.run(main())


def test_a_prior_weighs_as_much_as_one_failure_in_its_time() -> None:
    assert Failures().node_mttf_ms(64 * DAY_MS) == Failures(0, 0).node_mttf_ms(64 * DAY_MS)
    assert Failures(64 * DAY_MS, 1).node_mttf_ms(64 * DAY_MS) in range(48 * DAY_MS, 64 * DAY_MS + 1)
    assert Failures(10**6 * DAY_MS, 0).node_mttf_ms(DAY_MS) > 700_000 * DAY_MS
