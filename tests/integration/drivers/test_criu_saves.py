"""What a transparent save must carry: each kind of program goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from onefleet.domain.errors import Conflict, TimedOut
from onefleet.drivers import clocks, process_tree
from onefleet.drivers.base import WorkerState
from onefleet.drivers.rights import rights

from .conftest import Bench, gone, wait_for

pytestmark = pytest.mark.criu
NEEDS_ROOT = pytest.mark.skipif(
    rights().user_namespace, reason="what it saves is a limit of ordinary users"
)

#: Prints a chain of numbers; only an unbroken run prints each of them. Near its end it waits until
#: it may finish, so that no save on a slow machine comes too late.
COUNTER = """
    import os, sys, time
    last = int(sys.argv[1])
    x = 1
    for n in range(1, last + 1):
        while n == last - 5 and not os.path.exists("finish"): time.sleep(0.002)
        x = (x * 6364136223846793005 + n) % 2**64
        print(n, x, flush=True)
        time.sleep(0.002)
    raise SystemExit(3)
"""


def chain(last: int) -> list[str]:
    x, lines = 1, []
    for n in range(1, last + 1):
        x = (x * 6364136223846793005 + n) % 2**64
        lines.append(f"{n} {x}")
    return lines


async def state(bench: Bench) -> WorkerState:
    return (await bench.driver.status(bench.folder)).state


async def ended(bench: Bench) -> int | None:
    """Let it finish; its exit code."""
    (bench.work / "finish").touch()
    async with asyncio.timeout(60):
        while await state(bench) is not WorkerState.ENDED:
            await asyncio.sleep(0.01)
    return (await bench.driver.status(bench.folder)).exit_code


async def cycle(bench: Bench, spec, name: str) -> None:
    await bench.driver.save(bench.folder, bench.image(name))
    await bench.driver.restore(spec, bench.image(name))


def test_output_and_exit_code_are_those_of_an_undisturbed_run(criu: Bench) -> None:
    async def scenario() -> None:
        spec = criu.spec(COUNTER, "400")
        await criu.driver.start(spec)
        for number in range(3):
            criu.wait_lines(60 * (number + 1))
            await cycle(criu, spec, f"image{number}")
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(400)
        assert criu.err() == ""

    asyncio.run(scenario())


def test_memory_is_free_after_a_save(criu: Bench) -> None:
    source = """
        import time
        held = bytearray(b"x") * (64 << 20)
        print("up", flush=True)
        while True: time.sleep(0.01)
    """

    async def scenario() -> None:
        spec = criu.spec(source)
        await criu.driver.start(spec)
        criu.wait_lines(1)
        before = await criu.driver.status(criu.folder)
        assert before.memory_bytes > 64 << 20
        members = process_tree.tree(before.pid)
        supervisor = criu.supervisor()
        saved = await criu.driver.save(criu.folder, criu.image())
        assert all(gone(pid) for pid in members)
        assert process_tree.memory_bytes(members) == 0
        assert saved.size_bytes > 64 << 20
        wait_for(lambda: gone(supervisor), bool)
        manifest = json.loads((criu.image() / "manifest.json").read_text())["manifest"]
        assert manifest["memory_bytes"] > 64 << 20
        assert all(len(entry["xxh3"]) == 32 for entry in manifest["files"].values())
        await criu.driver.restore(spec, criu.image())
        after = await criu.driver.status(criu.folder)
        assert after.memory_bytes > 64 << 20
        await criu.driver.stop(criu.folder, 0)

    asyncio.run(scenario())


def test_a_tree_with_pipes_and_threads_goes_on(criu: Bench) -> None:
    source = """
        import os, subprocess, sys, threading, time
        adds = "import sys; t = 0\\nfor l in sys.stdin: t += int(l); print(t, flush=True)"
        child = subprocess.Popen([sys.executable, "-I", "-c", adds], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True)
        ticks = [0, 0]
        def tick(which):
            while True:
                ticks[which] += 1
                time.sleep(0.001)
        for which in (0, 1):
            threading.Thread(target=tick, args=(which,), daemon=True).start()
        for n in range(300):
            while n == 295 and not os.path.exists("finish"): time.sleep(0.002)
            before = list(ticks)
            child.stdin.write(f"{n}\\n"); child.stdin.flush()
            print(n, child.stdout.readline().strip(), flush=True)
            while ticks[0] == before[0] or ticks[1] == before[1]: time.sleep(0.0005)
        child.stdin.close()
        raise SystemExit(child.wait())
    """

    async def scenario() -> None:
        spec = criu.spec(source)
        await criu.driver.start(spec)
        for number in range(2):
            criu.wait_lines(50 * (number + 1))
            await cycle(criu, spec, f"image{number}")
        assert await ended(criu) == 0
        total = 0
        for n, line in enumerate(criu.out().splitlines()):
            total += n
            assert line == f"{n} {total}"
        assert n == 299

    asyncio.run(scenario())


def test_sockets_locks_and_shared_memory_survive(criu: Bench) -> None:
    source = """
        import fcntl, os, socket, sqlite3, time
        from multiprocessing.shared_memory import SharedMemory
        server = socket.create_server(("127.0.0.1", 7000))
        near = socket.create_connection(("127.0.0.1", 7000))
        far, _ = server.accept()
        lock = open("lock", "w"); fcntl.flock(lock, fcntl.LOCK_EX)
        db = sqlite3.connect("db"); db.execute("pragma journal_mode=wal")
        db.execute("create table t (n int)")
        shared = SharedMemory(create=True, size=4096, name="psm_carried")
        for n in range(150):
            while n == 145 and not os.path.exists("finish"): time.sleep(0.002)
            near.sendall(bytes([n])); assert far.recv(1) == bytes([n])
            db.execute("insert into t values (?)", (n,)); db.commit()
            shared.buf[0] = n
            again = SharedMemory(name="psm_carried"); assert again.buf[0] == n; again.close()
            print(n, db.execute("select sum(n) from t").fetchone()[0], flush=True)
            time.sleep(0.002)
        shared.unlink()
    """

    async def scenario() -> None:
        spec = criu.spec(source)
        await criu.driver.start(spec)
        for number in range(2):
            criu.wait_lines(40 * (number + 1))
            await criu.driver.save(criu.folder, criu.image(f"image{number}"))
            assert not Path("/dev/shm/psm_carried").exists()
            await criu.driver.restore(spec, criu.image(f"image{number}"))
        assert await ended(criu) == 0, criu.err()
        lines = criu.out().splitlines()
        assert lines == [f"{n} {n * (n + 1) // 2}" for n in range(150)]

    asyncio.run(scenario())


@NEEDS_ROOT
def test_worker_processes_with_their_queues_survive(criu: Bench) -> None:
    source = """
        import multiprocessing as mp, os, time
        with mp.get_context("fork").Pool(2) as pool:
            for n in range(100):
                while n == 95 and not os.path.exists("finish"): time.sleep(0.002)
                print(n, pool.apply(pow, (n, 2)), flush=True)
                time.sleep(0.002)
    """

    async def scenario() -> None:
        spec = criu.spec(source)
        await criu.driver.start(spec)
        criu.wait_lines(40)
        await cycle(criu, spec, "image")
        assert await ended(criu) == 0, criu.err()
        assert criu.out().splitlines() == [f"{n} {n * n}" for n in range(100)]

    asyncio.run(scenario())


def test_its_terminals_come_back_whoever_has_others_meanwhile(criu: Bench) -> None:
    """A terminal is known by a number, which on the machine may be somebody else's by then."""
    source = """
        import os, pty
        pid, master = pty.fork()
        if pid == 0:
            os.execvp("cat", ["cat"])
        for n in range(100_000):
            os.write(master, b"x\\n")
            seen = b""
            while seen.count(b"x") < 2:  # its echo, and what cat says
                seen += os.read(master, 100)
            if n % 100 == 0 and os.path.exists("finish"):
                break
            if n < 3:
                print(n, flush=True)
    """

    async def scenario() -> None:
        spec = criu.spec(source)
        await criu.driver.start(spec)
        criu.wait_lines(3)
        await criu.driver.save(criu.folder, criu.image())
        others = [end for _ in range(4) for end in os.openpty()]
        try:
            await criu.driver.restore(spec, criu.image())
        finally:
            for end in others:
                os.close(end)
        (criu.work / "finish").touch()
        assert await ended(criu) == 0, criu.err()

    asyncio.run(scenario())


