"""Effective training time under failures: the ceiling that theory sets, beside the simulator.

A job's effective part is its duration over the time from its first start to its end. With failures
so far apart (m, exponential), checkpoints that cost c after every t of progress, and d + r until it
goes on after a failure (noticed and restored), one stretch of t takes
(m + d) e^(r/m) (e^((t+c)/m) - 1) on the mean: Daly, "A higher order estimate of the optimum
checkpoint interval for restart dumps", FGCS 22(3), 2006. No pool does better with the same costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, expm1

from onefleet.core.checkpointing import daly_ms
from onefleet.domain.ids import Instant, Millis, TenantId
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.job import Checkpoints, Failures, Fleet, Job, Price, Rules
from onefleet.sim.jobs.outcome import Outcome

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Trial:
    """One large gang on nodes that fail. mttf_ms: of all its devices together."""

    devices: int
    node_size: int
    spares: int  # nodes besides the gang's own
    mttf_ms: int
    repair_ms: int
    detect_ms: int
    restore_ms: int
    checkpoint_ms: int
    length_ms: int

    @property
    def every_ms(self) -> int:
        """Daly's interval."""
        return daly_ms(self.checkpoint_ms, self.mttf_ms)

    def ceiling(self) -> float:
        """The effective part that Daly's model gives at this interval."""
        m, t = self.mttf_ms, self.every_ms
        wall = (m + self.detect_ms) * exp(self.restore_ms / m) * expm1((t + self.checkpoint_ms) / m)
        return t / wall

    def rules(self) -> Rules:
        nodes = self.devices // self.node_size + self.spares
        return Rules(
            Fleet.of_nodes([self.node_size] * nodes),
            Price(restore_ms=self.restore_ms),
            checkpoints=Checkpoints(self.every_ms, self.checkpoint_ms),
            failures=Failures(self.mttf_ms * self.devices, self.repair_ms, self.detect_ms),
        )

    def jobs(self) -> tuple[Job, ...]:
        tenant = TenantId("trainer")
        length = Millis(self.length_ms)
        return (Job(0, tenant, Tier.STANDARD, self.devices, Instant(0), length),)


def effective_part(outcome: Outcome) -> float:
    """Of the jobs together: durations over the times from first start to end, by devices."""
    spent = sum(
        (outcome.ended[job.number] - outcome.started[job.number]) * job.devices
        for job in outcome.jobs
    )
    return sum(job.work for job in outcome.jobs) / spent
