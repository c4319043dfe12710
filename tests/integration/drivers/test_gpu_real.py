"""The same on a real GPU: skipped, with the reason, on a machine without one.

These tests are the only ones that would tell what the driver really does. They have not been run
so far: no machine with a GPU was to be had.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from onefleet.agent.accelerators import environment
from onefleet.agent.devices import NvidiaProbe
from onefleet.domain.errors import OnefleetError
from onefleet.domain.fleet import CheckpointMode, Device
from onefleet.domain.ids import NodeId
from onefleet.drivers.base import WorkerSpec, WorkerState
from onefleet.drivers.criu import DEVICE_CALLS, CriuDriver
from onefleet.drivers.criu_setup import CriuTool
from onefleet.drivers.gpu_counter import HELD_BYTES
from onefleet.drivers.gpu_look import look
from onefleet.drivers.gpu_support import OTHER_GPUS, branch
from onefleet.drivers.proof import FACTOR, GPU_COUNTER, MASK

from .conftest import Bench, wait_for

pytestmark = pytest.mark.criu

#: Trains on the GPU, and prints each loss bit by bit, at last a digest of all weights.
TRAINING = """
    import hashlib, os, sys, time, torch
    torch.manual_seed(7)
    torch.use_deterministic_algorithms(True)
    model = torch.nn.Sequential(
        torch.nn.Linear(512, 1024), torch.nn.GELU(), torch.nn.Dropout(0.1),
        torch.nn.Linear(1024, 512)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    held = torch.ones(64 << 20, device="cuda", dtype=torch.uint8)
    last = int(sys.argv[1])
    for step in range(last):
        while step == last - 1 and not os.path.exists("finish"): time.sleep(0.01)
        x = torch.randn(64, 512, device="cuda")
        loss = (model(x) - x).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        print(step, loss.item().hex(), flush=True)
        time.sleep(0.01)
    weights = b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())
    print(hashlib.sha256(weights).hexdigest(), int(held.sum().item()), flush=True)
"""
STEPS = 300


class GpuBench(Bench):
    """A bench on the machine's own GPUs."""

    def __init__(self, tool: CriuTool, root: Path, devices: Sequence[Device]) -> None:
        super().__init__(CriuDriver(lambda: tool), root)
        self.devices = devices

    def on(self, *devices: Device, command: Sequence[str], **more: str) -> WorkerSpec:
        told = {**environment(devices, 1), **more, "PATH": str(Path(sys.executable).parent)}
        gpus = tuple(device.uuid for device in devices)
        return self.spec_of(*command, environment=tuple(told.items()), gpus=gpus)

    def used(self, device: Device) -> int:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(device.uuid)
            return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
        finally:
            nvml.nvmlShutdown()

    def counted(self, at_least: int) -> int:
        x, lines = 1, self.wait_lines(at_least)
        for n, line in enumerate(lines, 1):
            x = (x * FACTOR + n) & MASK
            assert line == f"{n} {x}"
        return len(lines)


@pytest.fixture
def real(tmp_path: Path, can_criu: CriuTool) -> Iterator[GpuBench]:
    devices = NvidiaProbe().discover(NodeId("here"))
    if not devices:
        pytest.skip("no NVIDIA GPU on this machine")
    try:
        look(DEVICE_CALLS, [device.uuid for device in devices])
    except OnefleetError as error:
        pytest.skip(f"the state of GPUs cannot be saved here: {error.why}")
    bench = GpuBench(can_criu, tmp_path, devices)
    yield bench
    bench.close()


def run(*operations: Any) -> None:
    async def all_of_them() -> None:
        for operation in operations:
            await operation

    asyncio.run(all_of_them())


def test_the_proof_holds(real: GpuBench) -> None:
    found = asyncio.run(real.driver.probe_gpus([device.uuid for device in real.devices]))
    assert (found.mode, found.reason) == (CheckpointMode.CRIU, "")


