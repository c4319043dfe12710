"""The contract of every driver for holds, checkpoints, freezing and binding to cores."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

import pytest

from onefleet.domain.errors import Conflict, NotFound, OnefleetError
from onefleet.domain.gang import GangPlace
from onefleet.drivers.base import WorkerState
from onefleet.drivers.fake import FakeDriver, FakeFaults

from .conftest import Bench

#: Counts up, and what it has counted to is in its memory, or in its own checkpoint.
COUNTS = """
    import os, pathlib, signal, sys, time
    own = pathlib.Path(os.environ["ONEFLEET_CHECKPOINT_DIR"]) / "n"
    n = int(own.read_text()) if own.exists() else 0
    def save(number, _):
        own.with_name("new").write_text(str(n)); own.with_name("new").replace(own)
        if number == signal.SIGTERM: sys.exit(1)
    signal.signal(signal.SIGTERM, save)
    signal.signal(signal.SIGUSR1, save)
    while True:
        n += 1
        print(n, flush=True)
        time.sleep(0.005)
"""


@pytest.fixture(params=["fake", "local", pytest.param("criu", marks=pytest.mark.criu)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "fake":
        return Bench(FakeDriver(), tmp_path)
    return request.getfixturevalue(request.param)


async def state(bench: Bench) -> WorkerState:
    return (await bench.driver.status(bench.folder)).state


async def started(bench: Bench, **more: object):
    spec = bench.spec(COUNTS, **more)
    await bench.driver.start(spec)
    counts(bench)
    return spec


def is_fake(bench: Bench) -> bool:
    return isinstance(bench.driver, FakeDriver)


def counts(bench: Bench) -> None:
    """It goes on, and has left no number out, nor said one twice."""
    if not is_fake(bench):
        lines = bench.wait_lines(bench.out().count("\n") + 5)
        assert [int(line) for line in lines] == list(range(1, len(lines) + 1))


async def stands(bench: Bench) -> None:
    if not is_fake(bench):
        before = bench.out()
        await asyncio.sleep(0.1)
        assert bench.out() == before


def test_a_held_save_is_given_up_or_goes_on(bench: Bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        spec = await started(bench)
        saved = await driver.save(bench.folder, bench.image("no"), hold=True)
        assert await state(bench) is WorkerState.SAVE_HELD
        await stands(bench)
        again = await driver.save(bench.folder, bench.image("no"), hold=True)
        assert again.size_bytes == saved.size_bytes
        with pytest.raises(Conflict):
            await driver.save(bench.folder, bench.image("other"), hold=True)
        for _ in range(2):
            await driver.finish(bench.folder, commit=False)
            assert await state(bench) is WorkerState.RUNNING
        with pytest.raises(Conflict):
            await driver.finish(bench.folder, commit=True)
        counts(bench)
        with pytest.raises(NotFound):
            await driver.restore(bench.spec(COUNTS, folder=bench.root / "x"), bench.image("no"))

        await driver.save(bench.folder, bench.image("yes"), hold=True)
        for _ in range(2):
            await driver.finish(bench.folder, commit=True)
            status = await driver.status(bench.folder)
            assert (status.state, status.pid) == (WorkerState.SAVED, None)
        with pytest.raises(Conflict):
            await driver.finish(bench.folder, commit=False)
        await driver.restore(spec, bench.image("yes"))
        counts(bench)
        await driver.stop(bench.folder, 0)

    asyncio.run(scenario())


def test_a_held_restore_moves_nothing_until_it_is_let_go(bench: Bench) -> None:
    async def scenario() -> None:
        driver, image = bench.driver, bench.image()
        spec = await started(bench)
        await driver.save(bench.folder, image)
        for _ in range(2):
            await driver.restore(spec, image, hold=True)
            assert await state(bench) is WorkerState.RESTORE_HELD
        await stands(bench)
        for _ in range(2):
            await driver.finish(bench.folder, commit=False)
            assert await state(bench) is WorkerState.SAVED
        await driver.restore(spec, image, hold=True)
        for _ in range(2):
            await driver.finish(bench.folder, commit=True)
            assert await state(bench) is WorkerState.RUNNING
        with pytest.raises(Conflict):
            await driver.finish(bench.folder, commit=False)
        counts(bench)
        await driver.stop(bench.folder, 0)

    asyncio.run(scenario())


def test_a_checkpoint_leaves_it_running(bench: Bench) -> None:
    async def scenario() -> None:
        driver, image = bench.driver, bench.image()
        spec = await started(bench)
        pid = (await driver.status(bench.folder)).pid
        saved = [await driver.save(bench.folder, image, leave_running=True) for _ in range(2)]
        assert saved[0].size_bytes == saved[1].size_bytes
        status = await driver.status(bench.folder)
        assert (status.state, status.pid) == (WorkerState.RUNNING, pid)
        counts(bench)
        await driver.stop(bench.folder, 0)
        await driver.restore(spec, image)
        if bench.driver.name == "local":  # what it said later is still there
            bench.wait_lines(bench.out().count("\n") + 5)
        else:
            counts(bench)
        await driver.stop(bench.folder, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("commit", [True, False])
def test_a_held_checkpoint_goes_on_either_way(bench: Bench, commit: bool) -> None:
    async def scenario() -> None:
        driver, image = bench.driver, bench.image()
        await started(bench)
        await driver.save(bench.folder, image, hold=True, leave_running=True)
        assert await state(bench) is WorkerState.SAVE_HELD
        await driver.finish(bench.folder, commit=commit)
        assert await state(bench) is WorkerState.RUNNING
        counts(bench)
        await driver.stop(bench.folder, 0)
        restore = driver.restore(bench.spec(COUNTS), image)
        if commit:
            await restore
            await driver.stop(bench.folder, 0)
        else:
            with pytest.raises(NotFound):
                await restore

    asyncio.run(scenario())


def test_stop_ends_a_held_worker_and_drops_its_image(bench: Bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        spec = await started(bench)
        await driver.save(bench.folder, bench.image(), hold=True)
        await driver.stop(bench.folder, 5000)
        assert await state(bench) is WorkerState.ENDED
        with pytest.raises(Conflict):
            await driver.finish(bench.folder, commit=False)
        with pytest.raises(NotFound):
            await driver.restore(spec, bench.image())

    asyncio.run(scenario())


def test_a_frozen_worker_stands_and_goes_on(bench: Bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        spec = await started(bench)
        for number in range(3):
            for _ in range(2):
                await driver.freeze(bench.folder)
                assert await state(bench) is WorkerState.FROZEN
            assert (await driver.status(bench.folder)).memory_bytes > 0
            await stands(bench)
            for _ in range(2):
                await driver.thaw(bench.folder)
                assert await state(bench) is WorkerState.RUNNING
            counts(bench)
            if number == 1:  # as well after a restore
                await driver.save(bench.folder, bench.image())
                await driver.restore(spec, bench.image())
        await driver.freeze(bench.folder)
        await driver.stop(bench.folder, 0)
        assert await state(bench) is WorkerState.ENDED
        for operation in (driver.freeze, driver.thaw):
            with pytest.raises(Conflict):
                await operation(bench.folder)

    asyncio.run(scenario())


def test_a_frozen_worker_is_saved_like_any_other(bench: Bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        spec = await started(bench)
        await driver.freeze(bench.folder)
        await driver.save(bench.folder, bench.image("kept"), leave_running=True)
        assert await state(bench) is WorkerState.FROZEN
        await stands(bench)
        await driver.save(bench.folder, bench.image("no"), hold=True)
        await driver.finish(bench.folder, commit=False)
        assert await state(bench) is WorkerState.FROZEN
        await stands(bench)
        await driver.save(bench.folder, bench.image())
        await driver.restore(spec, bench.image())
        assert await state(bench) is WorkerState.RUNNING
        counts(bench)
        await driver.stop(bench.folder, 0)

    asyncio.run(scenario())


def test_it_is_bound_to_other_cores_as_it_runs(bench: Bench) -> None:
    async def scenario() -> None:
        cores = sorted(os.sched_getaffinity(0))[:2]
        await started(bench, cpus=tuple(cores))
        for core in (cores[0], cores[-1]):
            await bench.driver.pin(bench.folder, [core])
            pid = (await bench.driver.status(bench.folder)).pid
            if not is_fake(bench):
                assert os.sched_getaffinity(pid) == {core}
        await bench.driver.freeze(bench.folder)
        await bench.driver.pin(bench.folder, cores)
        await bench.driver.stop(bench.folder, 0)
        with pytest.raises(Conflict):
            await bench.driver.pin(bench.folder, cores)

    asyncio.run(scenario())


def test_only_a_gangs_worker_is_connected_to_other_machines(bench: Bench) -> None:
    async def scenario() -> None:
        await started(bench)
        with pytest.raises(Conflict):
            await bench.driver.connect(bench.folder, "192.0.2.1", ["192.0.2.2"])
        await bench.driver.stop(bench.folder, 0)
        if bench.driver.name == "local":  # its workers have the machine's network
            return
        place = GangPlace(f"test-{uuid.uuid4().hex[:12]}", rank=0, workers=1)
        bench.folder = bench.folder.with_name("w.1")
        await started(bench, gang=place)
        for _ in range(2):
            await bench.driver.connect(bench.folder, "", [])  # there are none yet
        await bench.driver.stop(bench.folder, 0)
        with pytest.raises(Conflict):
            await bench.driver.connect(bench.folder, "", [])

    asyncio.run(scenario())


def test_what_is_not_there_can_be_neither_held_nor_frozen(bench: Bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        for operation in (
            driver.finish(bench.folder, commit=True),
            driver.freeze(bench.folder),
            driver.thaw(bench.folder),
            driver.pin(bench.folder, [0]),
            driver.connect(bench.folder, "", []),
        ):
            with pytest.raises(NotFound):
                await operation
        await started(bench)
        with pytest.raises(Conflict, match="held"):
            await driver.finish(bench.folder, commit=True)
        await driver.stop(bench.folder, 0)

    asyncio.run(scenario())


def test_a_hold_that_nobody_ends_lapses_and_either_answer_still_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        driver = FakeDriver()
        bench = Bench(driver, tmp_path)
        spec = await started(bench)
        for commit, becomes in ((False, WorkerState.RUNNING), (True, WorkerState.SAVED)):
            await driver.save(bench.folder, bench.image(str(commit)), hold=True)
            driver.lapse(bench.folder)
            assert await state(bench) is WorkerState.RUNNING
            await driver.finish(bench.folder, commit=commit)
            assert await state(bench) is becomes
        for commit, becomes in ((False, WorkerState.SAVED), (True, WorkerState.RUNNING)):
            await driver.restore(spec, bench.image("True"), hold=True)
            driver.lapse(bench.folder)
            assert await state(bench) is WorkerState.RUNNING
            await driver.finish(bench.folder, commit=commit)
            assert await state(bench) is becomes

    asyncio.run(scenario())


def test_the_fake_fails_in_either_phase_as_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        faults = FakeFaults(errors={"finish": [OnefleetError("no answer")]})
        driver = FakeDriver(faults=faults)
        bench = Bench(driver, tmp_path)
        await started(bench)
        await driver.save(bench.folder, bench.image(), hold=True)
        with pytest.raises(OnefleetError, match="no answer"):
            await driver.finish(bench.folder, commit=True)
        assert await state(bench) is WorkerState.SAVE_HELD
        await driver.finish(bench.folder, commit=True)
        assert await state(bench) is WorkerState.SAVED

    asyncio.run(scenario())
