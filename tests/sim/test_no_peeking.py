"""A policy cannot know a duration: nothing that it is given leads to one, and it acts as if none.

Python cannot stop a program that searches its own interpreter (`gc`, `sys._getframe`). What is
shown here: no chain of attributes, items, slots, closures or bound methods leads from what a policy
holds to a duration; and no policy of the catalogue that is not marked as clairvoyant does anything
else when durations are others, until the first job has ended.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from types import FunctionType, MethodType, ModuleType

import pytest
from tests.workloads import jobs_of

from onefleet.domain.errors import InternalError
from onefleet.domain.ids import Millis
from onefleet.sim.jobs.catalog import POLICIES
from onefleet.sim.jobs.desk import Desk, JobView
from onefleet.sim.jobs.job import Checkpoints, Failures, Fleet, Job, Rules, Team, from_trace
from onefleet.sim.jobs.policy import Blind, Clairvoyant
from onefleet.sim.jobs.simulate import simulate
from onefleet.sim.traces import imitate

SECRET = 1_234_567_891  # no time, count or price comes near it by chance


def reachable(*roots):
    """Every object that a chain of references leads to, modules and types left aside."""
    found, queue = {}, deque(roots)
    while queue:
        it = queue.popleft()
        if id(it) in found or isinstance(it, ModuleType | type):
            continue
        found[id(it)] = it
        queue.extend(_inside(it))
    return list(found.values())


def _inside(it):
    if isinstance(it, dict):
        yield from it.keys()
        yield from it.values()
    elif isinstance(it, list | tuple | set | frozenset | deque):
        yield from it
    elif isinstance(it, MethodType):
        yield it.__self__
        yield it.__func__
    elif isinstance(it, FunctionType):
        yield from (cell.cell_contents for cell in it.__closure__ or ())
        yield from it.__defaults__ or ()
        yield from it.__dict__.values()
    for kind in type(it).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(it, name):
                yield getattr(it, name)
    yield from getattr(it, "__dict__", {}).values()


class Spy:
    """First fit that takes along whatever it can get hold of."""

    def __init__(self, *given):
        self.given = given
        self.seen = []

    def decide(self, desk):
        self.seen += reachable(desk, *self.given)
        for job in list(desk.waiting.values()):
            if desk.fits(job.devices):
                desk.start(job)
        for job in list(desk.running.values()):
            if job.suspends < 2 and desk.now - job.arrived > 50 * (1 + job.suspends):
                desk.suspend(job)
                desk.start(job)
        if desk.running:
            desk.wake(desk.now + 10_000_000)


def spied_on(kind):
    jobs = [
        replace(job, duration_ms=Millis(SECRET + job.number * 7_919))
        for job in from_trace(imitate.philly(5, 12, 1))
    ]
    rules = Rules(
        Fleet.of_nodes([8] * 32, scatter=True),
        teams=(Team(jobs[0].tenant, 3),),
        checkpoints=Checkpoints(3_600_000, 1_000),
        failures=Failures(10**12, 1_000),
    )
    spies = []

    def make(rules, rng, *oracle):
        spies.append(Spy(rules, rng, *oracle))
        return spies[0]

    simulate(jobs, rules, kind("spy", "", make))
    return spies[0].seen, {job.duration_ms for job in jobs}


def test_nothing_that_a_policy_holds_leads_to_a_duration():
    seen, secrets = spied_on(Blind)
    assert any(isinstance(it, JobView) for it in seen)  # it did look around
    assert not any(isinstance(it, Job) for it in seen)
    assert not secrets & {it for it in seen if isinstance(it, int)}
    assert not any("oracle" in type(it).__name__.lower() for it in seen)


def test_the_search_finds_durations_where_they_are():
    """The same search through what a clairvoyant policy is given."""
    seen, secrets = spied_on(Clairvoyant)
    assert secrets <= {it for it in seen if isinstance(it, int)}


def test_a_view_has_no_field_for_it():
    assert not [name for name in JobView.__slots__ if "dur" in name or "remain" in name]
    assert not hasattr(JobView(0, "t", None, 1, 0), "__dict__")


class Recorded:
    """Writes down every act of a policy with its moment, and has seen enough at `until`."""

    class Enough(Exception):
        """Nothing that comes after is of interest."""

    def __init__(self, inner, log, until):
        self.inner, self.log, self.until = inner, log, until

    def decide(self, desk: Desk) -> None:
        if desk.now >= self.until:
            raise self.Enough
        self.inner.decide(desk)
        self.log += [(desk.now, act, job.number) for act, job in desk.acts]
        self.log += [(desk.now, "wake", at) for at in desk.wakes]


def log_of(named, jobs, rules, until):
    """What it did before `until`."""
    log = []
    kind = Blind if isinstance(named, Blind) else Clairvoyant
    watched = kind(named.name, "", lambda *given: Recorded(named.make(*given), log, until))
    with pytest.raises(Recorded.Enough):
        simulate(jobs, rules, watched, seed=9)
    return log


SPAN = 2 * 86_400_000  # all have come by half of it


def two_worlds():
    """The same jobs, with other durations; in both, nobody ends before SPAN has passed."""
    jobs = from_trace(imitate.philly(8, 150, 1))
    rng = random.Random(1)
    return [
        [replace(job, duration_ms=Millis(SPAN + rng.randrange(10**8))) for job in jobs]
        for _ in range(2)
    ]


@pytest.mark.parametrize("name", sorted(n for n, p in POLICIES.items() if isinstance(p, Blind)))
def test_who_cannot_know_durations_acts_the_same_whatever_they_are(name):
    here, there = two_worlds()
    teams = () if name == "silos" else (Team(here[0].tenant, 5),)
    rules = Rules(Fleet.flat(max(job.devices for job in here) + 16), teams=teams)
    named = POLICIES[name]
    log = log_of(named, here, rules, SPAN)
    assert len(log) > 10
    assert log == log_of(named, there, rules, SPAN)


@pytest.mark.parametrize("name", ["srtf", "srsf"])
def test_who_knows_them_does_not(name):
    """Else the test above would show nothing."""
    here, there = two_worlds()
    rules = Rules(Fleet.flat(max(job.devices for job in here) + 16))
    log = log_of(POLICIES[name], here, rules, SPAN)
    assert log != log_of(POLICIES[name], there, rules, SPAN)


class Forger:
    """First fit that writes into what it is shown, to look better."""

    def decide(self, desk):
        for job in list(desk.waiting.values()):
            if desk.fits(job.devices):
                desk.start(job)
        for job in desk.running.values():
            job.started, job.since, job.suspends, job.attained_ms = 0, 0, -9, 10**12
            job.tier = job.tenant = job.arrived = None


class Thief:
    """First fit that helps itself: `how` is done to each job before it starts, or after it has."""

    def __init__(self, before=None, after=None):
        self.before, self.after = before, after

    def decide(self, desk):
        for job in list(desk.waiting.values()):
            if self.before:
                self.before(desk, job)
            if job.number in desk.waiting and desk.fits(job.devices):
                desk.start(job)
                if self.after:
                    self.after(desk, job)


def smaller(desk, job):
    job.devices = 1


def more_room(desk, job):
    desk._room.free += 100


def nowhere(desk, job):
    job.where = ()


def elsewhere(desk, job):
    job.where = ((2, job.devices),)


def again(desk, job):
    desk.waiting[job.number] = job
    desk.start(job)


def off_twice(desk, job):
    desk.suspend(job)
    desk.running[job.number] = job
    desk.suspend(job)


@pytest.mark.parametrize(
    ("fleet", "before", "after"),
    [
        (Fleet.flat(6), smaller, None),
        (Fleet.flat(6), more_room, None),
        (Fleet.flat(6), None, again),
        (Fleet.flat(6), None, off_twice),
        (Fleet.of_nodes([4, 4, 4]), smaller, None),
        (Fleet.of_nodes([4, 4, 4]), None, nowhere),
        (Fleet.of_nodes([4, 4, 4]), None, elsewhere),
    ],
    ids=lambda it: getattr(it, "__name__", ""),
)
def test_devices_that_are_not_there_cannot_be_had_by_writing_to_the_desk(fleet, before, after):
    named = Blind("thief", "", lambda rules, rng: Thief(before, after))
    with pytest.raises(InternalError):
        simulate(jobs_of([(0, 4, 9)] * 6), Rules(fleet), named)


def test_the_thief_without_a_trick_is_first_fit():
    jobs, rules = jobs_of([(0, 4, 9)] * 6), Rules(Fleet.of_nodes([4, 4, 4]))
    named = Blind("first-fit", "", lambda rules, rng: Thief())
    assert simulate(jobs, rules, named) == simulate(jobs, rules, POLICIES["first-fit"])


def test_what_a_policy_writes_into_its_views_changes_no_figure():
    jobs = from_trace(imitate.philly(5, 200, 1))
    rules = Rules(Fleet.flat(max(job.devices for job in jobs)))
    honest = simulate(jobs, rules, POLICIES["first-fit"])
    forged = simulate(jobs, rules, Blind("first-fit", "", lambda rules, rng: Forger()))
    assert forged == honest
