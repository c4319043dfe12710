"""What counters of devices say, read from a tree of files as the kernel lays them out."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from onefleet.agent import counters
from onefleet.agent.counters import CoreCounters, GpuCounters, burn_in
from onefleet.core.health import Counted, ProbeFailed
from onefleet.domain.fleet import Device, DeviceKind
from onefleet.domain.ids import DeviceId


def core(index: int) -> Device:
    return Device(DeviceId(f"n1/cpu{index}"), DeviceKind.CPU, index, "test core", 1 << 30)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_machine_without_counters_says_nothing(tmp_path: Path) -> None:
    assert CoreCounters(tmp_path).read([core(0), core(1)]) == []


def test_memory_errors_count_against_every_core_and_heat_against_one(tmp_path: Path) -> None:
    write(tmp_path / "edac/mc/mc0/ce_count", "12\n")
    write(tmp_path / "edac/mc/mc0/ue_count", "1\n")
    write(tmp_path / "cpu/cpu1/thermal_throttle/core_throttle_count", "5\n")
    found = CoreCounters(tmp_path).read([core(0), core(1)])
    for index in (0, 1):
        name = DeviceId(f"n1/cpu{index}")
        assert Counted(name, "corrected memory errors (mc0)", 12) in found
        assert Counted(name, "uncorrected memory errors (mc0)", 1, fatal=True) in found
    assert [f for f in found if "thermal" in getattr(f, "counter", "")] == [
        Counted(DeviceId("n1/cpu1"), "thermal throttling", 5)
    ]


def test_a_core_that_was_taken_offline_is_gone(tmp_path: Path) -> None:
    write(tmp_path / "cpu/cpu0/online", "1\n")
    write(tmp_path / "cpu/cpu1/online", "0\n")
    found = CoreCounters(tmp_path).read([core(0), core(1)])
    assert found == [ProbeFailed(DeviceId("n1/cpu1"), "the core was taken offline")]


@pytest.mark.parametrize("text", ["", "many", "1 2"])
def test_what_cannot_be_read_as_a_number_is_left_out(tmp_path: Path, text: str) -> None:
    write(tmp_path / "edac/mc/mc0/ce_count", text)
    assert CoreCounters(tmp_path).read([core(0)]) == []


def test_simulated_gpus_are_not_asked_for_counters() -> None:
    gpu = Device(DeviceId("n1/gpu0"), DeviceKind.GPU, 0, "simulated gpu", 1 << 30, simulated=True)
    assert GpuCounters().read([gpu]) == []


def test_a_core_that_computes_right_passes_and_one_that_does_not_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counters, "_ROUNDS", 1)
    device = core(sorted(os.sched_getaffinity(0))[0])
    assert asyncio.run(burn_in(device)) == ""
    monkeypatch.setattr(counters, "BURN_IN_RESULT", "0" * 64)
    assert "a computation came to" in asyncio.run(burn_in(device))
    assert "ended with 1" in asyncio.run(burn_in(core(100_000)))
