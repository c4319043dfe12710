"""The planner's promises, one small fleet each. Every plan here has passed the linter."""

from __future__ import annotations

from dataclasses import replace

from tests.fleets import (
    GIB,
    NOW,
    a_deployment,
    a_job,
    a_node,
    a_replica,
    a_reservation,
    a_snapshot,
    after,
    decided,
    placed,
    places,
    planned,
    replica_of,
    suspended,
)

from onefleet.core import lifecycle
from onefleet.core.plan import DropImage, Fence, Gate, Lose, Place, Plan, Stop, Suspend
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import CheckpointMode, DeviceKind, NodeState
from onefleet.domain.ids import Instant, NodeId, TenantId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Phase, Want, Work

PREMIUM, STANDARD, BASIC = Tier.PREMIUM, Tier.STANDARD, Tier.BASIC


def texts(plan: Plan, work: str) -> list[str]:
    return [f"{b.gate}: {b.text}" for b in plan.blockers[WorkId(work)]]


def saved_now(snapshot: Snapshot, work_id: str, now: Instant = NOW) -> Snapshot:
    """The snapshot after the work's save came through."""
    work = snapshot.works[WorkId(work_id)]
    nodes = tuple(slot.node_id for slot in work.placement)
    image = suspended(a_job("x"), *nodes).image
    assert image is not None
    saved = lifecycle.apply(work, lifecycle.Saved(image), now)
    return replace(snapshot, works={**snapshot.works, saved.id: saved})


# --- placing ---------------------------------------------------------------------------------


def test_work_goes_to_the_fullest_node_that_takes_it() -> None:
    busy = placed(a_job("busy", 2), ("n2", "0 1"))
    plan = planned(a_snapshot([a_node("n1"), a_node("n2")], [busy, a_job("j", 2)]))
    assert decided(plan) == ["start j on n2/cpu2 n2/cpu3"]
    assert texts(plan, "j") == ["start: is being started on n2 since 0.0 s"]


def test_a_gang_lies_on_one_node_or_on_few_and_never_in_part() -> None:
    nodes = [a_node("n1", 2), a_node("n2", 4), a_node("n3", 3)]
    gang = a_job("gang", 1, workers=4)
    assert places(planned(a_snapshot(nodes, [gang]))) == {
        "gang": ["n2/cpu0", "n2/cpu1", "n2/cpu2", "n2/cpu3"]
    }
    busy = placed(a_job("busy"), ("n2", "0"))
    spread = places(planned(a_snapshot(nodes, [gang, busy])))["gang"]
    assert [device[:2] for device in spread] == ["n2", "n2", "n2", "n3"]
    whole = a_job("whole", 2, workers=5)
    plan = planned(a_snapshot(nodes, [whole]))
    assert not plan.decisions
    assert texts(plan, "whole")[0].startswith("feasibility: cannot run on this fleet: needs 5 x 2")


def test_a_gang_lies_in_one_zone_where_it_can_though_that_takes_more_nodes() -> None:
    sizes = {"a1": 4, "a2": 2, "a3": 2, "b1": 3, "b2": 1, "c1": 4}
    nodes = [a_node(name, size, zone=name[0]) for name, size in sizes.items()]

    def lies(workers: int) -> set[str]:
        plan = planned(a_snapshot(nodes, [a_job("g", 1, workers=workers)]))
        (place,) = [d for d in plan.decisions if isinstance(d, Place)]
        return {slot.node_id for slot in place.placement}

    assert lies(4) == {"a1"}, "on one node where it can"
    assert lies(6) == {"a1", "a2"}, "and on the fewest"
    assert lies(8) == {"a1", "a2", "a3"}, "two nodes would take it, of two zones"
    assert len(lies(9)) == 3, "no zone takes it"
    held = planned(
        a_snapshot(nodes, [placed(a_job("h", 2), ("a1", "0 1")), a_job("g", 1, workers=5)])
    )
    assert {d.split("/")[0] for d in places(held)["g"]} == {"a1", "a2", "a3"}


