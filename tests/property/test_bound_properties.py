"""No policy passes a bound, on any workload."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.workloads import Schedule, jobs_of, workloads

from onefleet.domain.errors import InternalError
from onefleet.sim.jobs.bounds import bounds, makespan, utilisation
from onefleet.sim.jobs.catalog import POLICIES, SRTF
from onefleet.sim.jobs.job import Fleet, Price, Rules
from onefleet.sim.jobs.simulate import simulate

#: What floating point may take from a bound.
SLACK = 1 + 1e-9


@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(max_examples=60)
@given(jobs=workloads(unit=100_000), restore=st.sampled_from([0, 30_000, 250_000]))
def test_no_policy_passes_a_bound(name, jobs, restore):
    devices = 4
    schedule = Schedule()
    rules = Rules(Fleet.flat(devices), Price(restore_ms=restore))
    outcome = simulate(jobs, rules, POLICIES[name], observe=schedule.observe)
    schedule.check(devices, outcome)
    least = bounds(jobs, devices)
    for bound in (least.b1, least.b2, least.b3):
        assert bound <= outcome.mean_jct_s * 1000 * SLACK
    assert least.b4 <= outcome.makespan_ms
    for horizon in (1, outcome.makespan_ms // 2 or 1, outcome.makespan_ms):
        end = jobs[0].arrived + horizon
        held = sum(job.devices * max(min(to, end) - begin, 0) for job, begin, to in schedule.pieces)
        if restore == 0 and "kill" not in name:  # then all that is held is useful
            assert held / (devices * horizon) <= utilisation(jobs, devices, horizon) * SLACK


@given(workloads(devices=1, unit=1000))
def test_the_squashed_bound_is_reached_where_it_is_the_whole_story(jobs):
    """One device: shortest remaining time first is optimal, and B2 is its mean."""
    outcome = simulate(jobs, Rules(Fleet.flat(1), Price(restore_ms=0)), SRTF)
    assert bounds(jobs, 1).b2 == pytest.approx(outcome.mean_jct_s * 1000)


@given(workloads(devices=4), st.integers(1, 6))
def test_more_devices_lower_every_bound(jobs, more):
    few, many = bounds(jobs, 4), bounds(jobs, 4 + more)
    assert many.b2 <= few.b2 * SLACK
    assert many.b4 <= few.b4
    assert many.mean_jct_ms <= few.mean_jct_ms * SLACK


def test_bounds_by_hand():
    jobs = jobs_of([(0, 2, 10), (0, 1, 4), (6, 2, 2)])
    found = bounds(jobs, 2)
    assert found.b1 == pytest.approx(16 / 3)
    # Squashed: work 4 (ends at 2), 20 (8 done at 6, then the last of 4: 6 to 8), ends at 14.
    assert found.b2 == pytest.approx((2 + (8 - 6) + 14) / 3)
    # Mean busy times: 1; 7; and of the large one (2..6 and 8..14: 16 + 66 over 10) 8.2.
    assert found.b3 == pytest.approx((1 + 7 - 6 + 8.2 + 16 / 2) / 3)
    assert found.b4 == 14
    assert makespan(jobs_of([(0, 1, 3), (50, 2, 10)]), 2) == 60
    assert utilisation(jobs, 2, 14) == pytest.approx(1.0)
    assert utilisation(jobs, 2, 2) == pytest.approx(1.0)
    assert utilisation(jobs_of([(0, 1, 4), (10, 1, 10)]), 2, 20) == pytest.approx(14 / 40)


def test_nothing_has_no_bounds():
    with pytest.raises(InternalError):
        bounds((), 4)
