"""Policies that give the devices to the first in an order that changes as jobs get on.

At each moment all jobs, running or not, are looked at in order, and each gets its devices if enough
are left. What ran and got none is suspended. The order of waiting jobs is fixed while they wait,
because neither what they have had nor what they lack changes.
"""

from __future__ import annotations

from collections.abc import Callable

from onefleet.domain.errors import InvalidRequest
from onefleet.sim.jobs.desk import Desk, JobView
from onefleet.sim.jobs.job import Rules
from onefleet.sim.jobs.policies.lines import Lines, newcomers
from onefleet.sim.jobs.policy import Oracle

#: The rank of a job at an instant: less goes first.
Rank = Callable[[JobView, int], float]


class Preemptive:
    """Always runs the first in order. tick_ms: when to look again although nothing happened; 0:
    never. Among equals, who runs goes on, then who came first."""

    def __init__(self, rules: Rules, rank: Rank, tick_ms: int = 0) -> None:
        if rules.fleet.nodes is not None and not rules.fleet.scatter:
            raise InvalidRequest("this policy thinks in a flat pool")
        self._rank = rank
        self._tick_ms = tick_ms
        self._woken = 0
        self._lines = Lines()

    def decide(self, desk: Desk) -> None:
        lines, now = self._lines, desk.now
        for job in newcomers(desk):
            self._wait(job, now)
        if lines.count == 0:
            return
        if lines.devices <= desk.free:
            chosen = self._pop_all()
        else:
            chosen, others = self._first(desk)
            for job in others:
                desk.suspend(job)
                if job.number in desk.waiting:  # else it comes back when it is saved
                    self._wait(job, now)
        for job in chosen:
            if desk.fits(job.devices):
                desk.start(job)
            else:  # what was suspended for it is still being saved
                self._wait(job, now)
        if self._tick_ms and lines.count and self._woken <= now:
            self._woken = (now // self._tick_ms + 1) * self._tick_ms
            desk.wake(self._woken)

    def _wait(self, job: JobView, now: int) -> None:
        self._lines.push((self._rank(job, now), job.arrived), job)

    def _pop_all(self) -> list[JobView]:
        chosen = []
        while best := self._lines.best(self._lines.devices):
            chosen.append(self._lines.pop(best[1].devices))
        return chosen

    def _first(self, desk: Desk) -> tuple[list[JobView], list[JobView]]:
        """The waiting jobs that get devices, and the running ones that lose theirs."""
        now, rank, lines = desk.now, self._rank, self._lines
        running = sorted(
            (rank(job, now), job.arrived, job.number, job) for job in desk.running.values()
        )
        left = desk.devices - desk.leaving
        chosen: list[JobView] = []
        others: list[JobView] = []
        best = lines.best(left)
        for value, _, _, job in running:
            while best is not None and best[0][0] < value:
                chosen.append(lines.pop(best[1].devices))
                left -= best[1].devices
                best = lines.best(left)
            if job.devices <= left:
                left -= job.devices
                if best is not None and best[1].devices > left:
                    best = lines.best(left)
            else:
                others.append(job)
        while best is not None:
            chosen.append(lines.pop(best[1].devices))
            left -= best[1].devices
            best = lines.best(left)
        return chosen, others


def least_remaining(oracle: Oracle) -> Rank:
    """SRTF: the shortest remaining time first."""
    return oracle.remaining_ms


def least_remaining_service(oracle: Oracle) -> Rank:
    """SRSF: the least remaining time x devices first."""
    return lambda job, now: oracle.remaining_ms(job, now) * job.devices


def least_attained(quantum_ms: int) -> Rank:
    """2D-LAS: the least attained time x devices first, in steps of a quantum of time.

    Gu et al., "Tiresias", NSDI 2019, without its queues.
    """
    return lambda job, now: job.attained(now) // quantum_ms * job.devices


def attained_queues(thresholds_ms: tuple[int, ...]) -> Rank:
    """Tiresias' discretised 2D-LAS: a few queues by attained device time; first come within one."""

    def rank(job: JobView, now: int) -> float:
        service = job.attained(now) * job.devices
        queue = sum(1 for threshold in thresholds_ms if service >= threshold)
        return queue * float(1 << 50) + job.arrived

    return rank