def test_elastic_work_takes_what_nobody_waits_for() -> None:
    plan = planned(a_snapshot([a_node("n1", 4)], [a_job("j", 1, devices_max=3)]))
    assert len(places(plan)["j"]) == 3
    gang = a_job("g", 1, devices_max=2, workers=2)
    assert places(planned(a_snapshot([a_node("n1", 3)], [gang]))) == {
        "g": ["n1/cpu0", "n1/cpu2", "n1/cpu1"]
    }
    waiting = a_job("k", 4)
    plan = planned(a_snapshot([a_node("n1", 4)], [a_job("j", 1, devices_max=3), waiting]))
    assert len(places(plan)["j"]) == 1


def test_memory_is_a_limit_too() -> None:
    node = a_node("n1", 4, memory_bytes=8 * GIB)
    holder = placed(a_job("h", memory_bytes=6 * GIB), ("n1", "0"))
    plan = planned(a_snapshot([node], [holder, a_job("j", memory_bytes=4 * GIB)]))
    assert not plan.decisions
    text = "needs 1 cpu device, 3 free, and 4294967296 bytes of memory for each worker, at most "
    assert texts(plan, "j")[0].startswith(f"contention: {text}2147483648 free on a node; held by h")
    small = a_node("g1", 2, kind=DeviceKind.GPU, device_bytes=8 * GIB)
    large = a_node("g2", 2, kind=DeviceKind.GPU, device_bytes=80 * GIB)
    job = a_job("j", kind=DeviceKind.GPU, memory_bytes=40 * GIB)
    assert places(planned(a_snapshot([small, large], [job])))["j"] == ["g2/gpu0"]


def test_nothing_is_placed_on_a_node_that_drains_or_has_no_lease() -> None:
    draining = a_node("n1", state=NodeState.DRAINING)
    unleased = a_node("n2", lease_expires_at=NOW)
    plan = planned(a_snapshot([draining, unleased], [a_job("j")]))
    assert not plan.decisions
    assert texts(plan, "j") == ["contention: needs 1 cpu device, 0 free"]


# --- order -----------------------------------------------------------------------------------


def test_tiers_go_before_age_and_tenants_take_turns() -> None:
    works = [
        a_job("old-basic", tier=BASIC, submitted_at=Instant(1)),
        *(a_job(f"a{i}", tenant_id=TenantId("a"), submitted_at=Instant(2)) for i in range(3)),
        a_job("b0", tenant_id=TenantId("b"), submitted_at=Instant(9)),
        a_job("late-premium", tier=PREMIUM, tenant_id=TenantId("c"), submitted_at=Instant(9)),
    ]
    plan = planned(a_snapshot([a_node("n1", 3)], works))
    assert list(places(plan)) == ["late-premium", "a0", "b0"]
    (order,) = (step for step in plan.steps if step.step == "order")
    assert order.text == "1 promised premium, 4 standard below its promise, 1 basic in the queue"


def test_suspended_work_goes_before_newer_work_of_its_tier() -> None:
    older = suspended(a_job("older", submitted_at=Instant(5)), "n1")
    newer = a_job("newer", submitted_at=Instant(6))
    plan = planned(a_snapshot([a_node("n1", 1)], [older, newer]))
    assert decided(plan) == ["restore older on n1/cpu0"]


def test_suspended_work_stays_so_for_a_moment() -> None:
    work = suspended(a_job("j"), "n1", at=Instant(NOW - 400))
    plan = planned(a_snapshot([a_node("n1", 1)], [work]))
    assert not plan.decisions
    assert texts(plan, "j") == [
        "admission: was suspended 0.4 s ago (made room) and stays so for 1.0 s"
    ]


