"""Bounds that no policy can pass, so that a score is a ratio and not a number.

All hold for any schedule of rigid gangs on at most M equal devices, preempted at no price, by a
policy that knows everything; sums are exact but for the last division. In the squashed instance a
job of d milliseconds on g devices is work of d x g for one machine of speed M: every real schedule
is a schedule of that machine, too.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from onefleet.domain.errors import InternalError
from onefleet.sim.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Bounds:
    """Lower bounds of the mean JCT (b1, b2, b3, in ms) and of the makespan (b4, in ms)."""

    b1: float
    b2: float
    b3: float
    b4: int

    @property
    def mean_jct_ms(self) -> float:
        return max(self.b1, self.b2, self.b3)


def bounds(jobs: Sequence[Job], devices: int) -> Bounds:
    """All bounds of a workload on so many devices."""
    if not jobs:
        raise InternalError("no jobs have no bounds")
    return Bounds(
        b1=run_time(jobs),
        b2=squashed_srpt(jobs, devices),
        b3=mean_busy_time(jobs, devices),
        b4=makespan(jobs, devices),
    )


def run_time(jobs: Sequence[Job]) -> float:
    """B1: nobody ends before its duration has passed."""
    return sum(job.duration_ms for job in jobs) / len(jobs)


def squashed_srpt(jobs: Sequence[Job], devices: int) -> float:
    """B2: shortest remaining processing time, which is optimal on the squashed machine.

    Schrage, "A proof of the optimality of the SRPT discipline", 1968. Time is counted in 1/M ms,
    so that all of it is whole.
    """
    total = 0
    heap: list[int] = []  # remaining work
    now = 0
    for job in [*jobs, None]:
        until = None if job is None else job.arrived * devices
        while heap and (until is None or now < until):
            work = heapq.heappop(heap)
            if until is not None and now + work > until:
                heapq.heappush(heap, work - (until - now))
                now = until
                break
            now += work
            total += now
        if job is not None:
            now = max(now, job.arrived * devices)
            heapq.heappush(heap, job.work)
    arrived = sum(job.arrived for job in jobs) * devices
    return (total - arrived) / devices / len(jobs)


def mean_busy_time(jobs: Sequence[Job], devices: int) -> float:
    """B3: a job ends at least half its duration after the mean of the times at which it is worked
    on, and no schedule has a smaller sum of those means than the squashed machine that always
    works on the job with the least work.

    Goemans et al., "Single machine scheduling with release dates", SIAM J. Discrete Math. 2002.
    """
    moments: dict[int, int] = {}  # by job: twice the integral of the time over its work
    heap: list[tuple[int, int, int]] = []  # work, number, remaining work
    now = 0
    twice = 0.0
    for job in [*jobs, None]:
        until = None if job is None else job.arrived * devices
        while heap and (until is None or now < until):
            work, number, left = heapq.heappop(heap)
            end = now + left if until is None else min(now + left, until)
            moments[number] = moments.get(number, 0) + end * end - now * now
            left -= end - now
            now = end
            if left:
                heapq.heappush(heap, (work, number, left))
            else:
                since = 2 * jobs[number].arrived * devices * work
                twice += (moments.pop(number) - since) / (work * devices)
        if job is not None:
            now = max(now, job.arrived * devices)
            heapq.heappush(heap, (job.work, job.number, job.work))
    return (twice + sum(job.duration_ms for job in jobs)) / 2 / len(jobs)


def makespan(jobs: Sequence[Job], devices: int) -> int:
    """B4: from the first arrival; nobody ends before its duration has passed, and what comes from
    some moment on is work for all devices together."""
    longest = max(job.arrived + job.duration_ms for job in jobs)
    work = 0
    for job in reversed(jobs):
        work += job.work
        longest = max(longest, job.arrived - (-work // devices))
    return longest - jobs[0].arrived


def utilisation(jobs: Sequence[Job], devices: int, horizon_ms: int) -> float:
    """B5: the part of the device time until a horizon (after the first arrival) that can be useful.

    What has not arrived by then is no use, and a job makes no more progress than time has passed
    since it came.
    """
    end = jobs[0].arrived + horizon_ms
    work = sum(job.devices * min(job.duration_ms, max(end - job.arrived, 0)) for job in jobs)
    return min(1.0, work / (devices * horizon_ms))
