"""What cannot be saved is ended when the time of the reservation that calls it in is over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.fleets import (
    NOW,
    a_job,
    a_node,
    a_reservation,
    a_snapshot,
    after,
    decided,
    placed,
    planned,
    suspended,
)

from onefleet.core import lifecycle
from onefleet.core.index import Index
from onefleet.core.lifecycle import RECEIPTS_KEPT
from onefleet.core.plan import Fence, Plan, Stop
from onefleet.core.plan_check import check_plan
from onefleet.core.policy import DEFAULT_POLICY
from onefleet.core.snapshot import Snapshot
from onefleet.domain.ids import Generation, Instant, NodeId, TenantId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Phase, Receipt, Want, Work

WITHIN_MS = 60_000
NODE = a_node("n1", 1, lease_expires_at=Instant(NOW + 10 * WITHIN_MS))


def later(ms: int) -> Instant:
    return Instant(NOW + ms)


def borrower(**changes: Any) -> Work:
    """It was asked twice for the owner, and could be saved neither time."""
    work = placed(a_job("b", 1, Tier.BASIC), ("n1", "0"))
    for at in (NOW, later(2_000)):
        asked = lifecycle.SaveOrdered("room", WorkId("owner"))
        work = lifecycle.apply(work, asked, Instant(at))
        work = lifecycle.apply(work, lifecycle.SaveFailed("disk full"), Instant(at + 10))
    return replace(work, not_before=later(10 * WITHIN_MS), **changes)


def owner(**changes: Any) -> Work:
    return a_job("owner", 1, Tier.PREMIUM, tenant_id=TenantId("a"), **changes)


def pool(*works: Work, within_ms: int = WITHIN_MS) -> Snapshot:
    known = replace(a_reservation("a", 1), within_ms=within_ms)
    return a_snapshot([NODE], works, reservations=[known])


def stopped(work: Work) -> Work:
    """The borrower, once it is told to end."""
    snapshot, now = pool(work, owner()), later(WITHIN_MS)
    return after(snapshot, planned(snapshot, now=now), now).works[work.id]


def named(plan: Plan) -> list[str]:
    return [d.work_id for d in plan.decisions if not isinstance(d, Fence)]


def ended(snapshot: Snapshot, at: Instant) -> list[str]:
    decisions = planned(snapshot, now=at).decisions
    return [d.work_id for d in decisions if isinstance(d, Stop)]


def test_it_has_its_time_from_when_it_was_first_asked() -> None:
    snapshot = pool(borrower(), owner())
    assert not planned(snapshot, now=later(WITHIN_MS - 1)).decisions
    plan = planned(snapshot, now=later(WITHIN_MS))
    assert decided(plan) == ["stop b: could not be saved in time, and owner has its devices now"]
    roster = Index.of(snapshot, DEFAULT_POLICY, later(3_000)).roster
    assert roster.next_due() == later(WITHIN_MS), "nothing else has to happen for it"


def test_when_it_is_overdue_changes_with_the_reservation() -> None:
    snapshot = pool(borrower(), owner())
    (known,) = snapshot.reservations.values()
    index = Index.of(replace(snapshot, reservations={}), DEFAULT_POLICY, later(3_000))
    for within_ms in (WITHIN_MS, 7_000, 2 * WITHIN_MS):
        index.put(replace(known, within_ms=within_ms))
        index.settle()
        assert index.roster.next_due() == later(within_ms)
    opening = replace(known, starts_at=later(5_000))
    index.put(opening)
    index.settle()
    index.advance(later(5_000), {})
    index.settle()
    assert index.roster.next_due() == later(WITHIN_MS)


def test_nothing_is_ended_beyond_what_is_needed() -> None:
    first = borrower()
    second = replace(first, id=WorkId("c"), placement=placed(a_job("c"), ("n1", "1")).placement)
    two, known = replace(NODE, devices=a_node("n1", 2).devices), pool().reservations.values()
    snapshot = a_snapshot([two], [first, second, owner()], reservations=known)
    at = later(WITHIN_MS)
    plan = planned(snapshot, now=at)
    assert named(plan) == ["b"]
    assert ended(after(snapshot, plan, at), later(WITHIN_MS + 500)) == []  # it is leaving
    free = planned(a_snapshot([two], [first, owner()], reservations=known), now=at)
    assert decided(free) == ["start owner on n1/cpu1"]
    wide = replace(owner(), demand=a_job("w", 2).demand)
    for devices, names in ((2, ["b", "c"]), (1, [])):
        node, works = replace(two, devices=two.devices[:devices]), [first, second][:devices]
        reserved = [replace(r, devices=2) for r in known]
        assert ended(a_snapshot([node], [*works, wide], reservations=reserved), at) == names


def test_what_is_ended_and_what_else_has_to_leave_go_together() -> None:
    two, (known,) = replace(NODE, devices=a_node("n1", 2).devices), pool().reservations.values()
    sound, wide = placed(a_job("s"), ("n1", "1")), replace(owner(), demand=a_job("w", 2).demand)
    for tier, names in ((Tier.BASIC, ["b", "s"]), (Tier.PREMIUM, [])):
        works = [borrower(), replace(sound, tier=tier, suspendable=tier is Tier.BASIC), wide]
        snapshot = a_snapshot([two], works, reservations=[replace(known, devices=2)])
        assert named(planned(snapshot, now=later(WITHIN_MS))) == names


def test_who_is_promised_its_tier_in_the_same_pass_ranks_by_that() -> None:
    unpromised = a_job("p", 1, Tier.PREMIUM, tenant_id=TenantId("y"), promised=False)
    lent = replace(unpromised, id=WorkId("v"), submitted_at=Instant(5))
    other, known = replace(NODE, id=NodeId("n2"), devices=a_node("n2", 1).devices), pool()
    works = [borrower(), owner(), placed(lent, ("n2", "0")), unpromised]
    snapshot = a_snapshot([NODE, other], works, reservations=known.reservations.values())
    plan = planned(snapshot, now=later(WITHIN_MS))
    assert named(plan) == ["p", "b", "v"]  # promised, ended, suspended for p


def test_a_plan_that_ends_something_for_what_has_ended_is_refused() -> None:
    snapshot, at = pool(borrower(), owner()), later(WITHIN_MS)
    plan = planned(snapshot, now=at)
    over = lifecycle.apply(owner(), lifecycle.StopOrdered("cancelled"), at)
    stale = replace(snapshot, works={**snapshot.works, over.id: over})
    assert check_plan(stale, plan) == ["b is stopped for owner, but is not overdue"]


def test_why_says_when_it_is_ended() -> None:
    told = planned(pool(borrower(), owner()), now=later(3_000)).blockers[WorkId("owner")]
    assert "could not be saved; tried again, and ended without in 57.0 s" in told[0].text


def test_it_goes_on_from_its_last_image_and_the_receipt_has_what_that_cost() -> None:
    image = suspended(a_job("b"), "n1").image
    stopping = stopped(borrower(image=image))
    assert stopping.phase is Phase.STOPPING
    back = lifecycle.apply(stopping, lifecycle.ProcessEnded(143, "killed"), later(WITHIN_MS + 5))
    assert (back.phase, back.image, back.outcome) == (Phase.SUSPENDED, image, None)
    receipt = back.receipts[-1]
    assert (receipt.by, receipt.lost_ms) == ("owner", back.lost_ms) and back.lost_ms > 0
    assert not back.stranded and not back.saves_failed


def test_what_has_no_image_starts_anew_however_often_it_has_started() -> None:
    stopping = stopped(borrower(attempts=lifecycle.ATTEMPTS_MAX, epoch=Generation(99)))
    back = lifecycle.apply(stopping, lifecycle.ProcessEnded(0, ""), later(WITHIN_MS + 5))
    assert back.phase is Phase.PENDING


@pytest.mark.parametrize(
    "waits",
    [
        replace(owner(), tier=Tier.STANDARD),  # no reservation covers it
        owner(want=Want.SUSPEND),
        owner(ready=False),
        owner(phase_since=later(1)),
    ],
    ids=["uncovered", "unwanted", "unready", "waits for less"],
)
def test_nobody_is_ended_but_for_who_waits_for_what_is_reserved(waits: Work) -> None:
    assert ended(pool(borrower(), waits), later(WITHIN_MS)) == []
    assert ended(pool(borrower(), owner()), later(WITHIN_MS)) == ["b"]


def test_what_was_not_asked_since_the_other_waits_is_let_be() -> None:
    for since_ms, names in ((3_000, []), (1_000, ["b"])):
        waits = owner(phase_since=later(since_ms))
        assert ended(pool(borrower(), waits), later(2 * WITHIN_MS)) == names


def test_who_was_asked_for_others_in_between_has_no_more_time_for_each() -> None:
    work, other = borrower(), replace(owner(), id=WorkId("other"))
    between = Receipt(later(1_000), other.id, "room", 1)
    turns = replace(work, receipts=(work.receipts[0], between, work.receipts[1]))
    assert ended(pool(turns, owner()), later(WITHIN_MS)) == ["b"]
    asked_last = replace(work, receipts=(*work.receipts, replace(between, at=later(3_000))))
    snapshot = pool(asked_last, replace(other, submitted_at=Instant(-1)))
    assert ended(snapshot, later(WITHIN_MS + 2_999)) == []
    assert ended(snapshot, later(WITHIN_MS + 3_000)) == ["b"]


def test_what_was_saved_since_it_was_asked_owes_nothing() -> None:
    image = suspended(a_job("b"), "n1").image
    assert image is not None
    for saved_at, names in ((later(2_000), []), (later(1_999), ["b"])):
        work = borrower(image=replace(image, saved_at=saved_at))  # a copy as it ran failed since
        assert ended(pool(work, owner()), later(WITHIN_MS)) == names


def test_what_was_asked_more_often_than_is_remembered_is_overdue_from_when_the_other_waits() -> (
    None
):
    work = borrower()
    row = tuple(Receipt(later(50_000), WorkId("owner"), "room", 1) for _ in range(RECEIPTS_KEPT))
    waits = owner(phase_since=later(100))
    assert ended(pool(replace(work, receipts=row), waits), later(WITHIN_MS + 99)) == []
    assert ended(pool(replace(work, receipts=row), waits), later(WITHIN_MS + 100)) == ["b"]