def test_younger_work_passes_a_bigger_one_only_for_a_while() -> None:
    nodes = [a_node("n1", 2)]
    holder = placed(a_job("h"), ("n1", "0"))
    big = a_job("big", 2, phase_since=Instant(NOW - 10_000), submitted_at=Instant(1))
    small = a_job("small", submitted_at=Instant(2), phase_since=NOW)
    plan = planned(a_snapshot(nodes, [holder, big, small]))
    assert places(plan) == {"small": ["n1/cpu1"]}
    big = replace(big, phase_since=Instant(NOW - 30_000))
    plan = planned(a_snapshot(nodes, [holder, big, small]))
    assert not plan.decisions
    assert "contention: free devices are kept for work before it in the queue" in texts(
        plan, "small"
    )
    assert "contention: big is before it in the queue" in texts(plan, "small")
    basic = replace(small, tier=BASIC, suspendable=False)
    fresh = replace(big, phase_since=NOW)
    assert not planned(a_snapshot(nodes, [holder, fresh, basic])).decisions


def test_nothing_is_kept_for_what_waits_for_a_job_that_could_not_be_saved() -> None:
    """Else all of a node would stand idle beside that one job, for as long as it runs."""
    gang = a_job("gang", workers=4, tier=PREMIUM, phase_since=Instant(0))
    held = placed(a_job("held"), ("n1", "0"))
    lent = suspended(a_job("lent", tier=BASIC), "n1")

    def plan_when(not_before: int) -> list[str]:
        tried = replace(held, failures=1, not_before=Instant(not_before))
        return decided(planned(a_snapshot([a_node("n1")], [tried, gang, lent])))

    assert plan_when(NOW + 1) == ["restore lent on n1/cpu1"]
    assert plan_when(NOW) == ["suspend held: makes room for gang (premium)"]


def test_devices_are_not_kept_where_replicas_will_never_leave() -> None:
    nodes = [a_node("n1", 2), a_node("n2", 2)]
    lasting = placed(a_replica("r"), ("n1", "0"))
    holder = placed(a_job("h"), ("n2", "0"))
    big = a_job("big", 2, submitted_at=Instant(1))
    small = a_job("small", submitted_at=Instant(2))
    plan = planned(a_snapshot(nodes, [lasting, holder, big, small]))
    assert places(plan) == {"small": ["n1/cpu1"]}
    gang = a_job("gang", 2, workers=2, submitted_at=Instant(1))
    plan = planned(a_snapshot(nodes, [lasting, holder, gang, small]))
    assert list(places(plan)) == ["small"]


def test_devices_are_kept_for_a_gang_and_where_an_image_lies() -> None:
    nodes = [a_node("n1", 2), a_node("n2", 2)]
    holders = [placed(a_job("h1"), ("n1", "0")), placed(a_job("h2"), ("n2", "0"))]
    gang = a_job("gang", 2, workers=2, submitted_at=Instant(1))
    small = a_job("s", submitted_at=NOW)
    fixed = replace(small, suspendable=False)
    assert not planned(a_snapshot(nodes, [*holders, gang, fixed])).decisions
    old = suspended(a_job("old", 2, submitted_at=Instant(1)), "n1")
    plan = planned(a_snapshot(nodes, [*holders, old, a_job("s", submitted_at=NOW)]))
    assert places(plan) == {"s": ["n2/cpu1"]}
    needs = "contention: needs 2 cpu devices on n1, where its image lies, 1 free; held by h1"
    assert texts(plan, "old")[0].startswith(needs)


# --- preemption --------------------------------------------------------------------------------


def test_premium_suspends_the_cheapest_of_the_lowest_tier_and_no_more_than_needed() -> None:
    works = [
        placed(a_job("std"), ("n1", "0")),
        placed(a_job("basic-big", 2, BASIC, memory_bytes=GIB), ("n1", "1 2")),
        placed(a_job("basic-small", 1, BASIC), ("n1", "3")),
    ]
    one = planned(a_snapshot([a_node("n1")], [*works, a_job("p", 1, PREMIUM)]))
    assert decided(one) == ["suspend basic-small: makes room for p (premium)"]
    two = planned(a_snapshot([a_node("n1")], [*works, a_job("p", 2, PREMIUM)]))
    assert decided(two) == ["suspend basic-big: makes room for p (premium)"]
    four = planned(a_snapshot([a_node("n1")], [*works, a_job("p", 4, PREMIUM)]))
    assert len(four.decisions) == 3
    assert texts(four, "p")[1] == "contention: waits until std, basic-big, basic-small made room"


