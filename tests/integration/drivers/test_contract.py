"""One contract for every driver: the fake, plain processes, and cells."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from onefleet.domain.errors import Conflict, InvalidRequest, NotFound, OnefleetError, Unsupported
from onefleet.domain.fleet import CheckpointMode
from onefleet.drivers.base import WorkerState
from onefleet.drivers.fake import FakeDriver, FakeFaults

MISSING = "no-such-program-anywhere"

#: Ends with the code that the file `end` in its work folder holds.
UNTIL_TOLD = """
    import os, time
    print("up", flush=True)
    while not (os.path.exists("end") and (said := open("end").read())):
        time.sleep(0.005)
    raise SystemExit(int(said))
"""


@pytest.fixture(params=["fake", "local", pytest.param("criu", marks=pytest.mark.criu)])
def bench(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "fake":
        from .conftest import Bench

        return Bench(FakeDriver(faults=FakeFaults(missing=frozenset([MISSING]))), tmp_path)
    return request.getfixturevalue(request.param)


def finish(bench, code: int) -> None:
    if isinstance(bench.driver, FakeDriver):
        bench.driver.end(bench.folder, code)
    else:
        (bench.work / "end").write_text(str(code))


def until(look: Callable[[], Awaitable[object]], wanted: object):
    async def poll() -> None:
        async with asyncio.timeout(60):
            while await look() is not wanted:
                await asyncio.sleep(0.005)

    return poll()


def test_runs_until_its_command_ends(bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        await driver.start(bench.spec(UNTIL_TOLD))
        status = await driver.status(bench.folder)
        assert status.state is WorkerState.RUNNING
        assert status.pid is not None
        assert status.exit_code is None
        finish(bench, 7)

        async def state() -> WorkerState:
            return (await driver.status(bench.folder)).state

        await until(state, WorkerState.ENDED)
        status = await driver.status(bench.folder)
        assert status.exit_code == 7
        assert status.reason == "exited with code 7"
        assert status.pid is None

    asyncio.run(scenario())


def test_starting_twice_is_starting_once(bench) -> None:
    async def scenario() -> None:
        spec = bench.spec(UNTIL_TOLD)
        await bench.driver.start(spec)
        first = (await bench.driver.status(bench.folder)).pid
        await bench.driver.start(spec)
        assert (await bench.driver.status(bench.folder)).pid == first
        await bench.driver.stop(bench.folder, 0)

    asyncio.run(scenario())


def test_a_command_that_does_not_exist_is_the_callers_fault(bench) -> None:
    async def scenario() -> None:
        with pytest.raises(InvalidRequest, match=MISSING):
            await bench.driver.start(bench.spec_of(MISSING))

    asyncio.run(scenario())


def test_stop_ends_it_and_may_be_called_again(bench) -> None:
    async def scenario() -> None:
        await bench.driver.start(bench.spec(UNTIL_TOLD))
        await bench.driver.stop(bench.folder, 5000)
        status = await bench.driver.status(bench.folder)
        assert status.state is WorkerState.ENDED
        assert status.exit_code == 143
        assert status.memory_bytes == 0
        assert "stopped" in status.reason
        await bench.driver.stop(bench.folder, 5000)
        assert await bench.driver.status(bench.folder) == status

    asyncio.run(scenario())


def test_save_frees_it_and_restore_brings_it_back(bench) -> None:
    async def scenario() -> None:
        driver, image = bench.driver, bench.image()
        spec = bench.spec(UNTIL_TOLD)
        await driver.start(spec)
        saved = await driver.save(bench.folder, image)
        assert saved.folder == image
        status = await driver.status(bench.folder)
        assert status.state is WorkerState.SAVED
        assert (status.pid, status.memory_bytes) == (None, 0)
        assert status.image_bytes == saved.size_bytes
        assert (await driver.save(bench.folder, image)).size_bytes == saved.size_bytes
        await driver.restore(spec, image)
        assert (await driver.status(bench.folder)).state is WorkerState.RUNNING
        await driver.restore(spec, image)  # once more: it runs, so nothing happens
        with pytest.raises(Conflict):
            await driver.save(bench.folder, image)  # never over an image
        await driver.save(bench.folder, bench.image("second"))
        await driver.restore(spec, image)  # the first image is still there
        await driver.stop(bench.folder, 0)

    asyncio.run(scenario())


def test_who_waits_for_its_turn_is_running_and_nobody_else_can_be_told_to(bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        with pytest.raises(NotFound):
            await driver.pause(bench.folder, 1_000)
        await driver.start(bench.spec(UNTIL_TOLD))
        for limit_ms in (60_000, 60_000, 0, 0):
            await driver.pause(bench.folder, limit_ms)
            assert (await driver.status(bench.folder)).state is WorkerState.RUNNING
        await driver.freeze(bench.folder)
        with pytest.raises(Conflict):
            await driver.pause(bench.folder, 0)
        await driver.thaw(bench.folder)
        await driver.pause(bench.folder, 60_000)
        await driver.stop(bench.folder, 0)
        with pytest.raises(Conflict):
            await driver.pause(bench.folder, 1_000)

    asyncio.run(scenario())


def test_who_has_no_gpu_is_never_off_one(bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        for operation in (driver.off, driver.on, driver.is_off):
            with pytest.raises(NotFound):
                await operation(bench.folder)
        await driver.start(bench.spec(UNTIL_TOLD, takes_turns=True))
        assert not await driver.is_off(bench.folder)
        with contextlib.suppress(Unsupported):  # by whom nobody is taken off anything
            await driver.off(bench.folder)
            await driver.on(bench.folder)
        assert (await driver.status(bench.folder)).state is WorkerState.RUNNING
        assert not await driver.is_off(bench.folder)
        await driver.stop(bench.folder, 0)
        with pytest.raises(Conflict):
            await driver.is_off(bench.folder)

    asyncio.run(scenario())


def test_what_is_not_there_is_not_found(bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        for operation in (
            driver.status(bench.folder),
            driver.stop(bench.folder, 0),
            driver.save(bench.folder, bench.image()),
            driver.restore(bench.spec(UNTIL_TOLD), bench.image("none")),
        ):
            with pytest.raises(NotFound):
                await operation

    asyncio.run(scenario())


def test_an_ended_worker_cannot_be_saved_but_started_again(bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        await driver.start(bench.spec(UNTIL_TOLD))
        await driver.stop(bench.folder, 0)
        with pytest.raises(Conflict):
            await driver.save(bench.folder, bench.image())
        assert not bench.image().exists()
        await driver.start(bench.spec(UNTIL_TOLD))
        assert (await driver.status(bench.folder)).state is WorkerState.RUNNING
        await driver.stop(bench.folder, 0)

    asyncio.run(scenario())


def test_workers_are_found_by_their_folders(bench) -> None:
    async def scenario() -> None:
        root = bench.folder.parent
        assert list(await bench.driver.adopt(root)) == []
        spec = bench.spec(UNTIL_TOLD)
        await bench.driver.start(spec)
        assert list(await bench.driver.adopt(root)) == [bench.folder]
        await bench.driver.stop(bench.folder, 0)
        assert list(await bench.driver.adopt(root)) == [bench.folder]

    asyncio.run(scenario())


def test_the_probe_says_how_it_saves_and_why(bench) -> None:
    capability = asyncio.run(bench.driver.probe())
    assert capability.mode in (CheckpointMode.CRIU, CheckpointMode.COOPERATIVE)
    assert (capability.reason == "") == (capability.mode is CheckpointMode.CRIU)
    assert capability.evidence


def test_the_fake_fails_as_told_and_runs_on(tmp_path: Path) -> None:
    from .conftest import Bench

    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def scenario() -> None:
        faults = FakeFaults(errors={"save": [OnefleetError("disk full")]})
        driver = FakeDriver(faults=faults, takes_ms={"save": 250}, sleep=sleep)
        bench = Bench(driver, tmp_path)
        await driver.start(bench.spec(UNTIL_TOLD))
        with pytest.raises(OnefleetError, match="disk full"):
            await driver.save(bench.folder, bench.image())
        assert (await driver.status(bench.folder)).state is WorkerState.RUNNING
        assert (await driver.save(bench.folder, bench.image())).frozen_ms == 250
        assert slept == [0, 0.25, 0.25]

    asyncio.run(scenario())
