"""Jobs move so that what waits finds its devices in one piece: when it is worth it, and bounded."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fleets import NOW, a_job, a_node, a_snapshot, after, placed, planned, settled, suspended

from onefleet.core.plan import Move, Place, Suspend
from onefleet.core.policy import Policy
from onefleet.domain.fleet import Node
from onefleet.domain.ids import Instant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Phase, Terms, Work

POLICY = Policy(move_rest_ms=60_000)
NEVER = Terms(checkpoint_every_ms=0)
LONG_AGO = Instant(NOW - 60_000)


def node(name: str, devices: int = 2, **changes: Any) -> Node:
    return a_node(name, devices, **{"address": f"{name}:1", **changes})


def runs(name: str, on: str, devices: str = "0", at: Instant = LONG_AGO, **changes: Any) -> Work:
    """A premium job that was promised its devices: nobody of its rank takes its turn."""
    job = a_job(name, len(devices.split()), Tier.PREMIUM, **{"terms": NEVER, **changes})
    return placed(job, (on, devices), at=at)


def waits(devices: int = 2, waited_ms: int = 60_000, **changes: Any) -> Work:
    since = Instant(NOW - waited_ms)
    job = a_job("w", devices, Tier.PREMIUM, submitted_at=since, phase_since=since)
    return replace(job, **changes)


def moved(*works: Work, nodes: tuple[Node, ...], policy: Policy = POLICY) -> list[tuple[str, str]]:
    """What moves, and where to."""
    decided = planned(a_snapshot(nodes, works), policy).decisions
    assert not any(isinstance(d, Suspend) for d in decided)
    return [(d.work_id, " ".join(d.nodes)) for d in decided if isinstance(d, Move)]


TWO = (node("n1"), node("n2"))
HALVES = (runs("a", "n1"), runs("b", "n2"))


def test_one_moves_and_what_waits_gets_both_devices() -> None:
    snapshot = a_snapshot(TWO, [*HALVES, waits()])
    decided = planned(snapshot, POLICY)
    (move,) = [d for d in decided.decisions if isinstance(d, Move)]
    home = "n1" if move.work_id == "a" else "n2"
    assert move.nodes == ("n2" if home == "n1" else "n1",)
    assert move.reason == "moves so that w (premium) finds its devices in one piece"
    then = settled(snapshot, POLICY)
    assert all(work.phase is Phase.RUNNING for work in then.works.values())
    (receipt,) = then.works[move.work_id].receipts
    assert receipt.by == "w" and receipt.lost_ms == 0


def test_not_before_the_wait_has_cost_as_much() -> None:
    dear = replace(POLICY, move_bytes_per_ms=1_000)
    big = tuple(
        replace(work, demand=replace(work.demand, memory_bytes=100_000_000)) for work in HALVES
    )
    assert moved(*big, waits(waited_ms=30_000), nodes=TWO, policy=dear) == []
    assert len(moved(*big, waits(waited_ms=60_000), nodes=TWO, policy=dear)) == 1
    assert moved(*HALVES, waits(waited_ms=POLICY.patience_ms - 1), nodes=TWO) == []


def test_moves_are_bounded() -> None:
    assert moved(*HALVES, waits(), nodes=TWO, policy=replace(POLICY, moves_max=0)) == []
    young = tuple(runs(w.id, w.placement[0].node_id, at=Instant(NOW - 59_999)) for w in HALVES)
    assert moved(*young, waits(), nodes=TWO) == []


def test_only_what_may_and_can_move_does() -> None:
    stuck = tuple(replace(work, suspendable=False) for work in HALVES)
    assert moved(*stuck, waits(), nodes=TWO) == []
    deaf = (node("n1", address=""), node("n2", address=""))
    assert moved(*HALVES, waits(), nodes=deaf) == []
    below = waits(tier=Tier.BASIC)
    assert moved(*HALVES, below, nodes=TWO) == []


def test_what_moves_has_its_place_kept_and_is_not_moved_twice() -> None:
    snapshot = a_snapshot(TWO, [*HALVES, waits()])
    first = planned(snapshot, POLICY)
    then = after(snapshot, first)
    late = a_job("z", 1, Tier.PREMIUM, submitted_at=NOW, phase_since=NOW)
    then = replace(then, works={**then.works, late.id: late})
    assert planned(then, POLICY).decisions == ()


def test_what_was_saved_finds_its_devices_elsewhere_once_its_image_may_go_there() -> None:
    nodes = (*TWO, node("n3"))
    full = runs("c", "n3", "0 1", suspendable=False)
    job = a_job("w", 2, Tier.PREMIUM, terms=NEVER)
    waiting = suspended(job, "n3", at=LONG_AGO, size_bytes=1)
    assert len(moved(*HALVES, full, waiting, nodes=nodes)) == 1
    far = suspended(job, "n3", at=LONG_AGO, size_bytes=10**12)
    assert moved(*HALVES, full, far, nodes=nodes) == [], "its image would take longer than it waits"


def test_a_gang_finds_its_nodes() -> None:
    nodes = (*TWO, node("n3"), node("n4"))
    singles = tuple(runs(f"x{i}", f"n{i}") for i in range(1, 5))
    gang = waits(2, demand=replace(waits(2).demand, workers=2))
    assert len(moved(*singles, gang, nodes=nodes)) == 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_moves_help_and_come_to_rest(data: st.DataObject) -> None:
    """Single devices are held here and there; one work waits for a whole node. If enough is free
    in all, it runs in the end, and everything else runs on; no move was for nothing."""
    size, count = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 4))
    nodes = tuple(node(f"n{i}", size) for i in range(count))
    works: list[Work] = []
    for i in range(count):
        for at in range(data.draw(st.integers(1, size))):
            works.append(runs(f"x{i}{at}", f"n{i}", str(at)))
    random.Random(data.draw(st.integers(0, 9))).shuffle(works)
    waiting = waits(size)
    policy = replace(POLICY, moves_max=data.draw(st.integers(1, 8)))
    snapshot = a_snapshot(nodes, [*works, waiting])
    first = planned(snapshot, policy)
    moves = [d for d in first.decisions if isinstance(d, Move)]
    assert len(moves) <= policy.moves_max
    then = settled(snapshot, policy)
    assert all(then.works[work.id].phase is Phase.RUNNING for work in works)
    got = then.works[waiting.id].phase is Phase.RUNNING
    free = size * count - len(works)
    assert got or free < size or policy.moves_max < 3 or size == 4, "it could have been helped"
    assert got or not moves, "moves that did not help"
    assert not any(isinstance(d, Place) for d in first.decisions)