def test_a_node_that_costs_less_is_chosen() -> None:
    works = [placed(a_job("std"), ("n1", "0")), placed(a_job("basic", 1, BASIC), ("n2", "0"))]
    nodes = [a_node("n1", 1), a_node("n2", 1)]
    plan = planned(a_snapshot(nodes, [*works, a_job("p", 1, PREMIUM)]))
    assert decided(plan) == ["suspend basic: makes room for p (premium)"]


def test_nobody_is_moved_when_it_would_not_suffice() -> None:
    stuck = placed(a_job("stuck", suspendable=False), ("n1", "0"))
    basic = placed(a_job("basic", 1, BASIC), ("n1", "1"))
    plan = planned(a_snapshot([a_node("n1", 2)], [stuck, basic, a_job("p", 2, PREMIUM)]))
    assert not plan.decisions
    held = "held by stuck (standard job, tenant a, cannot be saved), basic (basic job, tenant a)"
    assert texts(plan, "p") == [f"contention: needs 2 cpu devices, 0 free; {held}"]


def test_only_devices_with_enough_memory_are_made_free() -> None:
    small = a_node("g1", 1, kind=DeviceKind.GPU, device_bytes=8 * GIB)
    large = a_node("g2", 2, kind=DeviceKind.GPU, device_bytes=80 * GIB)
    works = [
        placed(a_job("b1", 1, BASIC, kind=DeviceKind.GPU), ("g1", "0")),
        placed(a_job("b2", 1, BASIC, kind=DeviceKind.GPU), ("g2", "0")),
        placed(a_job("s3", 1, STANDARD, kind=DeviceKind.GPU), ("g2", "1")),
    ]
    premium = a_job("p", 1, PREMIUM, kind=DeviceKind.GPU, memory_bytes=40 * GIB)
    unleased = a_node("g3", 1, kind=DeviceKind.GPU, lease_expires_at=NOW)
    gang = placed(a_job("gang", 1, BASIC, kind=DeviceKind.GPU, workers=2), ("g3", "0"), ("g4", "0"))
    other = a_node("g4", 1, kind=DeviceKind.GPU, device_bytes=80 * GIB)
    plan = planned(a_snapshot([small, large], [*works, premium]))
    assert decided(plan) == ["suspend b2: makes room for p (premium)"]
    plan = planned(a_snapshot([unleased, other], [gang, premium]))
    assert decided(plan) == ["suspend gang: makes room for p (premium)"]


def test_equal_tiers_do_not_move_each_other() -> None:
    running = placed(a_job("r"), ("n1", "0"))
    assert not planned(a_snapshot([a_node("n1", 1)], [running, a_job("j")])).decisions
    basic = placed(a_job("b", 1, BASIC), ("n1", "0"))
    plan = planned(a_snapshot([a_node("n1", 1)], [basic, a_job("j")]))
    assert decided(plan) == ["suspend b: makes room for j (standard)"]


def test_what_leaves_is_kept_and_nobody_is_moved_twice() -> None:
    nodes = [a_node("n1", 2)]
    works = [
        placed(a_job("b1", 1, BASIC), ("n1", "0")),
        placed(a_job("b2", 1, BASIC), ("n1", "1")),
        a_job("p", 1, PREMIUM),
        a_job("thief", 1, BASIC, submitted_at=Instant(NOW)),
    ]
    snapshot = a_snapshot(nodes, works)
    first = planned(snapshot)
    assert decided(first) == ["suspend b1: makes room for p (premium)"]
    saving = after(snapshot, first)
    assert not planned(saving).decisions
    freed = saved_now(saving, "b1")
    assert decided(planned(freed)) == ["start p on n1/cpu0"]


