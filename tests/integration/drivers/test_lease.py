"""No job runs on when the lease of its node is over, whether there is an agent or not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from onefleet.drivers import lease
from onefleet.drivers.base import WorkerState

from .conftest import Bench

#: Counts; saves itself when it is asked to, and takes its time for that where it is told to.
COUNTS = """
    import os, pathlib, signal, sys, time
    own = pathlib.Path(os.environ["ONEFLEET_CHECKPOINT_DIR"]) / "n"
    n = int(own.read_text()) if own.exists() else 0
    def save(number, _):
        own.write_text(str(n))
        time.sleep(float(sys.argv[1]))
        sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    while True:
        n += 1
        print(n, flush=True)
        time.sleep(0.005)
"""


@pytest.fixture(params=["local", pytest.param("criu", marks=pytest.mark.criu)])
def bench(request: pytest.FixtureRequest) -> Bench:
    return request.getfixturevalue(request.param)


def lasts(bench: Bench, ms: int) -> Path:
    """The node's lease lasts for so long from now on."""
    path = bench.root / "lease"
    lease.write(str(path), lease.now_ms() + ms)
    return path


async def becomes(bench: Bench, *wanted: WorkerState) -> None:
    async with asyncio.timeout(60):
        while (await bench.driver.status(bench.folder)).state not in wanted:
            await asyncio.sleep(0.005)


async def stands(bench: Bench) -> None:
    assert (await bench.driver.status(bench.folder)).state is WorkerState.FROZEN
    before = bench.out()
    await asyncio.sleep(0.1)
    assert bench.out() == before


def goes_on(bench: Bench) -> None:
    lines = bench.wait_lines(bench.out().count("\n") + 10)
    assert [int(line) for line in lines] == list(range(1, len(lines) + 1))


@contextlib.asynccontextmanager
async def renewed(bench: Bench) -> AsyncIterator[Path]:
    """A short lease that is renewed inside the block, however long things take there."""

    async def renews() -> None:
        while True:
            lasts(bench, 2_500)
            await asyncio.sleep(0.2)

    renewing = asyncio.create_task(renews())
    try:
        await asyncio.sleep(0)
        yield bench.root / "lease"
    finally:
        renewing.cancel()


def test_it_stands_still_until_there_is_a_lease_again(bench: Bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        async with renewed(bench) as path:
            await driver.start(bench.spec(COUNTS, "0", lease=path))
            await asyncio.sleep(3.0)  # longer than the lease that it began with
            assert (await driver.status(bench.folder)).state is WorkerState.RUNNING
            await asyncio.to_thread(goes_on, bench)
        await becomes(bench, WorkerState.FROZEN)
        await stands(bench)
        assert "lease" in (await driver.status(bench.folder)).reason
        await driver.thaw(bench.folder)  # without a lease that does not last
        await becomes(bench, WorkerState.FROZEN)
        lasts(bench, 60_000)
        await asyncio.sleep(0.1)
        await stands(bench)  # nobody has said that it is still wanted here
        await driver.thaw(bench.folder)
        goes_on(bench)
        assert (await driver.status(bench.folder)).reason == ""
        await driver.stop(bench.folder, 0)

    asyncio.run(scenario())


def test_one_that_starts_or_comes_back_without_a_lease_stands_still(bench: Bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        spec = bench.spec(COUNTS, "0", lease=lasts(bench, 60_000))
        await driver.start(spec)
        goes_on(bench)
        await driver.save(bench.folder, bench.image())
        lasts(bench, 0)
        await driver.restore(spec, bench.image())
        await becomes(bench, WorkerState.FROZEN)
        await stands(bench)
        await driver.stop(bench.folder, 0)
        os.unlink(bench.root / "lease")
        await driver.start(spec)
        await becomes(bench, WorkerState.FROZEN)
        await driver.stop(bench.folder, 0)

    asyncio.run(scenario())


def test_a_hold_that_nobody_ends_does_not_run_on_without_a_lease(bench: Bench) -> None:
    async def scenario() -> None:
        driver = bench.driver
        spec = bench.spec(COUNTS, "0", lease=lasts(bench, 5_000), hold_ms=300)
        await driver.start(spec)
        goes_on(bench)
        await driver.save(bench.folder, bench.image(), hold=True)
        await asyncio.sleep(5.0)
        await becomes(bench, WorkerState.FROZEN)
        await stands(bench)
        await driver.finish(bench.folder, commit=True)
        lasts(bench, 60_000)
        await driver.restore(spec, bench.image())
        assert (await driver.status(bench.folder)).state is WorkerState.RUNNING
        await driver.stop(bench.folder, 0)

    asyncio.run(scenario())


def test_a_program_that_saves_itself_has_time_until_the_lease_is_over(local: Bench) -> None:
    async def scenario() -> None:
        async with renewed(local) as path:
            await local.driver.start(local.spec(COUNTS, "60", lease=path, grace_ms=60_000))
            await asyncio.to_thread(goes_on, local)
        began = time.monotonic()
        await local.driver.save(local.folder, local.image())
        assert time.monotonic() - began < 30
        assert (await local.driver.status(local.folder)).state is WorkerState.SAVED

    asyncio.run(scenario())


def test_a_stop_takes_no_longer_than_the_lease(local: Bench) -> None:
    async def scenario() -> None:
        async with renewed(local) as path:
            await local.driver.start(local.spec(COUNTS, "60", lease=path))
            await asyncio.to_thread(goes_on, local)
        began = time.monotonic()
        await local.driver.stop(local.folder, 60_000)
        assert time.monotonic() - began < 30

    asyncio.run(scenario())


def test_a_lease_that_cannot_be_read_is_over(tmp_path: Path) -> None:
    path = str(tmp_path / "lease")
    assert lease.read(path) == 0
    lease.write(path, 123)
    assert lease.read(path) == 123
    lease.write(path, 10**15)
    assert lease.read(path) == 10**15
    (tmp_path / "lease").write_text("1 2\n")
    assert lease.read(path) == 0
    (tmp_path / "lease").write_text("nonsense")
    assert lease.Lease(path).left_s == 0
    assert lease.Lease(None).left_s is None
