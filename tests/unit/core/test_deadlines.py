"""Jobs with deadlines: first in their rank when they have to be, and only then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.fleets import NOW, a_job, a_node, a_reservation, a_snapshot, placed, planned

from onefleet.core import lifecycle
from onefleet.core.deadlines import is_urgent, urgent_at
from onefleet.core.plan import Place, Suspend
from onefleet.core.policy import Policy
from onefleet.domain.ids import Instant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Terms, Want, Work

POLICY = Policy(slack_ms=10_000, slack_permille=250)
HOUR_MS = 3_600_000


def due_in(ms: int, estimate_ms: int | None = 40_000, **changes: Any) -> Work:
    """A basic job that came last and has nothing but its deadline to speak for it."""
    terms = Terms(deadline=Instant(NOW + ms), estimate_ms=estimate_ms, checkpoint_every_ms=0)
    return a_job(
        "d", tier=changes.pop("tier", Tier.BASIC), terms=terms, submitted_at=NOW, **changes
    )


def first(*works: Work) -> str:
    """Which of the works gets the only device."""
    decided = planned(a_snapshot([a_node("n1", 1)], works), POLICY).decisions
    (place,) = [d for d in decided if isinstance(d, Place)]
    return place.work_id


def test_it_goes_first_when_its_slack_is_small_and_not_before() -> None:
    older = a_job("a", tier=Tier.BASIC)
    assert first(older, due_in(40_000 + 10_000 + 1)) == "a"
    assert first(older, due_in(40_000 + 10_000)) == "d"
    assert first(older, due_in(40_000)) == "d"
    assert first(older, due_in(1)) == "d"


def test_without_an_estimate_or_after_its_deadline_it_is_like_any_other() -> None:
    older = a_job("a", tier=Tier.BASIC)
    assert first(older, due_in(40_000, estimate_ms=None)) == "a"
    assert first(older, due_in(0)) == "a"
    assert not is_urgent(replace(due_in(40_000), want=Want.SUSPEND), NOW, POLICY)


def test_a_deadline_goes_before_its_own_rank_only() -> None:
    assert first(a_job("a", tier=Tier.PREMIUM), due_in(40_000)) == "a"
    covered = a_job("a", tier=Tier.PREMIUM, submitted_at=NOW)
    other = due_in(40_000, tier=Tier.PREMIUM, tenant_id="b")
    snapshot = a_snapshot([a_node("n1", 1)], [covered, other], reservations=[a_reservation("a", 1)])
    assert [d.work_id for d in planned(snapshot, POLICY).decisions if isinstance(d, Place)] == ["a"]


def test_it_takes_its_turn_from_a_job_that_runs_and_keeps_it_while_it_has_to() -> None:
    never = Terms(checkpoint_every_ms=0)
    runs = placed(a_job("a", tier=Tier.BASIC, terms=never), ("n1", "0"), at=Instant(NOW - 1))
    decided = planned(a_snapshot([a_node("n1", 1)], [runs, due_in(45_000)]), POLICY).decisions
    assert [(d.work_id, d.reason) for d in decided if isinstance(d, Suspend)] == [
        ("a", "makes room for d (basic), whose deadline is near")
    ]
    long = placed(due_in(45_000), ("n1", "0"), at=Instant(NOW - 100))
    long = replace(long, served_ms=50 * POLICY.level_ms)
    waiting = a_job("a", tier=Tier.BASIC, terms=never)
    assert planned(a_snapshot([a_node("n1", 1)], [long, waiting]), POLICY).decisions == ()
    calm = replace(long, terms=replace(long.terms, deadline=Instant(NOW + HOUR_MS)))
    decided = planned(a_snapshot([a_node("n1", 1)], [calm, waiting]), POLICY).decisions
    assert [d.work_id for d in decided if isinstance(d, Suspend)] == ["d"]


def test_slack_melts_while_it_waits_and_stays_while_it_runs() -> None:
    job = due_in(100_000)
    assert urgent_at(job, NOW, POLICY) == NOW + 50_000
    runs = placed(job, ("n1", "0"))
    later = Instant(NOW + 30_000)
    assert urgent_at(runs, later, POLICY) == NOW + 90_000  # it overran what its owner said
    saved = lifecycle.apply(runs, lifecycle.SaveOrdered("made room"), later)
    assert urgent_at(saved, later, POLICY) == NOW + 80_000  # 10 s are left to run
    late = placed(job, ("n1", "0"), at=Instant(NOW + 50_000))
    assert is_urgent(late, Instant(NOW + 60_000), POLICY)
