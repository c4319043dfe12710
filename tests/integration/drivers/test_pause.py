"""A worker waits for its turn: it stands still, and nobody else need know."""

from __future__ import annotations

import asyncio
import os

import pytest

from onefleet.domain.errors import Conflict
from onefleet.drivers.base import WorkerState

from .conftest import Bench

LONG_MS = 600_000
#: Counts; ends with code 5 when it is asked to end.
COUNTS = """
    import signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    n = 0
    while True:
        n += 1
        print(n, flush=True)
        time.sleep(0.005)
"""


@pytest.fixture(params=["local", pytest.param("criu", marks=pytest.mark.criu)])
def bench(request: pytest.FixtureRequest) -> Bench:
    return request.getfixturevalue(request.param)


async def waits(bench: Bench) -> None:
    assert (await bench.driver.status(bench.folder)).state is WorkerState.RUNNING
    before = bench.out()
    await asyncio.sleep(0.1)
    assert bench.out() == before


def goes_on(bench: Bench) -> None:
    lines = bench.wait_lines(bench.out().count("\n") + 5)
    assert [int(line) for line in lines] == list(range(1, len(lines) + 1))


def test_it_stands_still_until_it_is_told_or_its_limit_is_over(bench: Bench) -> None:
    async def scenario() -> None:
        driver, folder = bench.driver, bench.folder
        await driver.start(bench.spec(COUNTS))
        goes_on(bench)
        await driver.pause(folder, LONG_MS)
        await waits(bench)
        await driver.pause(folder, LONG_MS)  # it is asked again
        await waits(bench)
        await driver.pause(folder, 0)
        goes_on(bench)
        await driver.pause(folder, 0)
        goes_on(bench)
        await driver.pause(folder, LONG_MS)
        await driver.pause(folder, 300)  # whoever asked is not heard of again
        await waits(bench)
        goes_on(bench)
        await driver.stop(folder, 0)
        with pytest.raises(Conflict):
            await driver.pause(folder, LONG_MS)

    asyncio.run(scenario())


def test_whatever_else_is_asked_of_it_ends_the_pause(bench: Bench) -> None:
    async def scenario() -> None:
        driver, folder = bench.driver, bench.folder
        await driver.start(bench.spec(COUNTS))
        goes_on(bench)
        await driver.pause(folder, LONG_MS)
        await driver.pin(folder, sorted(os.sched_getaffinity(0))[:1])
        goes_on(bench)
        await driver.pause(folder, LONG_MS)
        await driver.freeze(folder)
        assert (await driver.status(folder)).state is WorkerState.FROZEN
        with pytest.raises(Conflict):
            await driver.pause(folder, 0)  # it is not to end that
        assert (await driver.status(folder)).state is WorkerState.FROZEN
        await driver.thaw(folder)
        goes_on(bench)
        await driver.pause(folder, LONG_MS)
        await driver.stop(folder, 60_000)
        assert (await driver.status(folder)).exit_code == 5

    asyncio.run(scenario())


@pytest.mark.criu
def test_it_is_saved_from_a_pause_as_at_any_time(criu: Bench) -> None:
    async def scenario() -> None:
        driver, folder = criu.driver, criu.folder
        spec = criu.spec(COUNTS)
        await driver.start(spec)
        goes_on(criu)
        await driver.pause(folder, LONG_MS)
        await driver.save(folder, criu.image("first"), leave_running=True)
        goes_on(criu)
        await driver.pause(folder, LONG_MS)
        await driver.save(folder, criu.image("second"))
        await driver.restore(spec, criu.image("second"))
        goes_on(criu)
        await driver.pause(folder, LONG_MS)
        await driver.save(folder, criu.image("third"), hold=True)
        await driver.finish(folder, commit=False)
        goes_on(criu)
        await driver.stop(folder, 0)

    asyncio.run(scenario())


def test_who_ends_while_it_waits_has_ended(local: Bench) -> None:
    async def scenario() -> None:
        await local.driver.start(local.spec(COUNTS))
        goes_on(local)
        await local.driver.pause(local.folder, LONG_MS)
        pid = (await local.driver.status(local.folder)).pid
        assert pid is not None
        os.kill(pid, 9)
        async with asyncio.timeout(30):
            while (await local.driver.status(local.folder)).state is not WorkerState.ENDED:
                await asyncio.sleep(0.005)
        assert (await local.driver.status(local.folder)).exit_code == 137

    asyncio.run(scenario())
