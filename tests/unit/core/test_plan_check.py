"""The linter finds each way in which a plan can be wrong; otherwise its silence proves nothing."""

from __future__ import annotations

from collections.abc import Sequence
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

from onefleet.core.plan import (
    Blocker,
    Decision,
    DropImage,
    Fence,
    Gate,
    Lose,
    Place,
    Plan,
    Stop,
    Suspend,
    apply_plan,
    describe,
)
from onefleet.core.plan_check import check_plan
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import NodeState
from onefleet.domain.ids import DeviceId, Generation, Instant, NodeId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Slot, Want


def slot(node: str, *indices: int) -> Slot:
    return Slot(NodeId(node), tuple(DeviceId(f"{node}/cpu{i}") for i in indices))


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
    ]
    nodes = [
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
    return check_plan(snapshot, plan)


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
    (Stop(WorkId("runs"), "x", LATE), "runs is stopped for premium, but jobs are only suspended"),
    (Stop(WorkId("replica"), "x", LATE), "but its deployment needs it"),
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
    assert again == ["new.0 is placed on n1, which is ready or unleased"]


def test_the_parent_and_every_reason_are_checked() -> None:
    snapshot = the_fleet()
    lines = check_plan(snapshot, Plan(Generation(6), NOW, (), (), {}))
    assert lines[0] == "made from generation 6, not 7"
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
    works = apply_plan(snapshot, Plan(snapshot.generation, NOW, decisions, (), {}), NOW)
    assert [(w.id, w.phase) for w in works] == [("new", "starting"), ("runs", "saving")]
