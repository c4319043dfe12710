"""Kueue's workloads as the job simulator takes them: a cohort is a pool, its queues are teams."""

from __future__ import annotations

from onefleet.domain.ids import Instant, Millis, TenantId
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.job import Fleet, Job, Price, Rules, Team
from onefleet.sim.traces.kueue import KueueShape, workloads

#: Kueue's priorities, as tiers that take from lower ones.
TIERS = {50: Tier.BASIC, 100: Tier.STANDARD, 200: Tier.PREMIUM}
#: Nothing of these workloads lasts longer than a second: a suspend by the freezer keeps memory.
FREEZE = Price(restore_ms=0)


def cohort(shape: KueueShape, number: int) -> tuple[tuple[Job, ...], Rules]:
    """The jobs of one cohort, and its rules: what is lent is lent inside the cohort alone."""
    found = workloads(shape, number)
    jobs = tuple(
        Job(
            place,
            TenantId(one.queue),
            TIERS[one.kind.priority],
            one.kind.cpus,
            Instant(one.created_ms),
            Millis(one.kind.run_ms),
        )
        for place, one in enumerate(found)
    )
    most = shape.nominal + shape.borrow
    queues = dict.fromkeys(one.queue for one in found)
    teams = tuple(Team(TenantId(name), shape.nominal, most=most) for name in sorted(queues))
    return jobs, Rules(Fleet.flat(shape.queues * shape.nominal), FREEZE, teams)
