"""A gang that needs the whole pool neither idles it while it waits nor waits for ever."""

from __future__ import annotations

import pytest

from onefleet.domain.ids import TenantId
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.catalog import ONEFLEET
from onefleet.sim.jobs.job import Fleet, Job, Price, Rules
from onefleet.sim.jobs.simulate import simulate

MINUTE = 60_000
HOUR = 60 * MINUTE
DEVICES, LONG_MS, GANG_MS = 8, 24 * HOUR, HOUR


def jobs_of(others: Tier) -> list[Job]:
    """A long premium job, an hour later a premium gang for the whole pool, and from then on as many
    others as the pool can run beside the long one, of 20 minutes each, until long after that."""
    rows = [("long", Tier.PREMIUM, 1, 0, LONG_MS), ("gang", Tier.PREMIUM, DEVICES, HOUR, GANG_MS)]
    every_ms, length_ms = 20 * MINUTE // (DEVICES - 1), 20 * MINUTE
    count = (LONG_MS + 4 * HOUR) // every_ms
    rows += [("others", others, 1, HOUR + n * every_ms, length_ms) for n in range(count)]
    rows.sort(key=lambda row: row[3])
    return [
        Job(number, TenantId(tenant), tier, devices, at, ms)
        for number, (tenant, tier, devices, at, ms) in enumerate(rows)
    ]


@pytest.mark.parametrize("others", [Tier.PREMIUM, Tier.STANDARD, Tier.BASIC])
def test_others_run_until_a_large_gang_can(others: Tier) -> None:
    jobs = jobs_of(others)
    outcome = simulate(jobs, Rules(Fleet.flat(DEVICES), Price(restore_ms=1_000)), ONEFLEET)
    ended = {job.tenant: outcome.ended[job.number] for job in jobs if job.tenant != "others"}
    assert ended["long"] <= LONG_MS + MINUTE  # it was promised its device
    assert ended["gang"] <= LONG_MS + GANG_MS + 30 * MINUTE
    done = [
        job for job in jobs if job.tenant == "others" and outcome.ended[job.number] < LONG_MS - HOUR
    ]
    arrived = sum(job.tenant == "others" and job.arrived < LONG_MS - 2 * HOUR for job in jobs)
    assert len(done) >= 0.95 * arrived
