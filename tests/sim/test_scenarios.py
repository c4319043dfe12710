"""The shipped scenarios come out right, and the same however they are run."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from onefleet.sim.report import Report, table
from onefleet.sim.scenario import load, shipped
from onefleet.sim.world import DRIVERS, simulate

RUN = """
import sys
import msgspec
from onefleet.sim.scenario import load
from onefleet.sim.world import simulate
sys.stdout.buffer.write(msgspec.json.encode(simulate(load(sys.argv[1]), sys.argv[2])))
"""


def without_time(report: Report) -> Report:
    return msgspec.structs.replace(report, took_ms=0, driver="")


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_scenario_keeps_all_rules_under_both_drivers_and_any_hash_seed(name: str) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, name, driver],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
        )
        for seed, driver in zip(("1", "2"), DRIVERS, strict=True)
    ]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    heap, loop = (msgspec.json.decode(text, type=Report) for text in said)
    assert [heap.driver, loop.driver] == list(DRIVERS)
    assert heap.violations == ()
    assert without_time(heap) == without_time(loop)
    assert table(heap).endswith("result         ok")


def test_another_seed_is_another_history() -> None:
    first, second = (simulate(load("burst"), seed=seed) for seed in (1, 2))
    assert first.decision_hash != second.decision_hash
    assert second == msgspec.structs.replace(
        simulate(load("burst"), seed=2), took_ms=second.took_ms
    )


def test_the_burst_suspends_the_job_and_gives_the_devices_back() -> None:
    report = simulate(load("burst"))
    assert (report.suspends, report.resumes) == (1, 1)
    assert report.tiers["standard"].lost_ms == 0
    assert report.requests_wait.max_ms < 20_000
    assert report.held_permille > 800
