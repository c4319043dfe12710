"""What hot spares are worth, in a simulated pool that is full and loses nodes."""

from __future__ import annotations

import msgspec

from onefleet.sim.report import Report
from onefleet.sim.scenario import load
from onefleet.sim.world import simulate


def run(spares: int) -> Report:
    scenario = load("spares")
    fleet = msgspec.structs.replace(scenario.fleet, spares=spares)
    expect = msgspec.structs.replace(scenario.expect, failover_ms_max=None)
    return simulate(msgspec.structs.replace(scenario, fleet=fleet, expect=expect))


def test_a_job_that_lost_its_node_waits_for_others_unless_there_is_a_spare() -> None:
    without, kept = run(0), run(1)
    assert without.ok and kept.ok
    assert without.failovers.count == kept.failovers.count == 2
    assert without.failovers.max_ms > 30_000
    assert kept.failovers.max_ms < 3_000
