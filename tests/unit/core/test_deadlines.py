"""Jobs with deadlines: first in their rank when they have to be, and only then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.fleets import NOW, a_job, a_node, a_reservation, a_snapshot, placed, planned

from onefleet.core import lifecycle
from onefleet.core.deadlines import is_urgent, urgent_at
from onefleet.core.explain import outlook
from onefleet.core.forecast import HORIZON_MS, Start
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
    came = {"submitted_at": NOW, "phase_since": NOW}
    return a_job("d", tier=changes.pop("tier", Tier.BASIC), terms=terms, **came, **changes)


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


def starting(likely_s: int | None, latest_s: int | None = None) -> Start:
    likely, latest = (None if s is None else Instant(NOW + 1_000 * s) for s in (likely_s, latest_s))
    return Start(likely, likely, latest)


@pytest.mark.parametrize(
    ("due_s", "start", "told"),
    [
        (-180, starting(0, 0), "passed 3m00s ago; it no longer goes before others of its rank"),
        (300, starting(60, 120), "in 5m00s; it is expected to be met"),
        (300, starting(60, None), "in 5m00s; it is expected to be met, but not surely"),
        (300, starting(60, 270), "in 5m00s; it is expected to be met, but not surely"),
        (300, None, "in 5m00s"),
        (
            300,
            starting(290, 290),
            "in 5m00s; it is expected to be late by 30.0s: "
            "it is expected to run in 4m50s, for 40.0s",
        ),
        (300, starting(None), "in 5m00s; it is not expected to run by then"),
        (
            30,
            None,
            "in 30.0s; it would be late by 10.0s if it ran now: it has 40.0s left to run",
        ),
        (45, starting(0, 0), "in 45.0s; it goes first in its rank now"),
    ],
)
def test_it_is_told_what_becomes_of_a_deadline_while_the_job_waits(
    due_s: int, start: Start | None, told: str
) -> None:
    assert outlook(due_in(1_000 * due_s), NOW, POLICY, start) == told


def test_it_is_told_what_becomes_of_a_deadline_while_the_job_runs_and_after_it() -> None:
    assert outlook(a_job("a"), NOW, POLICY, None) == ""
    runs = placed(due_in(60_000), ("n1", "0"), at=NOW)

    def told(work: Work, after_s: int) -> str:
        return outlook(work, Instant(NOW + 1_000 * after_s), POLICY, None)

    assert told(runs, 10) == "in 50.0s; it is expected to be met"
    narrow = replace(runs, demand=replace(runs.demand, devices_max=4))
    assert told(narrow, 10) == (
        "in 50.0s; it is expected to be late by 1m10s: it has 2m00s left to run"
    )
    assert told(runs, 41) == ("in 19.0s; it has run for longer than the 40.0s that it was to take")
    assert told(runs, 61) == "passed 1.0s ago; it no longer goes before others of its rank"
    for after_s, outcome in ((60, "met"), (90, "missed by 30.0s")):
        ended = lifecycle.apply(runs, lifecycle.ProcessEnded(0, ""), Instant(NOW + 1_000 * after_s))
        assert told(ended, 9_999) == outcome
    failed = lifecycle.apply(runs, lifecycle.ProcessEnded(1, ""), Instant(NOW + 1_000))
    assert told(failed, 9_999) == ""


def test_a_deadline_that_nothing_can_be_done_about_says_so() -> None:
    job = due_in(60_000, estimate_ms=None)
    assert "nobody knows how long it runs (onefleet run --estimate)" in outlook(
        job, NOW, POLICY, None
    )
    assert outlook(job, Instant(NOW + 61_000), POLICY, None) == "passed 1.0s ago"
    far = due_in(HORIZON_MS + HOUR_MS)
    assert outlook(far, NOW, POLICY, starting(None)) == "in 14d1h"