def test_leaving_devices_are_kept_before_free_ones_so_that_others_can_have_those() -> None:
    node = a_node("n1", 3)
    saving = lifecycle.apply(
        placed(a_job("v", 2, BASIC), ("n1", "0 1")), lifecycle.SaveOrdered("x"), NOW
    )
    plan = planned(a_snapshot([node], [saving, a_job("p", 2, PREMIUM), a_job("b", 1, BASIC)]))
    assert places(plan) == {"b": ["n1/cpu2"]}


def test_a_gang_is_one_victim_and_a_gang_can_be_made_room_for() -> None:
    nodes = [a_node("n1", 2), a_node("n2", 2)]
    gang = placed(a_job("gang", 1, BASIC, workers=2), ("n1", "0"), ("n2", "0"))
    others = [placed(a_job(f"o{n}"), (n, "1")) for n in ("n1", "n2")]
    plan = planned(a_snapshot(nodes, [gang, *others, a_job("p", 1, PREMIUM)]))
    assert decided(plan) == ["suspend gang: makes room for p (premium)"]
    plan = planned(a_snapshot(nodes, [gang, *others, a_job("p", 2, PREMIUM, workers=2)]))
    assert len(plan.decisions) == 3
    plan = planned(a_snapshot(nodes, [gang, *others, a_job("p", 1, PREMIUM, workers=3)]))
    assert decided(plan) == [
        "suspend gang: makes room for p (premium)",
        "suspend on1: makes room for p (premium)",
    ]


def test_restored_work_makes_room_where_its_image_lies() -> None:
    nodes = [a_node("n1", 1), a_node("n2", 1), a_node("n3", 1)]
    works = [placed(a_job(f"b{i}", 1, BASIC), (f"n{i}", "0")) for i in (1, 2, 3)]
    home = suspended(a_job("p", 1, PREMIUM, workers=2), "n3", "n2")
    plan = planned(a_snapshot(nodes, [*works, home]))
    assert sorted(d.work_id for d in plan.decisions if isinstance(d, Suspend)) == ["b2", "b3"]
    freed = saved_now(saved_now(after(a_snapshot(nodes, [*works, home]), plan), "b2"), "b3")
    assert places(planned(freed))["p"] == ["n3/cpu0", "n2/cpu0"]


def test_spare_replicas_make_room_but_a_deployment_keeps_its_minimum() -> None:
    deployment = a_deployment("d", replicas_min=1)
    replicas = [placed(a_replica(f"r{i}"), ("n1", str(i))) for i in (0, 1)]
    records = [replica_of(r, deployment) for r in replicas]

    def plan_for(devices: int, *works: Work) -> Plan:
        return planned(
            a_snapshot(
                [a_node("n1", 2)],
                [*works, a_job("p", devices, PREMIUM)],
                deployments=[deployment],
                replicas=records[: len(works)],
            )
        )

    plan = plan_for(1, *replicas)
    assert [type(d) for d in plan.decisions] == [Stop]
    assert not plan_for(2, *replicas).decisions
    orphan = planned(a_snapshot([a_node("n1", 1)], [replicas[0], a_job("p", 1, PREMIUM)]))
    assert not orphan.decisions


def test_what_just_failed_to_be_saved_is_left_alone_for_a_while() -> None:
    work = replace(placed(a_job("b", 1, BASIC), ("n1", "0")), not_before=Instant(NOW + 1))
    assert not planned(a_snapshot([a_node("n1", 1)], [work, a_job("p", 1, PREMIUM)])).decisions


def test_nobody_is_suspended_beside_one_that_could_not_be_saved() -> None:
    nodes = [a_node("n1", 1), a_node("n2", 1)]
    sound = placed(a_job("sound", 1, BASIC), ("n1", "0"))
    doubted = replace(placed(a_job("doubted", 1, BASIC), ("n2", "0")), saves_failed=1)
    gang = a_job("gang", 1, PREMIUM, workers=2)
    snapshot = a_snapshot(nodes, [sound, doubted, gang])
    plan = planned(snapshot)
    assert [d.work_id for d in plan.decisions] == ["doubted"]
    tried = after(snapshot, plan)
    assert not planned(tried).decisions  # it is not known yet whether it will be saved
    then = planned(saved_now(tried, "doubted"))
    assert [d.work_id for d in then.decisions if isinstance(d, Suspend)] == ["sound"]
    alone = planned(a_snapshot(nodes, [sound, doubted, a_job("p", 1, PREMIUM)]))
    assert len(alone.decisions) == 1


