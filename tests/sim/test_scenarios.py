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
from onefleet.sim.scenario import load
from onefleet.sim.world import simulate
for name in sys.argv[1:]:
    print(name, simulate(load(name)).decision_hash)
"""


def without_time(report: Report) -> Report:
    return msgspec.structs.replace(report, took_ms=0, driver="")


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_scenario_keeps_all_rules_under_both_drivers(name: str) -> None:
    heap, loop = (simulate(load(name), driver) for driver in DRIVERS)
    assert heap.violations == ()
    assert without_time(heap) == without_time(loop)
    assert table(heap).endswith("result         ok")


def test_the_decisions_do_not_depend_on_the_hash_seed() -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, *shipped()],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    hashes = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert hashes[0] == hashes[1]
    assert len(hashes[0].split()) == 2 * len(shipped())


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
