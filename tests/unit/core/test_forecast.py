"""When a waiting job starts, by the planner's own forward run; and what would change that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.fleets import NOW, a_job, a_node, a_snapshot, placed

from onefleet.control.api.demands import demand_of
from onefleet.core.forecast import Change, forecast
from onefleet.core.forward import guesses, run_forward
from onefleet.core.lifecycle import ProcessEnded, apply
from onefleet.core.plan import Plan
from onefleet.core.planner import plan
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import NodeState
from onefleet.domain.ids import Instant, TenantId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Terms, Work
from onefleet.wire.api import NewJob

MINUTE = 60_000
#: Nobody leaves the first level: jobs of a rank wait for each other to end.
POLICY = Policy(level_ms=1 << 50)


def running(name: str, *slots: tuple[str, str], minutes: int, **changes: object) -> Work:
    """A job that has just begun, and says how long it takes."""
    devices = len(slots[0][1].split())
    job = a_job(name, devices, terms=Terms(estimate_ms=minutes * MINUTE), **changes)
    return placed(job, *slots)


def waiting(name: str, devices: int = 1, minutes: int = 10, **changes: object) -> Work:
    return a_job(
        name, devices, terms=Terms(estimate_ms=minutes * MINUTE), phase_since=NOW, **changes
    )


def starts(snapshot: Snapshot, until_min: int = 600) -> dict[str, int]:
    left = guesses(snapshot, NOW, None)
    until = Instant(NOW + until_min * MINUTE)
    found = run_forward(snapshot, POLICY, NOW, left, plan, until=until)
    return {str(name): (at - NOW) // MINUTE for name, at in found.starts.items()}


def test_jobs_start_when_those_before_them_end() -> None:
    snapshot = a_snapshot(
        [a_node("n1", 2)],
        [
            running("a", ("n1", "0"), minutes=30),
            running("b", ("n1", "1"), minutes=50),
            waiting("c", 1, 15, submitted_at=Instant(1)),
            waiting("d", 2, 10, submitted_at=Instant(2)),
        ],
    )
    assert starts(snapshot) == {"c": 30, "d": 50}


def test_a_long_job_lets_those_go_before_it_that_have_had_less() -> None:
    works = [running("a", ("n1", "0"), minutes=300), waiting("b", 1, 15)]
    left = guesses(a_snapshot([a_node("n1", 1)], works), NOW, None)
    policy, until = Policy(level_ms=20 * MINUTE), Instant(NOW + 600 * MINUTE)
    found = run_forward(a_snapshot([a_node("n1", 1)], works), policy, NOW, left, plan, until=until)
    assert found.starts[WorkId("b")] == NOW + 20 * MINUTE
    assert found.starts[WorkId("a")] == NOW + (20 + 15) * MINUTE


def test_what_suspended_work_still_needs_is_counted_once() -> None:
    victim = running("low", ("n1", "0"), minutes=60, tier=Tier.BASIC)
    snapshot = a_snapshot([a_node("n1", 1)], [victim, waiting("p", 1, 20, tier=Tier.PREMIUM)])
    left = guesses(snapshot, NOW, None)
    found = run_forward(snapshot, POLICY, NOW, left, plan, until=Instant(NOW + 200 * MINUTE))
    assert found.moved == {"low": NOW} and found.starts[WorkId("p")] == NOW
    assert (found.starts[WorkId("low")] - NOW) // MINUTE == 20


def test_guesses_learn_from_what_ended_and_condition_on_what_ran() -> None:
    ended = [
        apply(placed(a_job(f"e{i}"), ("n1", "0")), ProcessEnded(0, ""), Instant(NOW + i * MINUTE))
        for i in (1, 2, 3, 4, 5, 50, 60, 70, 80, 90)
    ]
    fresh, old = a_job("fresh"), placed(a_job("old"), ("n1", "0"), at=Instant(NOW - 10 * MINUTE))
    said = a_job("said", terms=Terms(estimate_ms=7 * MINUTE))
    found = guesses(a_snapshot([a_node("n1")], [*ended, fresh, old, said]), NOW, None)
    assert found[WorkId("fresh")] == 50 * MINUTE
    assert found[WorkId("old")] == 60 * MINUTE  # of 70: the median of those that ran for longer
    assert found[WorkId("said")] == 7 * MINUTE
    other = replace(a_job("other"), tenant_id=TenantId("b"))
    assert guesses(a_snapshot([a_node("n1")], [*ended, other]), NOW, None)[other.id] == 50 * MINUTE
    assert guesses(a_snapshot([a_node("n1")], [fresh]), NOW, None)[fresh.id] == 3_600_000


def test_a_forecast_has_an_error_bar_only_where_something_is_unknown() -> None:
    known = a_snapshot([a_node("n1", 1)], [running("a", ("n1", "0"), minutes=30), waiting("w")])
    found = forecast(known, WorkId("w"), POLICY, NOW, plan).start
    assert found.earliest == found.likely == found.latest == NOW + 30 * MINUTE
    unknown = a_snapshot([a_node("n1", 1)], [placed(a_job("a"), ("n1", "0")), waiting("w")])
    found = forecast(unknown, WorkId("w"), POLICY, NOW, plan).start
    assert found.earliest is not None and found.latest is not None
    assert found.earliest < found.latest
    assert forecast(unknown, WorkId("w"), POLICY, NOW, plan).start == found, "drawn by its id"


def test_fewer_devices_start_now_when_there_are_as_many() -> None:
    snapshot = a_snapshot(
        [a_node("n1", 8)], [running("a", ("n1", "0 1 2 3"), minutes=60), waiting("w", 8)]
    )
    found = forecast(snapshot, WorkId("w"), POLICY, NOW, plan)
    assert found.start.likely == NOW + 60 * MINUTE
    best = found.alternatives[0]
    assert best.starts_at == NOW and best.pushed_back == ()
    assert Change(devices=(4, 4)) in [a.change for a in found.alternatives if a.starts_at == NOW]


def test_a_higher_tier_names_whom_it_pushes_back() -> None:
    works = [
        running("low", ("n1", "0"), minutes=90, tier=Tier.BASIC),
        waiting("w", tier=Tier.BASIC),
    ]
    found = forecast(a_snapshot([a_node("n1", 1)], works), WorkId("w"), POLICY, NOW, plan)
    premium = next(a for a in found.alternatives if a.change.tier is Tier.PREMIUM)
    assert premium.starts_at == NOW and premium.pushed_back == ("low",)


def test_work_that_starts_at_once_is_offered_nothing() -> None:
    found = forecast(a_snapshot([a_node("n1", 1)], [waiting("w")]), WorkId("w"), POLICY, NOW, plan)
    assert found.start.likely == NOW and found.alternatives == ()


def test_what_never_fits_has_no_start() -> None:
    snapshot = a_snapshot([a_node("n1", 1)], [waiting("w", 4)])
    found = forecast(snapshot, WorkId("w"), POLICY, NOW, plan)
    assert found.start.likely is None and found.start.earliest is None
    assert [a.change.devices for a in found.alternatives if a.starts_at == NOW] == [(1, 1)]


def test_a_gang_is_offered_only_what_can_be_asked_for() -> None:
    """Its world size stays, and each worker has as many devices as before."""
    works = [running("a", ("n1", "0 1 2"), minutes=60), waiting("w", 2, workers=4)]
    found = forecast(a_snapshot([a_node("n1", 8)], works), WorkId("w"), POLICY, NOW, plan)
    offered = {a.change.devices for a in found.alternatives if a.change.devices}
    assert offered == {(4, 8), (2, 8)}
    for low, high in offered:
        asked = NewJob(command=("x",), workers=4, devices_min=low, devices_max=high)
        again = replace(works[1], demand=demand_of(asked))
        snapshot = a_snapshot([a_node("n1", 8)], [works[0], again])
        assert forecast(snapshot, again.id, POLICY, NOW, plan).start.likely == NOW


def test_a_promise_that_cannot_be_given_is_not_counted_on() -> None:
    """As premium it would still have to wait behind premium work that was promised its devices."""
    works = [
        running("a", ("n1", "0 1"), minutes=60, tier=Tier.PREMIUM),
        waiting("p", 2, tier=Tier.PREMIUM, submitted_at=Instant(1), promised=False),
        waiting("w", 1, tier=Tier.BASIC, submitted_at=Instant(2)),
    ]
    found = forecast(a_snapshot([a_node("n1", 2)], works), WorkId("w"), POLICY, NOW, plan)
    premium = [a for a in found.alternatives if a.change.tier is Tier.PREMIUM]
    assert all(a.starts_at is not None and a.starts_at > NOW for a in premium)


def test_what_has_no_chance_is_answered_without_many_passes() -> None:
    passes = 0

    def counted(*arguments: Any, **named: Any) -> Plan:
        nonlocal passes
        passes += 1
        return plan(*arguments, **named)

    drained = a_node("n2", 4, zone="b", state=NodeState.DRAINING)
    works = [placed(a_job("a"), ("n1", "0")), waiting("w", zones=("b",))]
    found = forecast(a_snapshot([a_node("n1"), drained], works), WorkId("w"), POLICY, NOW, counted)
    assert found.start.likely is None and found.alternatives == ()
    assert passes < 60, "until nothing more can happen, and not for fourteen days"
