"""The job simulator against schedules worked out by hand, and policies that do wrong."""

from __future__ import annotations

import pytest
from tests.workloads import Schedule, jobs_of

from onefleet.domain.errors import Infeasible, InternalError, InvalidRequest
from onefleet.domain.ids import TenantId
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.catalog import (
    DRF,
    EASY,
    FIFO,
    FIRST_FIT,
    LAS,
    POLICIES,
    SILOS,
    SJF,
    SRTF,
    TIERS_KILL,
    TIERS_SUSPEND,
    TIERS_WAIT,
)  # fmt: skip
from onefleet.sim.jobs.job import Checkpoints, Failures, Fleet, Price, Rules, Team, from_trace
from onefleet.sim.jobs.policy import Blind
from onefleet.sim.jobs.simulate import progress_in, simulate, wall_for
from onefleet.sim.traces import imitate

FREE = Price(restore_ms=0)


def flat(devices, restore_ms=0, **more):
    return Rules(Fleet.flat(devices), Price(restore_ms=restore_ms, **more))


class Script:
    """Does at each moment what is written down for it: {now: [("start", 0), ...]}."""

    def __init__(self, acts, wakes=()):
        self.acts, self.wakes, self.views = acts, list(wakes), {}

    def decide(self, desk):
        self.views.update({job.number: job for job in desk.arrived})
        for verb, number in self.acts.get(desk.now, ()):
            getattr(desk, verb)(self.views[number])
        while self.wakes:
            desk.wake(self.wakes.pop())


def script(acts, wakes=()):
    return Blind("script", "", lambda rules, rng: Script(acts, wakes))


# --- queues ---------------------------------------------------------------------------------------


def test_head_of_line_waits_for_the_first():
    jobs = jobs_of([(0, 3, 10), (1, 2, 5), (2, 1, 5)])
    outcome = simulate(jobs, flat(4), FIFO)
    assert outcome.started == [0, 10, 10]
    assert outcome.ended == [10, 15, 15]


def test_first_fit_passes_over():
    jobs = jobs_of([(0, 3, 10), (1, 2, 5), (2, 1, 5)])
    assert simulate(jobs, flat(4), FIRST_FIT).started == [0, 10, 2]


def test_easy_backfills_only_what_delays_nobody():
    # The head wants 4 at 10; on the one free device 8 ms fit before, 9 do not.
    jobs = jobs_of([(0, 3, 10), (1, 4, 5), (2, 1, 9), (2, 1, 8)])
    assert simulate(jobs, flat(4), EASY).started == [0, 10, 15, 2]
    # It wants 3 at 10, of 4: the spare device may be held for long.
    jobs = jobs_of([(0, 3, 10), (1, 3, 5), (2, 1, 90)])
    assert simulate(jobs, flat(4), EASY).started == [0, 10, 2]


def test_easy_counts_all_that_end_when_the_head_starts():
    # Two end at 10. The head wants 3 of the 6 that are free then; one device is spare until later.
    jobs = jobs_of([(0, 2, 10), (0, 3, 10), (1, 3, 5), (2, 1, 90)])
    assert simulate(jobs, flat(6), EASY).started == [0, 0, 10, 2]


def test_shares_go_to_who_holds_least():
    jobs = jobs_of([(0, 1, 9), (0, 1, 1), (0, 1, 1), (0, 1, 5), (0, 1, 5)])  # t0 t1 t2 t0 t1
    outcome = simulate(jobs, flat(3), DRF)
    assert outcome.started == [0, 0, 0, 1, 1]
    outcome = simulate(jobs, flat(2), DRF)  # t0 and t1 begin; then t2 holds none
    assert outcome.started[:3] == [0, 0, 1]


def test_silos_keep_what_others_could_use():
    teams = (Team(jobs_of([(0, 1, 1)])[0].tenant, 2),)
    jobs = jobs_of([(0, 1, 9), (0, 1, 9), (0, 1, 1)])
    outcome = simulate(jobs, Rules(Fleet.flat(3), FREE, teams), SILOS)
    assert outcome.started == [0, 0, 9]


