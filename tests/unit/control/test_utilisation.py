"""Device time, to the millisecond while the process lives and by the minute before."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fleets import a_job, a_node, a_replica, placed, suspended
from tests.unit.control.states import a_state, by_id

from onefleet.control import utilisation
from onefleet.control.utilisation import Utilisation
from onefleet.core import lifecycle
from onefleet.domain.events import Held
from onefleet.domain.fleet import NodeState
from onefleet.domain.ids import Instant
from onefleet.domain.tiers import Tier
from onefleet.store.base import State
from onefleet.store.changes import add_up_held

MINUTE = 60_000


def nodes(devices: int = 2) -> dict[str, object]:
    return {"nodes": by_id(a_node("n1", devices))}


def at(seconds: float) -> Instant:
    return Instant(int(seconds * 1000))


IDLE = a_state(**nodes())
JOB = a_state(placed(a_job("job-1"), ("n1", "0")), **nodes())
BOTH = a_state(
    placed(a_job("job-1"), ("n1", "0")),
    placed(a_replica("rep-1", tier=Tier.PREMIUM), ("n1", "1")),
    **nodes(),
)


def test_what_was_held_is_integrated_between_changes() -> None:
    use = Utilisation(at(0))
    use.advance(IDLE, at(0))
    use.advance(JOB, at(1))
    use.advance(BOTH, at(3))
    use.advance(IDLE, at(7))
    totals = use.totals(at(0), at(10))
    assert totals.capacity_device_ms == 20_000
    assert totals.held_device_ms == {"premium.replica": 4_000, "standard.job": 6_000}
    assert (totals.since, totals.until) == (0, 10_000)


def test_a_part_of_the_time_is_cut_to_the_millisecond() -> None:
    use = Utilisation(at(0))
    use.advance(JOB, at(0))
    use.advance(IDLE, at(10))
    totals = use.totals(Instant(2_500), at(12))
    assert totals.held_device_ms == {"standard.job": 7_500}
    assert totals.capacity_device_ms == 19_000
    assert use.totals(at(11), at(12)).held_device_ms == {}


def test_a_node_that_is_lost_is_no_capacity() -> None:
    use = Utilisation(at(0))
    lost = replace(a_node("n1", 2), state=NodeState.LOST)
    use.advance(a_state(nodes=by_id(lost)), at(0))
    assert use.totals(at(0), at(5)).capacity_device_ms == 0


def test_suspends_and_resumes_are_counted_once() -> None:
    saved = suspended(a_job("job-1"), "n1")
    saving = lifecycle.apply(
        placed(a_job("job-1"), ("n1", "0")), lifecycle.SaveOrdered("room"), at(1)
    )
    placement = saving.placement
    restoring = lifecycle.apply(saved, lifecycle.Placed(placement, True), at(3))
    running = lifecycle.apply(restoring, lifecycle.Restored(), at(4))
    use = Utilisation(at(0))
    for second, work in enumerate((saving, saved, saved, restoring, running, running)):
        use.advance(a_state(work, **nodes()), at(second))
    totals = use.totals(at(0), at(9))
    assert (totals.suspends, totals.resumes) == (1, 1)
    assert use.totals(at(3), at(9)).suspends == 0
    written = add_up_held(use.unwritten(at(9)))
    assert Held(Instant(0), "suspends", 1) in written


def test_what_is_written_is_what_was_held_and_is_written_once() -> None:
    use = Utilisation(at(30))
    use.advance(JOB, at(30))
    use.advance(IDLE, at(100))
    written = use.unwritten(at(130))
    assert written == (
        Held(Instant(0), "capacity", 60_000),
        Held(Instant(0), "standard.job", 30_000),
        Held(Instant(MINUTE), "capacity", 120_000),
        Held(Instant(MINUTE), "standard.job", 40_000),
        Held(Instant(2 * MINUTE), "capacity", 20_000),
    )
    use.written()
    assert use.unwritten(at(130)) == ()
    assert use.totals(at(0), at(130)).held_device_ms == {"standard.job": 70_000}


def test_a_restart_goes_on_from_the_store() -> None:
    past = [Held(Instant(0), "standard.job", 5_000), Held(Instant(0), "capacity", 60_000)]
    use = Utilisation(at(90), past)
    use.advance(JOB, at(90))
    totals = use.totals(at(0), at(100))
    assert totals.held_device_ms == {"standard.job": 15_000}
    assert totals.capacity_device_ms == 80_000
    assert use.totals(at(95), at(100)).held_device_ms == {"standard.job": 5_000}
    assert use.totals(at(95), at(100)).since == at(95)
    assert Utilisation(at(90)).totals(at(0), at(100)).since == at(90)


def test_old_stretches_are_folded_into_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utilisation, "STRETCHES_KEPT", 3)
    use = Utilisation(at(0))
    for second in range(0, 20, 2):
        use.advance(JOB, at(second))
        use.advance(IDLE, at(second + 1))
    totals = use.totals(at(0), at(20))
    assert totals.held_device_ms == {"standard.job": 10_000}
    assert totals.capacity_device_ms == 40_000


STATES = st.sampled_from([IDLE, JOB, BOTH])


@given(st.lists(st.tuples(STATES, st.integers(0, 200_000)), max_size=12))
def test_nothing_is_counted_twice_and_never_more_than_there_is(
    changes: list[tuple[State, int]],
) -> None:
    use, now = Utilisation(Instant(0)), 0
    use.advance(IDLE, Instant(0))
    written: list[Held] = []
    for state, passed in changes:
        now += passed
        use.advance(state, Instant(now))
        written += use.unwritten(Instant(now))
        use.written()
    totals = use.totals(Instant(0), Instant(now))
    assert totals.capacity_device_ms == 2 * now
    assert sum(totals.held_device_ms.values()) <= totals.capacity_device_ms
    sums: dict[str, int] = {}
    for held in written:
        sums[held.label] = sums.get(held.label, 0) + held.amount
    assert sums.pop("capacity", 0) == totals.capacity_device_ms
    assert sums == dict(totals.held_device_ms)
