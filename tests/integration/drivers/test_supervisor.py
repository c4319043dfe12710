"""Supervisors of both drivers: they outlive the agent, and nothing outlives them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from onefleet.domain.errors import InvalidRequest, OnefleetError
from onefleet.drivers import process_tree
from onefleet.drivers.base import WorkerState
from onefleet.drivers.supervised import SupervisedDriver

from .conftest import Bench, gone, wait_for

BOTH = ["local", pytest.param("criu", marks=pytest.mark.criu)]

#: A process with a child, which has a daemon.
FAMILY = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    os.wait()
    print("up", flush=True)
time.sleep(1000)
"""


@pytest.fixture(params=BOTH)
def bench(request: pytest.FixtureRequest) -> Bench:
    return request.getfixturevalue(request.param)


async def family(bench: Bench) -> list[int]:
    """Start a worker with a child and a daemon; the pids of all of them and their guards."""
    await bench.driver.start(bench.spec(FAMILY))
    bench.wait_lines(1)
    members = process_tree.tree(bench.supervisor())[1:]
    assert len(members) == 4  # the cell's or keeper's process, the root, its child, the daemon
    return members


async def ended(bench: Bench):
    async with asyncio.timeout(60):
        while (await bench.driver.status(bench.folder)).state is not WorkerState.ENDED:
            await asyncio.sleep(0.01)
    return await bench.driver.status(bench.folder)


def test_one_that_was_started_ahead_is_used_and_another_takes_its_place(bench: Bench) -> None:
    driver = bench.driver
    assert isinstance(driver, SupervisedDriver)

    def ahead() -> list[int]:
        return [pid for pid in process_tree.children(os.getpid()) if pid not in before]

    async def scenario() -> None:
        driver.keep_ready(True)
        driver.keep_ready(True)
        (first,) = ahead()
        await driver.start(bench.spec("print('up', flush=True); import time; time.sleep(1000)"))
        (second,) = ahead()
        assert second != first
        bench.wait_lines(1)
        os.kill(second, signal.SIGKILL)  # one that has died is no obstacle
        wait_for(lambda: process_tree.stat_fields(second)[:1], lambda state: state == ["Z"])
        await driver.stop(bench.folder, 0)
        assert (await driver.status(bench.folder)).exit_code is not None
        await driver.start(bench.spec("raise SystemExit(7)"))
        assert (await ended(bench)).exit_code == 7

    before = process_tree.children(os.getpid())
    asyncio.run(scenario())
    driver.keep_ready(False)
    assert ahead() == []


def test_one_that_was_started_ahead_ends_with_who_keeps_it() -> None:
    source = (
        "from onefleet.drivers.spare import Spare; it = Spare(); it.refill(); print(it.take().pid)"
    )
    said = subprocess.run([sys.executable, "-c", source], stdout=subprocess.PIPE, check=True)
    wait_for(lambda: gone(int(said.stdout)), bool)


def test_it_outlives_the_process_that_started_it(bench: Bench, request) -> None:
    """The agent is another process here, and is killed."""
    source = """
import asyncio, json, os, signal, sys
from pathlib import Path
from onefleet.drivers import base, criu, criu_setup, local
told = json.loads(sys.argv[1])
tool = criu_setup.CriuTool(tuple(told["criu"]), told["version"], "")
driver = criu.CriuDriver(lambda: tool) if told["criu"] else local.LocalDriver()
folder, work = Path(told["folder"]), Path(told["work"])
asyncio.run(driver.start(base.WorkerSpec(folder, tuple(told["command"]), work)))
os.kill(os.getpid(), signal.SIGKILL)
"""
    tool = request.getfixturevalue("can_criu") if bench.driver.name == "criu" else None
    spec = bench.spec("import time\nprint('up', flush=True)\nwhile True: time.sleep(0.01)")
    told = {
        "criu": tool.command if tool else (),
        "version": tool.version if tool else "",
        "folder": str(bench.folder),
        "work": str(bench.work),
        "command": spec.command,
    }
    done = subprocess.run([sys.executable, "-c", source, json.dumps(told)], check=False)
    assert done.returncode == -signal.SIGKILL
    bench.wait_lines(1)

    async def scenario() -> None:
        assert list(await bench.driver.adopt(bench.folder.parent)) == [bench.folder]
        status = await bench.driver.status(bench.folder)
        assert status.state is WorkerState.RUNNING
        await bench.driver.stop(bench.folder, 1000)
        assert gone(status.pid)

    asyncio.run(scenario())


