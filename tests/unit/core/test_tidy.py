"""While nothing waits, jobs move to make room for what is usually asked: if it pays; it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fleets import (
    NOW,
    a_job,
    a_node,
    a_snapshot,
    after,
    placed,
    planned,
    settled,
    suspended,
)

from onefleet.core import lifecycle
from onefleet.core.forward import guesses, run_forward
from onefleet.core.plan import Move
from onefleet.core.planner import plan
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import CheckpointMode, DeviceKind, Node
from onefleet.domain.ids import Instant, NodeId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Image, Outcome, Phase, Speed, Terms, Work

POLICY = Policy(move_rest_ms=60_000)
LONG = 900_000
NEVER = Terms(checkpoint_every_ms=0)


def node(name: str, devices: int = 4, **changes: Any) -> Node:
    return a_node(name, devices, **{"address": f"{name}:1", **changes})


def runs(name: str, on: str, devices: str, for_ms: int = LONG, **changes: Any) -> Work:
    settled = {"tier": Tier.BASIC, "terms": NEVER, "memory_bytes": 1 << 20}
    job = a_job(name, len(devices.split()), **{**settled, **changes})
    work = placed(job, (on, devices), at=Instant(NOW - for_ms))
    slots = (replace(slot, milli=job.demand.milli) for slot in work.placement)
    return replace(work, placement=tuple(slots))


DONE: dict[str, Any] = {"phase": Phase.ENDED, "outcome": Outcome.SUCCEEDED}


def was(devices: int, count: int = 8) -> list[Work]:
    """So many jobs of this width have ended: that is what is asked for here."""
    return [a_job(f"e{devices}.{i}", devices, **DONE) for i in range(count)]


def moved(snapshot: Snapshot, policy: Policy = POLICY) -> list[tuple[str, str]]:
    return [
        (d.work_id, " ".join(d.nodes))
        for d in planned(snapshot, policy).decisions
        if isinstance(d, Move)
    ]


TWO = (node("n1"), node("n2"))
SPREAD = (runs("a", "n1", "0"), runs("b", "n2", "0 1"))


def test_one_moves_and_a_node_is_free() -> None:
    snapshot = a_snapshot(TWO, [*SPREAD, *was(4)])
    (decision,) = planned(snapshot, POLICY).decisions
    assert isinstance(decision, Move)
    assert (decision.work_id, decision.nodes) == ("a", ("n2",))
    assert decision.reason == "moves so that 4 free devices lie together"
    then = settled(snapshot, POLICY)
    assert {s.node_id for w in SPREAD for s in then.works[w.id].placement} == {"n2"}
    (receipt,) = then.works["a"].receipts
    assert (receipt.by, receipt.lost_ms) == (None, 0) and receipt.back_at is not None


def test_who_moves_so_is_not_said_to_have_given_way() -> None:
    snapshot = a_snapshot(TWO, [*SPREAD, *was(4)])
    left = guesses(snapshot, NOW, None)
    run = run_forward(snapshot, POLICY, NOW, left, plan, until=Instant(NOW + LONG))
    assert "a" in run.starts and not run.moved


def test_what_nobody_asks_for_is_no_gain() -> None:
    assert moved(a_snapshot(TWO, [*SPREAD, *was(1)])) == []


def test_only_while_nothing_waits() -> None:
    waits = a_job("w", 8, submitted_at=NOW, phase_since=NOW)
    assert moved(a_snapshot(TWO, [*SPREAD, *was(4), waits])) == []


@pytest.mark.parametrize(
    "policy",
    [
        replace(POLICY, tidy_max=0),
        replace(POLICY, move_rest_ms=LONG + 1),
        replace(POLICY, move_fixed_ms=LONG),
    ],
    ids=["never", "rests", "costs more than it gains"],
)
def test_bounded_and_never_at_a_loss(policy: Policy) -> None:
    assert moved(a_snapshot(TWO, [*SPREAD, *was(4)]), policy) == []


@pytest.mark.parametrize(
    "change", [{"tier": Tier.PREMIUM}, {"suspendable": False}, {"memory_bytes": 0}]
)
def test_who_stays(change: dict[str, Any]) -> None:
    jobs = [runs("a", "n1", "0", **change), runs("b", "n2", "0 1", **change)]
    assert moved(a_snapshot(TWO, [*jobs, *was(4)])) == []


def test_a_share_goes_where_it_leaves_a_device_whole() -> None:
    nodes = (node("n1", 1), node("n2", 1))
    jobs = [runs("a", "n1", "0", milli=500), runs("b", "n2", "0", milli=500)]
    assert len(moved(a_snapshot(nodes, [*jobs, *was(1)]))) == 1


def test_not_more_than_so_many_at_once() -> None:
    jobs = [runs(f"x{i}", f"n{i // 2 + 1}", str(i % 2)) for i in range(4)]
    snapshot = a_snapshot(TWO, [*jobs, *was(4)])
    assert moved(snapshot, replace(POLICY, tidy_max=1)) == []
    assert len(moved(snapshot, replace(POLICY, tidy_max=2))) == 2


def test_one_place_of_a_shape_is_enough() -> None:
    third = node("n3")
    assert moved(a_snapshot((*TWO, third), [*SPREAD, *was(4)])) == []


def test_a_gpu_job_is_as_large_as_its_owner_says() -> None:
    nodes = tuple(node(f"n{i}", kind=DeviceKind.GPU) for i in (1, 2))
    for size, moves in ((1 << 20, 1), (80 << 30, 0)):
        jobs = [
            runs("a", "n1", "0", kind=DeviceKind.GPU, memory_bytes=size),
            runs("b", "n2", "0 1", kind=DeviceKind.GPU, memory_bytes=size),
        ]
        asked = [replace(w, demand=replace(w.demand, kind=DeviceKind.GPU)) for w in was(4)]
        assert len(moved(a_snapshot(nodes, [*jobs, *asked]))) == moves


def of(product: str, found: Node) -> Node:
    devices = tuple(replace(device, product=product) for device in found.devices)
    return replace(found, devices=devices, checkpoint_mode=CheckpointMode.COOPERATIVE)


def speeds(**classes: int) -> tuple[Speed, ...]:
    return tuple(Speed(product, permille) for product, permille in classes.items())


@pytest.mark.parametrize("can", [{"A": 1_000}, {"A": 1_000, "B": 100}])
def test_nothing_moves_to_where_it_cannot_run_or_is_slower(can: dict[str, int]) -> None:
    nodes = (of("A", TWO[0]), of("B", TWO[1]))
    a, b = (replace(w, demand=replace(w.demand, speeds=speeds(**can))) for w in SPREAD)
    at_home = replace(b, demand=replace(b.demand, speeds=speeds(B=1_000)))
    assert moved(a_snapshot(nodes, [a, at_home, *was(4)])) == []


def test_room_for_one_shape_is_not_taken_from_another() -> None:
    nodes = (of("A", node("n1", 5)), of("B", node("n2", 5)))
    on_a, on_b = (
        [
            replace(
                w, id=WorkId(f"{w.id}{name}"), demand=replace(w.demand, speeds=speeds(**{name: 1}))
            )
            for w in was(4)
        ]
        for name in ("A", "B")
    )
    assert moved(a_snapshot(nodes, [runs("x", "n1", "0 1"), *on_a, *on_b])) == []


def test_who_waits_for_the_node_that_its_owner_named_keeps_none_from_moving() -> None:
    waits = suspended(a_job("w", 4, Tier.BASIC, terms=NEVER, kind=DeviceKind.GPU), "g1")
    named = replace(waits, move_to=(NodeId("g2"),))
    full = [runs(f"x{i}", f"g{i}", "0", kind=DeviceKind.GPU, tier=Tier.PREMIUM) for i in (1, 2)]
    gpus = (node("g1", kind=DeviceKind.GPU), node("g2", kind=DeviceKind.GPU))
    for work, count in ((named, 1), (replace(named, driven=True), 0)):
        found = moved(a_snapshot((*TWO, *gpus), [*SPREAD, *was(4), work, *full]))
        assert len(found) == count


def test_none_moves_until_the_last_one_is_back() -> None:
    first = planned(a_snapshot(TWO, [*SPREAD, *was(4)]), POLICY)
    other = (node("g1", kind=DeviceKind.GPU), node("g2", kind=DeviceKind.GPU))
    more = [
        runs("c", "g1", "0", kind=DeviceKind.GPU),
        runs("d", "g2", "0 1", kind=DeviceKind.GPU),
        *(a_job(f"g{i}", 4, kind=DeviceKind.GPU, **DONE) for i in range(8)),
    ]
    now = a_snapshot(TWO, [*SPREAD, *was(4)])
    for _ in range(3):  # saving, saved, restoring
        now = after(now, first)
        assert moved(a_snapshot((*TWO, *other), [*now.works.values(), *more])) == []
        if now.works["a"].phase is Phase.SAVING:
            image = Image(lifecycle.image_id(now.works["a"]), (NodeId("n1"),), 1, NOW)
            saved = lifecycle.apply(now.works["a"], lifecycle.Saved(image), NOW)
            now = replace(now, works={**now.works, "a": saved})
        first = planned(now, POLICY)
    assert now.works["a"].phase is Phase.RESTORING


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_it_comes_to_rest_and_harms_nobody(data: st.DataObject) -> None:
    """Jobs of all widths lie anywhere, on nodes of two classes, and may move again at once: all run
    in the end, and no fewer wide ones would fit."""
    size, count = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 5))
    works: list[Work] = []
    for i in range(count):
        free = list(range(size))
        while free and data.draw(st.booleans()):
            width = data.draw(st.integers(1, len(free)))
            took, free = free[:width], free[width:]
            works.append(runs(f"x{i}.{len(free)}", f"n{i}", " ".join(map(str, took))))
    asked = data.draw(st.lists(st.integers(1, size), min_size=1, max_size=6))
    ended = [work for at, width in enumerate(asked) for work in was(width, at + 1)]
    ended = list({work.id: work for work in ended}.values())
    nodes = [of(data.draw(st.sampled_from("AB")), node(f"n{i}", size)) for i in range(count)]
    snapshot = a_snapshot(nodes, [*works, *ended])
    then = settled(snapshot, replace(POLICY, move_rest_ms=0))
    assert all(then.works[work.id].phase is Phase.RUNNING for work in works)
    assert whole(then) >= whole(snapshot)


def whole(snapshot: Snapshot) -> int:
    """Nodes on which nothing runs."""
    used = {slot.node_id for work in snapshot.works.values() for slot in work.placement}
    return len(set(snapshot.nodes) - used)