def test_a_replica_moves_out_of_the_way_of_an_image_if_it_can_run_elsewhere() -> None:
    nodes = [a_node("n1", 2), a_node("n2", 1)]
    deployment = a_deployment("d", replicas_min=1)
    replica = placed(a_replica("r"), ("n1", "0"))
    waiting = suspended(a_job("j", 2), "n1")
    records = {"deployments": [deployment], "replicas": [replica_of(replica, deployment)]}
    snapshot = a_snapshot(nodes, [replica, waiting], **records)
    plan = planned(snapshot)
    assert decided(plan) == ["stop r: moves out of the way of j"]
    patient = planned(snapshot, Policy(patience_ms=10_000_000))
    assert not patient.decisions
    moved = after(snapshot, plan).works[replica.id]
    pending = lifecycle.apply(moved, lifecycle.ProcessEnded(143, ""), NOW)
    snapshot = a_snapshot(nodes, [pending, waiting], **records)
    assert sorted(decided(planned(snapshot))) == [
        "restore j on n1/cpu0 n1/cpu1",
        "start r on n2/cpu0",
    ]
    full = placed(a_job("full"), ("n2", "0"))
    assert not planned(a_snapshot(nodes, [replica, waiting, full], **records)).decisions


def test_replicas_are_not_placed_where_an_image_needs_the_room() -> None:
    nodes = [a_node("n1", 2), a_node("n2", 4), a_node("n9", 1, state=NodeState.DRAINING)]
    held = [
        suspended(a_job("j", 2), "n1", at=NOW),
        suspended(a_job("k", 1), "n9", at=NOW),
    ]
    plan = planned(a_snapshot(nodes, [*held, a_replica("r")]))
    assert places(plan) == {"r": ["n2/cpu0"]}
    only = planned(a_snapshot(nodes[:1], [held[0], a_replica("r")]))
    assert places(only) == {"r": ["n1/cpu0"]}


# --- reservations ------------------------------------------------------------------------------


def test_a_reservation_is_called_in_even_from_premium_that_borrowed_it() -> None:
    borrower = placed(a_job("borrower", 1, PREMIUM, tenant_id=TenantId("b")), ("n1", "0"))
    owner = a_job("owner", 1, PREMIUM, tenant_id=TenantId("a"))
    snapshot = a_snapshot(
        [a_node("n1", 1)], [borrower, owner], reservations=[a_reservation("a", 1)]
    )
    assert decided(planned(snapshot)) == ["suspend borrower: makes room for owner (premium)"]
    without = a_snapshot([a_node("n1", 1)], [borrower, owner])
    assert not planned(without).decisions


def test_a_reservation_protects_only_as_much_as_it_is_and_only_premium() -> None:
    reserved = a_reservation("a", 1)
    first = placed(a_job("a1", 1, PREMIUM, tenant_id=TenantId("a")), ("n1", "0"))
    second = placed(a_job("a2", 1, PREMIUM, tenant_id=TenantId("a")), ("n1", "1"))
    owner = a_job("b1", 1, PREMIUM, tenant_id=TenantId("b"))
    both = [reserved, a_reservation("b", 1)]
    plan = planned(a_snapshot([a_node("n1", 2)], [first, second, owner], reservations=both))
    assert decided(plan) == ["suspend a2: makes room for b1 (premium)"]
    standard = a_job("s", 1, STANDARD, tenant_id=TenantId("b"))
    assert not planned(
        a_snapshot([a_node("n1", 2)], [first, second, standard], reservations=both)
    ).decisions


# --- what owners want --------------------------------------------------------------------------


