"""Whatever is ordered of a gang, and whoever dies or fails meanwhile: it runs once, its workers are
always of one moment, and in the end it is where it was, or at an image that it says."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.unit.agent.nodes import Moment, TestPool

from onefleet.core import lifecycle
from onefleet.domain.errors import UpstreamFailed
from onefleet.domain.ids import DeviceId, NodeId
from onefleet.domain.work import Phase, Slot, Work

ORDERS = ("save", "freeze", "thaw", "make", "resize", "place")
FAULTY = ("save", "restore", "finish", "freeze", "thaw", "pin", "stop")
NODES = st.sampled_from(["n1", "n2"])
SPOTS = st.lists(st.tuples(NODES, st.sampled_from(["0", "1"])), min_size=2, max_size=2)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("round")),
        st.tuples(st.just("order"), st.sampled_from(ORDERS), SPOTS),
        st.tuples(st.just("kill"), NODES, st.integers(1, 4), st.sampled_from(Moment)),
        st.tuples(st.just("fail"), NODES, st.sampled_from(FAULTY)),
        st.tuples(st.just("lapse"), NODES),
    ),
    min_size=5,
    max_size=40,
)  # fmt: skip


def event(work: Work, kind: str, places: list[tuple[str, str]]) -> lifecycle.Event | None:
    """What is ordered, where the table has it for the phase that the work is in."""
    slots = tuple(Slot(NodeId(n), (DeviceId(f"{n}/cpu{d}"),)) for n, d in places)
    here = tuple(
        Slot(old.node_id, (DeviceId(f"{old.node_id}/cpu{d}"),))
        for old, (_, d) in zip(work.placement, places, strict=False)
    )
    match kind, work.phase:
        case "save", Phase.RUNNING | Phase.FROZEN:
            return lifecycle.SaveOrdered("room")
        case "freeze", Phase.RUNNING:
            return lifecycle.Froze("room")
        case "thaw", Phase.FROZEN:
            return lifecycle.Thawed(here)
        case "make", Phase.RUNNING if work.making is None:
            return lifecycle.CheckpointOrdered()
        case "resize", Phase.RUNNING:
            return lifecycle.Resized(here)
        case "place", Phase.SUSPENDED:
            return lifecycle.Placed(slots, restore=True)
        case "place", Phase.PENDING:
            return lifecycle.Placed(slots, restore=False)
    return None


async def play(pool: TestPool, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    await pool.up()
    pool.apply(lifecycle.Placed((_slot("n1"), _slot("n2")), restore=False))
    for step in steps:
        match step:
            case ("round",):
                await pool.round()
            case ("order", kind, places):
                ordered = event(pool.work, kind, places)
                if ordered is not None:
                    pool.apply(ordered)
                    await pool.round()
            case ("kill", node, number, moment):
                pool.nodes[NodeId(node)].fuse.arm(number, moment)
            case ("fail", node, operation):
                faults = pool.nodes[NodeId(node)].driver.faults
                faults.errors.setdefault(operation, []).append(UpstreamFailed("a fault"))
            case ("lapse", node):
                pool.lapse(NodeId(node))
    for node in pool.nodes.values():  # from here on the world is kind
        node.fuse.arm(0, Moment.BEFORE)
        node.driver.faults.errors.clear()
    for _ in range(4):
        await pool.until(lambda work: work.phase not in (Phase.SAVING, Phase.STOPPING))
        work = pool.work
        kind = {Phase.FROZEN: "thaw", Phase.SUSPENDED: "place", Phase.PENDING: "place"}
        ordered = event(work, kind.get(work.phase, ""), [("n1", "0"), ("n2", "1")])
        if ordered is not None:
            pool.apply(ordered)
        await pool.until(lambda work: work.phase not in (Phase.STARTING, Phase.RESTORING))
    await pool.until(lambda work: work.phase is Phase.RUNNING and work.making is None)
    await pool.until(lambda work: all(pool.find(rank) for rank in (0, 1)))


def _slot(node: str) -> Slot:
    return Slot(NodeId(node), (DeviceId(f"{node}/cpu0"),))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
@given(STEPS)
@example(
    # One rank freezes and is saved, the other's freeze fails: it is saved long after, when the hold
    # of the first is over.
    [
        ("fail", "n1", "freeze"),
        ("order", "freeze", [("n1", "0"), ("n1", "0")]),
        ("order", "save", [("n1", "0"), ("n1", "0")]),
        ("lapse", "n2"),
    ]
)
def test_a_gang_is_of_one_moment_and_loses_nothing(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        pool = TestPool(Path(folder), 2, patch)
        asyncio.run(play(pool, steps))
        work, counted = pool.work, pool.counted()
        assert counted <= pool.ticks
        if not pool.lapsed and work.lost_ms == 0 and work.attempts == 1:
            assert counted == pool.ticks, work
