"""Jobs that have had next to nothing go first, for a while."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.fleets import a_job, a_node, a_replica, a_snapshot, decided, placed, planned, suspended

from onefleet.core.planner import Index
from onefleet.core.policy import Policy
from onefleet.core.starvation import is_starved, starvation_changes_at
from onefleet.domain.ids import Instant, TenantId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Terms, Want, Work

MINUTE = 60_000
HOUR = 60 * MINUTE
POLICY = Policy(level_ms=10 * MINUTE, floor_permille=100)
START = Instant(1000 * HOUR)


def at(ms: int) -> Instant:
    return Instant(START + ms)


def waiting(name: str = "j", devices: int = 1, served_ms: int = 0, tenant: str = "a") -> Work:
    return a_job(
        name,
        devices,
        Tier.BASIC,
        terms=Terms(checkpoint_every_ms=0),
        tenant_id=TenantId(tenant),
        submitted_at=START,
        phase_since=START,
        served_ms=served_ms,
    )


def running(job: Work, since: Instant, first: int = 0) -> Work:
    devices = " ".join(str(first + number) for number in range(job.demand.least))
    return replace(placed(job, ("n1", devices), at=since), accounted_until=since)


def test_a_job_starves_when_it_lacks_a_level_to_its_floor() -> None:
    """A tenth of 100 minutes are 10; each device counts alike."""
    for devices in (1, 8):
        job = waiting(devices=devices)
        assert starvation_changes_at(job, START, POLICY) == at(100 * MINUTE)
        assert not is_starved(job, at(100 * MINUTE - 1), POLICY)
        assert is_starved(job, at(100 * MINUTE), POLICY)
        had = replace(job, served_ms=devices * 5 * MINUTE)
        assert starvation_changes_at(had, START, POLICY) == at(150 * MINUTE)


def test_only_jobs_that_want_to_run_do() -> None:
    late = at(1000 * HOUR)
    for work in (
        replace(waiting(), want=Want.SUSPEND),
        replace(waiting(), ready=False),
        a_replica("r", submitted_at=START, phase_since=START),
    ):
        assert not is_starved(work, late, POLICY)
        assert starvation_changes_at(work, late, POLICY) is None
    assert not is_starved(waiting(), late, replace(POLICY, floor_permille=0))


def test_once_it_runs_it_does_so_until_it_has_had_twice_the_floor() -> None:
    """After 100 minutes of waiting and t of running, t is a fifth of all at 25 minutes."""
    job = running(waiting(devices=4), at(100 * MINUTE))
    assert starvation_changes_at(job, at(100 * MINUTE), POLICY) == at(125 * MINUTE)
    assert is_starved(job, at(125 * MINUTE - 1), POLICY)
    assert not is_starved(job, at(125 * MINUTE), POLICY)
    early = running(waiting(devices=4), at(99 * MINUTE))  # it got its devices in its turn
    assert not is_starved(early, at(100 * MINUTE), POLICY)


@given(
    st.integers(1, 8),
    st.integers(0, 100 * MINUTE),
    st.integers(0, 300 * MINUTE),
    st.integers(0, 300 * MINUTE),
    st.booleans(),
)
def test_it_changes_when_it_is_said_to(
    devices: int, served_ms: int, until: int, more: int, runs: bool
) -> None:
    work = waiting(devices=devices, served_ms=served_ms * devices)
    if runs:
        work = running(work, at(until))
    now = at(until)
    changes_at = starvation_changes_at(work, now, POLICY)
    before = is_starved(work, now, POLICY)
    if changes_at is None or now + more < changes_at:
        assert is_starved(work, Instant(now + more), POLICY) is before
    if changes_at is not None:
        assert changes_at > now
        assert is_starved(work, Instant(changes_at - 1), POLICY) is before
        assert is_starved(work, changes_at, POLICY) is not before


def plans(now: Instant, *works: Work) -> list[str]:
    node = a_node("n1", 2, lease_expires_at=Instant(now + HOUR))
    return decided(planned(a_snapshot([node], works), POLICY, now))


def test_what_starves_takes_its_turn_from_all_others_of_its_rank() -> None:
    since = at(99 * MINUTE)
    fresh = [
        running(replace(waiting(name), submitted_at=since), since, number)
        for number, name in enumerate(("s", "t"))
    ]
    gang = waiting("gang", 2)
    longer = replace(gang, served_ms=30 * MINUTE)
    assert plans(at(100 * MINUTE), *fresh, longer) == []  # they have had less
    reason = "makes room for gang (basic), which has had next to nothing of its time"
    assert plans(at(100 * MINUTE), *fresh, gang) == [f"suspend {n}: {reason}" for n in ("s", "t")]


def test_nobody_takes_it_off_until_it_has_had_its_time() -> None:
    gang = running(waiting("gang", 2), at(100 * MINUTE))
    newer = suspended(waiting("newer", tenant="b"), "n1", at=at(100 * MINUTE))
    newer = replace(newer, submitted_at=at(99 * MINUTE))
    for minute, expected in ((105, []), (126, ["gang"])):
        now = at(minute * MINUTE)
        assert [line.split()[1].rstrip(":") for line in plans(now, gang, newer)] == expected


def test_the_index_knows_it_without_being_asked_to_look() -> None:
    index = Index(POLICY)
    index.advance(START, {})
    index.put(waiting())
    levels = []
    for minute in (99, 100):
        index.advance(at(minute * MINUTE), {})
        ((_, _, _, line),) = index.roster.lines
        levels.append((line[0][0], index.roster.level_of(WorkId("j"))))
    assert levels == [(0, 0), (-1, -1)]