def test_owners_stop_and_suspend_and_resume() -> None:
    running = placed(a_job("r"), ("n1", "0"))
    works = [
        replace(running, id=WorkId("stop"), want=Want.STOP),
        replace(a_job("gone"), want=Want.STOP),
        replace(placed(a_job("hold"), ("n1", "1")), want=Want.SUSPEND),
        replace(placed(a_job("stuck", suspendable=False), ("n1", "2")), want=Want.SUSPEND),
        replace(a_job("wait"), want=Want.SUSPEND),
    ]
    plan = planned(a_snapshot([a_node("n1")], works))
    assert decided(plan) == [
        "stop gone: its owner wants it stopped",
        "stop stop: its owner wants it stopped",
        "suspend hold: its owner wants it suspended",
    ]
    assert texts(plan, "wait") == ["admission: its owner suspended it"]
    steps = {step.step: step.text for step in plan.steps}
    assert steps["suspend"] == "1 works suspended for their owners, 1 cannot be saved now"
    assert steps["order"] == "the queue is empty"


def test_failed_work_waits_for_its_pause() -> None:
    work = replace(a_replica("r"), not_before=Instant(NOW + 500), reason="crashed", failures=2)
    plan = planned(a_snapshot([a_node("n1")], [work]))
    assert texts(plan, "r") == ["start: failed 2 times in a row (crashed); tried again in 0.5 s"]


# --- losing nodes ------------------------------------------------------------------------------


def test_a_silent_node_is_fenced_after_the_grace_and_its_work_goes_on_elsewhere() -> None:
    late = a_node("n1", lease_expires_at=Instant(NOW - 5_000))
    gang = placed(a_job("gang", 1, workers=2), ("n1", "0"), ("n2", "0"))
    snapshot = a_snapshot([late, a_node("n2")], [gang, placed(a_job("j"), ("n2", "1"))])
    early = planned(snapshot, now=Instant(NOW - 1))
    assert not early.decisions
    plan = planned(snapshot)
    assert [type(d) for d in plan.decisions] == [Fence, Lose]
    lost = after(snapshot, plan)
    assert lost.nodes[NodeId("n1")].state is NodeState.LOST
    again = planned(lost, now=Instant(NOW + 2_000))
    assert places(again) == {"gang": ["n2/cpu0", "n2/cpu2"]}


def test_a_job_that_only_the_lost_node_can_run_waits_for_it() -> None:
    lost = a_node("n1", state=NodeState.LOST, lease_expires_at=Instant(NOW - 9_000))
    works = [
        placed(a_job("j"), ("n1", "0")),
        placed(a_replica("r"), ("n1", "1")),
        replace(placed(a_job("c"), ("n1", "2")), want=Want.STOP),
    ]
    plan = planned(a_snapshot([lost], works))
    assert [d.work_id for d in plan.decisions if isinstance(d, Lose)] == ["c", "r"]
    assert texts(plan, "j") == [
        "start: its node n1 is lost; it is waited for, as no other node could run it"
    ]
    assert "1 jobs wait for their node" in plan.steps[0].text
    much_later = planned(a_snapshot([lost], works), now=Instant(NOW + 600_000))
    assert [d.work_id for d in much_later.decisions if isinstance(d, Lose)] == ["c", "j", "r"]
    gone = planned(a_snapshot([], [works[0]]))
    assert [type(d) for d in gone.decisions] == [Lose]


def test_an_image_is_waited_for_and_then_given_up() -> None:
    lost = a_node("n1", state=NodeState.LOST, lease_expires_at=Instant(NOW - 9_000))
    nodes = [lost, a_node("n2"), a_node("n3", state=NodeState.DRAINING)]
    works = [suspended(a_job("j"), "n1"), suspended(a_job("d"), "n3"), suspended(a_job("g"), "n9")]
    plan = planned(a_snapshot(nodes, works), Policy(image_wait_ms=10_000), now=NOW)
    assert [d.work_id for d in plan.decisions if isinstance(d, DropImage)] == ["g"]
    assert texts(plan, "j")[0] == "data: its image lies on node n1, which is lost"
    assert texts(plan, "d")[0] == "data: its image lies on node n3, which is draining"
    plan = planned(a_snapshot(nodes, works), Policy(image_wait_ms=5_000), now=NOW)
    assert [d.work_id for d in plan.decisions if isinstance(d, DropImage)] == ["g", "j"]
    unleased = a_node("n1", lease_expires_at=NOW)
    plan = planned(a_snapshot([unleased], works[:1]))
    assert texts(plan, "j")[0] == "data: its image lies on node n1, whose lease ran out"
    gone = planned(a_snapshot(nodes, works[2:]), Policy(image_wait_ms=2_000_000))
    assert texts(gone, "g")[0] == "data: its image lies on node n9, which is gone"