def test_a_suspend_frees_device_memory_and_a_resume_goes_on(real: GpuBench) -> None:
    gpu, driver = real.devices[0], real.driver
    idle = real.used(gpu)
    spec = real.on(gpu, command=GPU_COUNTER)
    run(driver.start(spec))
    for number in range(3):
        real.counted(real.counted(1) + 20)
        held = real.used(gpu)
        assert held - idle >= HELD_BYTES
        run(driver.save(real.folder, real.image(f"{number}")))
        assert held - real.used(gpu) >= HELD_BYTES
        assert real.used(gpu) - idle < HELD_BYTES // 4
        run(driver.restore(spec, real.image(f"{number}")))
    real.counted(real.counted(1) + 20)
    run(driver.freeze(real.folder))
    assert real.used(gpu) - idle < HELD_BYTES // 4
    run(driver.thaw(real.folder))
    real.counted(real.counted(1) + 20)
    run(driver.stop(real.folder, 0))


def test_a_checkpoint_leaves_it_on_its_gpu(real: GpuBench) -> None:
    run(real.driver.start(real.on(real.devices[0], command=GPU_COUNTER)))
    real.counted(10)
    run(real.driver.save(real.folder, real.image(), leave_running=True))
    real.counted(real.counted(1) + 20)
    run(real.driver.stop(real.folder, 0))


def test_it_is_off_its_gpu_while_it_runs_on(real: GpuBench) -> None:
    gpu, driver = real.devices[0], real.driver
    idle = real.used(gpu)
    run(driver.start(real.on(gpu, command=GPU_COUNTER)))
    for _ in range(3):
        real.counted(real.counted(1) + 20)
        run(driver.off(real.folder))
        assert real.used(gpu) - idle < HELD_BYTES // 4
        before = real.counted(1)
        assert asyncio.run(driver.status(real.folder)).state is WorkerState.RUNNING
        assert asyncio.run(driver.is_off(real.folder))
        assert real.counted(1) == before, "its calls wait"
        run(driver.on(real.folder))
        assert real.used(gpu) - idle >= HELD_BYTES
    real.counted(real.counted(1) + 20)
    run(driver.stop(real.folder, 0))


def test_it_comes_back_on_another_gpu(real: GpuBench) -> None:
    first = real.devices[0]
    same = [device for device in real.devices[1:] if device.product == first.product]
    node = look(DEVICE_CALLS, [first.uuid])
    if not same or branch(node.driver) < OTHER_GPUS.since:
        pytest.skip(f"{len(same)} more GPUs like the first, driver {node.driver}")
    run(real.driver.start(real.on(first, command=GPU_COUNTER)))
    real.counted(10)
    run(real.driver.save(real.folder, real.image()))
    run(real.driver.restore(real.on(same[0], command=GPU_COUNTER), real.image()))
    real.counted(real.counted(1) + 20)
    assert real.used(same[0]) >= HELD_BYTES
    run(real.driver.stop(real.folder, 0))


def test_a_training_run_is_bit_identical_after_suspends(
    real: GpuBench, tmp_path: Path, can_criu: CriuTool
) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    (tmp_path / "undisturbed").mkdir()
    undisturbed = GpuBench(can_criu, tmp_path / "undisturbed", real.devices)
    outputs = []
    for bench, suspends in ((undisturbed, 0), (real, 3)):
        source = bench.spec(TRAINING, str(STEPS)).command
        told = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TMPDIR": str(tmp_path)}
        spec = bench.on(real.devices[0], command=source, **told)
        run(bench.driver.start(spec))
        for number in range(suspends):
            bench.wait_lines((number + 1) * STEPS // 5)
            run(bench.driver.save(bench.folder, bench.image(f"{number}")))
            run(bench.driver.restore(spec, bench.image(f"{number}")))
        (bench.work / "finish").touch()
        wait_for(lambda b=bench: _ended(b), bool)
        outputs.append(bench.out().splitlines())
    assert len(outputs[0]) == STEPS + 1
    assert outputs[0] == outputs[1]


def _ended(bench: Bench) -> bool:
    return asyncio.run(bench.driver.status(bench.folder)).state is WorkerState.ENDED