def test_shortest_first_and_shortest_remaining_first():
    jobs = jobs_of([(0, 1, 10), (1, 1, 5), (1, 1, 2)])
    assert simulate(jobs, flat(1), SJF).ended == [10, 17, 12]
    assert simulate(jobs, flat(1), SRTF).ended == [17, 8, 3]


def test_least_attained_service_takes_turns():
    hour = 3_600_000
    jobs = jobs_of([(0, 1, 2 * hour), (0, 1, 2 * hour)])
    outcome = simulate(jobs, flat(1), LAS)
    assert min(outcome.ended) > 3.8 * hour  # neither runs through while the other waits
    assert outcome.suspends >= 10


# --- tiers ----------------------------------------------------------------------------------------

TIERED = jobs_of([(0, 2, 100), (10, 1, 50), (20, 1, 5)], (Tier.BASIC, Tier.BASIC, Tier.PREMIUM))


def test_premium_waits_where_nothing_is_taken():
    assert simulate(TIERED, flat(3), TIERS_WAIT).started == [0, 10, 60]


def test_premium_suspends_the_youngest_of_a_lower_tier():
    outcome = simulate(TIERED, flat(3, restore_ms=7), TIERS_SUSPEND)
    assert outcome.started == [0, 10, 20]
    assert outcome.ended == [100, 72, 25]  # 10 ms, out at 20, back at 25, restored at 32, 40 ms
    assert (outcome.suspends, outcome.kills, outcome.lost, outcome.wasted) == (1, 0, 0, 7)
    assert outcome.ceded == 7


def test_killing_loses_what_was_done():
    outcome = simulate(TIERED, flat(3, restore_ms=7), TIERS_KILL)
    assert outcome.ended == [100, 75, 25]  # from the start again at 25, with nothing to restore
    assert (outcome.suspends, outcome.kills, outcome.lost, outcome.wasted) == (0, 1, 10, 10)
    assert outcome.ceded == 10


def test_a_restore_that_is_broken_off_costs_the_higher_tier_what_it_took():
    tiers = (Tier.BASIC, Tier.PREMIUM, Tier.PREMIUM)
    jobs = jobs_of([(0, 1, 100), (20, 1, 5), (28, 1, 5)], tiers)
    outcome = simulate(jobs, flat(1, restore_ms=7), TIERS_SUSPEND)
    assert outcome.ended == [120, 25, 33]  # back at 25 for 3 ms, at 33 for 7
    assert (outcome.suspends, outcome.wasted, outcome.ceded) == (2, 10, 10)


def test_what_makes_room_inside_a_tier_cedes_nothing():
    jobs = jobs_of([(0, 1, 9_000_000), (1, 1, 9_000_000)])
    outcome = simulate(jobs, flat(1, restore_ms=7), LAS)
    assert outcome.suspends > 0 and outcome.wasted > 0 and outcome.ceded == 0


def test_promises_are_counted_by_tier():
    outcome = simulate(TIERED, flat(3), TIERS_WAIT)
    assert outcome.of(Tier.PREMIUM).kept_promises() == 0.0  # 5 / 45
    assert simulate(TIERED, flat(3), TIERS_SUSPEND).of(Tier.PREMIUM).kept_promises() == 1.0


# --- suspends, saves, checkpoints -----------------------------------------------------------------


def test_a_suspend_keeps_progress_and_costs_its_price():
    jobs = jobs_of([(0, 2, 10)])
    acts = {0: [("start", 0)], 4: [("suspend", 0)], 9: [("start", 0)]}
    schedule = Schedule()
    rules = flat(2, restore_ms=3, start_ms=1)
    outcome = simulate(jobs, rules, script(acts, (4, 9)), observe=schedule.observe)
    assert outcome.ended == [19]  # 1 start, 3 done; at 9: 3 restore, 7 left
    assert outcome.wasted == 2 * (1 + 3)
    schedule.check(2, outcome)


def test_saving_holds_the_devices_for_its_time():
    jobs = jobs_of([(0, 2, 10), (1, 1, 1)])
    acts = {0: [("start", 0)], 4: [("suspend", 0)], 6: [("start", 1), ("start", 0)]}
    seen = []

    class Looking(Script):
        def decide(self, desk):
            super().decide(desk)
            seen.append((desk.now, desk.free, desk.leaving, len(desk.returned)))

    named = Blind("looking", "", lambda rules, rng: Looking(acts, (4,)))
    outcome = simulate(jobs, flat(3, save_ms=2), named)
    assert seen[:4] == [(0, 1, 0, 0), (1, 1, 0, 0), (4, 1, 2, 0), (6, 0, 0, 1)]
    assert outcome.ended == [12, 7]


