"""What becomes of each job is worked out again from what was done to it, a millisecond at a time.

A policy of pure chance starts, suspends and kills, while nodes fail, saves and restores take time
and checkpoints are made; the simulator's ends and sums have to be those of the plain rules.
"""

from __future__ import annotations

import random

import pytest
from tests.workloads import Schedule, jobs_of

from onefleet.sim.jobs.job import Checkpoints, Failures, Fleet, Price, Rules
from onefleet.sim.jobs.policy import Blind
from onefleet.sim.jobs.simulate import simulate


class Chance:
    """Does anything at any time, and writes it down: (time, verb, job or node, where)."""

    def __init__(self, rng, log):
        self.rng, self.log = rng, log

    def decide(self, desk):
        self.log += [(desk.now, "fell", node, ()) for node in desk.fell]
        for job in list(desk.running.values()):
            drawn = self.rng.random()
            if drawn < 0.15:
                verb = "suspend" if drawn < 0.1 else "kill"
                getattr(desk, verb)(job)
                self.log.append((desk.now, verb, job.number, ()))
        waiting = list(desk.waiting.values())
        self.rng.shuffle(waiting)
        for job in waiting:
            if desk.fits(job.devices) and self.rng.random() < 0.8:
                desk.start(job)
                self.log.append((desk.now, "start", job.number, job.where))
        desk.wake(desk.now + self.rng.randint(1, 60))


class Life:
    """One job by the rules of `sim.jobs`, without a formula."""

    def __init__(self, job, rules):
        self.job, self.rules = job, rules
        self.done = self.safe = 0  # progress; what the last image or checkpoint holds of it
        self.image = False
        self.held = self.lost = 0
        self.end = None

    def run(self, begin, where, leave, verb, fell):
        """One stay on devices from `begin` on, that ends by itself, by a failure, or by the policy
        at `leave`. Whether the policy's act was part of it."""
        price, every = self.rules.price, self.rules.checkpoints
        nodes = {node for node, _ in where}
        hit = min((at for at, node in fell if node in nodes and at > begin), default=None)
        since = begin + (price.restore_ms if self.image else price.start_ms)
        made = saving = 0
        now = begin
        while True:
            if self.done == self.job.duration_ms:
                self.end = now
                return self._let_go(begin, now, False)
            if hit == now:
                self._back()
                noticed = now + self.rules.failures.detect_ms
                if leave is None or noticed <= leave:
                    return self._let_go(begin, noticed, False)
                # Nobody knows yet: it is saved or killed as if it ran, and nothing comes of it.
                return self._let_go(begin, leave + (verb == "suspend") * price.save_ms, True)
            if leave == now:
                break
            if now >= since:
                if saving:
                    saving -= 1
                    if not saving:
                        self.safe, self.image = self.done, True
                else:
                    self.done, made = self.done + 1, made + 1
                    if every is not None and made % every.every_ms == 0:
                        saving = every.cost_ms
            now += 1
        if verb == "kill":
            self._back()
            return self._let_go(begin, now, True)
        if hit is not None and now < hit < now + price.save_ms:
            self._back()
            return self._let_go(begin, hit + self.rules.failures.detect_ms, True)
        self.safe, self.image = self.done, True
        return self._let_go(begin, now + price.save_ms, True)

    def _back(self):
        self.lost += (self.done - self.safe) * self.job.devices
        self.done = self.safe

    def _let_go(self, begin, end, acted):
        self.held += (end - begin) * self.job.devices
        return acted


def lives(jobs, rules, log):
    """All jobs, from what was done to them."""
    fell = [(at, node) for at, verb, node, _ in log if verb == "fell"]
    found = []
    for job in jobs:
        acts = [act for act in log if act[1] != "fell" and act[2] == job.number]
        life = Life(job, rules)
        while acts:
            begin, verb, _, where = acts.pop(0)
            assert verb == "start"
            leave, verb = acts[0][:2] if acts and acts[0][1] != "start" else (None, "")
            if life.run(begin, where, leave, verb, fell):
                acts.pop(0)
        found.append(life)
    return found


def case(seed):
    rng = random.Random(seed)
    sizes = [rng.randint(1, 4) for _ in range(rng.randint(2, 5))]
    most = max(sum(sizes) // 2, 1)
    rows = sorted(
        (rng.randint(0, 200), rng.randint(1, most), rng.randint(1, 200))
        for _ in range(rng.randint(1, 8))
    )
    rules = Rules(
        Fleet.of_nodes(sizes, scatter=True),
        Price(rng.choice([0, 3]), rng.choice([0, 7, 20]), rng.choice([0, 5, 30])),
        checkpoints=rng.choice([None, Checkpoints(rng.randint(5, 40), rng.randint(1, 6))]),
        failures=Failures(rng.choice([800, 3_000]), rng.randint(1, 60), rng.randint(1, 30)),
    )
    return jobs_of(rows), rules


@pytest.mark.parametrize("seeds", [range(n, n + 25) for n in range(0, 100, 25)], ids=str)
def test_what_becomes_of_a_job_follows_from_what_was_done_to_it(seeds):
    failures = lost = 0
    for seed in seeds:
        jobs, rules = case(seed)
        log, schedule = [], Schedule()
        rng = random.Random(f"{seed}/chance")
        named = Blind("chance", "", lambda _rules, _rng, rng=rng, log=log: Chance(rng, log))
        outcome = simulate(jobs, rules, named, seed=seed, observe=schedule.observe)
        schedule.check(rules.fleet.devices, outcome)
        found = lives(jobs, rules, log)
        assert [life.end for life in found] == outcome.ended, seed
        assert sum(life.held for life in found) == outcome.held, seed
        assert sum(life.lost for life in found) == outcome.lost, seed
        failures, lost = failures + outcome.failures, lost + outcome.lost
    assert failures > 50 and lost > 1_000
