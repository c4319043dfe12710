"""Gangs for real: ranks in cells of their own, saved and moved while they talk to each other."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onefleet.domain.errors import Conflict, OnefleetError, UpstreamFailed
from onefleet.drivers import process_tree
from onefleet.drivers.base import WorkerState
from onefleet.drivers.criu import CriuDriver
from onefleet.drivers.criu_setup import CriuTool

from .conftest import gone, supervisor_state, wait_for
from .gangs import Gang, ring

pytestmark = pytest.mark.criu

STEPS = 400


@pytest.fixture
def driver(can_criu: CriuTool) -> CriuDriver:
    return CriuDriver(lambda: can_criu)


@pytest.fixture
def gang(driver: CriuDriver, tmp_path: Path) -> Iterator[Gang]:
    gang = ring(driver, tmp_path, 2, STEPS)
    yield gang
    gang.close()


@pytest.fixture(scope="module")
def undisturbed(can_criu: CriuTool, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a rank of `gang` prints when nobody disturbs it; all print the same."""

    async def scenario() -> list[str]:
        alone = ring(CriuDriver(lambda: can_criu), tmp_path_factory.mktemp("alone"), 2, STEPS)
        try:
            await alone.start()
            said = await alone.ended()
        finally:
            alone.close()
        assert said[0] == said[1]
        assert len(said[0]) == STEPS + 1
        return said[0]

    return asyncio.run(scenario())


def test_a_gang_goes_on_bit_by_bit(gang: Gang, undisturbed: list[str]) -> None:
    async def scenario() -> None:
        await gang.start()
        for number in range(3):
            gang.goes_on(20)
            saved = await gang.save(f"image{number}")
            assert all(0 < one.frozen_ms < 60_000 for one in saved)
            assert set(await gang.states()) == {WorkerState.SAVED}
            await gang.restore(f"image{number}")
        gang.goes_on(5)
        assert await gang.ended() == [undisturbed, undisturbed]

    asyncio.run(scenario())


def test_a_gang_that_was_frozen_first_loses_no_packet(gang: Gang, undisturbed: list[str]) -> None:
    """Its kernels have acknowledged all that was under way: nobody waits for a repetition."""

    async def scenario() -> None:
        await gang.start()
        gang.goes_on(20)
        await gang.each(lambda r: gang.driver.freeze(gang.ranks[r].folder))
        await gang.save("image")
        await gang.restore("image")
        gang.goes_on(5)
        assert await gang.ended() == [undisturbed, undisturbed]

    asyncio.run(scenario())


def test_one_rank_moves_while_the_other_waits(gang: Gang, undisturbed: list[str]) -> None:
    """To a folder that holds nothing of it, and back to the first."""

    async def scenario() -> None:
        driver = gang.driver
        await gang.start()
        for number, where in enumerate(("elsewhere", "further")):
            gang.goes_on(10)
            await driver.save(gang.ranks[1].folder, image := gang.image(1, f"image{number}"))
            other = (await driver.status(gang.ranks[0].folder)).pid
            gang.move(1, where)
            await driver.restore(gang.spec(1), image)
            gang.goes_on(10)
            assert (await driver.status(gang.ranks[0].folder)).pid == other
        assert await gang.ended() == [undisturbed, undisturbed]

    asyncio.run(scenario())


def test_a_checkpoint_leaves_the_gang_running_and_takes_it_back(
    gang: Gang, undisturbed: list[str]
) -> None:
    """It is killed later, and goes on from the checkpoint, elsewhere."""

    async def scenario() -> None:
        await gang.start()
        gang.goes_on(20)
        await gang.save("kept", leave_running=True)
        assert set(await gang.states()) == {WorkerState.RUNNING}
        images = [gang.image(rank, "kept") for rank in (0, 1)]
        gang.goes_on(20)
        for bench in gang.ranks:
            os.kill(bench.supervisor(), signal.SIGKILL)
        for rank in (0, 1):
            gang.move(rank, "elsewhere")
        await gang.each(lambda r: gang.driver.restore(gang.spec(r), images[r], hold=True))
        await gang.finish(commit=True)
        assert await gang.ended() == [undisturbed, undisturbed]

    asyncio.run(scenario())


def test_if_one_cannot_be_saved_all_run_on(gang: Gang, undisturbed: list[str]) -> None:
    async def scenario() -> None:
        driver = gang.driver
        await gang.start()
        gang.goes_on(10)
        gang.image(1, "image").mkdir()  # never over an image
        await driver.save(gang.ranks[0].folder, gang.image(0, "image"), hold=True)
        with pytest.raises(Conflict, match="already exists"):
            await driver.save(gang.ranks[1].folder, gang.image(1, "image"), hold=True)
        await driver.finish(gang.ranks[0].folder, commit=False)
        assert not gang.image(0, "image").exists()
        gang.goes_on(10)
        assert await gang.ended() == [undisturbed, undisturbed]

    asyncio.run(scenario())


def test_if_one_cannot_be_restored_none_has_moved(gang: Gang, undisturbed: list[str]) -> None:
    async def scenario() -> None:
        driver = gang.driver
        await gang.start()
        gang.goes_on(10)
        await gang.save("image")
        for number in range(2):
            await driver.restore(gang.spec(0), gang.image(0, "image"), hold=True)
            if number == 0:
                with pytest.raises(OnefleetError):
                    await driver.restore(gang.spec(1), gang.image(1, "none"), hold=True)
                await driver.finish(gang.ranks[0].folder, commit=False)
        await driver.restore(gang.spec(1), gang.image(1, "image"), hold=True)
        await gang.finish(commit=True)
        gang.goes_on(5)
        assert await gang.ended() == [undisturbed, undisturbed]

    asyncio.run(scenario())