def test_orphans_stay_in_the_tree(criu: Bench) -> None:
    """A daemon whose session has no leader any more, saved and restored twice."""
    source = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                n = 0
                while True:
                    n += 1
                    with open("new", "w") as file: file.write(f"{n} {os.getppid()}")
                    os.replace("new", "orphan")
                    time.sleep(0.002)
            os._exit(0)
        os.wait()
        print("up", flush=True)
        while True: time.sleep(0.01)
    """

    async def scenario() -> None:
        orphan = criu.work / "orphan"

        def told() -> list[int]:
            return [int(w) for w in orphan.read_text().split()] if orphan.exists() else [0, 0]

        spec = criu.spec(source)
        await criu.driver.start(spec)
        wait_for(told, lambda seen: seen[1] == 100)
        for number in range(2):
            await criu.driver.save(criu.folder, criu.image(f"image{number}"))
            stood = told()
            await asyncio.sleep(0.05)
            assert told() == stood
            await criu.driver.restore(spec, criu.image(f"image{number}"))
            further = stood[0] + 5
            assert wait_for(told, lambda seen, n=further: seen[0] > n)[1] == 100
        assert len(process_tree.tree((await criu.driver.status(criu.folder)).pid)) == 2
        await criu.driver.stop(criu.folder, 0)
        stood = told()
        await asyncio.sleep(0.05)
        assert told() == stood

    asyncio.run(scenario())


def test_its_clocks_stand_still_while_it_is_saved(criu: Bench) -> None:
    """Else it would sleep for days where the machine was up for less than the one before."""
    source = """
        import time
        while True: print(time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                          flush=True); time.sleep(0.002)
    """

    async def scenario() -> None:
        spec = criu.spec(source)
        await criu.driver.start(spec)
        criu.wait_lines(3)
        away = 0
        for number in range(2):
            await criu.driver.save(criu.folder, criu.image(f"image{number}"))
            left = time.monotonic_ns()
            seen = len(criu.out().splitlines())
            await asyncio.sleep(0.2)
            away += time.monotonic_ns() - left
            await criu.driver.restore(spec, criu.image(f"image{number}"))
            criu.wait_lines(seen + 3)
            pid = (await criu.driver.status(criu.folder)).pid
            behind = {name: -ahead for name, ahead in clocks.offsets(pid).items()}
            assert behind["monotonic"] >= away
            assert behind["boottime"] >= away
        rows = [[int(word) for word in line.split()] for line in criu.wait_lines(1)]
        assert rows == sorted(rows)
        assert rows[-1][0] <= time.monotonic_ns() - away
        await criu.driver.stop(criu.folder, 0)

    asyncio.run(scenario())


def test_a_growing_file_has_no_lines_of_the_future(criu: Bench) -> None:
    async def scenario() -> None:
        spec = criu.spec(COUNTER, "300")
        await criu.driver.start(spec)
        criu.wait_lines(50)
        saved = await criu.driver.save(criu.folder, criu.image())
        sizes = dict(saved.files)
        assert sizes["/.onefleet/stdout"] == len(criu.out())
        strange = "by somebody else\n"
        with open(criu.folder / "stdout", "a") as log:
            log.write(strange)
        await criu.driver.restore(spec, criu.image())
        assert await ended(criu) == 3
        # A first resume cuts nothing, not even where the line of the job itself was half written.
        assert criu.out().count(strange) == 1
        assert criu.out().replace(strange, "").splitlines() == chain(300)
        await criu.driver.restore(spec, criu.image())  # back in time: its future is cut off
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(300)

    asyncio.run(scenario())


def test_it_comes_back_with_the_priority_that_it_had(criu: Bench) -> None:
    source = "import os; os.nice(3); print('up', flush=True); import time; time.sleep(1000)"

    async def scenario() -> None:
        await criu.driver.start(criu.spec(source))
        criu.wait_lines(1)
        await criu.driver.save(criu.folder, criu.image(), leave_running=True)
        pids = [criu.supervisor(), (await criu.driver.status(criu.folder)).pid]
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids] == [0, 3]
        await criu.driver.save(criu.folder, criu.image("next"))
        await criu.driver.restore(criu.spec(source), criu.image("next"))
        pids = [criu.supervisor(), (await criu.driver.status(criu.folder)).pid]
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids] == [0, 3]
        await criu.driver.stop(criu.folder, 0)

    asyncio.run(scenario())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_it_comes_back_on_other_cores(criu: Bench) -> None:
    source = """
        import os, threading, time
        threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()
        os.sched_setaffinity(0, os.sched_getaffinity(0))
        print("up", flush=True)
        while True: time.sleep(0.01)
    """

    def cores(pid: int) -> list[set[int]]:
        return [os.sched_getaffinity(t) for t in process_tree.threads(pid)]

    async def scenario() -> None:
        first, second = sorted(os.sched_getaffinity(0))[:2]
        await criu.driver.start(criu.spec(source, cpus=(first,)))
        criu.wait_lines(1)
        pid = (await criu.driver.status(criu.folder)).pid
        assert cores(pid) == [{first}, {first}]
        await criu.driver.save(criu.folder, criu.image())
        await criu.driver.restore(criu.spec(source, cpus=(second,)), criu.image())
        pid = (await criu.driver.status(criu.folder)).pid
        assert cores(pid) == [{second}, {second}]
        await criu.driver.stop(criu.folder, 0)

    asyncio.run(scenario())


def test_the_worker_sees_its_cell(criu: Bench) -> None:
    source = """
        import ctypes, os, socket
        libc = ctypes.CDLL(None, use_errno=True)
        ring = libc.syscall(425, 1, 0), ctypes.get_errno()
        socket.create_server(("127.0.0.1", 80)).close()
        seen = sorted(int(p) for p in os.listdir("/proc") if p.isdigit())
        status = dict(l.split(":", 1) for l in open("/proc/self/status"))
        personality = hex(int(open("/proc/self/personality").read(), 16))
        print(os.getpid(), os.getsid(0), seen, os.getcwd(), ring, os.environ["PYTHONHASHSEED"],
              os.readlink("/proc/self/fd/0"), sorted(os.listdir("/dev/shm")),
              status["NoNewPrivs"].strip(), personality, sorted(os.listdir("/proc/self/fd"))[:4],
              os.path.exists("/usr/bin/env"), os.getuid(), os.getgid(), sep="|")
    """

    # There is no such call (ENOSYS); or there is, and its arguments are bad (EFAULT).
    ring = "(-1, 38)" if rights().denies_io_uring else "(-1, 14)"

    async def scenario() -> None:
        await criu.driver.start(criu.spec(source))
        assert await ended(criu) == 0, criu.err()
        assert criu.out().strip().split("|") == [
            *("100", "100", "[1, 100]", "/job", ring, "0", "/dev/null", "[]", "1", "0x40000"),
            *("['0', '1', '2', '3']", "True", str(os.getuid()), str(os.getgid())),
        ]

    asyncio.run(scenario())


def test_with_the_machines_network_it_is_saved_as_well(criu: Bench) -> None:
    async def scenario() -> None:
        spec = criu.spec(COUNTER, "200", network="host")
        await criu.driver.start(spec)
        pid = (await criu.driver.status(criu.folder)).pid
        assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net")
        criu.wait_lines(50)
        await cycle(criu, spec, "image")
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(200)

    asyncio.run(scenario())


def test_a_worker_moves_to_another_folder(criu: Bench) -> None:
    """As on another machine: the image names no path outside its cell."""

    async def scenario() -> None:
        await criu.driver.start(criu.spec(COUNTER, "200"))
        criu.wait_lines(50)
        await criu.driver.save(criu.folder, criu.image())
        other = criu.root / "workers" / ("moved." + "x" * 120)
        other.mkdir()
        (criu.folder / "stdout").rename(other / "stdout")
        (criu.folder / "stderr").rename(other / "stderr")
        work = criu.root / "elsewhere"
        criu.work.rename(work)
        criu.folder, criu.work = other, work
        await criu.driver.restore(criu.spec(COUNTER, "200"), criu.image())
        assert await ended(criu) == 3
        assert criu.out().splitlines() == chain(200)

    asyncio.run(scenario())


def test_processes_outside_the_tree_refuse_a_save(criu: Bench) -> None:
    """A process that enters the cell from outside would be lost by a save."""

    async def scenario() -> None:
        await criu.driver.start(criu.spec(COUNTER, "100000"))
        criu.wait_lines(1)
        pid = (await criu.driver.status(criu.folder)).pid
        user = ("-U", "--preserve-credentials") if rights().user_namespace else ()
        guest = await asyncio.create_subprocess_exec(
            *("nsenter", "-t", str(pid), *user, "-p", "-m", "sleep", "1000")
        )
        wait_for(lambda: process_tree.children(guest.pid), bool)
        with pytest.raises(Conflict, match="1 of its processes"):
            await criu.driver.save(criu.folder, criu.image())
        assert not criu.image().exists()
        assert await state(criu) is WorkerState.RUNNING
        await criu.driver.stop(criu.folder, 0)
        assert await guest.wait() != 0  # it ends with the cell

    asyncio.run(scenario())


def test_a_save_that_takes_longer_than_it_may_ends_the_worker(criu: Bench) -> None:
    async def scenario() -> None:
        bench, driver = criu, criu.driver
        await driver.start(bench.spec(COUNTER, "4000"))
        bench.wait_lines(10)
        with pytest.raises(TimedOut, match=r"within 0\.001 s"):
            await driver.save(bench.folder, bench.image(), limit_ms=1)
        status = await driver.status(bench.folder)
        assert (status.state, status.exit_code) == (WorkerState.ENDED, None)
        assert "since its last image is lost" in status.reason
        assert not bench.image().exists()
        lines = bench.out()
        await asyncio.sleep(0.1)
        assert bench.out() == lines

    asyncio.run(scenario())