def test_nothing_outlives_its_supervisor(bench: Bench) -> None:
    async def scenario() -> None:
        members = await family(bench)
        os.kill(bench.supervisor(), signal.SIGKILL)
        for pid in members:
            wait_for(lambda pid=pid: gone(pid), bool)
        status = await bench.driver.status(bench.folder)
        assert (status.state, status.exit_code, status.pid) == (WorkerState.ENDED, None, None)
        assert "supervisor" in status.reason and "killed" in status.reason
        await bench.driver.stop(bench.folder, 1000)  # nothing to stop: no error
        await bench.driver.start(bench.spec("raise SystemExit(0)"))
        assert (await ended(bench)).exit_code == 0

    asyncio.run(scenario())


def test_a_worker_ends_with_the_process_that_it_shall_not_outlive(bench: Bench) -> None:
    async def scenario() -> None:
        with subprocess.Popen(["sleep", "1000"]) as owner:
            await bench.driver.start(bench.spec(FAMILY, ends_with=owner.pid))
            bench.wait_lines(1)
            members = process_tree.tree(bench.supervisor())
            assert (await bench.driver.status(bench.folder)).state is WorkerState.RUNNING
            owner.kill()
        await ended(bench)
        for pid in members:
            wait_for(lambda pid=pid: gone(pid), bool)
        late = await asyncio.create_subprocess_exec("true")
        await late.wait()
        await bench.driver.start(bench.spec(FAMILY, ends_with=late.pid))
        await ended(bench)

    asyncio.run(scenario())


def test_the_death_of_the_guard_ends_the_worker_honestly(bench: Bench) -> None:
    async def scenario() -> None:
        members = await family(bench)
        os.kill(members[0], signal.SIGKILL)
        status = await ended(bench)
        assert status.exit_code is None  # not its own end
        assert "killed, and" in status.reason
        assert all(gone(pid) for pid in members)
        wait_for(lambda: gone(bench.supervisor()), bool)

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN + 3])
def test_a_signal_is_told_by_its_exit_code(bench: Bench, number: int) -> None:
    async def scenario() -> None:
        members = await family(bench)
        os.kill((await bench.driver.status(bench.folder)).pid, number)
        status = await ended(bench)
        assert status.exit_code == 128 + number
        assert status.reason.startswith("killed by ")
        assert all(gone(pid) for pid in members)  # its children end with it

    asyncio.run(scenario())


