"""Gangs for driver tests: programs whose ranks talk all the time, and a handle on their workers."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from onefleet.domain.gang import GangPlace, environment, threads
from onefleet.drivers.base import Driver, SavedImage, WorkerSpec, WorkerState

from .conftest import Bench

#: Trains, in its way: all ranks sum their gradients over a ring of TCP connections each step, and
#: every bit of what they print depends on all that was ever sent. The last steps wait for a file,
#: so that no save on a slow machine comes too late.
RING = textwrap.dedent("""
    import array, hashlib, os, socket, sys, time
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    last, size, pause = int(sys.argv[1]), int(sys.argv[2]) * world, float(sys.argv[3])
    port = int(os.environ["MASTER_PORT"])
    server = socket.create_server(("", port))
    while True:
        try:
            right = socket.create_connection((f"rank{(rank + 1) % world}", port))
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    left = server.accept()[0]
    for end in (left, right):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(values):
        data = memoryview(array.array("d", values).tobytes())
        got = bytearray()
        right.setblocking(False)
        while data or len(got) < len(values) * 8:
            if data:
                try: data = data[right.send(data):]
                except BlockingIOError: pass
            if len(got) < len(values) * 8:
                left.settimeout(None if not data else 0.001)
                try: more = left.recv(len(values) * 8 - len(got))
                except TimeoutError: continue
                if not more: raise SystemExit("the connection was closed")
                got += more
        return array.array("d", bytes(got))

    def all_reduce(v):
        part = len(v) // world
        for step in range(world - 1):
            send = (rank - step) % world * part
            take = (rank - step - 1) % world * part
            for i, x in enumerate(exchange(v[send:send + part])): v[take + i] += x
        for step in range(world - 1):
            send = (rank + 1 - step) % world * part
            take = (rank - step) % world * part
            v[take:take + part] = exchange(v[send:send + part])
        return v

    weights = array.array("d", (1 / (i + 1) for i in range(size)))
    for step in range(1, last + 1):
        while step > last - 3 and not os.path.exists("finish"): time.sleep(0.005)
        gradient = array.array("d", ((w * 3.7 + rank * 0.31 + step * 1e-3) % 1.0 for w in weights))
        total = all_reduce(gradient)
        for i, g in enumerate(total): weights[i] -= 0.1 * g / world
        print(step, sum(weights).hex(), flush=True)
        time.sleep(pause)
    print(hashlib.sha256(weights.tobytes()).hexdigest(), flush=True)
""")


class Gang:
    """The workers of one gang, each in a folder of its own that it can be moved out of."""

    def __init__(self, driver: Driver, root: Path, workers: int, command: Sequence[str]) -> None:
        self.driver = driver
        self.name = f"test-{uuid.uuid4().hex[:12]}"
        self.workers = workers
        self._root = root
        self._command = tuple(command)
        self.ranks = [self._bench(rank, "home") for rank in range(workers)]

    def _bench(self, rank: int, where: str) -> Bench:
        base = self._root / where / str(rank)
        base.mkdir(parents=True)
        return Bench(self.driver, base)

    def spec(self, rank: int, **more: object) -> WorkerSpec:
        place = GangPlace(self.name, rank, self.workers)
        told = {**environment(place), **threads(1), "TMPDIR": str(self._root)}
        values: dict[str, object] = {"gang": place, "environment": tuple(told.items()), **more}
        return self.ranks[rank].spec_of(*self._command, **values)

    def image(self, rank: int, name: str) -> Path:
        return self.ranks[rank].image(name)

    async def each(self, act: Callable[[int], Awaitable[object]]) -> list[object]:
        return list(await asyncio.gather(*(act(rank) for rank in range(self.workers))))

    async def start(self) -> None:
        await self.each(lambda rank: self.driver.start(self.spec(rank)))

    async def save(self, name: str, **more: bool) -> list[SavedImage]:
        """All or none."""
        saved = await self.each(
            lambda r: self.driver.save(self.ranks[r].folder, self.image(r, name), hold=True, **more)
        )
        await self.finish(commit=True)
        return saved

    async def restore(self, name: str) -> None:
        await self.each(lambda r: self.driver.restore(self.spec(r), self.image(r, name), hold=True))
        await self.finish(commit=True)

    async def finish(self, commit: bool) -> None:
        await self.each(lambda r: self.driver.finish(self.ranks[r].folder, commit=commit))

    async def states(self) -> list[WorkerState]:
        return [(await self.driver.status(bench.folder)).state for bench in self.ranks]

    def move(self, rank: int, where: str) -> None:
        """From here on the rank lives in another folder, which holds none of its files."""
        self.ranks[rank] = self._bench(rank, where)

    def lines(self, rank: int) -> list[str]:
        return self.ranks[rank].out().splitlines()

    def goes_on(self, steps: int = 5) -> None:
        """Wait until every rank has done so many more steps."""
        for rank, bench in enumerate(self.ranks):
            said = len(self.lines(rank)) + steps
            bench.wait_lines(said)

    async def ended(self) -> list[list[str]]:
        """Let all finish; what they printed."""
        for bench in self.ranks:
            (bench.work / "finish").touch()
        async with asyncio.timeout(120):
            while set(await self.states()) != {WorkerState.ENDED}:
                await asyncio.sleep(0.01)
        for rank, bench in enumerate(self.ranks):
            status = await self.driver.status(bench.folder)
            assert status.exit_code == 0, f"rank {rank}: {status} {bench.err()}"
        return [self.lines(rank) for rank in range(self.workers)]

    async def stop(self) -> None:
        await self.each(lambda rank: self.driver.stop(self.ranks[rank].folder, 0))

    def close(self) -> None:
        for bench in self.ranks:
            bench.close()


def ring(driver: Driver, root: Path, workers: int, steps: int, size: int = 40) -> Gang:
    """A gang of RING programs."""
    command = (sys.executable, "-I", "-u", "-c", RING, str(steps), str(size), "0.002")
    return Gang(driver, root, workers, command)
