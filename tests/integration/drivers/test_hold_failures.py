"""Holds that go wrong: nobody answers, or somebody is killed, at any point of them.

Whatever happens, a worker is running, or saved whole, or ended and says so; and from the image that
counts it goes on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from onefleet.domain.errors import Conflict, NotFound, OnefleetError
from onefleet.drivers import process_tree
from onefleet.drivers.base import WorkerSpec, WorkerState

from .conftest import Bench, gone, wait_for
from .gangs import ring
from .test_criu_saves import COUNTER, chain, ended, state

pytestmark = pytest.mark.criu


#: Lines of the counter, and how many it prints before it waits until it may finish.
LAST, FREE = 300, 294


async def started(criu: Bench, last: int = LAST, **more: object) -> WorkerSpec:
    spec = criu.spec(COUNTER, str(last), **more)
    await criu.driver.start(spec)
    criu.wait_lines(20)
    return spec


def goes_on(criu: Bench, seen: int) -> None:
    """It prints some lines more, if it has not printed all by now that it prints unasked."""
    criu.wait_lines(min(seen + 5, FREE))


async def becomes(criu: Bench, wanted: WorkerState) -> None:
    async with asyncio.timeout(60):
        while await state(criu) is not wanted:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("commit", [True, False])
def test_a_save_that_nobody_answers_runs_on_until_somebody_does(criu: Bench, commit: bool) -> None:
    async def scenario() -> None:
        driver = criu.driver
        spec = await started(criu, hold_ms=200)
        await driver.save(criu.folder, criu.image(), hold=True)
        stood = criu.out()
        await becomes(criu, WorkerState.RUNNING)
        status = await driver.status(criu.folder)
        assert "nobody said" in status.reason
        goes_on(criu, stood.count("\n"))
        await driver.finish(criu.folder, commit=commit)
        if commit:  # the others are given up: this one, too, and its later work is undone
            assert await state(criu) is WorkerState.SAVED
            assert gone(status.pid)
            await driver.restore(spec, criu.image())
            assert criu.out().startswith(stood)
        else:
            assert not criu.image().exists()
            with pytest.raises(NotFound):
                await driver.restore(criu.spec("", folder=criu.root / "x"), criu.image())
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(300)

    asyncio.run(scenario())


def test_a_commit_counts_for_a_worker_that_ran_on_to_its_end(criu: Bench) -> None:
    async def scenario() -> None:
        spec = await started(criu, 100, hold_ms=50)
        await criu.driver.save(criu.folder, criu.image(), hold=True)
        assert await ended(criu) == 3
        await criu.driver.finish(criu.folder, commit=True)
        assert await state(criu) is WorkerState.SAVED
        await criu.driver.restore(spec, criu.image())
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(100)

    asyncio.run(scenario())


@pytest.mark.parametrize("commit", [True, False])
def test_a_restore_that_nobody_answers_runs(criu: Bench, commit: bool) -> None:
    async def scenario() -> None:
        driver = criu.driver
        spec = await started(criu)
        await driver.save(criu.folder, criu.image())
        seen = criu.out()
        short = criu.spec(COUNTER, "300", hold_ms=50)
        await driver.restore(short, criu.image(), hold=True)
        await becomes(criu, WorkerState.RUNNING)
        goes_on(criu, seen.count("\n"))
        await driver.finish(criu.folder, commit=commit)
        if not commit:
            assert await state(criu) is WorkerState.SAVED
            await driver.restore(spec, criu.image())
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(300)

    asyncio.run(scenario())


@pytest.mark.parametrize("restores", [False, True])
def test_a_supervisor_that_is_killed_in_a_hold_leaves_the_image(
    criu: Bench, restores: bool
) -> None:
    async def scenario() -> None:
        driver = criu.driver
        spec = await started(criu)
        await driver.save(criu.folder, criu.image(), hold=not restores)
        if restores:
            await driver.restore(spec, criu.image(), hold=True)
        members = process_tree.tree(criu.supervisor())
        os.kill(criu.supervisor(), signal.SIGKILL)
        for pid in members:
            wait_for(lambda pid=pid: gone(pid), bool)
        await becomes(criu, WorkerState.SAVED)
        await driver.finish(criu.folder, commit=not restores)  # as it is
        with pytest.raises(Conflict):
            await driver.finish(criu.folder, commit=restores)
        await driver.restore(spec, criu.image())
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(300)

    asyncio.run(scenario())


@pytest.mark.parametrize("who", ["criu", "root"])
def test_a_worker_that_is_killed_in_a_hold_can_still_be_saved(criu: Bench, who: str) -> None:
    async def scenario() -> None:
        driver = criu.driver
        spec = await started(criu)
        await driver.save(criu.folder, criu.image(), hold=True)
        pid = (await driver.status(criu.folder)).pid
        if who == "criu":
            others = process_tree.children(criu.supervisor())
            pid = next(p for p in others if "dump" in cmdline(p))
        os.kill(pid, signal.SIGKILL)
        if who == "criu":
            await becomes(criu, WorkerState.ENDED)
            assert "criu was killed" in (await driver.status(criu.folder)).reason
        await driver.finish(criu.folder, commit=True)
        assert await state(criu) is WorkerState.SAVED
        await driver.restore(spec, criu.image())
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(300)

    asyncio.run(scenario())


def cmdline(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def test_a_gang_is_whole_although_one_supervisor_died_in_the_hold(
    criu: Bench, tmp_path: Path
) -> None:
    gang = ring(criu.driver, tmp_path / "gang", 2, 300)

    async def scenario() -> None:
        await gang.start()
        gang.goes_on(10)
        for rank in (0, 1):
            await criu.driver.save(gang.ranks[rank].folder, gang.image(rank, "image"), hold=True)
        os.kill(gang.ranks[1].supervisor(), signal.SIGKILL)
        await gang.finish(commit=True)
        assert set(await gang.states()) == {WorkerState.SAVED}
        await gang.restore("image")
        said = await gang.ended()
        assert said[0] == said[1]
        assert len(said[0]) == 301

    try:
        asyncio.run(scenario())
    finally:
        gang.close()


#: Kills the process that imports it before, or after, the n-th call of a function.
_SABOTAGE = """
import importlib, os, sys
where = os.environ.pop("TEST_KILL_AT", "")
if where and "onefleet.drivers.supervisor" in " ".join(sys.orig_argv):
    when, number, module, *path = where.split(":")
    owner = importlib.import_module(module)
    for name in path[:-1]: owner = getattr(owner, name)
    inner, left = getattr(owner, path[-1]), [int(number)]
    def saboteur(*args, **more):
        left[0] -= 1
        if left[0] == 0 and when == "before": os.kill(os.getpid(), 9)
        result = inner(*args, **more)
        if left[0] == 0: os.kill(os.getpid(), 9)
        return result
    setattr(owner, path[-1], saboteur)
