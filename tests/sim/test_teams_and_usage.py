"""Reservations and tiers made from a trace, tiers with reservations, and the sums over time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.workloads import Schedule, jobs_of

from onefleet.domain.errors import Infeasible, InvalidRequest
from onefleet.domain.ids import TenantId
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.catalog import FIRST_FIT, TIERS_SUSPEND, TIERS_WAIT
from onefleet.sim.jobs.cohorts import cohort
from onefleet.sim.jobs.effective import HOUR_MS, Trial
from onefleet.sim.jobs.job import Fleet, Price, Rules, Team
from onefleet.sim.jobs.simulate import simulate
from onefleet.sim.jobs.teams import reservations, with_tiers
from onefleet.sim.jobs.usage import Demand, Usage
from onefleet.sim.traces import imitate
from onefleet.sim.traces.kueue import BASELINE, LARGE_SCALE, workloads


@pytest.fixture(scope="module")
def trace():
    return imitate.philly(6, 3_000, 3)


def test_reservations_share_out_all_devices(trace):
    teams = reservations(trace, 400)
    assert sum(team.reserved for team in teams) == 400
    for team in teams:
        assert team.reserved >= max(job.devices for job in trace if job.vc == team.tenant)
    with pytest.raises(Infeasible):
        reservations(trace, len(teams) - 1)


def test_premium_work_is_feasible_by_construction(trace):
    devices = 10 + sum(max(j.devices for j in trace if j.vc == vc) for vc in {j.vc for j in trace})
    teams = reservations(trace, devices)
    jobs = with_tiers(trace, teams, 1)
    assert jobs == with_tiers(trace, teams, 1)
    tiers = [sum(1 for job in jobs if job.tier is tier) for tier in Tier]
    assert min(tiers) > 20
    assert tiers[1] / tiers[2] == pytest.approx(2, rel=0.5)
    schedule = Schedule()
    rules = Rules(Fleet.flat(devices), Price(), teams)
    outcome = simulate(jobs, rules, TIERS_SUSPEND, observe=schedule.observe)
    schedule.check(devices, outcome)
    premium = outcome.of(Tier.PREMIUM)
    assert premium.mean_queue_s == 0
    assert premium.kept_promises() == 1.0
    assert outcome.suspends > 0


def test_a_reservation_is_called_in_from_premium_work_that_borrowed_it():
    # t0 borrows all four; t1 comes with its reservation of two, and t0 keeps what is its own.
    jobs = jobs_of([(0, 2, 50), (10, 2, 5), (0, 2, 50)], [Tier.PREMIUM] * 3)
    t0, t1 = TenantId("t0"), TenantId("t1")
    jobs = (
        replace(jobs[0], number=0),
        replace(jobs[2], number=1, tenant=t0),
        replace(jobs[1], number=2),
    )
    rules = Rules(Fleet.flat(4), Price(restore_ms=0), (Team(t0, 2), Team(t1, 2)))
    outcome = simulate(jobs, rules, TIERS_SUSPEND)
    assert outcome.started == [0, 0, 10]
    assert outcome.ended == [50, 55, 15]
    assert simulate(jobs, rules, TIERS_WAIT).started == [0, 0, 50]


def test_who_borrowed_moves_into_the_reservation_when_there_is_room():
    t0, t1 = TenantId("t0"), TenantId("t1")
    rows = [(0, 2, 5), (0, 2, 50), (10, 2, 5)]
    jobs = jobs_of(rows, [Tier.PREMIUM] * 3)
    jobs = (jobs[0], replace(jobs[1], tenant=t0), replace(jobs[2], tenant=t1))
    rules = Rules(Fleet.flat(4), Price(restore_ms=0), (Team(t0, 2), Team(t1, 2)))
    outcome = simulate(jobs, rules, TIERS_SUSPEND)
    assert outcome.suspends == 0  # at 10 the second is inside, and two devices are free
    assert outcome.started == [0, 0, 10]


def test_more_than_all_cannot_be_reserved():
    with pytest.raises(InvalidRequest):
        Rules(Fleet.flat(4), teams=(Team(TenantId("a"), 3), Team(TenantId("b"), 2)))


def test_usage_by_bin_and_what_was_stranded():
    jobs = jobs_of([(0, 3, 10), (0, 2, 10)])
    usage, demand = Usage(0, 4, lambda job: job.tenant), Demand()

    def observe(job, begin, end):
        usage.observe(job, begin, end)
        demand.observe(job, begin, end)

    outcome = simulate(jobs, Rules(Fleet.flat(4)), FIRST_FIT, observe=observe)
    assert usage.mean_devices("t0", 3) == [3.0, 3.0, 1.5]
    assert usage.mean_devices("t1", 5) == [0.0, 0.0, 1.0, 2.0, 2.0]
    assert usage.device_ms(3) == 30 + 4
    found = demand.idleness(outcome, 4, 15)
    assert (found.waiting_ms, found.held, found.stranded) == (10, 30, 10)


@pytest.mark.parametrize(
    ("shape", "count", "bound_s"), [(BASELINE, 15_000, 66), (LARGE_SCALE, 50_000, 4)]
)
def test_kueues_workloads_are_as_many_and_as_much_as_it_says(shape, count, bound_s):
    assert shape.workloads == count
    found = workloads(shape, 0)
    assert len(found) == count // shape.cohorts
    assert [w.created_ms for w in found] == sorted(w.created_ms for w in found)
    jobs, rules = cohort(shape, 0)
    assert rules.fleet.devices == shape.queues * shape.nominal
    work = sum(job.work for job in jobs) / rules.fleet.devices / 1000
    assert work == pytest.approx(bound_s, abs=0.1)
    assert all(team.most == 120 for team in rules.teams)


def test_the_ceiling_falls_with_every_cost():
    trial = Trial(1024, 8, 4, round(7.9 * HOUR_MS), HOUR_MS, 10_000, 20_000, 10_000, HOUR_MS)
    assert trial.every_ms == pytest.approx(748_000, abs=1_000)  # sqrt(2 x 10 x 28,440) = 754 s
    assert 0.97 < trial.ceiling() < 0.975
    for worse in (
        replace(trial, mttf_ms=trial.mttf_ms // 2),
        replace(trial, detect_ms=60_000),
        replace(trial, restore_ms=60_000),
        replace(trial, checkpoint_ms=60_000),
    ):
        assert worse.ceiling() < trial.ceiling()
