"""Tenants have their shares of a full pool over days, whatever the length of their jobs."""

from __future__ import annotations

from collections import Counter

import pytest

from onefleet.domain.ids import TenantId
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.catalog import ONEFLEET
from onefleet.sim.jobs.job import Fleet, Job, Price, Rules, Team
from onefleet.sim.jobs.simulate import simulate

MINUTE = 60_000
HOUR = 60 * MINUTE
DEVICES, UNTIL, SHORT_MS = 4, 24 * HOUR, 30 * MINUTE


def had(weights: dict[str, int]) -> dict[str, float]:
    """What parts of the pool they have in the second half of a day: one has jobs of half an hour,
    half as many again as the pool can run; one has a long job for each device."""
    many = [("short", n * SHORT_MS * 2 // (3 * DEVICES), SHORT_MS) for n in range(288)]
    jobs = [("long", 0, UNTIL)] * DEVICES + many
    rows = [
        Job(number, TenantId(tenant), Tier.BASIC, 1, at, ms)
        for number, (tenant, at, ms) in enumerate(sorted(jobs, key=lambda job: job[1]))
    ]
    teams = tuple(Team(TenantId(name), weight=weight) for name, weight in weights.items())
    rules = Rules(Fleet.flat(DEVICES), Price(restore_ms=1_000), teams)
    times = Counter[str]()

    def observe(job: Job, since: int, until: int) -> None:
        times[job.tenant] += max(min(until, UNTIL) - max(since, UNTIL // 2), 0)

    simulate(rows, rules, ONEFLEET, observe=observe)
    return {tenant: ms / (DEVICES * UNTIL / 2) for tenant, ms in times.items()}


@pytest.mark.parametrize(
    ("weights", "part"), [({"short": 1, "long": 1}, 1 / 2), ({"short": 1, "long": 3}, 3 / 4)]
)
def test_long_jobs_are_not_starved_by_short_ones(weights: dict[str, int], part: float) -> None:
    found = had(weights)
    assert sum(found.values()) > 0.97
    assert 0.8 * part / 3 < found["long"] < part


def test_room_made_for_one_is_not_taken_by_those_that_go_before_it() -> None:
    """Others of its rank, whose tenant had nothing, have to wait for their patience as it did."""
    held = [("a", 0, 20 * HOUR)] * 100 + [("b", 0, 20 * HOUR)] * 80
    burst = [("c", HOUR + MINUTE // 2, HOUR)] * 70
    rows = [
        Job(number, TenantId(tenant), Tier.BASIC, 1, at, ms)
        for number, (tenant, at, ms) in enumerate([*held, ("b", HOUR, HOUR), *burst])
    ]
    outcome = simulate(rows, Rules(Fleet.flat(len(held))), ONEFLEET)
    assert outcome.started[len(held)] == HOUR + MINUTE // 2
    assert set(outcome.started[len(held) + 1 :]) == {HOUR + MINUTE}
    assert outcome.suspends == len(burst) + 1
