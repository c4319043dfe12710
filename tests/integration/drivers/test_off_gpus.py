"""Workers that are off their GPUs while they run on, so that others of their gang may be there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from onefleet.domain.errors import Conflict, OnefleetError, Unsupported, UpstreamFailed
from onefleet.drivers.base import WorkerSpec, WorkerState
from onefleet.drivers.criu_setup import CriuTool

from .conftest import Bench, wait_for
from .test_held_devices import HELD, MIB, A, B, C, GpuBench, run, state

pytestmark = pytest.mark.criu


@pytest.fixture
def gpus(tmp_path: Path, can_criu: CriuTool) -> Iterator[GpuBench]:
    bench = GpuBench(can_criu, tmp_path)
    yield bench
    bench.close()


def started(gpus: GpuBench, size: int = HELD, **more: str) -> WorkerSpec:
    spec = replace(gpus.job(A, size=size, **more), takes_turns=True)
    run(gpus.driver.start(spec))
    gpus.goes_on()
    return spec


def is_off(gpus: GpuBench) -> bool:
    return asyncio.run(gpus.driver.is_off(gpus.folder))


def runs_on(gpus: GpuBench) -> None:
    """It is not on its GPU, and does what needs none."""
    assert (state(gpus), is_off(gpus), gpus.used()[A]) == (WorkerState.RUNNING, True, 0)
    gpus.stands_still()
    (gpus.work / "asked").touch()
    wait_for((gpus.work / "answered").exists, bool)
    (gpus.work / "answered").unlink()
    gpus.stands_still()


def goes_on(gpus: GpuBench, gpu: str = A) -> None:
    gpus.goes_on()
    assert (state(gpus), is_off(gpus)) == (WorkerState.RUNNING, False)
    assert gpus.used()[gpu] == HELD


def test_who_is_off_its_gpu_answers_and_waits_only_where_it_uses_it(gpus: GpuBench) -> None:
    started(gpus)
    for _ in range(2):
        run(gpus.driver.off(gpus.folder), gpus.driver.off(gpus.folder))
        runs_on(gpus)
        run(gpus.driver.on(gpus.folder), gpus.driver.on(gpus.folder))
        goes_on(gpus)
    run(gpus.driver.stop(gpus.folder, 0))
    with pytest.raises(Conflict):
        is_off(gpus)


def test_it_is_put_on_only_where_there_is_room(gpus: GpuBench) -> None:
    started(gpus)
    run(gpus.driver.off(gpus.folder))
    with contextlib.closing(gpus.hog(A)):
        with pytest.raises(UpstreamFailed, match="does not fit on GPU H100-a"):
            run(gpus.driver.on(gpus.folder))
        assert is_off(gpus)
    wait_for(lambda: gpus.used()[A], lambda used: used == 0)
    runs_on(gpus)
    run(gpus.driver.on(gpus.folder))
    goes_on(gpus)
    run(gpus.driver.stop(gpus.folder, 0))


def test_saves_and_freezes_leave_it_off(gpus: GpuBench) -> None:
    spec, driver, folder = started(gpus), gpus.driver, gpus.folder
    run(driver.off(folder))
    run(driver.save(folder, gpus.image("1"), leave_running=True))
    runs_on(gpus)
    run(driver.save(folder, gpus.image("2"), hold=True), driver.finish(folder, False))
    runs_on(gpus)
    run(driver.freeze(folder), driver.thaw(folder))
    runs_on(gpus)
    run(driver.freeze(folder), driver.off(folder))
    with pytest.raises(Conflict):
        run(driver.on(folder))
    run(driver.save(folder, gpus.image("3")))
    assert gpus.manifest("3")["devices"]["bytes"] == [HELD]
    run(driver.restore(spec, gpus.image("3"), hold=True), driver.finish(folder, True))
    runs_on(gpus)
    run(driver.save(folder, gpus.image("4")), driver.restore(spec, gpus.image("4")))
    runs_on(gpus)
    run(driver.on(folder))
    goes_on(gpus)
    run(driver.stop(folder, 0))


def test_who_takes_turns_comes_back_off_its_gpu_even_if_that_is_full(gpus: GpuBench) -> None:
    spec, driver, folder = started(gpus), gpus.driver, gpus.folder
    run(driver.save(folder, gpus.image()))
    with contextlib.closing(gpus.hog(A)):
        run(driver.restore(spec, gpus.image()))
        assert is_off(gpus)
        run(driver.freeze(folder), driver.thaw(folder))
        assert is_off(gpus)
    wait_for(lambda: gpus.used()[A], lambda used: used == 0)
    run(driver.on(folder))
    goes_on(gpus)
    run(driver.freeze(folder))
    assert gpus.used()[A] == 0
    run(driver.thaw(folder))
    runs_on(gpus)
    run(driver.stop(folder, 0))


def test_it_moves_to_another_gpu_while_it_runs(gpus: GpuBench) -> None:
    started(gpus)
    run(gpus.driver.off(gpus.folder, [B]))
    runs_on(gpus)
    with contextlib.closing(gpus.hog(A)):
        run(gpus.driver.on(gpus.folder, [B]))
        goes_on(gpus, B)
    with pytest.raises(Conflict, match="cannot be moved to other GPUs") as refused:
        run(gpus.driver.on(gpus.folder, [A]))
    assert refused.value.why == "it is on its own"
    run(gpus.driver.off(gpus.folder), gpus.driver.on(gpus.folder))
    goes_on(gpus, B)
    with pytest.raises(Unsupported, match="cannot come back on these GPUs"):
        run(gpus.driver.off(gpus.folder, [C]))
    goes_on(gpus, B)
    run(gpus.driver.off(gpus.folder))
    with pytest.raises(Unsupported, match="cannot come back on these GPUs"):
        run(gpus.driver.off(gpus.folder, [C]))
    assert is_off(gpus)
    run(gpus.driver.on(gpus.folder))
    goes_on(gpus, B)
    run(gpus.driver.stop(gpus.folder, 0))


def test_who_was_to_go_elsewhere_and_is_not_any_more_comes_back(gpus: GpuBench) -> None:
    started(gpus)
    run(gpus.driver.off(gpus.folder, [B]))
    with contextlib.closing(gpus.hog(B)):
        run(gpus.driver.on(gpus.folder, [A]))
        goes_on(gpus)
    run(gpus.driver.off(gpus.folder, [B]), gpus.driver.on(gpus.folder))
    goes_on(gpus)
    run(gpus.driver.stop(gpus.folder, 0))


def test_who_takes_no_turns_is_thawed_onto_the_gpu_that_is_named(gpus: GpuBench) -> None:
    driver, folder = gpus.driver, gpus.folder
    run(driver.start(gpus.job(A)))
    gpus.goes_on()
    run(driver.freeze(folder), driver.off(folder, [B]))
    with contextlib.closing(gpus.hog(A)):
        run(driver.thaw(folder, [B]))
        goes_on(gpus, B)
    run(driver.stop(folder, 0))


def test_who_came_to_the_gpu_meanwhile_is_taken_off_with_the_others(gpus: GpuBench) -> None:
    started(gpus)
    run(gpus.driver.off(gpus.folder))
    (gpus.work / "fork").touch()
    wait_for(lambda: gpus.used()[A], lambda used: used == HELD)
    run(gpus.driver.off(gpus.folder))
    runs_on(gpus)
    run(gpus.driver.save(gpus.folder, gpus.image()))
    assert len(gpus.manifest()["devices"]["pids"]) == 2


def test_a_save_takes_along_who_came_to_the_gpu_meanwhile(gpus: GpuBench) -> None:
    spec = started(gpus, size=MIB)
    run(gpus.driver.off(gpus.folder))
    (gpus.work / "fork").touch()
    wait_for(lambda: gpus.used()[A], lambda used: used > 0)
    run(gpus.driver.save(gpus.folder, gpus.image()))
    assert gpus.manifest()["devices"]["bytes"] == [2 * MIB]
    run(gpus.driver.restore(spec, gpus.image()), gpus.driver.on(gpus.folder))
    gpus.goes_on()
    gpus.goes_on(-1)
    run(gpus.driver.stop(gpus.folder, 0))


def test_what_cannot_be_taken_off_runs_on(gpus: GpuBench) -> None:
    started(gpus, FAULTS="lock=not_ready checkpoint=not_supported")
    with pytest.raises(UpstreamFailed):
        run(gpus.driver.off(gpus.folder))
    goes_on(gpus)
    run(gpus.driver.off(gpus.folder), gpus.driver.on(gpus.folder))
    goes_on(gpus)
    run(gpus.driver.stop(gpus.folder, 0))


def test_what_is_lost_on_the_way_to_its_gpu_is_ended_honestly(gpus: GpuBench) -> None:
    started(gpus, FAULTS="restore=failed")
    run(gpus.driver.off(gpus.folder))
    with pytest.raises(OnefleetError, match="left between its GPUs and its own memory"):
        run(gpus.driver.on(gpus.folder))
    status = asyncio.run(gpus.driver.status(gpus.folder))
    assert (status.state, status.exit_code) == (WorkerState.ENDED, None)


def test_who_uses_no_gpu_can_be_told_all_the_same(gpus: GpuBench) -> None:
    spec = gpus.spec_of("sleep", "600", gpus=(A,), takes_turns=True)
    run(gpus.driver.start(spec), gpus.driver.off(gpus.folder))
    assert is_off(gpus)
    with pytest.raises(Conflict, match="cannot be moved to other GPUs") as refused:
        run(gpus.driver.off(gpus.folder, [B]))
    assert "makes no use of its own so far" in refused.value.why
    run(gpus.driver.on(gpus.folder))
    assert not is_off(gpus)
    run(gpus.driver.stop(gpus.folder, 0))


def test_without_a_cell_nobody_is_taken_off(local: Bench) -> None:
    run(local.driver.start(local.spec_of("sleep", "600", gpus=(A,))))
    with pytest.raises(Unsupported, match="cannot be taken off its GPUs"):
        run(local.driver.off(local.folder))
    assert not asyncio.run(local.driver.is_off(local.folder))
    run(local.driver.stop(local.folder, 0))


def test_for_whom_the_driver_finds_too_little_memory_stays_off_until_there_is_some(
    gpus: GpuBench,
) -> None:
    """There was room when it was looked for, and none any more when it was needed."""
    started(gpus, FAULTS="restore=out_of_memory,,out_of_memory")
    run(gpus.driver.off(gpus.folder))
    with pytest.raises(UpstreamFailed, match="does not fit on its GPUs") as refused:
        run(gpus.driver.on(gpus.folder))
    assert refused.value.why == "restore failed on process 100: restore: out_of_memory"
    runs_on(gpus)
    run(gpus.driver.on(gpus.folder))
    goes_on(gpus)
    # So it is where a save finds that others have taken its room.
    run(gpus.driver.save(gpus.folder, gpus.image(), leave_running=True))
    runs_on(gpus)
    run(gpus.driver.on(gpus.folder))
    goes_on(gpus)
    run(gpus.driver.stop(gpus.folder, 0))


def test_who_takes_no_turns_stands_still_until_there_is_memory(gpus: GpuBench) -> None:
    driver, folder = gpus.driver, gpus.folder
    run(driver.start(gpus.job(A, FAULTS="restore=out_of_memory")))
    gpus.goes_on()
    run(driver.freeze(folder))
    with pytest.raises(UpstreamFailed, match="does not fit on its GPUs"):
        run(driver.thaw(folder))
    assert state(gpus) is WorkerState.FROZEN
    gpus.stands_still()
    (gpus.work / "asked").touch()
    gpus.stands_still()
    assert not (gpus.work / "answered").exists(), "none of it runs"
    run(driver.thaw(folder))
    goes_on(gpus)
    run(driver.stop(folder, 0))


def test_whom_the_driver_refuses_for_good_after_that_is_ended_with_both_reasons(
    gpus: GpuBench,
) -> None:
    started(gpus, FAULTS="restore=out_of_memory,other")
    run(gpus.driver.off(gpus.folder))
    for what in ("does not fit", "left between its GPUs and its own memory"):
        with pytest.raises(UpstreamFailed, match=what):
            run(gpus.driver.on(gpus.folder))
    status = asyncio.run(gpus.driver.status(gpus.folder))
    assert (status.state, status.exit_code) == (WorkerState.ENDED, None)
    assert "restore: other; before, there was too little memory for it: " in status.reason


def test_others_on_its_gpu_do_not_count_as_what_it_needs(gpus: GpuBench) -> None:
    started(gpus, size=8 * MIB)
    with contextlib.closing(gpus.hog(A)):
        run(gpus.driver.off(gpus.folder))
        run(gpus.driver.save(gpus.folder, gpus.image()))
    assert gpus.manifest()["devices"]["bytes"] == [8 * MIB]
