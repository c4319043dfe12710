"""What a node finds on itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onefleet.agent import devices
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import NodeId

NODE = NodeId("node-x")


def test_each_core_that_may_be_used_is_a_device(tmp_path: Path) -> None:
    found = devices.CpuProbe(tmp_path).discover(NODE)
    assert [d.index for d in found] == sorted(os.sched_getaffinity(0))
    assert found[0].id == f"node-x/cpu{found[0].index}" and found[0].product
    assert sum(d.memory_bytes for d in found) <= devices.memory_bytes(tmp_path)[0]
    assert not any(d.simulated for d in found)


@pytest.mark.parametrize(
    ("file", "text", "cores"),
    [
        ("cpu.max", "150000 100000", 1),
        ("cpu.max", "50000 100000", 1),
        ("cpu.max", "400000 100000", 4),
        ("cpu.max", "max 100000", None),
    ],
)
def test_the_quota_of_the_control_group(
    tmp_path: Path, file: str, text: str, cores: int | None
) -> None:
    (tmp_path / file).write_text(text)
    assert devices.cpu_quota(tmp_path) == cores


def test_the_quota_of_an_old_control_group_cuts_the_cores(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert len(devices.CpuProbe(tmp_path).discover(NODE)) == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert devices.cpu_quota(tmp_path) is None


def test_the_memory_limit_of_the_control_group(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000")
    (tmp_path / "memory.current").write_text("400000")
    assert devices.memory_bytes(tmp_path) == (1_000_000, 600_000)
    (tmp_path / "memory.max").write_text("max")
    total, free = devices.memory_bytes(tmp_path)
    assert 0 < free <= total and total > 1_000_000


def test_no_gpu_is_no_error() -> None:
    assert all(d.kind is DeviceKind.GPU for d in devices.NvidiaProbe().discover(NODE))


def test_simulated_devices_say_so() -> None:
    probes = (devices.SimulatedProbe(DeviceKind.ASIC, 2),)
    found = devices.discover(NODE, probes)
    assert [d.id for d in found] == ["node-x/asic0", "node-x/asic1"]
    assert all(d.simulated and d.product.startswith("simulated") for d in found)
