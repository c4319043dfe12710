"""The best schedule of small instances lies between the bounds and every policy."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.workloads import jobs_of, workloads

from onefleet.domain.errors import InvalidRequest, TimedOut
from onefleet.sim.jobs.bounds import bounds
from onefleet.sim.jobs.catalog import EASY, FIFO, FIRST_FIT, POLICIES, RANDOM, SJF
from onefleet.sim.jobs.job import Fleet, Price, Rules
from onefleet.sim.jobs.optimum import optimum
from onefleet.sim.jobs.simulate import simulate

#: A slot; a multiple of the catalogue's quantum, so that ticks are at multiples, too.
SLOT = 600_000
SMALL = workloads(devices=3, jobs_max=5, unit=SLOT, until=4, longest=3)
NEVER_PREEMPT = (FIFO, EASY, FIRST_FIT, RANDOM, SJF)
SLACK = 1e-6
RULES = Rules(Fleet.flat(3), Price(restore_ms=0))


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(SMALL)
def test_the_optimum_lies_between_bounds_and_policies(jobs):
    best = optimum(jobs, 3, SLOT).mean_jct_ms
    without = optimum(jobs, 3, SLOT, preempt=False).mean_jct_ms
    assert bounds(jobs, 3).mean_jct_ms <= best + SLACK
    assert best <= without + SLACK
    for named in POLICIES.values():
        acts = list[int]()
        outcome = simulate(jobs, RULES, named, observe=lambda _, *held, to=acts: to.extend(held))
        if any(at % SLOT for at in acts):
            continue  # who acts between slots can do better than who cannot
        reached = outcome.mean_jct_s * 1000
        assert best <= reached + SLACK
        if named in NEVER_PREEMPT:
            assert without <= reached + SLACK


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(SMALL, st.booleans())
def test_the_optimum_is_a_schedule(jobs, preempt):
    found = optimum(jobs, 3, SLOT, preempt=preempt)
    held: dict[int, int] = {}
    jct = 0
    for job, slots in zip(jobs, found.runs, strict=True):
        assert len(slots) * SLOT == job.duration_ms
        assert slots[0] * SLOT >= job.arrived
        if not preempt:
            assert slots[-1] - slots[0] == len(slots) - 1
        for slot in slots:
            held[slot] = held.get(slot, 0) + job.devices
        jct += (slots[-1] + 1) * SLOT - job.arrived
    assert max(held.values()) <= 3
    assert jct / len(jobs) == pytest.approx(found.mean_jct_ms)


def test_an_instance_worked_out_by_hand():
    # The long job steps aside for two short gangs, or they wait for it.
    jobs = jobs_of([(0, 1, 6), (1, 2, 1), (2, 2, 1)])
    assert optimum(jobs, 2, 1).mean_jct_ms == pytest.approx((8 + 1 + 1) / 3)
    assert optimum(jobs, 2, 1, preempt=False).mean_jct_ms == pytest.approx((9 + 1 + 1) / 3)


def test_what_it_cannot_take_is_refused():
    jobs = jobs_of([(0, 1, 6), (1, 2, 1)])
    with pytest.raises(InvalidRequest):
        optimum(jobs, 2, 4)
    with pytest.raises(InvalidRequest):
        optimum(jobs, 1, 1)
    with pytest.raises(InvalidRequest):
        optimum(jobs_of([(0, 1, 900)] * 9), 2, 1)
    many = jobs_of([(n, 1 + n % 3, 3 + n % 5) for n in range(12)])
    with pytest.raises(TimedOut):
        optimum(many, 3, 1, limit_s=0.0)