def test_a_suspend_while_it_is_restored_makes_no_progress():
    jobs = jobs_of([(0, 1, 10)])
    acts = {
        0: [("start", 0)], 4: [("suspend", 0), ("start", 0)], 6: [("suspend", 0), ("start", 0)],
    }  # fmt: skip
    outcome = simulate(jobs, flat(1, restore_ms=5), script(acts, (4, 6)))
    assert outcome.ended == [17]
    assert outcome.suspends == 2


def test_time_and_progress_with_checkpoints_are_each_others_inverse():
    every = Checkpoints(every_ms=10, cost_ms=3)
    assert [progress_in(t, every) for t in (0, 9, 10, 12, 13, 14, 26)] == [
        (0, 0), (9, 0), (10, 0), (10, 0), (10, 10), (11, 10), (20, 20),
    ]  # fmt: skip
    for progress in range(1, 60):
        wall = wall_for(progress, every)
        assert progress_in(wall, every)[0] == progress
        assert progress_in(wall - 1, every)[0] == progress - 1
    assert wall_for(7, None) == 7
    assert progress_in(7, None) == (7, 0)


def test_a_kill_goes_back_to_the_last_checkpoint():
    jobs = jobs_of([(0, 1, 30)])
    acts = {0: [("start", 0)], 17: [("kill", 0), ("start", 0)]}
    rules = Rules(Fleet.flat(1), Price(restore_ms=5), checkpoints=Checkpoints(10, 2))
    outcome = simulate(jobs, rules, script(acts, (17,)))
    assert outcome.lost == 5  # 10 + 2 + 5 of progress, of which 10 are safe
    assert outcome.ended == [17 + 5 + 20 + 2]


# --- nodes and failures ---------------------------------------------------------------------------


def test_gangs_lie_on_one_node_or_on_whole_ones():
    rows = [(0, 3, 9), (0, 3, 9), (0, 2, 1), (0, 8, 5)]
    nodes = Rules(Fleet.of_nodes([4, 4]), FREE)
    assert simulate(jobs_of(rows), nodes, FIRST_FIT).started == [0, 0, 9, 10]
    scattered = Rules(Fleet.of_nodes([4, 4], scatter=True), FREE)
    assert simulate(jobs_of(rows), scattered, FIRST_FIT).started == [0, 0, 0, 9]


def test_a_policy_may_choose_the_node():
    class Choosing:
        def decide(self, desk):
            for job in list(desk.waiting.values()):
                desk.start(job, ((1, job.devices),))
                assert list(desk.free_by_node()) == [4, 2]

    named = Blind("choosing", "", lambda rules, rng: Choosing())
    simulate(jobs_of([(0, 2, 9)]), Rules(Fleet.of_nodes([4, 4])), named)


@pytest.mark.parametrize("where", [((1, 5),), ((0, 1),), ((0, 3), (0, 1)), ((0, 1), (1, 3))])
def test_devices_that_are_not_there_are_not_given(where):
    class Wrong:
        def decide(self, desk):
            for job in list(desk.waiting.values()):
                desk.start(job, where)

    rules = Rules(Fleet.of_nodes([2, 4]))
    with pytest.raises(InternalError):
        simulate(jobs_of([(0, 4, 9)]), rules, Blind("wrong", "", lambda rules, rng: Wrong()))


def test_failures_throw_gangs_back_to_their_checkpoint():
    hour = 3_600_000
    jobs = jobs_of([(0, 8, 200 * hour), (0, 2, 100 * hour)])
    rules = Rules(
        Fleet.of_nodes([4, 4, 4]),
        Price(restore_ms=60_000),
        checkpoints=Checkpoints(hour, 10_000),
        failures=Failures(device_mttf_ms=100 * hour, repair_ms=hour, detect_ms=30_000),
    )
    schedule = Schedule()
    outcome = simulate(jobs, rules, FIRST_FIT, seed=3, observe=schedule.observe)
    assert outcome.failures > 10
    assert outcome.lost > 0
    schedule.check(12, outcome)
    without = simulate(jobs, Rules(rules.fleet, rules.price), FIRST_FIT)
    assert max(outcome.ended) > max(without.ended)
    # Where all nodes but one are in service, the gang of 8 runs on; one repair at most is waited.
    assert outcome == simulate(jobs, rules, FIRST_FIT, seed=3)
    assert outcome.ended != simulate(jobs, rules, FIRST_FIT, seed=4).ended


