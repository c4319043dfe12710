"""An agent may die at any of its steps: whatever it was at, nothing of the job is lost.

Each story is told once without a death to count its steps, and then once for each step and node,
with the agent of that node killed just before it, amid it and just after it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.agent.nodes import Moment, TestPool

from onefleet.core import lifecycle
from onefleet.domain.ids import DeviceId, NodeId
from onefleet.domain.work import Phase, Slot, Want

Story = Callable[[TestPool], Awaitable[None]]


def slots(*places: tuple[str, str]) -> tuple[Slot, ...]:
    return tuple(Slot(NodeId(n), (DeviceId(f"{n}/cpu{d}"),)) for n, d in places)


async def suspended_and_resumed(pool: TestPool) -> None:
    await pool.place(("n1", "0"), ("n2", "0"))
    await pool.round()
    pool.apply(lifecycle.SaveOrdered("room"))
    await pool.until(lambda work: work.phase is Phase.SUSPENDED)
    assert pool.work.suspends == 1 and pool.work.image is not None
    await pool.place(("n1", "1"), ("n2", "0"), restore=True)


async def moved(pool: TestPool) -> None:
    await pool.place(("n1", "0"), ("n1", "1"))
    await pool.round()
    pool.apply(lifecycle.SaveOrdered("room"))
    await pool.until(lambda work: work.phase is Phase.SUSPENDED)
    await pool.place(("n2", "0"), ("n1", "1"), restore=True)


async def followed_as_it_moved(pool: TestPool) -> None:
    await pool.place(("n1", "0"), ("n1", "1"))
    await pool.round()
    there = (NodeId("n2"), NodeId("n1"))
    pool.apply(lifecycle.MoveWanted(there), lifecycle.SaveOrdered("it moves"))
    await pool.until(lambda work: work.phase is Phase.SUSPENDED)
    assert pool.followed
    await pool.place(("n2", "0"), ("n1", "1"), restore=True)


async def saved_as_it_runs(pool: TestPool) -> None:
    await pool.place(("n1", "0"), ("n2", "0"))
    await pool.round()
    for number in (1, 2):
        pool.apply(lifecycle.CheckpointOrdered())
        await pool.until(lambda work: work.making is None)
        assert pool.work.image is not None and pool.work.image.id == f"job.1-{number}"
        await pool.round()
    pool.apply(lifecycle.SaveOrdered("room"))
    await pool.until(lambda work: work.phase is Phase.SUSPENDED)
    await pool.place(("n1", "0"), ("n2", "0"), restore=True)


async def frozen_and_thawed(pool: TestPool) -> None:
    await pool.place(("n1", "0"), ("n2", "0"))
    pool.apply(lifecycle.Froze("room"))
    await pool.until(lambda work: not any(pool.find(rank) for rank in (0, 1)))
    pool.apply(lifecycle.Thawed(slots(("n1", "1"), ("n2", "1"))))
    await pool.until(lambda work: all(pool.find(rank) for rank in (0, 1)))
    pinned = [n.driver.pinned[n.folder(pool.work, r)] for r, n in enumerate(pool.nodes.values())]
    assert pinned == [(1,), (1,)]


async def frozen_and_saved(pool: TestPool) -> None:
    await pool.place(("n1", "0"), ("n2", "0"))
    pool.apply(lifecycle.Froze("room"))
    await pool.until(lambda work: not any(pool.find(rank) for rank in (0, 1)))
    pool.apply(lifecycle.SaveOrdered("its memory is wanted"))
    await pool.until(lambda work: work.phase is Phase.SUSPENDED)
    await pool.place(("n1", "0"), ("n2", "0"), restore=True)


async def resized(pool: TestPool) -> None:
    await pool.place(("n1", "0"), ("n1", "1"))
    for places in ((("n1", "0"), ("n1", "0")), (("n1", "1"), ("n1", "0"))):
        pool.apply(lifecycle.Resized(slots(*places)))
        node = pool.nodes[NodeId("n1")]
        wanted = [(int(device),) for _, device in places]
        await pool.until(
            lambda work, node=node, wanted=wanted: (  # type: ignore[misc]
                [node.driver.pinned[node.folder(work, r)] for r in (0, 1)] == wanted
                and all(pool.find(rank) for rank in (0, 1))
            )
        )


STORIES: tuple[Story, ...] = (
    suspended_and_resumed,
    moved,
    followed_as_it_moved,
    saved_as_it_runs,
    frozen_and_thawed,
    frozen_and_saved,
    resized,
)


async def told(pool: TestPool, story: Story, node: str, step: int, moment: Moment) -> int:
    """Tell the story; the steps that the node's agent took until the end, or its death."""
    await pool.up()
    fuse = pool.nodes[NodeId(node)].fuse
    fuse.arm(step, moment)
    await story(pool)
    await pool.until(lambda work: work.phase is Phase.RUNNING)
    await pool.until(lambda work: all(pool.find(rank) for rank in (0, 1)))
    # However it was: the job was started once, and every step that it ever made is in it.
    work = pool.work
    assert (work.attempts, work.lost_ms) == (1, 0), work
    assert pool.counted() == pool.ticks
    steps = fuse.steps
    pool.apply(lifecycle.WantChanged(Want.STOP), lifecycle.StopOrdered("its owner wants it"))
    await pool.until(lambda work: work.phase is Phase.ENDED)
    for _ in range(6):
        await pool.round()
    for each in pool.nodes.values():
        assert each.machine.workers() == []
        assert not any(each.driver.is_alive(each.folder(work, rank)) for rank in (0, 1))
    return steps


@pytest.mark.parametrize(
    ("story", "node"),
    [
        *((story, "n1") for story in STORIES),
        *((story, "n2") for story in (moved, followed_as_it_moved, suspended_and_resumed)),
    ],
)
@pytest.mark.parametrize("moment", Moment)
def test_no_step_at_which_an_agent_dies_costs_anything(
    story: Story, node: str, moment: Moment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in itertools.count(0):
        with monkeypatch.context() as patch:
            pool = TestPool(tmp_path / str(step), 2, patch)
            steps = asyncio.run(told(pool, story, node, step, moment))
        if step == 0:
            least = steps
        elif not pool.nodes[NodeId(node)].fuse.blown:
            break
    assert step > least >= 2