"""
_D = "onefleet.drivers"
#: Every step of a save that changes something outside of the supervisor's memory. Its supervisor
#: has restored the worker before, with one criu.
_SAVE_POINTS = (
    f"before:1:{_D}.image:begin",
    f"after:1:{_D}.image:begin",
    f"after:1:{_D}.criu_commands:begin_dump",
    f"after:2:{_D}.criu_commands:Criu:wait_asked",
    f"after:1:{_D}.work_files:WorkFiles:pack",
    f"before:1:{_D}.image:commit",
    f"before:1:{_D}.image:sync_folder",
    f"after:1:{_D}.image:commit",
)
_FINISH_POINTS = (
    f"before:2:{_D}.criu_commands:Criu:answer",
    f"after:2:{_D}.criu_commands:Criu:answer",
    f"after:2:{_D}.criu_commands:Criu:finish",
    f"after:1:{_D}.cell_worker:CellWorker:let_go",
    f"before:1:{_D}.command_socket:CommandSocket:close",
)
_RESTORE_POINTS = (
    f"before:1:{_D}.cell_worker:Cell",
    f"after:1:{_D}.cell_worker:Cell",
    f"before:1:{_D}.work_files:WorkFiles:arrive",
    f"after:1:{_D}.work_files:WorkFiles:arrive",
    f"after:1:{_D}.criu_commands:begin_restore",
    f"after:1:{_D}.criu_commands:Criu:wait_asked",
    f"before:1:{_D}.criu_commands:Criu:answer",
    f"after:1:{_D}.criu_commands:Criu:answer",
    f"after:1:{_D}.criu_commands:Criu:finish",
)
#: Of the files that are replaced as a whole: a restore writes three, a save five after that.
_WRITES = tuple(
    f"{when}:{n}:{_D}.supervisor_files:write_json"
    for n in range(1, 9)
    for when in ("before", "after")
)


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the supervisors that are started from now on killed at a point; "" for none."""
    place = tmp_path / "sabotage"
    place.mkdir()
    (place / "sitecustomize.py").write_text(_SABOTAGE)
    monkeypatch.setenv("PYTHONPATH", str(place))
    return lambda point: monkeypatch.setenv("TEST_KILL_AT", point)