def test_a_stubborn_worker_is_killed_after_its_grace(bench: Bench) -> None:
    source = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.fork()
        print("up", flush=True)
        while True: time.sleep(0.01)
    """

    async def scenario() -> None:
        await bench.driver.start(bench.spec(source))
        bench.wait_lines(2)
        members = process_tree.tree(bench.supervisor())[1:]
        began = time.monotonic()
        await bench.driver.stop(bench.folder, 300)
        assert 0.3 <= time.monotonic() - began < 20
        assert all(gone(pid) for pid in members)
        status = await bench.driver.status(bench.folder)
        assert status.exit_code == 137
        assert "grace" in status.reason

    asyncio.run(scenario())


def test_children_get_the_grace_even_when_the_root_is_quick(bench: Bench) -> None:
    """`sh -c "...; python train.py"`: the shell ends at once, the program saves itself first."""
    source = """
        import os, signal, time
        def save(*_):
            time.sleep(0.3); open("saved", "w").close(); os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, save)
            print("up", flush=True)
        while True: time.sleep(0.01)
    """

    async def scenario() -> None:
        await bench.driver.start(bench.spec(source))
        bench.wait_lines(1)
        await bench.driver.stop(bench.folder, 20_000)
        assert (bench.work / "saved").exists()
        assert (await bench.driver.status(bench.folder)).exit_code == 143

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda work: ("not-a-program",), "does not exist"),
        (lambda work: (str(work / "nothing"),), "does not exist"),
        (lambda work: (str(work),), "may not be executed"),
        (lambda work: (_write(work / "plain", 0o644),), "may not be executed"),
        (lambda work: (_write(work / "garbage", 0o755),), "cannot be executed"),
        (lambda work: (), "empty"),
    ],
)
def test_a_bad_command_is_refused_and_leaves_nothing(bench: Bench, make, word: str) -> None:
    async def scenario() -> None:
        with pytest.raises(InvalidRequest, match=word):
            await bench.driver.start(bench.spec_of(*make(bench.work)))
        with contextlib.suppress(Exception):
            assert (await bench.driver.status(bench.folder)).state is WorkerState.ENDED
        if (bench.folder / "state.json").exists():
            wait_for(lambda: gone(bench.supervisor()), bool)

    asyncio.run(scenario())


def _write(path, mode: int) -> str:
    path.write_bytes(b"\x00\x01garbage")
    path.chmod(mode)
    return str(path)


def test_bad_cores_and_a_bad_work_folder_are_refused(bench: Bench) -> None:
    async def scenario() -> None:
        with pytest.raises(InvalidRequest, match="cores"):
            await bench.driver.start(bench.spec("", cpus=(4000,)))
        with pytest.raises(InvalidRequest, match="work folder"):
            await bench.driver.start(bench.spec("", work=bench.root / "none"))

    asyncio.run(scenario())


def test_many_agents_ask_at_once(bench: Bench) -> None:
    """Stops, saves and status calls that race: each ends, and what they say agrees."""

    async def scenario() -> None:
        spec = bench.spec("import time\nprint('up', flush=True)\nwhile True: time.sleep(0.01)")
        await bench.driver.start(spec)
        bench.wait_lines(1)
        saves = [bench.driver.save(bench.folder, bench.image()) for _ in range(3)]
        asked = await asyncio.gather(*saves, bench.driver.status(bench.folder))
        assert len({saved.size_bytes for saved in asked[:3]}) == 1
        restores = [bench.driver.restore(spec, bench.image()) for _ in range(2)]
        await asyncio.gather(*restores, return_exceptions=True)
        assert (await bench.driver.status(bench.folder)).state is WorkerState.RUNNING
        await asyncio.gather(*(bench.driver.stop(bench.folder, 2000) for _ in range(3)))
        assert (await bench.driver.status(bench.folder)).state is WorkerState.ENDED

    asyncio.run(scenario())


def test_rubbish_on_its_socket_does_no_harm(local: Bench) -> None:
    async def scenario() -> None:
        await local.driver.start(local.spec("import time\nwhile True: time.sleep(0.01)"))
        here = os.open(local.folder, os.O_RDONLY)
        for line in (b"\n", b"{}\n", b"[1]\n", b'{"op": "dance"}\n', b"\xff" * 70_000, b"half"):
            reader, writer = await asyncio.open_unix_connection(
                f"/proc/self/fd/{here}/supervisor.sock"
            )
            writer.write(line)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                answer = await reader.read()
                assert answer == b"" or b'"ok": false' in answer
            writer.close()
        os.close(here)
        assert (await local.driver.status(local.folder)).state is WorkerState.RUNNING
        await local.driver.stop(local.folder, 0)

    asyncio.run(scenario())


def test_it_starts_fast_and_stays_small(local: Bench) -> None:
    async def scenario() -> None:
        spec = local.spec("import time\nwhile True: time.sleep(1)")
        await local.driver.start(spec)
        pid = local.supervisor()
        fields = process_tree.stat_fields(pid)
        assert (int(fields[11]) + int(fields[12])) * 10 <= 300  # ms of CPU so far
        assert process_tree.memory_bytes([pid]) < 16 << 20
        await local.driver.stop(local.folder, 0)

    asyncio.run(scenario())


def test_a_torn_state_file_is_told(local: Bench) -> None:
    async def scenario() -> None:
        await local.driver.start(local.spec("raise SystemExit(0)"))
        await ended(local)
        (local.folder / "state.json").write_text('{"state": "run')
        status = await local.driver.status(local.folder)
        assert status.state is WorkerState.ENDED
        assert "cannot be read" in status.reason

    asyncio.run(scenario())


def test_a_cooperative_save_is_an_end_in_time_and_a_start(local: Bench) -> None:
    source = """
        import os, pathlib, signal, sys, time
        saved = pathlib.Path(os.environ["ONEFLEET_CHECKPOINT_DIR"]) / "n"
        n = int(saved.read_text()) if saved.exists() else 0
        def save(*_):
            saved.write_text(str(n)); sys.exit(1)
        signal.signal(signal.SIGTERM, save)
        while n < 120:
            n += 1
            print(n, flush=True)
            time.sleep(0.005)
    """

    async def scenario() -> None:
        spec = local.spec(source)
        await local.driver.start(spec)
        local.wait_lines(30)
        await local.driver.save(local.folder, local.image())
        status = await local.driver.status(local.folder)
        assert (status.state, status.reason) == (WorkerState.SAVED, "")
        await local.driver.restore(spec, local.image())
        assert (await ended(local)).exit_code == 0
        assert local.out().split() == [str(n) for n in range(1, 121)]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("before", "on_term", "low_ms", "high_ms"),
    [
        ("pass", "sys.exit(1)", 300, 60_000),  # it saves nothing: the whole run
        ("save()", "sys.exit(1)", 150, 60_000),  # it saved itself a while ago: what came after
        ("pass", "save(); sys.exit(1)", 0, 0),
        ("save()", "save(); sys.exit(1)", 0, 0),
    ],
)
def test_a_cooperative_save_tells_what_the_program_did_not_save(
    local: Bench, before: str, on_term: str, low_ms: int, high_ms: int
) -> None:
    source = f"""
        import os, pathlib, signal, sys, time
        folder = pathlib.Path(os.environ["ONEFLEET_CHECKPOINT_DIR"]) / "deep"
        def save():
            folder.mkdir(exist_ok=True)
            (folder / "n").write_text("1")
        def stop(*_):
            {on_term}
        signal.signal(signal.SIGTERM, stop)
        time.sleep(0.15)
        {before}
        time.sleep(0.15)
        print("up", flush=True)
        while True: time.sleep(0.01)
    """

    async def scenario() -> None:
        spec = local.spec(source)
        await local.driver.start(spec)
        local.wait_lines(1)
        saved = await local.driver.save(local.folder, local.image())
        assert low_ms <= saved.lost_ms <= high_ms
        assert (await local.driver.status(local.folder)).lost_ms == saved.lost_ms
        await local.driver.restore(spec, local.image())
        local.wait_lines(2)
        again = await local.driver.save(local.folder, local.image("second"))
        assert low_ms <= again.lost_ms <= high_ms

    asyncio.run(scenario())


def test_a_program_that_saved_itself_in_vain_has_not_succeeded(local: Bench) -> None:
    source = """
        import os, signal, sys, time
        def save(number, _):
            os.rename(sys.argv[1], sys.argv[1] + ".gone")
            open(sys.argv[1], "w").close()  # nothing can be kept there any more
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        print("up", flush=True)
        while True: time.sleep(0.01)
    """

    async def scenario() -> None:
        images = local.root / "images"
        images.mkdir()
        await local.driver.start(local.spec(source, str(images)))
        local.wait_lines(1)
        with pytest.raises(OnefleetError):
            await local.driver.save(local.folder, images / "1")
        status = await local.driver.status(local.folder)
        assert (status.state, status.exit_code) == (WorkerState.ENDED, None), status

    asyncio.run(scenario())


@pytest.mark.parametrize(("grace_ms", "limit_ms"), [(200, 0), (200, 60_000), (60_000, 200)])
def test_lost_work_of_a_cooperative_save_is_told(
    local: Bench, grace_ms: int, limit_ms: int
) -> None:
    source = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("up", flush=True)
        while True: time.sleep(0.01)
    """

    async def scenario() -> None:
        spec = local.spec(source, grace_ms=grace_ms)
        await local.driver.start(spec)
        local.wait_lines(1)
        pid = (await local.driver.status(local.folder)).pid
        await local.driver.save(local.folder, local.image(), limit_ms=limit_ms)
        status = await local.driver.status(local.folder)
        assert status.state is WorkerState.SAVED
        assert "0.2 s" in status.reason and "lost" in status.reason
        assert gone(pid)
        await local.driver.restore(spec, local.image())
        await local.driver.stop(local.folder, 0)

    asyncio.run(scenario())