def test_what_cannot_be_saved_leaves_the_whole_gang_running(
    driver: CriuDriver, tmp_path: Path
) -> None:
    """Rank 1 holds System V shared memory."""
    source = """
import ctypes, os, time
if os.environ["RANK"] == "1":
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmat(libc.shmget(0, 4096, 0o1600), None, 0)
for n in range(100000): print(n, flush=True); time.sleep(0.002)
"""
    gang = Gang(driver, tmp_path, 2, (sys.executable, "-I", "-c", source))

    async def scenario() -> None:
        await gang.start()
        gang.goes_on(5)
        saves = [
            driver.save(bench.folder, gang.image(rank, "image"), hold=True)
            for rank, bench in enumerate(gang.ranks)
        ]
        said = await asyncio.gather(*saves, return_exceptions=True)
        assert isinstance(said[1], UpstreamFailed)
        assert "Error (criu/" in said[1].why
        await driver.finish(gang.ranks[0].folder, commit=False)
        assert set(await gang.states()) == {WorkerState.RUNNING}
        gang.goes_on(10)
        assert not any(gang.image(rank, "image").exists() for rank in (0, 1))
        await gang.stop()

    try:
        asyncio.run(scenario())
    finally:
        gang.close()


WORLD = """
import os, pathlib, socket, sys
sys.stdout.write(repr((
    socket.gethostname(), socket.gethostbyname("rank1"), sorted(os.listdir("/sys/class/net")),
    pathlib.Path("/proc/net/arp").read_text().count("0x6"), os.environ["MASTER_ADDR"],
)))
sys.stdout.flush()
import time; time.sleep(1000)
"""


def test_gangs_see_themselves_and_nobody_else(driver: CriuDriver, tmp_path: Path) -> None:
    gangs = [Gang(driver, tmp_path / name, 3, (sys.executable, "-I", "-c", WORLD)) for name in "ab"]

    async def scenario() -> None:
        for gang in gangs:
            await gang.start()
        for gang in gangs:
            for rank, bench in enumerate(gang.ranks):
                seen = wait_for(bench.out, lambda text: text.endswith(")"))
                host, address, devices, neighbours, master = eval(seen)
                assert (host, address, master) == (f"rank{rank}", "10.77.0.3", "10.77.0.2")
                assert {"eth0", "lo"} <= set(devices)
                assert neighbours == 2
        pids = [supervisor_state(bench.folder)["supervisor"] for g in gangs for bench in g.ranks]
        networks = [os.readlink(f"/proc/{pid}/ns/net") for pid in pids]
        assert len(set(networks[:3])) == len(set(networks[3:])) == 1
        assert len({networks[0], networks[3], os.readlink("/proc/self/ns/net")}) == 3
        ping = await reachable(gangs[0], 0, "10.77.0.4"), await reachable(gangs[1], 0, "10.77.0.9")
        assert ping == (True, False)
        for gang in gangs:
            await gang.stop()

    try:
        asyncio.run(scenario())
    finally:
        for gang in gangs:
            gang.close()


async def reachable(gang: Gang, rank: int, address: str) -> bool:
    """Whether somebody answers there (that nobody listens is an answer, too)."""
    pid = (await gang.driver.status(gang.ranks[rank].folder)).pid
    code = (
        "import socket,sys\ns=socket.socket(); s.settimeout(0.5)\n"
        f"try: s.connect(({address!r}, 9))\nexcept ConnectionRefusedError: print('yes')\n"
        "except OSError: print('no')"
    )
    done = await asyncio.create_subprocess_exec(
        *("nsenter", "-t", str(pid), "-n", sys.executable, "-c", code),
        stdout=asyncio.subprocess.PIPE,
    )
    return (await done.communicate())[0].strip() == b"yes"


def test_nothing_is_left_of_a_gang_whose_supervisors_were_killed(gang: Gang) -> None:
    async def scenario() -> None:
        await gang.start()
        supervisors = [bench.supervisor() for bench in gang.ranks]
        members = [pid for s in supervisors for pid in process_tree.tree(s)]
        # Held open, so that its number is not given to a namespace made meanwhile.
        network = os.open(f"/proc/{supervisors[0]}/ns/net", os.O_RDONLY)
        meeting = [
            p for p in Path("/run/onefleet-gangs").iterdir() if str(supervisors[0]) in p.read_text()
        ]
        assert len(meeting) == 1
        for pid in supervisors:
            os.kill(pid, signal.SIGKILL)
        for pid in members:
            wait_for(lambda pid=pid: gone(pid), bool)
        alive = [p for p in Path("/proc").iterdir() if p.name.isdecimal()]
        assert os.fstat(network).st_ino not in [inode(p / "ns/net") for p in alive]
        os.close(network)
        await gang.start()  # the same gang again; the file of the dead is found out
        gang.goes_on(3)
        assert {pid for pid, _ in eval(meeting[0].read_text())} == {
            bench.supervisor() for bench in gang.ranks
        }
        await gang.stop()
        wait_for(meeting[0].exists, lambda there: not there)

    asyncio.run(scenario())


def inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def test_a_place_that_is_not_the_images_is_refused(gang: Gang) -> None:
    async def scenario() -> None:
        await gang.start()
        gang.goes_on(3)
        await gang.save("image")
        with pytest.raises(Conflict, match="place") as caught:
            await gang.driver.restore(gang.spec(0), gang.image(1, "image"))
        assert "rank 1 of 2" in caught.value.why

    asyncio.run(scenario())
