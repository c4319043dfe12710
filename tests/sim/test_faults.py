"""One fault at a time, and many by chance: no rule is broken, and everything comes to its end."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from onefleet.domain.tenancy import WITHIN_MS
from onefleet.sim.report import Report
from onefleet.sim.scenario import FaultSpec, Scenario
from onefleet.sim.world import simulate

FAULTS = (
    "node_loss",
    "partition",
    "engine_crash",
    "save_fails",
    "agent_restart",
    "control_restart",
)


def scenario(**parts: Any) -> Scenario:
    """A small pool: two nodes of two devices, a job in each tier, a service."""
    raw: dict[str, Any] = {
        "name": "small",
        "about": "for a test",
        "seed": 1,
        "horizon_s": 2_000,
        "fleet": {"nodes": 2, "devices": 2},
        "policy": {"image_wait_ms": 60_000},
        "jobs": [
            {"name": "standard", "run_s": [60, 60], "devices": 2},
            {"name": "basic", "tier": "basic", "run_s": [60, 60]},
            {"name": "premium", "tier": "premium", "run_s": [20, 20], "submit_s": [15, 15]},
        ],
        "deployments": [
            {
                "name": "service",
                "replicas_max": 2,
                "load": [{"from_s": 5, "to_s": 60, "per_minute": 60, "service_ms": [500, 1000]}],
            }
        ],
    }
    return msgspec.convert({**raw, **parts}, Scenario)


def sound(report: Report) -> Report:
    assert report.violations == ()
    return report


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("for_s", [1, 36, 90])
@pytest.mark.parametrize("node", [1, 2])
def test_one_fault(kind: str, for_s: int, node: int) -> None:
    if kind == "agent_restart" and for_s > 1:
        for_s = 20  # an agent that stays dead cannot end what its lease no longer covers
    fault = {"kind": kind, "at_s": 20, "for_s": for_s, "node": node}
    report = sound(simulate(scenario(faults=[fault])))
    assert sum(tier.succeeded for tier in report.tiers.values()) == 3


def test_a_restart_of_agent_or_control_plane_loses_nothing() -> None:
    for kind in ("agent_restart", "control_restart"):
        faults = [{"kind": kind, "at_s": 20, "for_s": 5, "node": node} for node in (1, 2)]
        report = sound(simulate(scenario(faults=faults)))
        assert sum(tier.lost_ms for tier in report.tiers.values()) == 0, kind
        assert report.requests_interrupted == 0


def test_a_machine_that_sleeps_longer_than_its_lease_goes_on_where_it_was() -> None:
    """The only node is cut off; its agent saves the job, and the pool waits for it."""
    fault = {"kind": "partition", "at_s": 20, "for_s": 50}
    report = sound(
        simulate(
            scenario(
                fleet={"nodes": 1, "devices": 2},
                jobs=[{"name": "job", "run_s": [60, 60]}],
                deployments=[],
                faults=[fault],
            )
        )
    )
    assert report.tiers["standard"].lost_ms == 0
    assert report.ended_at_ms < 120_000


@pytest.mark.parametrize("what", ["lost_permille", "duplicated_permille", "delayed_permille"])
def test_calls_that_are_lost_doubled_or_late(what: str) -> None:
    report = sound(simulate(scenario(reports={what: 200, "delay_ms": 4_000, "until_s": 120})))
    assert report.calls_harmed > 0
    assert sum(tier.succeeded for tier in report.tiers.values()) == 3


def test_a_save_that_fails_leaves_the_job_running() -> None:
    fault = {"kind": "save_fails", "at_s": 0, "for_s": 40}
    both = [{**fault, "node": node} for node in (1, 2)]
    report = sound(simulate(scenario(faults=both)))
    assert report.tiers["basic"].lost_ms == report.tiers["standard"].lost_ms == 0


def beside_one_that_cannot_be_saved(run_s: int, reserved: int) -> Report:
    """Two jobs, of which no save works of one, and a gang of a team that needs both of their
    devices, and has so many reserved."""
    job = {"tier": "basic", "count": 2, "run_s": [run_s, run_s], "submit_s": [0, 0]}
    gang = {"tenant": "team", "tier": "premium", "workers": 2, "run_s": [5, 5]}
    return sound(
        simulate(
            scenario(
                fleet={"nodes": 2, "devices": 1},
                tenants=[{"id": "team", "reserved": reserved}],
                jobs=[{**job, "name": "j"}, {**gang, "name": "g", "submit_s": [100, 100]}],
                deployments=[],
                faults=[{"kind": "save_fails", "at_s": 0, "for_s": 1_500, "node": 1}],
            )
        )
    )


def test_nobody_is_suspended_again_and_again_beside_a_job_that_cannot_be_saved() -> None:
    report = beside_one_that_cannot_be_saved(1_700, reserved=0)
    assert report.tiers["premium"].queue.max_ms > 1_300_000  # it had to wait
    assert 2 <= report.tiers["basic"].suspends <= 3  # both for the gang, and one in vain before


def test_a_reservation_has_its_devices_in_time_even_from_a_job_that_cannot_be_saved() -> None:
    report = beside_one_that_cannot_be_saved(600, reserved=2)
    waited_ms = report.tiers["premium"].queue.max_ms
    assert WITHIN_MS <= waited_ms < WITHIN_MS + 10_000
    assert 300_000 < report.tiers["basic"].lost_ms < 500_000  # of one of two, which has no image
    assert report.tiers["basic"].succeeded == 2


def test_a_big_job_is_not_starved_by_a_stream_of_small_ones() -> None:
    def queued_ms(patience_ms: int) -> int:
        small = {"name": "small", "tier": "basic", "count": 100, "run_s": [15, 25]}
        small["submit_s"] = [0, 400]
        big = {"name": "big", "tenant": "team", "devices": 4, "run_s": [5, 5], "submit_s": [20, 20]}
        done = simulate(
            scenario(
                fleet={"nodes": 1, "devices": 4},
                policy={"patience_ms": patience_ms},
                tenants=[{"id": "team"}],
                jobs=[small, {**big, "tier": "basic"}],
                deployments=[],
            )
        )
        sound(done)
        return done.tiers["basic"].queue.max_ms

    assert queued_ms(30_000) < 250_000 < 350_000 < queued_ms(10_000_000)


def by_chance(seed: int) -> Scenario:
    """A random pool with random faults; what it asks for fits beside its services."""
    rng = random.Random(f"{seed}/pool")
    nodes, devices = rng.randint(2, 4), rng.choice([2, 4])
    jobs = []
    for number in range(rng.randint(1, 4)):
        gang = rng.random() < 0.3
        jobs.append(
            {
                "name": f"job{number}",
                "tenant": rng.choice(["default", "team"]),
                "tier": rng.choice(["premium", "standard", "basic"]),
                "count": rng.randint(1, 4),
                "devices": 1,
                "devices_max": rng.choice([0, 2]),
                "workers": min(nodes, 2) if gang else 1,
                "run_s": [5, 60],
                "submit_s": [0, 100],
                "state_mib": [10, rng.choice([100, 3000])],
                "exit_code": rng.choice([0, 0, 0, 3]),
                "suspendable": rng.random() < 0.85,
            }
        )
    faults = []
    for _ in range(rng.randint(0, 4)):
        kind = rng.choice(FAULTS)
        length = rng.choice([1, 5, 20] if kind == "agent_restart" else [1, 20, 36, 45, 120])
        faults.append(
            {
                "kind": kind,
                "node": rng.randint(1, nodes),
                "at_s": rng.randint(0, 120),
                "for_s": length,
            }
        )
    load = {"from_s": 10, "to_s": 100, "per_minute": 60, "service_ms": [100, 2000]}
    service = {"name": "service", "tier": "premium", "replicas_min": 0, "load": [load]}
    return scenario(
        seed=seed,
        horizon_s=4_000,
        fleet={"nodes": nodes, "devices": devices, "stop_ms": rng.choice([10, 3_000, 9_000])},
        tenants=[{"id": "team", "reserved": rng.choice([0, 1, 2])}],
        jobs=jobs,
        deployments=[service],
        faults=faults,
        reports={"lost_permille": 20, "duplicated_permille": 50, "until_s": 200},
    )


@pytest.mark.parametrize("seed", range(16))
def test_random_pools(seed: int) -> None:
    sound(simulate(by_chance(seed)))


def test_every_fault_can_be_asked_for() -> None:
    for kind in FAULTS:
        assert msgspec.convert({"kind": kind, "at_s": 0}, FaultSpec).node == 1
