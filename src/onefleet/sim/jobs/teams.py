"""Teams of a trace: what each has reserved, and which of its jobs are premium.

A trace does not say. Walls of today are taken as reservations of tomorrow: each team has devices in
proportion to the work that it brought, and at least enough for its largest gang. A job is premium
if, when it arrives, its team's premium jobs and it would fit the reservation together, were each of
them run at once and without a stop; so the premium work of all teams is feasible by construction,
and every promise to it can be kept. What is above that is standard or basic, by a seed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

from onefleet.domain.errors import Infeasible
from onefleet.domain.ids import TenantId
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.job import Job, Team, from_trace
from onefleet.sim.traces.philly import TraceJob

#: The part of the work outside reservations that is standard; the rest is basic.
STANDARD_PART = 2 / 3


def reservations(trace: Sequence[TraceJob], devices: int) -> tuple[Team, ...]:
    """All devices, shared out between the teams. Raises Infeasible when gangs are too large."""
    work: dict[str, int] = {}
    largest: dict[str, int] = {}
    for job in trace:
        work[job.vc] = work.get(job.vc, 0) + job.duration_ms * job.devices
        largest[job.vc] = max(largest.get(job.vc, 0), job.devices)
    if sum(largest.values()) > devices:
        raise Infeasible(
            f"{devices} devices are too few for {len(work)} teams",
            why="each has at least as many as its largest gang wants: "
            f"{sum(largest.values())} together",
        )
    shares = dict(largest)
    total = sum(work.values())
    for _ in range(devices - sum(largest.values())):  # each to who has the least of its part
        poorest = min(shares, key=lambda vc: (shares[vc] * total / work[vc], vc))
        shares[poorest] += 1
    return tuple(Team(TenantId(vc), shares[vc]) for vc in sorted(shares))


def with_tiers(trace: Sequence[TraceJob], teams: Sequence[Team], seed: int) -> tuple[Job, ...]:
    """The trace's jobs with their tiers; a gang above its team's reservation is never premium."""
    rng = random.Random(f"{seed}/tiers")
    reserved = {team.tenant: team.reserved for team in teams}
    ends: dict[TenantId, list[tuple[int, int]]] = {tenant: [] for tenant in reserved}
    used = dict.fromkeys(reserved, 0)

    def tier_of(job: TraceJob) -> Tier:
        tenant = TenantId(job.vc)
        running = ends[tenant]
        while running and running[0][0] <= job.arrived:
            used[tenant] -= heapq.heappop(running)[1]
        standard = rng.random() < STANDARD_PART
        if used[tenant] + job.devices <= reserved[tenant]:
            used[tenant] += job.devices
            heapq.heappush(running, (job.arrived + job.duration_ms, job.devices))
            return Tier.PREMIUM
        return Tier.STANDARD if standard else Tier.BASIC

    return from_trace(trace, tier_of)
