"""A worker's files, logs, checkpoints and cores, wherever and whenever it is brought back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onefleet.domain.errors import TimedOut, Unsupported, UpstreamFailed
from onefleet.drivers import process_tree, work_files
from onefleet.drivers.base import WorkerState
from onefleet.drivers.freezer import Freezer

from .conftest import Bench, gone, wait_for
from .test_criu_saves import ended

#: Keeps a table that it opens anew each time, a file that it holds open and, if told to, a
#: database, and notices if one of them is not what it left. (SQLite refuses to go on with a file
#: whose number has changed, as it has on another machine.)
KEEPS = """
    import os, sqlite3, sys, time
    base = sqlite3.connect("base" if "base" in sys.argv else ":memory:")
    base.execute("create table t (n int)")
    own = open("own", "w+")
    for n in range(1, 301):
        while n == 298 and not os.path.exists("finish"): time.sleep(0.002)
        base.execute("insert into t values (?)", (n,)); base.commit()
        with open("table.csv", "a+") as table:
            table.write(f"{n}\\n"); table.seek(0)
            assert table.read().split() == [str(i) for i in range(1, n + 1)]
        own.seek(0); assert own.read() == "x" * (n - 1); own.write("x"); own.flush()
        assert base.execute("select count(*), sum(n) from t").fetchone() == (n, n * (n + 1) // 2)
        print(n, flush=True)
        time.sleep(0.002)
"""


def move(bench: Bench, name: str) -> None:
    """From here on it lives in folders that hold nothing of it, as on another machine."""
    bench.folder = bench.root / name / "w.0"
    bench.work = bench.root / name / "work"
    bench.work.mkdir(parents=True)


async def done(criu: Bench) -> None:
    assert await ended(criu) == 0, criu.err()
    assert criu.out().split() == [str(n) for n in range(1, 301)]


@pytest.mark.criu
def test_its_files_go_back_in_time_with_it(criu: Bench) -> None:
    """It is killed after a checkpoint; and it is brought back from the last image but one."""

    async def scenario() -> None:
        driver = criu.driver
        spec = criu.spec(KEEPS, "base")
        await driver.start(spec)
        criu.wait_lines(30)
        await driver.save(criu.folder, criu.image("kept"), leave_running=True)
        criu.wait_lines(60)
        os.kill(criu.supervisor(), signal.SIGKILL)
        async with asyncio.timeout(60):
            while (await driver.status(criu.folder)).state is not WorkerState.ENDED:
                await asyncio.sleep(0.005)
        await driver.restore(spec, criu.image("kept"))
        criu.wait_lines(90)
        await driver.save(criu.folder, criu.image("last"))
        await driver.restore(spec, criu.image("kept"))
        await done(criu)

    asyncio.run(scenario())


@pytest.mark.criu
def test_its_files_move_with_it(criu: Bench) -> None:
    """To another place, and back to the first, where older ones are."""

    async def scenario() -> None:
        driver, first = criu.driver, (criu.folder, criu.work)
        spec = criu.spec(KEEPS)
        await driver.start(spec)
        criu.wait_lines(30)
        await driver.save(criu.folder, criu.image("first"))
        move(criu, "elsewhere")
        await driver.restore(criu.spec(KEEPS), criu.image("first"))
        criu.wait_lines(60)
        await driver.save(criu.folder, criu.image("second"))
        criu.folder, criu.work = first
        await driver.restore(spec, criu.image("second"))
        await done(criu)

    asyncio.run(scenario())


@pytest.mark.criu
def test_too_many_files_keep_it_where_it_is(criu: Bench) -> None:
    source = f"""
        import os, time
        with open("big", "wb") as big: big.truncate({work_files.LIMIT_BYTES + 1})
        n = 0
        while True: n += 1; print(n, flush=True); time.sleep(0.002)
    """

    async def scenario() -> None:
        spec = criu.spec(source)
        await criu.driver.start(spec)
        criu.wait_lines(3)
        await criu.driver.save(criu.folder, criu.image())
        home = criu.folder, criu.work
        move(criu, "elsewhere")
        with pytest.raises(UpstreamFailed, match="only where it was made"):
            await criu.driver.restore(criu.spec(source), criu.image())
        criu.folder, criu.work = home
        await criu.driver.restore(spec, criu.image())
        await criu.driver.stop(criu.folder, 0)

    asyncio.run(scenario())


#: Saves itself on either signal, into its own folder.
SAVES_ITSELF = """
    import os, pathlib, signal, sys, time
    own = pathlib.Path(os.environ["ONEFLEET_CHECKPOINT_DIR"]) / "n"
    n = int(own.read_text()) if own.exists() else 0
    def save(number, _):
        with open(own.with_name("new"), "w") as file:
            file.write(str(n)); file.flush(); time.sleep(0.5)
        own.with_name("new").replace(own)
        if number == signal.SIGTERM: sys.exit(0)
    for number in (signal.SIGTERM, signal.SIGUSR1): signal.signal(number, save)
    while True:
        n += 1; print(n, flush=True); time.sleep(0.005)
"""


def test_a_program_that_saves_itself_moves_with_what_it_saved(local: Bench) -> None:
    async def scenario() -> None:
        driver = local.driver
        await driver.start(local.spec(SAVES_ITSELF))
        local.wait_lines(20)
        saved = await driver.save(local.folder, local.image("kept"), leave_running=True)
        assert saved.lost_ms == 0
        kept = int((local.folder / "checkpoint" / "n").read_text())
        assert kept >= 20
        local.wait_lines(local.out().count("\n") + 20)
        await driver.save(local.folder, local.image("last"))
        last = int((local.folder / "checkpoint" / "n").read_text())
        for name, number in (("kept", kept), ("last", last)):
            move(local, name)
            await driver.restore(local.spec(SAVES_ITSELF), local.image(name))
            lines = local.wait_lines(local.out().count("\n") + 3)
            assert str(number + 1) in lines
            await driver.stop(local.folder, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("handler", "kind", "why"),
    [
        ("None", Unsupported, "none of its processes handles SIGUSR1"),
        ("signal.signal(signal.SIGUSR1, lambda *_: None)", TimedOut, "wrote no checkpoint"),
    ],
)
def test_a_program_that_does_not_save_itself_on_request_runs_on(
    local: Bench, handler: str, kind: type[Exception], why: str
) -> None:
    source = f"""
        import signal, time
        {handler}
        n = 0
        while True: n += 1; print(n, flush=True); time.sleep(0.005)
    """

    async def scenario() -> None:
        await local.driver.start(local.spec(source, grace_ms=400))
        local.wait_lines(3)
        with pytest.raises(kind) as caught:
            await local.driver.save(local.folder, local.image(), leave_running=True)
        assert why in caught.value.why
        status = await local.driver.status(local.folder)
        assert status.state is WorkerState.RUNNING
        assert not local.image().exists()
        local.wait_lines(local.out().count("\n") + 3)
        await local.driver.stop(local.folder, 0)

    asyncio.run(scenario())


@pytest.mark.criu
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_all_its_threads_are_bound_to_other_cores(criu: Bench) -> None:
    source = """
        import os, threading, time
        for _ in range(3): threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()
        if os.fork() == 0: time.sleep(1000)
        print("up", flush=True)
        while True: time.sleep(0.01)
    """

    async def scenario() -> None:
        first, second = sorted(os.sched_getaffinity(0))[:2]
        await criu.driver.start(criu.spec(source, cpus=(first,)))
        criu.wait_lines(1)
        await criu.driver.pin(criu.folder, [second])
        pid = (await criu.driver.status(criu.folder)).pid
        bound = [
            os.sched_getaffinity(thread)
            for process in process_tree.tree(pid)
            for thread in process_tree.threads(process)
        ]
        assert bound == [{second}] * 5
        with pytest.raises(Exception, match="cannot run on cores"):
            await criu.driver.pin(criu.folder, [4000])
        await criu.driver.stop(criu.folder, 0)

    asyncio.run(scenario())


TREE = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time\\nwhile True: time.sleep(0.001)"])
asleep = subprocess.Popen(["sleep", "1000"]); os.kill(asleep.pid, signal.SIGSTOP)
print(child.pid, asleep.pid, flush=True)
while True: time.sleep(0.001)
"""


@pytest.mark.parametrize("grouped", [True, False])
def test_a_tree_is_frozen_whole_and_thawed_as_it_was(grouped: bool) -> None:
    freezer = Freezer()
    if grouped and not freezer.group:
        pytest.skip("no control groups of version 2 can be made here")
    if not grouped:
        freezer.remove()
        freezer.group = ""
    root = subprocess.Popen(
        [sys.executable, "-c", TREE], stdout=subprocess.PIPE, preexec_fn=freezer.enter
    )
    try:
        assert root.stdout is not None
        with root.stdout:
            child, asleep = (int(word) for word in root.stdout.readline().split())
        wait_for(lambda: process_tree.stat_fields(asleep)[0], lambda state: state == "T")

        def pids() -> list[int]:
            return process_tree.tree(root.pid)

        def used(pid: int) -> int:
            return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])

        for _ in range(3):
            freezer.freeze(pids)
            before = [used(pid) for pid in (root.pid, child)]
            time.sleep(0.05)
            assert [used(pid) for pid in (root.pid, child)] == before
            freezer.thaw(pids)
            wait_for(lambda b=before: used(child) > b[1] and used(root.pid) > b[0], bool)
            assert process_tree.stat_fields(asleep)[0] == "T"  # it stood still by itself
        freezer.freeze(pids)
    finally:
        everybody = process_tree.tree(root.pid)
        for pid in everybody:  # whoever is frozen can still be ended
            os.kill(pid, signal.SIGKILL)
        root.wait()
    wait_for(lambda: all(gone(pid) for pid in everybody), bool)
    freezer.remove()
    assert not freezer.group or not Path(freezer.group).exists()
