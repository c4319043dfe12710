"""The linter finds each way in which a plan can be wrong; otherwise its silence proves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from tests.fleets import (
    GIB,
    NOW,
    a_deployment,
    a_job,
    a_node,
    a_replica,
    a_snapshot,
    placed,
    replica_of,
    suspended,
)

from onefleet.core import lifecycle
from onefleet.core.lifecycle import IllegalTransition
from onefleet.core.plan import (
    Blocker,
    Checkpoint,
    Decision,
    DropImage,
    Fence,
    Freeze,
    Gate,
    Lose,
    Move,
    Place,
    Plan,
    Ready,
    Resize,
    Stop,
    Suspend,
    Thaw,
    applied,
    apply_plan,
    describe,
)
from onefleet.core.plan_check import check_plan, unexplained
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import CheckpointMode, Cordon, DeviceKind, NodeState
from onefleet.domain.ids import DeviceId, Generation, Instant, NodeId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Slot, Speed, Terms, Want, Work


def slot(node: str, *indices: int, milli: int = 1_000) -> Slot:
    return Slot(NodeId(node), tuple(DeviceId(f"{node}/cpu{i}") for i in indices), milli)


def place(work: str, *slots: Slot, restore: bool = False) -> Place:
    return Place(WorkId(work), slots, restore)


def the_fleet() -> Snapshot:
    deployment = a_deployment("d", replicas_min=1)
    replica = placed(a_replica("replica"), ("n1", "1"))
    works = [
        a_job("new"),
        a_job("two", 2, devices_max=3),
        a_job("gang", workers=2),
        a_job("big", memory_bytes=20 * GIB),
        a_job("premium", tier=Tier.PREMIUM),
        replace(a_job("held"), want=Want.SUSPEND),
        suspended(a_job("saved"), "n2"),
        placed(a_job("runs"), ("n1", "0")),
        placed(a_job("runs-too"), ("n2", "3")),
        placed(a_job("stuck", suspendable=False), ("n1", "2")),
        replica,
        a_job("share", milli=600),
        a_job("turns", workers=4, pack=2),
        a_job("there", zones=("east",)),
        a_job("fast", speeds=(Speed("quick"),)),
        replace(a_job("next"), ready=False, terms=Terms(after=(WorkId("runs"),))),
        replace(a_job("last"), ready=False, terms=Terms(after=(WorkId("failed"),))),
        lifecycle.apply(placed(a_job("failed"), ("n2", "1")), lifecycle.ProcessEnded(1, ""), NOW),
        placed(a_job("basic", tier=Tier.BASIC, memory_bytes=GIB), ("n5", "0")),
        placed(a_job("wide", devices_max=2, tier=Tier.BASIC), ("n5", "1 2")),
        lifecycle.apply(
            placed(a_job("frozen", memory_bytes=GIB), ("n5", "3")), lifecycle.Froze("x"), NOW
        ),
        replace(a_job("late", memory_bytes=GIB), tier=Tier.PREMIUM),
        placed(a_job("drained"), ("n3", "1")),
        placed(a_replica("evicted"), ("n3", "2")),
    ]
    nodes = [
        a_node("n5", 5, cordons=(Cordon(DeviceId("n5/cpu4"), "broken", NOW),)),
        a_node("n6", address="n6:1"),
        a_node("n7", address="n7:1"),
        a_node("n1"),
        a_node("n2"),
        a_node("n3", state=NodeState.DRAINING),
        a_node("n4", lease_expires_at=NOW),
    ]
    return a_snapshot(
        nodes, works, deployments=[deployment], replicas=[replica_of(replica, deployment)]
    )


def found(*decisions: Decision, snapshot: Snapshot | None = None) -> list[str]:
    """What the linter says, besides missing blockers."""
    snapshot = snapshot or the_fleet()
    why = (Blocker(Gate.START, "why"),)
    plan = Plan(snapshot.generation, NOW, decisions, (), dict.fromkeys(snapshot.works, why))
    return check_plan(snapshot, replace(plan, works=results(snapshot, decisions)))


def test_a_gang_is_not_resized_on_devices_whose_state_stays_on_them() -> None:
    mode = CheckpointMode.COOPERATIVE
    job = a_job("g", 1, workers=2, pack=2, kind=DeviceKind.GPU)
    gang = placed(job, ("n1", "0"), ("n1", "1"))
    snapshot = a_snapshot([a_node("n1", kind=DeviceKind.GPU, checkpoint_mode=mode)], [gang])
    narrow = (gang.placement[0],) * 2
    told = found(Resize(gang.id, narrow, "x"), snapshot=snapshot)
    assert "g is resized, but cannot be while it runs" in told


def results(snapshot: Snapshot, decisions: Sequence[Decision]) -> tuple[Work, ...]:
    """What the decisions that are legal make of the works."""
    works: dict[WorkId, Work] = {}
    for decision in decisions:
        if not isinstance(decision, Fence) and decision.work_id in snapshot.works:
            work = works.get(decision.work_id, snapshot.works[decision.work_id])
            with suppress(IllegalTransition):
                works[work.id] = applied(work, decision, NOW)
    return tuple(works.values())


def test_a_plan_whose_works_are_not_what_it_decides() -> None:
    snapshot = the_fleet()
    decisions = (place("new", slot("n2", 0)),)
    plan = Plan(snapshot.generation, NOW, decisions, (), {})
    wrong = "new is not after the plan what the decisions make of it"
    assert wrong in check_plan(snapshot, plan)
    assert wrong in check_plan(snapshot, replace(plan, works=(snapshot.works[WorkId("new")],)))
    right = check_plan(snapshot, replace(plan, works=results(snapshot, decisions)))
    assert not any("is not after the plan" in text for text in right)


LATE = WorkId("premium")

WRONG: Sequence[tuple[Decision, str]] = (
    (place("nobody", slot("n1", 3)), "nobody does not exist"),
    (place("new", slot("n1", 0)), "n1/cpu0 is given to new.0, but runs holds it"),
    (place("new", slot("n9", 0)), "placed on n9, which does not exist"),
    (place("new", slot("n3", 0)), "placed on n3, which is draining or unleased"),
    (place("new", slot("n4", 0)), "placed on n4, which is ready or unleased"),
    (place("new", slot("n1", 7)), "gets n1/cpu7, no cpu of n1"),
    (place("two", slot("n2", 0)), "two.0 gets 1 devices, not 2..3"),
    (place("two", slot("n2", 0, 0)), "n2/cpu0 is given to two.0, but two.0 holds it"),
    (place("gang", slot("n2", 0)), "gang has 2 workers, 1 are placed"),
    (place("gang", slot("n2", 0), slot("n2", 0)), "n2/cpu0 is given to gang.1, but gang.0"),
    (place("held", slot("n2", 0)), "held is placed, but its owner wants it suspend"),
    (place("big", slot("n2", 0)), "n2 is given 21474836480 bytes, it has 17179869184"),
    (place("saved", slot("n1", 3), restore=True), "restored on n1, where its image is not"),
    (place("runs", slot("n2", 0)), "Placed does not apply to runs (running)"),
    (Suspend(WorkId("stuck"), "x", LATE), "stuck is suspended, but cannot be"),
    (Suspend(WorkId("replica"), "x", LATE), "replica is suspended, but cannot be"),
    (Suspend(WorkId("runs"), "x"), "runs is suspended for nobody"),
    (Suspend(WorkId("runs"), "x", WorkId("new")), "for new, which does not outrank it"),
    (Suspend(WorkId("runs"), "x", WorkId("runs-too")), "for runs-too, which does not wait"),
    (Stop(WorkId("runs"), "x"), "runs is stopped for nobody"),
    (Stop(WorkId("runs"), "x", LATE), "runs is stopped for premium, but is not overdue"),
    (Stop(WorkId("replica"), "x", LATE), "but its deployment needs it"),
    (place("share", slot("n2", 0)), "share.0 gets 1000/1000 of a device, not 600"),
    (
        place("turns", slot("n2", 0), slot("n2", 0), slot("n2", 0), slot("n2", 1)),
        "n2/cpu0 is given to turns.2, but turns.1 holds it",
    ),
    (place("there", slot("n2", 0)), "there.0 is placed on n2, outside its zones"),
    (place("fast", slot("n2", 0)), "fast.0 gets n2/cpu0, a simulated, which it cannot use"),
    (place("next", slot("n2", 0)), "next is placed before what it comes after has succeeded"),
    (place("new", slot("n5", 4)), "new.0 gets n5/cpu4, which gets no work"),
    (Ready(WorkId("next")), "what it comes after has not succeeded"),
    (Stop(WorkId("next"), "x"), "next is stopped for nobody"),
    (Freeze(WorkId("runs"), "x"), "runs is frozen for nobody"),
    (Freeze(WorkId("runs"), "x", LATE), "frozen for premium, but its memory would be in the way"),
    (Freeze(WorkId("stuck"), "x", LATE), "could not be saved if its memory were needed"),
    (Freeze(WorkId("basic"), "x", WorkId("runs")), "makes room for runs, which does not wait"),
    (Thaw(WorkId("frozen"), (slot("n2", 0),)), "Thawed does not apply to frozen"),
    (Thaw(WorkId("frozen"), (slot("n5", 0),)), "n5/cpu0 is given to frozen.0, but basic holds it"),
    (Resize(WorkId("wide"), (slot("n2", 1),), "x"), "Resized does not apply to wide"),
    (Resize(WorkId("wide"), (slot("n5", 1, 2, 3),), "x"), "wide.0 gets 3 devices, not 1..2"),
    (Resize(WorkId("runs"), (slot("n1", 3),), "x"), "runs is resized, but has one size only"),
    (Resize(WorkId("wide"), (slot("n5", 1, 2),), "x", LATE), "but gives nothing up"),
    (Move(WorkId("stuck"), (NodeId("n2"),), "x"), "stuck is moved, but cannot be saved"),
    (Move(WorkId("runs"), (NodeId("n3"),), "x"), "moved to n3, which is not usable"),
    (Move(WorkId("runs"), (), "x"), "runs is moved to 0 nodes"),
    (Checkpoint(WorkId("stuck"), "x"), "CheckpointOrdered does not apply to stuck"),
    (Fence(NodeId("n9"), "x"), "n9 does not exist"),
    (Fence(NodeId("n1"), "x"), "n1 is fenced while its lease runs"),
    (Lose(WorkId("runs"), "x"), "runs is given up, but no node of it is lost"),
    (DropImage(WorkId("saved"), "x"), "the image of saved is given up, but no node"),
)


@pytest.mark.parametrize(("decision", "text"), WRONG, ids=[text[:40] for _, text in WRONG])
def test_each_wrong_decision_is_found(decision: Decision, text: str) -> None:
    lines = found(decision)
    assert any(text in line for line in lines), lines


def test_right_decisions_are_silent() -> None:
    assert found(place("new", slot("n1", 3)), place("two", slot("n2", 0, 1, 2))) == []
    assert found(place("saved", slot("n2", 0), restore=True)) == []
    assert found(Suspend(WorkId("runs"), "x", LATE)) == []
    shares = slot("n2", 0, milli=600)
    assert found(place("share", shares)) == []
    turns = (slot("n2", 0), slot("n2", 0), slot("n2", 1), slot("n2", 1))
    assert found(place("turns", *turns)) == []
    assert found(Thaw(WorkId("frozen"), (slot("n5", 3),))) == []
    assert found(Stop(WorkId("last"), "x")) == []
    assert found(Stop(WorkId("evicted"), "x")) == []
    assert found(Suspend(WorkId("frozen"), "x")) == []
    assert found(Checkpoint(WorkId("runs"), "x")) == []
    assert found(Move(WorkId("drained"), (NodeId("n2"),), "x")) == []


def test_what_gives_way_at_once_makes_room_in_the_same_plan() -> None:
    late = WorkId("late")
    freeze = Freeze(WorkId("basic"), "x", late)
    assert found(freeze, place("late", slot("n5", 0))) == []
    shrink = Resize(WorkId("wide"), (slot("n5", 2),), "x", late)
    assert found(shrink, place("late", slot("n5", 1))) == []
    both = found(shrink, place("late", slot("n5", 2)))
    assert both == ["n5/cpu2 is given to late.0, but wide holds it"]


def test_shares_of_a_device_add_up_to_no_more_than_one() -> None:
    snapshot = the_fleet()
    other = replace(a_job("other", milli=400), submitted_at=NOW)
    third = replace(other, id=WorkId("third"))
    works = {**snapshot.works, other.id: other, third.id: third}
    snapshot = replace(snapshot, works=dict(sorted(works.items())))
    first, second = (
        place("share", slot("n2", 0, milli=600)),
        place("other", slot("n2", 0, milli=400)),
    )
    assert found(first, second, snapshot=snapshot) == []
    over = found(first, second, place("third", slot("n2", 0, milli=400)), snapshot=snapshot)
    assert over == ["n2/cpu0 is given to third.0, but other, share holds it"]


def test_an_image_is_fetched_only_between_nodes_that_have_an_address() -> None:
    snapshot = the_fleet()
    saved = suspended(a_job("saved"), "n6")
    snapshot = replace(snapshot, works={**snapshot.works, saved.id: saved})
    assert found(place("saved", slot("n7", 0), restore=True), snapshot=snapshot) == []
    lines = found(place("saved", slot("n2", 0), restore=True), snapshot=snapshot)
    assert lines == ["saved.0 is restored on n2, where its image is not"]


def test_a_work_is_decided_once() -> None:
    twice = found(place("new", slot("n1", 3)), place("new", slot("n2", 0)))
    assert "new is decided twice" in twice


def test_a_fenced_node_gives_up_its_work_and_its_devices() -> None:
    snapshot = the_fleet()
    silent = replace(snapshot.nodes[NodeId("n1")], lease_expires_at=Instant(NOW - 60_000))
    snapshot = replace(snapshot, nodes={**snapshot.nodes, silent.id: silent})
    fence, lose = Fence(silent.id, "silent"), Lose(WorkId("runs"), "lost")
    assert found(fence, lose, snapshot=snapshot) == []
    again = found(fence, lose, place("new", slot("n1", 0)), snapshot=snapshot)
    assert again == ["new.0 is placed on n1, which is lost or unleased"]


def test_the_parent_and_every_reason_are_checked() -> None:
    snapshot = the_fleet()
    plan = Plan(Generation(6), NOW, (), (), {})
    assert check_plan(snapshot, plan) == ["made from generation 6, not 7"]
    lines = unexplained(snapshot, plan)
    assert "new is pending, and nothing says why" in lines
    assert not [line for line in lines if line.startswith("runs ")]


def test_descriptions_and_application_follow_the_decisions() -> None:
    snapshot = the_fleet()
    decisions: tuple[Decision, ...] = (
        Fence(NodeId("n1"), "silent"),
        place("new", slot("n1", 3)),
        Suspend(WorkId("runs"), "room", LATE),
    )
    assert [describe(d) for d in decisions] == [
        "fence n1: silent",
        "start new on n1/cpu3",
        "suspend runs: room",
    ]
    assert describe(Lose(WorkId("a"), "b")) == "lose a: b"
    assert describe(DropImage(WorkId("a"), "b")) == "drop image of a: b"
    assert describe(Stop(WorkId("a"), "b")) == "stop a: b"
    assert describe(place("saved", slot("n2", 0), restore=True)) == "restore saved on n2/cpu0"
    a = WorkId("a")
    assert describe(Freeze(a, "b")) == "freeze a: b"
    assert describe(Move(a, (NodeId("n1"), NodeId("n1")), "b")) == "move a to n1: b"
    assert describe(Thaw(a, (slot("n1", 0), slot("n1", 0)))) == "thaw a on n1/cpu0"
    shares = (slot("n1", 0, milli=300),)
    assert describe(Resize(a, shares, "b")) == "resize a to n1/cpu0:300: b"
    assert describe(Checkpoint(a, "b")) == "checkpoint a: b"
    assert describe(Ready(a)) == "ready a"
    works = apply_plan(snapshot, Plan(snapshot.generation, NOW, decisions, (), {}), NOW)
    assert [(w.id, w.phase) for w in works] == [("new", "starting"), ("runs", "saving")]
