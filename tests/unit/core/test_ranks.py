"""Who ranks how: what reservations cover, who has had too little, who takes turns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.fleets import (
    NOW,
    a_job,
    a_node,
    a_replica,
    a_reservation,
    a_snapshot,
    a_tenant,
    placed,
    planned,
)

from onefleet.core import lifecycle
from onefleet.core.ordering import (
    BASIC,
    BEHIND,
    PROMISED,
    RESERVED,
    STANDARD,
    STARVED,
    STRANDED,
    URGENT,
    gives_way_from,
)
from onefleet.core.plan import Place, Suspend
from onefleet.core.planner import Index
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import CheckpointMode, DeviceKind, Node
from onefleet.domain.ids import Instant, TenantId, WorkId
from onefleet.domain.tenancy import Tenant, Used
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Terms, Work

NEVER = Terms(checkpoint_every_ms=0)
MINUTE = 60_000
HOUR = 60 * MINUTE
POLICY = Policy(level_ms=10 * MINUTE, level_doublings=1)
#: The beginning of an hour, so that windows are easy to count.
NOON = Instant(500 * HOUR)


def rank(snapshot: Snapshot, name: str, now: Instant = NOW) -> int:
    index = Index.of(snapshot, POLICY, now)
    index.settle()
    return index.roster.ranks[WorkId(name)]


def premium(name: str, tenant: str, devices: int = 1, at: int = 0) -> Work:
    return a_job(name, devices, Tier.PREMIUM, tenant_id=TenantId(tenant), submitted_at=Instant(at))


def standard(name: str = "s", since: Instant = NOON) -> Work:
    return a_job(name, tier=Tier.STANDARD, submitted_at=since, phase_since=since)


def lasting_node(name: str = "n1", devices: int = 1) -> Node:
    return a_node(name, devices, lease_expires_at=Instant(NOON + 100 * HOUR))


# --- reservations ----------------------------------------------------------------------------


def test_a_department_s_reservation_covers_its_teams_nearest_first() -> None:
    tenants = [a_tenant("dept"), a_tenant("red", "dept"), a_tenant("blue", "dept"), a_tenant("x")]
    works = [premium("r1", "red", at=1), premium("r2", "red", at=2), premium("r3", "red", at=3)]
    works += [premium("b", "blue", at=4), premium("x", "x", at=0)]
    snapshot = a_snapshot(
        [a_node("n1", 8)],
        works,
        tenants=tenants,
        reservations=[a_reservation("red", 1), a_reservation("dept", 2)],
    )
    found = {name: rank(snapshot, name) for name in ("r1", "r2", "r3", "b", "x")}
    assert found == {"r1": 0, "r2": 0, "r3": 0, "b": PROMISED, "x": PROMISED}
    more = replace(snapshot.reservations["res-dept-cpu"], devices=3)
    wider = replace(snapshot, reservations={**snapshot.reservations, more.id: more})
    assert rank(wider, "b") == RESERVED and rank(wider, "x") == PROMISED


def test_a_reservation_covers_in_its_window_only() -> None:
    window = replace(
        a_reservation("a", 1), starts_at=Instant(NOW + MINUTE), ends_at=Instant(NOW + HOUR)
    )
    snapshot = a_snapshot([a_node("n1")], [premium("p", "a")], reservations=[window])
    index = Index.of(snapshot, POLICY, NOW)
    found = []
    for at in (NOW, NOW + MINUTE - 1, NOW + MINUTE, NOW + HOUR - 1, NOW + HOUR):
        index.advance(Instant(at), {})
        index.settle()
        found.append(index.roster.ranks[WorkId("p")])
    assert found == [PROMISED, PROMISED, RESERVED, RESERVED, PROMISED]


def test_a_reservation_of_a_class_covers_what_can_use_it() -> None:
    gone = replace(a_reservation("a", 1), product="tpu")
    works = [premium("p", "a")]
    assert rank(a_snapshot([a_node("n1")], works, reservations=[gone]), "p") == RESERVED


# --- promises --------------------------------------------------------------------------------


def test_standard_work_is_behind_its_promise_while_it_has_had_too_little() -> None:
    waiting = standard()
    assert rank(a_snapshot([lasting_node()], [waiting]), "s", Instant(NOON + 1)) == BEHIND
    without = replace(waiting, promised=False)
    assert rank(a_snapshot([lasting_node()], [without]), "s", Instant(NOON + 1)) == STANDARD
    basic = a_job("b", tier=Tier.BASIC, submitted_at=NOON)
    assert rank(a_snapshot([lasting_node()], [basic]), "b", Instant(NOON + 1)) == BASIC


def test_running_makes_up_for_a_wait_and_then_some() -> None:
    began = Instant(NOON + 10 * MINUTE)
    running = placed(standard(), ("n1", "0"), at=began)
    index = Index.of(a_snapshot([lasting_node()], [running]), POLICY, began)
    found = {}
    for minutes in (1, 40, 89, 90, 95):  # 90 of 100 minutes: 70 % and a margin of 20 %
        index.advance(Instant(began + minutes * MINUTE), {})
        index.settle()
        found[minutes] = index.roster.ranks[running.id]
    assert found == {1: BEHIND, 40: BEHIND, 89: BEHIND, 90: STANDARD, 95: STANDARD}


def test_what_is_behind_goes_before_what_is_not_and_takes_its_devices() -> None:
    policy = Policy(level_ms=1 << 50)
    running = replace(placed(standard("r"), ("n1", "0"), at=NOON), terms=NEVER)
    later = Instant(NOON + 30 * MINUTE)
    snapshot = a_snapshot([lasting_node()], [running, standard("w", later)])
    (decision,) = planned(snapshot, policy, Instant(later + 1)).decisions
    assert isinstance(decision, Suspend) and (decision.work_id, decision.for_work) == ("r", "w")


# --- shares over time ------------------------------------------------------------------------


def placed_next(*works: Work, **tenants: dict[str, Any]) -> str:
    """The work that gets the one device of the pool."""
    known = [a_tenant(name, **changes) for name, changes in tenants.items()]
    snapshot = a_snapshot([lasting_node("n1", 1)], works, tenants=known)
    (decision,) = planned(snapshot, POLICY, Instant(NOON + 10 * MINUTE)).decisions
    assert isinstance(decision, Place)
    return decision.work_id


def test_the_tenant_that_has_had_less_of_late_goes_first() -> None:
    first, second = basic("w1"), basic("w2", tenant_id=TenantId("b"))
    assert placed_next(first, second) == "w1"
    ended = lifecycle.apply(
        placed(basic("w0"), ("n1", "0"), at=NOON),
        lifecycle.ProcessEnded(0, "it ended"),
        Instant(NOON + 10 * MINUTE),
    )
    assert placed_next(ended, first, second) == "w2"
    forgotten = {"used": (Used(Tier.BASIC, DeviceKind.CPU, 10 * MINUTE),), "used_until": NOON}
    assert placed_next(first, second, a=forgotten) == "w2"
    assert placed_next(first, second, a={**forgotten, "weight": 3_000}, b=forgotten) == "w1"
    for tier, kind in ((Tier.PREMIUM, DeviceKind.CPU), (Tier.BASIC, DeviceKind.GPU)):
        other = {"used": (Used(tier, kind, 10 * MINUTE),), "used_until": NOON}
        assert placed_next(first, second, a=other) == "w1"


def had(a_ms: int, b_ms: int) -> dict[str, dict[str, Any]]:
    return {
        name: {"used": (Used(Tier.BASIC, DeviceKind.CPU, ms),), "used_until": NOON}
        for name, ms in (("a", a_ms), ("b", b_ms))
    }


def test_who_is_far_under_its_part_goes_first_whatever_its_level() -> None:
    longer = basic("w2", tenant_id=TenantId("b"), served_ms=HOUR)
    assert placed_next(basic("w1"), longer, **had(83 * HOUR, 17 * HOUR)) == "w1"
    assert placed_next(basic("w1"), longer, **had(84 * HOUR, 16 * HOUR)) == "w2"
    starved = replace(basic("w1"), submitted_at=Instant(NOON - 48 * HOUR))  # before tenants, too
    assert placed_next(starved, longer, **had(84 * HOUR, 16 * HOUR)) == "w1"
    with_weights = had(83 * HOUR, 17 * HOUR)
    with_weights["b"]["weight"] = 2_000
    assert placed_next(basic("w1"), longer, **with_weights) == "w2"


def test_it_takes_its_turn_from_any_other_and_keeps_it_until_it_has_a_quarter_more() -> None:
    def moved(running: str, waiting: str, served_ms: int, a_ms: int, b_ms: int) -> list[str]:
        held = basic("r", tenant_id=TenantId(running), served_ms=served_ms)
        held = replace(placed(held, ("n1", "0"), at=NOON), terms=NEVER)
        waits = basic("w", tenant_id=TenantId(waiting), served_ms=HOUR)
        tenants = [a_tenant(name, **changes) for name, changes in had(a_ms, b_ms).items()]
        snapshot = a_snapshot([lasting_node()], [held, waits], tenants=tenants)
        decided = planned(snapshot, POLICY, Instant(NOON + MINUTE)).decisions
        assert all(isinstance(decision, Suspend) for decision in decided)
        return [decision.reason for decision in decided if isinstance(decision, Suspend)]

    said = "makes room for w (basic), whose tenant has had less than a third of its part"
    assert moved("a", "b", 0, 84 * HOUR, 16 * HOUR) == [said]
    assert moved("a", "b", 0, 83 * HOUR, 17 * HOUR) == []
    for b_ms, gives_way in ((16, False), (20, False), (22, True)):
        assert bool(moved("b", "a", 20 * HOUR, (100 - b_ms) * HOUR, b_ms * HOUR)) is gives_way


# --- turns inside a rank ---------------------------------------------------------------------


def basic(name: str, at: Instant = NOON, **changes: object) -> Work:
    return a_job(name, tier=Tier.BASIC, submitted_at=at, phase_since=at, **changes)


def test_a_job_makes_room_for_one_of_its_rank_that_has_had_much_less() -> None:
    running = placed(basic("r"), ("n1", "0"), at=NOON)
    snapshot = a_snapshot([lasting_node()], [running, basic("w")])
    assert not planned(snapshot, POLICY, Instant(NOON + 9 * MINUTE)).decisions
    (decision,) = planned(snapshot, POLICY, Instant(NOON + 10 * MINUTE)).decisions
    assert isinstance(decision, Suspend) and decision.work_id == "r"
    assert decision.reason == "makes room for w (basic), which has had less device time"
    had_too = replace(basic("w"), served_ms=15 * MINUTE)
    snapshot = a_snapshot([lasting_node()], [running, had_too])
    assert not planned(snapshot, POLICY, Instant(NOON + 39 * MINUTE)).decisions
    assert planned(snapshot, POLICY, Instant(NOON + 40 * MINUTE)).decisions


@pytest.mark.parametrize(
    ("level", "above"),
    [(0, 1), (1, 3), (2, 5), (6, 13), (STARVED, 0), (URGENT, -1), (STRANDED, -2)],
)
def test_the_longer_a_job_has_run_the_more_must_those_have_had_that_give_way_to_it(
    level: int, above: int
) -> None:
    assert gives_way_from(level) == above


def test_a_turn_is_taken_once_what_waits_has_waited_and_a_tier_gives_way_at_once() -> None:
    running = placed(basic("r"), ("n1", "0"), at=NOON)
    since = Instant(NOON + 20 * MINUTE)
    early, late = Instant(since + 29_999), Instant(since + 30_000)
    waits = basic("w", at=since)
    for now, moved in ((early, 0), (late, 1)):
        assert (
            len(planned(a_snapshot([lasting_node()], [running, waits]), POLICY, now).decisions)
            == moved
        )
    higher = replace(waits, tier=Tier.PREMIUM)
    assert planned(a_snapshot([lasting_node()], [running, higher]), POLICY, since).decisions


def test_of_two_the_one_that_has_had_more_goes_and_who_has_had_least_comes_first() -> None:
    long = placed(replace(basic("long"), served_ms=100 * MINUTE), ("n1", "0"), at=NOON)
    short = placed(replace(basic("short"), served_ms=15 * MINUTE), ("n1", "1"), at=NOON)
    works = [long, short, replace(basic("old"), served_ms=50 * MINUTE), basic("new")]
    snapshot = a_snapshot([lasting_node("n1", 2)], works)
    decided = planned(snapshot, POLICY, Instant(NOON + MINUTE)).decisions
    assert [(d.work_id, d.for_work) for d in decided if isinstance(d, Suspend)] == [
        ("long", "new"),
    ]


def test_what_has_to_save_itself_does_not_take_turns() -> None:
    running = replace(placed(basic("r"), ("n1", "0"), at=NOON), terms=NEVER)
    later, works = Instant(NOON + 5 * HOUR), [running, basic("w")]
    itself = replace(lasting_node(), checkpoint_mode=CheckpointMode.COOPERATIVE)
    assert not planned(a_snapshot([itself], works), POLICY, later).decisions
    assert planned(a_snapshot([lasting_node()], works), POLICY, later).decisions


def test_what_has_to_save_itself_makes_room_last_in_its_tier() -> None:
    later = Instant(NOON + HOUR)
    itself = replace(lasting_node("n1"), checkpoint_mode=CheckpointMode.COOPERATIVE)
    small = placed(basic("small"), ("n1", "0"), at=NOON)
    large = placed(basic("large", memory_bytes=1 << 35), ("n2", "0"), at=NOON)
    works = [replace(work, terms=NEVER) for work in (small, large)]
    urgent = a_job("w", tier=Tier.PREMIUM, submitted_at=later, phase_since=later)
    for node, goes in ((itself, "large"), (lasting_node("n1"), "small")):
        snapshot = a_snapshot([node, lasting_node("n2")], [*works, urgent])
        (decision,) = planned(snapshot, POLICY, later).decisions
        assert isinstance(decision, Suspend) and decision.work_id == goes


def test_neither_replicas_nor_promised_premium_take_turns() -> None:
    later = Instant(NOON + 5 * HOUR)
    for held in (
        placed(a_replica("r", 1, Tier.BASIC, submitted_at=NOON), ("n1", "0"), at=NOON),
        placed(premium("r", "a", at=NOON), ("n1", "0"), at=NOON),
    ):
        held = replace(held, terms=NEVER)
        other = a_job("w", tier=held.tier, submitted_at=later, phase_since=later)
        assert not planned(a_snapshot([lasting_node()], [held, other]), POLICY, later).decisions


# --- tenants ---------------------------------------------------------------------------------


def first_started(tenants: list[Tenant], held: dict[str, int], waiting: list[str]) -> str:
    """Whose job gets the one device that is free, of tenants that hold so many already."""
    works, at = [], 0
    for name, count in held.items():
        for _ in range(count):
            job = a_job(f"held{at}", tenant_id=TenantId(name), terms=NEVER)
            works.append(placed(job, ("n1", f"{at}")))
            at += 1
    works += [a_job(f"w-{name}", tenant_id=TenantId(name)) for name in waiting]
    decided = planned(a_snapshot([a_node("n1", at + 1)], works, tenants=tenants)).decisions
    (placing,) = (d for d in decided if isinstance(d, Place))
    return placing.work_id.removeprefix("w-")


def test_who_holds_least_by_his_weight_goes_first() -> None:
    even = [a_tenant("a"), a_tenant("b")]
    assert first_started(even, {"a": 2, "b": 3}, ["a", "b"]) == "a"
    heavy = [a_tenant("a"), a_tenant("b", weight=2_000)]
    assert first_started(heavy, {"a": 2, "b": 3}, ["a", "b"]) == "b"


def test_departments_share_first_then_their_teams() -> None:
    tenants = [a_tenant("d"), a_tenant("e")]
    tenants += [a_tenant("d1", "d"), a_tenant("d2", "d"), a_tenant("e1", "e")]
    assert first_started(tenants, {"d1": 3, "e1": 2}, ["d2", "e1"]) == "e1"
    assert first_started(tenants, {"d1": 3, "e1": 4}, ["d1", "d2", "e1"]) == "d2"