async def attempt(call: Awaitable[object]) -> None:
    with contextlib.suppress(OnefleetError):
        await call


async def settled(criu: Bench) -> WorkerState:
    """What the worker is, once it has no supervisor and no processes any more."""
    if await state(criu) is WorkerState.RUNNING:
        os.kill(criu.supervisor(), signal.SIGKILL)
    async with asyncio.timeout(60):
        while await state(criu) not in (WorkerState.SAVED, WorkerState.ENDED):
            await asyncio.sleep(0.005)
    return await state(criu)


async def recovers(criu: Bench, spec: WorkerSpec, names: tuple[str, ...]) -> None:
    """It goes on from the newest of its images that is whole, which those before it also are."""
    was = await settled(criu)
    whole = [name for name in names if (criu.image(name) / "manifest.json").exists()]
    assert whole[0] == names[0]
    if was is WorkerState.SAVED:
        assert whole[-1] == names[-1]
    await criu.driver.restore(spec, criu.image(whole[-1]))
    assert await ended(criu) == 3
    assert criu.out().splitlines() == chain(300)


@pytest.mark.parametrize(
    ("point", "commit"),
    [
        *((point, True) for point in (*_SAVE_POINTS, *_FINISH_POINTS, *_WRITES[6:])),
        *((point, False) for point in (*_FINISH_POINTS[:2], *_WRITES[12:])),
    ],
)
def test_killed_at_any_point_of_a_held_save_nothing_saved_is_lost(
    criu: Bench, point: str, commit: bool, sabotage: Callable[[str], None]
) -> None:
    async def scenario() -> None:
        driver = criu.driver
        spec = await started(criu)
        await driver.save(criu.folder, criu.image("kept"))
        seen = criu.out().count("\n")
        sabotage(point)
        await driver.restore(spec, criu.image("kept"))
        sabotage("")
        goes_on(criu, seen)
        await attempt(driver.save(criu.folder, criu.image("new"), hold=True))
        await attempt(driver.finish(criu.folder, commit=commit))
        await recovers(criu, spec, ("kept", "new") if commit else ("kept",))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("point", "commit"),
    [
        *((point, True) for point in (*_RESTORE_POINTS, *_WRITES[:8])),
        *((point, False) for point in _WRITES[6:8]),
    ],
)
def test_killed_at_any_point_of_a_held_restore_the_image_is_still_there(
    criu: Bench, point: str, commit: bool, sabotage: Callable[[str], None]
) -> None:
    async def scenario() -> None:
        driver = criu.driver
        spec = await started(criu)
        await driver.save(criu.folder, criu.image("kept"))
        sabotage(point)
        await attempt(driver.restore(spec, criu.image("kept"), hold=True))
        await attempt(driver.finish(criu.folder, commit=commit))
        sabotage("")
        await recovers(criu, spec, ("kept",))

    asyncio.run(scenario())
