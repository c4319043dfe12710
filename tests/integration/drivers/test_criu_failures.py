"""Saves and restores that go wrong: the worker runs on unharmed, or its end is told honestly."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.small_disk import small_disk

from onefleet.domain.errors import (
    Conflict,
    NotFound,
    OnefleetError,
    StorageFull,
    Unsupported,
    UpstreamFailed,
)
from onefleet.domain.fleet import CheckpointMode
from onefleet.drivers import process_tree
from onefleet.drivers.base import WorkerState
from onefleet.drivers.criu import CriuDriver
from onefleet.drivers.criu_setup import CriuTool
from onefleet.drivers.rights import rights

from .conftest import Bench, gone, wait_for
from .test_criu_saves import COUNTER, chain, ended, state

pytestmark = pytest.mark.criu


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    with small_disk(tmp_path / "small", "2m") as place:
        yield place


def test_a_full_disk_leaves_the_worker_running(criu: Bench, disk: Path) -> None:
    async def scenario() -> None:
        spec = criu.spec(COUNTER, "400")
        await criu.driver.start(spec)
        criu.wait_lines(20)
        with pytest.raises(StorageFull, match="no space left") as caught:
            await criu.driver.save(criu.folder, disk / "image")
        assert caught.value.hint
        assert list(disk.iterdir()) == []
        status = await criu.driver.status(criu.folder)
        assert status.state is WorkerState.RUNNING
        assert "nothing was lost" in status.reason
        await criu.driver.save(criu.folder, criu.image())  # elsewhere there is room
        await criu.driver.restore(spec, criu.image())
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(400)

    asyncio.run(scenario())


def test_a_worker_on_a_full_disk_is_still_told_right(criu: Bench, disk: Path) -> None:
    """Its own folder has no room for a new state file; the image goes elsewhere."""
    source = "import time\nwhile True: time.sleep(0.01)"

    async def scenario() -> None:
        criu.folder = disk / "w.0"
        spec = criu.spec(source)
        await criu.driver.start(spec)
        with pytest.raises(OSError, match="No space"), open(disk / "fill", "wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()
        await criu.driver.save(criu.folder, criu.image())
        assert await state(criu) is WorkerState.SAVED
        with pytest.raises(StorageFull):
            await criu.driver.restore(spec, criu.image())
        assert await state(criu) is WorkerState.SAVED
        (disk / "fill").unlink()
        await criu.driver.restore(spec, criu.image())
        assert await state(criu) is WorkerState.RUNNING
        await criu.driver.stop(criu.folder, 0)

    asyncio.run(scenario())


def test_what_cannot_be_saved_says_so_in_crius_words_and_runs_on(criu: Bench) -> None:
    source = """
        import ctypes, sys, time
        libc = ctypes.CDLL(None)
        libc.shmat.restype = ctypes.c_void_p
        where = libc.shmat(libc.shmget(0, 4096, 0o1600), None, 0)
        for n in range(100000): print(n, flush=True); time.sleep(0.002)
    """

    async def scenario() -> None:
        await criu.driver.start(criu.spec(source))
        criu.wait_lines(5)
        with pytest.raises(UpstreamFailed, match="could not save") as caught:
            await criu.driver.save(criu.folder, criu.image())
        assert "Error (criu/" in caught.value.why
        assert not criu.image().exists()
        assert await state(criu) is WorkerState.RUNNING
        seen = len(criu.out().splitlines())
        criu.wait_lines(seen + 20)
        await criu.driver.stop(criu.folder, 0)

    asyncio.run(scenario())


def replace_hook(criu: Bench, action: str) -> None:
    """What criu calls in the middle of a dump, with every process frozen, does something else."""
    hook = criu.folder / "hook"
    hook.write_text(f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0\n{action}\n')


def test_criu_killed_in_the_middle_ends_the_worker_honestly(criu: Bench) -> None:
    """Nobody knows what a half finished dump did to its memory: no wrong result is risked."""

    async def scenario() -> None:
        await criu.driver.start(criu.spec(COUNTER, "100000"))
        criu.wait_lines(5)
        members = process_tree.tree(criu.supervisor())
        replace_hook(criu, "kill -9 $PPID; sleep 0.2")
        with pytest.raises(UpstreamFailed, match="broken off") as caught:
            await criu.driver.save(criu.folder, criu.image())
        assert "killed by signal 9" in caught.value.why
        status = await criu.driver.status(criu.folder)
        assert status.state is WorkerState.ENDED
        assert "lost" in status.reason
        for pid in members:
            wait_for(lambda pid=pid: gone(pid), bool)
        assert sorted(p.name for p in criu.root.iterdir()) == ["work", "workers"]

    asyncio.run(scenario())


def test_a_hook_that_refuses_leaves_the_worker_running(criu: Bench) -> None:
    async def scenario() -> None:
        await criu.driver.start(criu.spec(COUNTER, "300"))
        criu.wait_lines(20)
        replace_hook(criu, "exit 1")
        with pytest.raises(UpstreamFailed, match="could not save"):
            await criu.driver.save(criu.folder, criu.image())
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(300)

    asyncio.run(scenario())


def test_a_supervisor_killed_in_a_save_leaves_neither_process_nor_image(criu: Bench) -> None:
    async def scenario() -> None:
        await criu.driver.start(criu.spec(COUNTER, "100000"))
        criu.wait_lines(5)
        members = process_tree.tree(criu.supervisor())
        replace_hook(criu, "touch /.onefleet/frozen; sleep 1000")
        save = asyncio.create_task(criu.driver.save(criu.folder, criu.image()))
        await asyncio.to_thread(wait_for, (criu.folder / "frozen").exists, bool)
        assert await state(criu) is WorkerState.SAVING
        os.kill(criu.supervisor(), signal.SIGKILL)
        with pytest.raises(Conflict, match="was not saved"):
            await save
        for pid in members:
            wait_for(lambda pid=pid: gone(pid), bool)
        assert await state(criu) is WorkerState.ENDED
        assert not criu.image().exists()
        with pytest.raises(NotFound):
            await criu.driver.restore(criu.spec(COUNTER, "1"), criu.image())

    asyncio.run(scenario())


def test_a_supervisor_killed_after_the_image_is_whole_loses_nothing(criu: Bench) -> None:
    async def scenario() -> None:
        spec = criu.spec(COUNTER, "200")
        await criu.driver.start(spec)
        criu.wait_lines(20)
        hook = (criu.folder / "hook").read_text()
        replace_hook(criu, hook.partition("esac\n")[2] + "touch /.onefleet/durable; sleep 1000")
        save = asyncio.create_task(criu.driver.save(criu.folder, criu.image()))
        await asyncio.to_thread(wait_for, (criu.folder / "durable").exists, bool)
        os.kill(criu.supervisor(), signal.SIGKILL)
        assert (await save).size_bytes > 0
        assert await state(criu) is WorkerState.SAVED
        await criu.driver.restore(spec, criu.image())
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(200)

    asyncio.run(scenario())


def test_torn_and_corrupt_images_are_told_and_stay_saved(criu: Bench) -> None:
    async def scenario() -> None:
        spec = criu.spec(COUNTER, "200")
        await criu.driver.start(spec)
        criu.wait_lines(20)
        supervisor = criu.supervisor()
        await criu.driver.save(criu.folder, criu.image())
        wait_for(lambda: gone(supervisor), bool)
        pages, manifest = criu.image() / "pages-1.img", criu.image() / "manifest.json"
        whole = {path: path.read_bytes() for path in (pages, manifest)}
        flipped = bytearray(whole[pages])
        flipped[len(flipped) // 2] ^= 1
        damages = [
            (pages, bytes(flipped), "checksum differs"),
            (pages, whole[pages][:-4096], "instead of"),
            (pages, None, "cannot be read"),
            (manifest, None, "no manifest"),
            (manifest, whole[manifest][:-10], "cannot be read"),
            (manifest, whole[manifest].replace(b'"cpu_ms":', b'"cpu_ms":1'), "own digest"),
        ]
        for path, content, why in damages:
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(UpstreamFailed, match="torn or corrupt") as caught:
                await criu.driver.restore(spec, criu.image())
            assert why in caught.value.why
            path.write_bytes(whole[path])
            assert await state(criu) is WorkerState.SAVED
        await criu.driver.restore(spec, criu.image())
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(200)

    asyncio.run(scenario())


def test_a_restore_that_criu_refuses_says_why_and_leaves_nothing(criu: Bench) -> None:
    """The log that the worker writes to is gone."""

    async def scenario() -> None:
        spec = criu.spec(COUNTER, "100000")
        await criu.driver.start(spec)
        criu.wait_lines(5)
        await criu.driver.save(criu.folder, criu.image())
        (criu.folder / "stdout").rename(criu.folder / "moved")
        with pytest.raises(UpstreamFailed, match="could not restore") as caught:
            await criu.driver.restore(spec, criu.image())
        assert "stdout" in caught.value.why
        assert await state(criu) is WorkerState.SAVED
        supervisor = criu.supervisor()
        wait_for(lambda: gone(supervisor), bool)
        (criu.folder / "moved").rename(criu.folder / "stdout")
        await criu.driver.restore(spec, criu.image())
        assert await state(criu) is WorkerState.RUNNING
        pid = (await criu.driver.status(criu.folder)).pid
        os.kill(pid, signal.SIGTERM)
        assert await ended(criu) == 128 + signal.SIGTERM

    asyncio.run(scenario())


def test_changed_software_is_named(criu: Bench, tmp_path: Path) -> None:
    async def scenario() -> None:
        program = tmp_path / "sleeper"
        program.write_bytes(Path("/bin/sleep").read_bytes())
        program.chmod(0o755)
        spec = criu.spec_of(str(program), "1000")
        await criu.driver.start(spec)
        await criu.driver.save(criu.folder, criu.image())
        program.write_bytes(program.read_bytes() + b"\0")
        with pytest.raises(UpstreamFailed, match="cannot be restored here") as caught:
            await criu.driver.restore(spec, criu.image())
        assert str(program) in caught.value.why

    asyncio.run(scenario())


@pytest.mark.skipif(rights().user_namespace, reason="only root's jobs may choose process ids")
def test_process_ids_where_criu_puts_its_own_do_not_collide(criu: Bench) -> None:
    source = """
        import os, time
        open("/proc/sys/kernel/ns_last_pid", "w").write("29999")
        children = [os.fork() for _ in range(3)]
        print(os.getpid(), flush=True)
        while True: time.sleep(0.01)
    """
    source = source.replace("[os.fork() for _ in range(3)]", "[os.fork() or time.sleep(1000)]")

    async def scenario() -> None:
        spec = criu.spec(source)
        await criu.driver.start(spec)
        assert criu.wait_lines(1) == ["100"]
        for number in range(2):
            await criu.driver.save(criu.folder, criu.image(f"image{number}"))
            await criu.driver.restore(spec, criu.image(f"image{number}"))
        pid = (await criu.driver.status(criu.folder)).pid
        child = process_tree.tree(pid)[1]
        status = Path(f"/proc/{child}/status").read_text().splitlines()
        ids = [line for line in status if line.startswith("NSpid")]
        assert ids[0].split()[2] == "30000"
        await criu.driver.stop(criu.folder, 0)

    asyncio.run(scenario())


def test_a_probe_of_a_broken_criu_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "criu"
    broken.write_text("#!/bin/sh\necho 'Error (criu/vdso.c:1): vdso: Unexpected' >&2\nexit 1\n")
    broken.chmod(0o755)
    driver = CriuDriver(lambda: CriuTool((str(broken),), "4.9", "test"))
    capability = asyncio.run(driver.probe())
    assert capability.mode is CheckpointMode.NONE
    assert "vdso: Unexpected" in capability.reason

    def find() -> CriuTool:
        raise Unsupported("there is none", why="not installed")

    capability = asyncio.run(CriuDriver(find).probe())
    assert capability.reason == "there is none: not installed"
    with pytest.raises(OnefleetError, match="there is none"):
        bench = Bench(CriuDriver(find), tmp_path)
        asyncio.run(bench.driver.start(bench.spec("")))


def test_a_good_probe_is_kept(can_criu: CriuTool) -> None:
    async def scenario() -> None:
        driver = CriuDriver(lambda: can_criu)
        first = await driver.probe()
        assert first.mode is CheckpointMode.CRIU
        assert "ms" in first.evidence
        assert await driver.probe() is first

    asyncio.run(scenario())
