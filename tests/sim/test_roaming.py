"""A job whose home is full goes on elsewhere, in the simulated pool with its agents and images."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from onefleet.sim.report import Report
from onefleet.sim.scenario import Scenario
from onefleet.sim.world import simulate

NEVER = {"move_fixed_ms": 10**9}


def run(nodes: int, policy: dict[str, int] | None = None, **parts: Any) -> Report:
    """Nodes of one device. A standard job gives way to premium work that stays for long; all other
    devices are held, but for one that comes free soon."""
    raw: dict[str, Any] = {
        "name": "roaming",
        "about": "for a test",
        "seed": 1,
        "horizon_s": 2_000,
        "fleet": {"nodes": nodes, "devices": 1},
        "policy": policy or {},
        "jobs": [
            {"name": "held", "tier": "premium", "run_s": [300, 300], "count": max(nodes - 2, 1)},
            {"name": "short", "tier": "premium", "run_s": [40, 40], "submit_s": [1, 1]},
            {"name": "train", "run_s": [60, 60], "submit_s": [2, 2], "state_mib": [300, 300]},
            {"name": "late", "tier": "premium", "run_s": [300, 300], "submit_s": [10, 10]},
        ],
    }
    report = simulate(msgspec.convert({**raw, **parts}, Scenario))
    assert report.violations == ()
    return report


def fraction(report: Report) -> int:
    """Of the job that gave way, which ran to its end and lost nothing."""
    standard = report.tiers["standard"]
    assert (standard.succeeded, standard.lost_ms) == (1, 0)
    return standard.fraction_permille


def test_it_goes_on_where_there_is_a_device() -> None:
    assert fraction(run(6, NEVER)) < 250
    assert fraction(run(6)) > 600


def test_where_a_copy_of_its_image_lies_it_goes_on_at_once() -> None:
    two = {"jobs": [
        {"name": "short", "tier": "premium", "run_s": [40, 40]},
        {"name": "train", "run_s": [60, 60], "submit_s": [2, 2], "state_mib": [300, 300]},
        {"name": "late", "tier": "premium", "run_s": [300, 300], "submit_s": [10, 10]},
    ]}  # fmt: skip
    assert fraction(run(2, NEVER, **two)) > 600


@pytest.mark.parametrize("node", [1, 3, 6])
@pytest.mark.parametrize("at_s", [12, 41, 43])
def test_a_node_that_fails_meanwhile_is_survived(node: int, at_s: int) -> None:
    fault = {"kind": "node_loss", "at_s": at_s, "for_s": 100, "node": node}
    report = run(6, faults=[fault])
    assert sum(tier.succeeded for tier in report.tiers.values()) == 7