def test_a_failure_during_a_save_falls_back():
    jobs = jobs_of([(0, 1, 1000)])
    rules = Rules(
        Fleet.of_nodes([1, 1]),
        Price(save_ms=400, restore_ms=0),
        failures=Failures(device_mttf_ms=3_000, repair_ms=10),
    )

    class Suspending:
        def decide(self, desk):
            for job in list(desk.waiting.values()):
                if desk.fits(1):
                    desk.start(job)
            for job in list(desk.running.values()):
                if desk.now >= job.since + 100:
                    desk.suspend(job)
                elif desk.now + 100 > job.since:
                    desk.wake(job.since + 100)

    named = Blind("suspending", "", lambda rules, rng: Suspending())
    outcomes = [simulate(jobs, rules, named, seed=seed) for seed in range(12)]
    assert any(o.failures and o.lost > 0 for o in outcomes)
    for outcome in outcomes:
        assert outcome.wasted >= outcome.lost


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "acts",
    [
        {0: [("start", 0), ("start", 0)]},
        {0: [("start", 0), ("start", 1)]},
        {0: [("suspend", 0)]},
        {0: [("start", 0), ("kill", 0), ("kill", 0)]},
        {0: []},
    ],
)
def test_what_cannot_be_done_is_refused(acts):
    with pytest.raises(InternalError):
        simulate(jobs_of([(0, 2, 9), (0, 3, 9)]), flat(4), script(acts))


def test_who_looks_again_and_again_and_starts_nothing_is_stopped():
    class Waiting:
        def decide(self, desk):
            desk.wake(desk.now + 1)

    with pytest.raises(InternalError, match="1 jobs are left waiting for nothing"):
        simulate(jobs_of([(0, 1, 1)]), flat(1), Blind("waiting", "", lambda rules, rng: Waiting()))


def test_waking_in_the_past_is_refused():
    with pytest.raises(InternalError):
        simulate(jobs_of([(5, 1, 1)]), flat(1), script({}, (5,)))


def test_a_gang_that_never_fits_is_refused():
    with pytest.raises(Infeasible):
        simulate(jobs_of([(0, 5, 9)]), flat(4), FIFO)


def test_jobs_are_in_their_order():
    jobs = jobs_of([(5, 1, 1), (4, 1, 1)])
    with pytest.raises(InternalError):
        simulate(jobs, flat(1), FIFO)


def test_rules_that_contradict_themselves_are_refused():
    with pytest.raises(InvalidRequest):
        Rules(Fleet.flat(0))
    with pytest.raises(InvalidRequest):
        Rules(Fleet.flat(4), failures=Failures(1, 1))


# --- every policy, on an imitated trace -----------------------------------------------------------

#: Policies that take devices from running jobs.
TAKING = ("2d-las", "tiresias", "srtf", "srsf", "tiers, kill and requeue", "tiers, suspend")


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_makes_a_schedule_that_could_be(name):
    trace = [job for job in imitate.philly(4, 600, 1) if job.devices <= 8]
    jobs = from_trace(trace, lambda job: list(Tier)[job.duration_ms % 3])
    devices = 52
    teams = tuple(Team(TenantId(f"vc{number:02d}"), 12) for number in range(3))
    for price in (Price(), Price(start_ms=1_000, save_ms=5_000, restore_ms=9_000)):
        for reserving in ((), teams):
            schedule = Schedule()
            rules = Rules(Fleet.flat(devices), price, reserving)
            outcome = simulate(jobs, rules, POLICIES[name], observe=schedule.observe)
            schedule.check(devices, outcome)
            assert all(outcome.started[job.number] >= job.arrived for job in jobs)
            if name in TAKING:
                assert outcome.suspends + outcome.kills > 30
