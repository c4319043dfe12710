"""Jobs on GPUs, suspended and brought back by criu; the GPUs are those of fake_gpu."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onefleet.domain.errors import OnefleetError, UpstreamFailed
from onefleet.domain.fleet import CheckpointMode
from onefleet.drivers.base import WorkerSpec, WorkerState
from onefleet.drivers.criu import CriuDriver
from onefleet.drivers.criu_setup import CriuTool

from . import fake_gpu
from .conftest import Bench, wait_for

pytestmark = pytest.mark.criu

MIB = 1 << 20
#: Too large for two of them on one GPU.
HELD = 48 * MIB
A, B, C = "H100-a", "H100-b", "L4-c"
PROGRAM = str(Path(fake_gpu.__file__))


class GpuBench(Bench):
    """A bench on a machine with GPUs."""

    def __init__(self, tool: CriuTool, root: Path) -> None:
        self.node = root / "node"
        self.node.mkdir()
        calls = (sys.executable, PROGRAM, "calls", str(self.node))
        counter = (sys.executable, PROGRAM, "job", str(self.node), str(HELD))
        super().__init__(CriuDriver(lambda: tool, calls, counter), root)
        self._process = subprocess.Popen(
            [
                sys.executable,
                PROGRAM,
                "node",
                str(self.node),
                *(f"{g}:{64 * MIB}" for g in (A, B, C)),
            ],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"up\n"

    def used(self) -> dict[str, int]:
        with contextlib.closing(fake_gpu.Line(f"{self.node}/{fake_gpu.NODE}")) as line:
            return {g["name"]: g["used_bytes"] for g in line.ask(op="node")["gpus"]}

    def hog(self, gpu: str) -> fake_gpu.Line:
        """Somebody else on a GPU, who leaves when it is closed."""
        line = fake_gpu.Line(f"{self.node}/{fake_gpu.NODE}")
        assert line.ask(op="open", gpu=gpu, bytes=32 * MIB) == {"error": ""}
        return line

    def job(self, *gpus: str, forks: int = 0, size: int = HELD, **more: str) -> WorkerSpec:
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "PYTHONPATH": ":".join(sys.path)}
        return self.spec_of(
            *(sys.executable, PROGRAM, "job", str(self.node), str(size), str(forks)),
            environment=tuple({**environment, **more}.items()),
            gpus=gpus,
        )

    def numbers(self, process: int = 0) -> list[str]:
        path = self.work / f"numbers-{process}"
        return path.read_text().splitlines(keepends=True) if path.exists() else []

    def counted(self, at_least: int, process: int = 0) -> int:
        """Wait until a process has counted so far, without a break."""
        lines = wait_for(lambda: self.numbers(process), lambda lines: len(lines) > at_least)
        whole = [line.rstrip("\n") for line in lines if line.endswith("\n")]
        assert whole == fake_gpu.chain(len(whole))
        return len(whole)

    def goes_on(self, process: int = 0) -> None:
        self.counted(self.counted(0, process) + 5, process)

    def stands_still(self) -> None:
        assert self.counted(0) == self.counted(0)

    def manifest(self, name: str = "image") -> dict[str, Any]:
        wrapped = json.loads((self.image(name) / "manifest.json").read_text())
        manifest: dict[str, Any] = wrapped["manifest"]
        return manifest

    def close(self) -> None:
        super().close()
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def gpus(tmp_path: Path, can_criu: CriuTool) -> Iterator[GpuBench]:
    bench = GpuBench(can_criu, tmp_path)
    yield bench
    bench.close()


def state(bench: Bench) -> WorkerState:
    return asyncio.run(bench.driver.status(bench.folder)).state


def run(*operations: Any) -> None:
    async def all_of_them() -> None:
        for operation in operations:
            await operation

    asyncio.run(all_of_them())


def test_a_suspend_frees_the_gpu_and_a_resume_goes_on_with_the_same_numbers(gpus: GpuBench) -> None:
    spec, driver = gpus.job(A), gpus.driver
    run(driver.start(spec))
    for number in range(3):
        gpus.goes_on()
        assert gpus.used() == {A: HELD, B: 0, C: 0}
        run(driver.save(gpus.folder, gpus.image(f"{number}")))
        assert gpus.used() == {A: 0, B: 0, C: 0}
        taken = gpus.manifest(f"{number}")["devices"]
        assert (taken["gpus"], taken["bytes"]) == ([A], [HELD])
        run(driver.restore(spec, gpus.image(f"{number}")))
    gpus.goes_on()
    (gpus.work / "finish").touch()
    wait_for(lambda: state(gpus), lambda now: now is WorkerState.ENDED)
    assert asyncio.run(driver.status(gpus.folder)).exit_code == 3


def test_a_job_comes_back_on_another_gpu(gpus: GpuBench) -> None:
    run(gpus.driver.start(gpus.job(A)))
    gpus.goes_on()
    run(gpus.driver.save(gpus.folder, gpus.image()))
    with contextlib.closing(gpus.hog(A)):
        run(gpus.driver.restore(gpus.job(B), gpus.image()))
        gpus.goes_on()
        assert gpus.used()[B] == HELD
    run(gpus.driver.stop(gpus.folder, 0))


def test_every_process_of_a_tree_is_taken_along(gpus: GpuBench) -> None:
    spec = gpus.job(A, forks=2, size=MIB)
    run(gpus.driver.start(spec))
    for process in range(3):
        gpus.goes_on(process)
    assert gpus.used()[A] == 3 * MIB
    run(gpus.driver.save(gpus.folder, gpus.image()))
    assert gpus.used()[A] == 0
    run(gpus.driver.restore(spec, gpus.image()))
    for process in range(3):
        gpus.goes_on(process)
    run(gpus.driver.stop(gpus.folder, 0))


def test_a_checkpoint_leaves_the_job_on_its_gpu(gpus: GpuBench) -> None:
    spec = gpus.job(A)
    run(gpus.driver.start(spec))
    gpus.goes_on()
    run(gpus.driver.save(gpus.folder, gpus.image(), leave_running=True))
    gpus.goes_on()
    assert (state(gpus), gpus.used()[A]) == (WorkerState.RUNNING, HELD)
    run(gpus.driver.stop(gpus.folder, 0))
    wait_for(lambda: gpus.used()[A], lambda used: used == 0)
    run(gpus.driver.restore(spec, gpus.image()))
    gpus.goes_on()
    run(gpus.driver.stop(gpus.folder, 0))


@pytest.mark.parametrize("commit", [True, False])
def test_a_held_save_keeps_the_gpu_free_until_its_end(gpus: GpuBench, commit: bool) -> None:
    spec, driver = gpus.job(A), gpus.driver
    run(driver.start(spec))
    gpus.goes_on()
    run(driver.save(gpus.folder, gpus.image(), hold=True))
    assert gpus.used()[A] == 0
    run(driver.finish(gpus.folder, commit))
    if commit:
        run(driver.restore(spec, gpus.image(), hold=True))
        gpus.stands_still()
        run(driver.finish(gpus.folder, True))
    gpus.goes_on()
    assert gpus.used()[A] == HELD
    run(driver.stop(gpus.folder, 0))


def test_who_stands_still_leaves_its_gpu_to_others(gpus: GpuBench) -> None:
    driver = gpus.driver
    run(driver.start(gpus.job(A)))
    gpus.goes_on()
    run(driver.freeze(gpus.folder))
    assert (state(gpus), gpus.used()[A]) == (WorkerState.FROZEN, 0)
    with contextlib.closing(gpus.hog(A)):
        with pytest.raises(UpstreamFailed, match="does not fit on GPU H100-a"):
            run(driver.thaw(gpus.folder))
        assert state(gpus) is WorkerState.FROZEN
        gpus.stands_still()
    wait_for(lambda: gpus.used()[A], lambda used: used == 0)
    run(driver.thaw(gpus.folder))
    gpus.goes_on()
    # And a frozen one can be saved as it is.
    run(driver.freeze(gpus.folder), driver.save(gpus.folder, gpus.image()))
    run(driver.restore(gpus.job(A), gpus.image()))
    gpus.goes_on()
    run(driver.stop(gpus.folder, 0))


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ("lock=not_supported", "lock: not_supported"),
        ("lock=not_ready,not_ready,not_ready,not_ready", "was not done within 16000 ms"),
        ("checkpoint=not_supported", "checkpoint: not_supported"),
        ("state=other", "nobody knows who uses a device"),
    ],
)
def test_a_gpu_that_refuses_leaves_the_job_running(gpus: GpuBench, faults: str, says: str) -> None:
    run(gpus.driver.start(gpus.job(A, forks=1, size=MIB, FAULTS=faults)))
    gpus.goes_on()
    gpus.goes_on(1)
    with pytest.raises(OnefleetError) as refused:
        run(gpus.driver.save(gpus.folder, gpus.image()))
    assert says in refused.value.why
    assert (state(gpus), gpus.used()[A]) == (WorkerState.RUNNING, 2 * MIB)
    gpus.goes_on()
    gpus.goes_on(1)
    assert not gpus.image().exists()
    run(gpus.driver.save(gpus.folder, gpus.image()))  # the faults are used up


def test_a_dump_that_fails_puts_the_job_back_on_its_gpu(gpus: GpuBench) -> None:
    run(gpus.driver.start(gpus.job(A, STUBBORN="1")))
    gpus.goes_on()
    with pytest.raises(UpstreamFailed, match="criu could not save the worker"):
        run(gpus.driver.save(gpus.folder, gpus.image()))
    assert (state(gpus), gpus.used()[A]) == (WorkerState.RUNNING, HELD)
    gpus.goes_on()
    run(gpus.driver.stop(gpus.folder, 0))


def test_a_job_that_the_driver_gave_up_is_ended_honestly(gpus: GpuBench) -> None:
    run(gpus.driver.start(gpus.job(A, FAULTS="checkpoint=failed")))
    gpus.goes_on()
    with pytest.raises(OnefleetError, match="left between its GPUs and its own memory"):
        run(gpus.driver.save(gpus.folder, gpus.image()))
    status = asyncio.run(gpus.driver.status(gpus.folder))
    assert (status.state, status.exit_code) == (WorkerState.ENDED, None)
    assert "process 100 is failed" in status.reason and "is lost" in status.reason
    wait_for(gpus.used, lambda used: used[A] == 0)


def test_a_restore_without_room_leaves_the_image(gpus: GpuBench) -> None:
    spec, driver = gpus.job(A), gpus.driver
    run(driver.start(spec))
    gpus.goes_on()
    run(driver.save(gpus.folder, gpus.image()))
    with contextlib.closing(gpus.hog(A)):
        with pytest.raises(UpstreamFailed, match="does not fit on GPU H100-a"):
            run(driver.restore(spec, gpus.image()))
        assert state(gpus) is WorkerState.SAVED
    wait_for(lambda: gpus.used()[A], lambda used: used == 0)
    run(driver.restore(spec, gpus.image()))
    gpus.goes_on()
    run(driver.stop(gpus.folder, 0))


@pytest.mark.parametrize("there", [(), (C,), (A, B)])
def test_a_restore_on_other_devices_than_it_had_is_refused(
    gpus: GpuBench, there: tuple[str, ...]
) -> None:
    run(gpus.driver.start(gpus.job(A)))
    gpus.goes_on()
    run(gpus.driver.save(gpus.folder, gpus.image()))
    with pytest.raises(OnefleetError, match="cannot come back on these GPUs"):
        run(gpus.driver.restore(gpus.job(*there), gpus.image()))
    assert state(gpus) is WorkerState.SAVED


def test_without_that_criu_refuses_and_the_job_runs_on(gpus: GpuBench) -> None:
    """What the fake is for: a process that holds a GPU cannot be saved by criu alone."""
    spec = gpus.job(A)
    run(gpus.driver.start(WorkerSpec(spec.folder, spec.command, spec.work, spec.environment)))
    gpus.goes_on()
    with pytest.raises(UpstreamFailed, match="criu could not save the worker"):
        run(gpus.driver.save(gpus.folder, gpus.image()))
    gpus.goes_on()
    run(gpus.driver.stop(gpus.folder, 0))


@pytest.mark.parametrize("how", ["abort", "checkpoint", "thaw"])
def test_a_job_that_cannot_be_put_back_is_ended_honestly(gpus: GpuBench, how: str) -> None:
    driver = gpus.driver
    run(driver.start(gpus.job(A, FAULTS="restore=not_supported")))
    gpus.goes_on()
    with pytest.raises(OnefleetError, match="left between its GPUs and its own memory"):
        if how == "abort":
            run(driver.save(gpus.folder, gpus.image(), hold=True))
            run(driver.finish(gpus.folder, False))
        elif how == "checkpoint":
            run(driver.save(gpus.folder, gpus.image(), leave_running=True))
        else:
            run(driver.freeze(gpus.folder), driver.thaw(gpus.folder))
    status = asyncio.run(driver.status(gpus.folder))
    assert (status.state, status.exit_code) == (WorkerState.ENDED, None)
    assert "restore failed on process 100" in status.reason
    assert gpus.image().exists() == (how != "thaw"), "it is whole, so it counts"
    wait_for(gpus.used, lambda used: used[A] == 0)


def test_a_restore_that_the_driver_refuses_leaves_the_image(gpus: GpuBench) -> None:
    spec, driver = gpus.job(A, FAULTS="restore=,not_supported"), gpus.driver
    run(driver.start(spec))
    gpus.goes_on()
    run(driver.freeze(gpus.folder), driver.thaw(gpus.folder))
    run(driver.save(gpus.folder, gpus.image()))
    with pytest.raises(UpstreamFailed, match="could not be put back on its GPUs"):
        run(driver.restore(spec, gpus.image()))
    assert (state(gpus), gpus.image().exists()) == (WorkerState.SAVED, True)
    assert gpus.used()[A] == 0


def test_calls_that_die_are_told_and_harm_nothing(tmp_path: Path, can_criu: CriuTool) -> None:
    with contextlib.closing(GpuBench(can_criu, tmp_path)) as gpus:
        gpus.driver = CriuDriver(lambda: can_criu, ("/bin/false",))
        run(gpus.driver.start(gpus.job(A)))
        with pytest.raises(UpstreamFailed, match="the GPUs cannot be read"):
            run(gpus.driver.save(gpus.folder, gpus.image()))
        assert state(gpus) is WorkerState.RUNNING
        run(gpus.driver.stop(gpus.folder, 0))


@pytest.mark.parametrize(
    ("driver", "says"),
    [
        ("550.54.14", "no calls that take a process off its GPUs: it is 550.54.14, needed is 570"),
        ("575.51", "comes back on the same GPUs only with driver 575.51, from 580 on any"),
    ],
)
def test_an_older_driver_is_told_by_its_version(
    tmp_path: Path, can_criu: CriuTool, monkeypatch: pytest.MonkeyPatch, driver: str, says: str
) -> None:
    monkeypatch.setenv("FAKE_DRIVER", driver)
    with contextlib.closing(GpuBench(can_criu, tmp_path)) as gpus:
        run(gpus.driver.start(gpus.job(A)))
        gpus.goes_on()
        with pytest.raises(OnefleetError) as refused:
            run(gpus.driver.save(gpus.folder, gpus.image()))
            run(gpus.driver.restore(gpus.job(B), gpus.image()))
        assert says in refused.value.why
        run(gpus.driver.stop(gpus.folder, 0))


def test_that_gpus_are_saved_is_proved_by_doing_it(gpus: GpuBench) -> None:
    found = asyncio.run(gpus.driver.probe_gpus([A, B]))
    assert (found.mode, found.reason) == (CheckpointMode.CRIU, "")
    assert "a counter on H100 was saved" in found.evidence
    assert "driver 590.44; limits: " in found.evidence
    wait_for(gpus.used, lambda used: used[A] == 0)


def test_what_is_in_the_way_of_a_proof_is_its_reason(
    tmp_path: Path, can_criu: CriuTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = CriuDriver(lambda: can_criu)
    found = asyncio.run(driver.probe_gpus(["GPU-0"]))  # no such GPU on any machine
    assert found.mode is CheckpointMode.NONE
    assert "the state of the worker's GPUs cannot be saved" in found.reason
    monkeypatch.setenv("FAKE_DRIVER", "560.1")
    with contextlib.closing(GpuBench(can_criu, tmp_path)) as gpus:
        found = asyncio.run(gpus.driver.probe_gpus([A]))
        assert (found.mode, "needed is 570" in found.reason) == (CheckpointMode.NONE, True)