# --- why ---------------------------------------------------------------------------------------


def test_every_blocker_is_named() -> None:
    work = replace(
        suspended(a_job("j", 3), "n1", at=Instant(NOW - 100)),
        want=Want.SUSPEND,
        not_before=Instant(NOW + 1_000),
    )
    holder = placed(a_job("h", 2), ("n1", "0 1"))
    plan = planned(a_snapshot([a_node("n1")], [work, holder]))
    gates = [b.gate for b in plan.blockers[work.id]]
    assert gates == [Gate.ADMISSION, Gate.ADMISSION, Gate.START, Gate.CONTENTION]
    assert plan.blockers[work.id][3].holders == ("h",)


def test_many_holders_are_all_listed_but_few_are_told() -> None:
    works = [placed(a_job(f"h{i}"), ("n1", str(i))) for i in range(8)]
    plan = planned(a_snapshot([a_node("n1", 8)], [*works, a_job("j")]))
    blocker = plan.blockers[WorkId("j")][0]
    assert len(blocker.holders) == 8 and blocker.text.endswith("and 2 more")


def test_why_a_holder_does_not_give_way_is_told() -> None:
    nodes = [a_node("n1", 2), a_node("n2", 1, checkpoint_mode=CheckpointMode.COOPERATIVE)]
    held = placed(a_job("failed", 1, BASIC), ("n1", "0"))
    works = [
        replace(held, saves_failed=1, not_before=Instant(NOW + 1)),
        placed(a_job("rigid", 1, BASIC, suspendable=False), ("n1", "1")),
        placed(a_job("own", 1, BASIC), ("n2", "0")),
        a_job("j", 1, BASIC),
    ]
    told = texts(planned(a_snapshot(nodes, works)), "j")[0]
    assert "failed (basic job, tenant a, could not be saved; tried again later)" in told
    assert "rigid (basic job, tenant a, cannot be saved)" in told
    assert "own (basic job, tenant a, saves itself: gives way to higher tiers only)" in told


def test_scattered_devices_are_told() -> None:
    works = [placed(a_job(f"h{n}", 1, PREMIUM), (n, "0")) for n in ("n1", "n2")]
    nodes = [a_node("n1", 2), a_node("n2", 2)]
    plan = planned(a_snapshot(nodes, [*works, a_job("j", 2)]))
    assert "2 free, but at most 1 on one node" in texts(plan, "j")[0]


def test_what_is_under_way_is_told() -> None:
    starting = placed(a_job("s"), ("n1", "0"), running=False)
    saving = lifecycle.apply(
        placed(a_job("v"), ("n1", "1")), lifecycle.SaveOrdered("makes room for p"), NOW
    )
    stopping = lifecycle.apply(
        placed(a_job("c"), ("n1", "2")), lifecycle.StopOrdered("cancelled"), NOW
    )
    snapshot = a_snapshot([a_node("n1")], [starting, saving, stopping])
    plan = planned(snapshot, now=Instant(NOW + 1_500))
    assert texts(plan, "s") == ["start: is being started on n1 since 1.5 s"]
    assert texts(plan, "v") == ["start: is being saved on n1 since 1.5 s: makes room for p"]
    assert texts(plan, "c") == ["start: is being stopped on n1 since 1.5 s: cancelled"]
    assert starting.phase is Phase.STARTING
