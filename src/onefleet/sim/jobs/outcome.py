"""What came out of a simulation, and the figures that tables show of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.job import Job

#: Durations below this count as this in a bounded slowdown.
SLOWDOWN_FLOOR_MS = 10_000
HOUR_MS = 3_600_000
#: The device fraction that a tier promises.
PROMISES = {Tier.PREMIUM: 0.95, Tier.STANDARD: 0.70, Tier.BASIC: 0.0}


@dataclass(frozen=True, slots=True)
class Outcome:
    """jobs: those looked at. started, ended: by their number. held: device-milliseconds held by
    jobs; wasted: the part that made no progress that lasted. lost: the part of wasted that was
    progress. ceded: what it cost to make room for higher tiers, of saves, restores and lost
    progress; 0 where nobody says for whom. decisions: starts, suspends and kills; moments: how
    often the policy was asked; policy_cpu_ns: the CPU time that its answers took, 0 unless that was
    to be measured."""

    policy: str
    jobs: Sequence[Job]
    started: Sequence[int]
    ended: Sequence[int]
    held: int
    wasted: int
    lost: int
    suspends: int
    kills: int
    failures: int
    decisions: int
    moments: int
    policy_cpu_ns: int
    ceded: int = 0

    def of(self, tier: Tier) -> Outcome:
        """Only the jobs of a tier; sums over all jobs stay as they are."""
        return replace(self, jobs=[job for job in self.jobs if job.tier is tier])

    @property
    def mean_jct_s(self) -> float:
        return _mean([self.ended[job.number] - job.arrived for job in self.jobs]) / 1000

    @property
    def mean_queue_s(self) -> float:
        return _mean(self._queues()) / 1000

    def queue_s(self, percent: int) -> float:
        """A percentile of the queue, by the nearest rank."""
        return _rank(self._queues(), percent) / 1000

    def jct_s(self, percent: int) -> float:
        """A percentile of the JCT, by the nearest rank."""
        return _rank([self.ended[job.number] - job.arrived for job in self.jobs], percent) / 1000

    @property
    def mean_bounded_slowdown(self) -> float:
        total = 0.0
        for job in self.jobs:
            jct = self.ended[job.number] - job.arrived
            total += max(jct / max(job.duration_ms, SLOWDOWN_FLOOR_MS), 1.0)
        return total / max(len(self.jobs), 1)

    @property
    def makespan_ms(self) -> int:
        """From the first arrival to the last end."""
        first = min((job.arrived for job in self.jobs), default=0)
        return max((self.ended[job.number] for job in self.jobs), default=0) - first

    @property
    def wasted_device_hours(self) -> float:
        return self.wasted / HOUR_MS

    @property
    def wasted_part(self) -> float:
        """Of the device time that was held."""
        return self.wasted / max(self.held, 1)

    @property
    def ceded_part(self) -> float:
        """Of the device time that was held."""
        return self.ceded / max(self.held, 1)

    def kept_promises(self) -> float:
        """The part of the jobs whose device fraction is what their tier promises."""
        kept = 0
        for job in self.jobs:
            jct = self.ended[job.number] - job.arrived
            kept += job.duration_ms >= PROMISES[job.tier] * jct
        return kept / max(len(self.jobs), 1)

    def _queues(self) -> list[int]:
        return [self.started[job.number] - job.arrived for job in self.jobs]


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(len(values), 1)


def _rank(values: Sequence[int], percent: int) -> int:
    if not values:
        return 0
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)]
