"""What two jobs on one place do at once, in turns, and alone.

Real processes under supervisors, let stand still and go on by what the agent does it with. Each
round measures all three ways, one after the other. "of alone" is what both did together, over what
one of them does alone in the same round. "per second of processor" is the same over what the kernel
says that they used of the processor. "three quarters" is the part of the steps that a job did which
had 0.75 of the core, beside one with 0.25. Where other work keeps the cores busy, two jobs get more
of them than one does, and "of alone" says nothing; the other columns then still do.

`table` reads at random in 64 MB with one thread; `train` trains a network in PyTorch, with one
thread on one core, or (`train 2x2`) with two threads on two cores, on which both jobs are. The pool
gives no share of two cores: that row stands for threads that wait for each other, for which turns
matter most.

    python -m benchmarks.turns            report to turns.md
    python -m benchmarks.turns --quick    one short round, report to the terminal
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.gateway import machine
from onefleet.agent.protocol import WorkerKey
from onefleet.agent.turn_taker import TurnTaker
from onefleet.agent.worker import Worker
from onefleet.domain.fleet import Device, DeviceKind
from onefleet.domain.ids import DeviceId, Instant, WorkId
from onefleet.drivers import process_tree
from onefleet.drivers.base import WorkerSpec
from onefleet.drivers.local import LocalDriver
from onefleet.wire.agent import Observed

HERE = Path(__file__).resolve().parent
ROUNDS, WINDOW_S = 5, 5.0
LOOK_S, LIMIT_S = 0.2, 120.0
CORE = DeviceId("bench/cpu")

_STEPS = """
import os, sys
count, file = 0, os.open("steps", os.O_WRONLY | os.O_CREAT)
while True:
    step()
    count += 1
    os.pwrite(file, b"%012d" % count, 0)
"""
TABLE = """
import numpy
table = numpy.random.default_rng(1).permutation(8_000_000)
at = table[:50_000].copy()
def step():
    global at
    at = table[at]
"""
TRAIN = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
layers = [m for _ in range(3) for m in (torch.nn.Linear(512, 512), torch.nn.ReLU())]
net, x = torch.nn.Sequential(*layers), torch.randn(64, 512)
made = torch.optim.AdamW(net.parameters())
def step():
    made.zero_grad()
    (net(x) - x).pow(2).mean().backward()
    made.step()
"""


@dataclass(frozen=True)
class Kind:
    name: str
    source: str
    threads: int = 1
    cores: int = 1
    needs: str = "numpy"


KINDS = (
    Kind("table", TABLE),
    Kind("train", TRAIN, needs="torch"),
    Kind("train 2x2", TRAIN, threads=2, cores=2, needs="torch"),
)


@dataclass
class Row:
    """Of each round. steps: a second, by way; efficient: a second of processor."""

    steps: dict[str, list[float]] = field(default_factory=dict)
    efficient: dict[str, list[float]] = field(default_factory=dict)
    three_quarters: list[float] = field(default_factory=list)

    def of_alone(self, found: dict[str, list[float]], way: str) -> float:
        return median(a / b for a, b in zip(found[way], found["alone"], strict=True))


class Jobs:
    """Some jobs of a kind on one place."""

    def __init__(self, root: Path, kind: Kind, millis: Sequence[int]) -> None:
        self.driver = LocalDriver()
        cores = tuple(sorted(os.sched_getaffinity(0))[: kind.cores])
        threads = str(kind.threads)
        names = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"
        self.specs = []
        self.workers = []
        for number, milli in enumerate(millis):
            work = root / f"job-{number}"
            work.mkdir(parents=True)
            python = sys.executable, "-I", "-c", kind.source + _STEPS, threads
            environment = tuple((name, threads) for name in names)
            self.specs.append(
                WorkerSpec(work / "worker", python, work, environment, cores, ends_with=os.getpid())
            )
            key = WorkerKey(WorkId(f"job-{number}"), 0)
            worker = Worker(key, is_job=True, alive=True, observed=Observed.RUNNING)
            worker.devices, worker.milli = (CORE,), milli
            self.workers.append(worker)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for spec in self.specs:
            await self.driver.start(spec)
        async with asyncio.timeout(LIMIT_S):
            while min(self.steps()) < 5:  # noqa: ASYNC110  (nobody tells us)
                await asyncio.sleep(0.05)

    def steps(self) -> list[int]:
        found = [spec.work / "steps" for spec in self.specs]
        return [int(path.read_text() or 0) if path.exists() else 0 for path in found]

    async def used_ms(self) -> int:
        """What they have used of the processor."""
        total = 0
        for spec in self.specs:
            pid = (await self.driver.status(spec.folder)).pid
            assert pid is not None, f"{spec.folder} has ended"
            total += process_tree.core_time_ms(process_tree.tree(pid))[0]
        return total

    async def take_turns(self) -> None:
        """As under an agent; return when they do."""

        async def pause(key: WorkerKey, limit_ms: int) -> None:
            number = int(key.work_id.rpartition("-")[2])
            await self.driver.pause(self.specs[number].folder, limit_ms)

        def spawn(work: Coroutine[None, None, None]) -> None:
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        device = Device(CORE, DeviceKind.CPU, 0, "a core", 1)
        clock = lambda: Instant(time.monotonic_ns() // 1_000_000)  # noqa: E731
        taker = TurnTaker(pause, [device], clock, spawn)
        taker.see(self.workers)

        async def look() -> None:
            while True:
                for worker, spec in zip(self.workers, self.specs, strict=True):
                    await taker.measure(worker.key, await self.driver.status(spec.folder))
                await asyncio.sleep(LOOK_S)

        self._loops = [asyncio.create_task(look()), asyncio.create_task(taker.run())]
        async with asyncio.timeout(LIMIT_S):
            while not all(taker.takers(worker.key) for worker in self.workers):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def measure(self, seconds: float) -> tuple[list[int], float, int]:
        """(steps of each, seconds, milliseconds of processor)."""
        before, used_ms, began = self.steps(), await self.used_ms(), time.perf_counter()
        await asyncio.sleep(seconds)
        after, lasted = self.steps(), time.perf_counter() - began
        done = [b - a for a, b in zip(before, after, strict=True)]
        return done, lasted, await self.used_ms() - used_ms

    async def close(self) -> None:
        for task in (*self._loops, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._loops, *self._tasks, return_exceptions=True)
        for spec in self.specs:
            with suppress(FileNotFoundError):
                await self.driver.stop(spec.folder, 0)


async def one_way(
    kind: Kind, millis: Sequence[int], turns: bool, seconds: float
) -> tuple[list[int], float, int]:
    with tempfile.TemporaryDirectory() as folder:
        jobs = Jobs(Path(folder), kind, millis)
        try:
            await jobs.start()
            if turns:
                await jobs.take_turns()
            return await jobs.measure(seconds)
        finally:
            await jobs.close()


WAYS = (("alone", (1_000,), False), ("at once", (500, 500), False), ("in turns", (500, 500), True))


async def measure_kind(kind: Kind, rounds: int, seconds: float) -> Row:
    row = Row()
    for _ in range(rounds):
        for way, millis, turns in WAYS:
            done, lasted, used_ms = await one_way(kind, millis, turns, seconds)
            row.steps.setdefault(way, []).append(sum(done) / lasted)
            row.efficient.setdefault(way, []).append(sum(done) * 1_000 / max(used_ms, 1))
        if kind.cores == 1:
            (large, small), _, _ = await one_way(kind, (750, 250), True, 2 * seconds)
            row.three_quarters.append(large / max(large + small, 1))
        print(f"measured {kind.name}", file=sys.stderr)
    return row


def report(rows: dict[str, Row]) -> str:
    """A table, one kind a line."""
    lines = [
        "| jobs | alone, steps/s | at once, of alone | **in turns, of alone** | at once, per second"
        " of processor | **in turns, per second of processor** | three quarters |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [name, f"{median(row.steps['alone']):.1f}"]
        for found in (row.steps, row.efficient):
            cells += [f"{row.of_alone(found, way):.2f}" for way in ("at once", "in turns")]
        shares = row.three_quarters
        cells.append(f"{median(shares):.2f}" if shares else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure and report. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.turns")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--jobs", help="only these, by the first word of their row", default="")
    options = parser.parse_args(arguments)
    rounds, seconds = (1, 3.0) if options.quick else (options.rounds, WINDOW_S)
    where = machine()
    rows = {}
    for kind in KINDS:
        if options.jobs and kind.name.partition(" ")[0] not in options.jobs.split(","):
            continue
        if importlib.util.find_spec(kind.needs) is None:
            print(f"{kind.name} is left out: {kind.needs} is not installed", file=sys.stderr)
        elif len(os.sched_getaffinity(0)) >= kind.cores:
            rows[kind.name] = asyncio.run(measure_kind(kind, rounds, seconds))
    text = report(rows)
    print(text)
    if not options.quick:
        intro = (__doc__ or "").split("\n\n    python")[0]
        asked = "".join(f" {word}" for word in arguments or sys.argv[1:])
        stamp = time.strftime("%Y-%m-%d", time.gmtime())
        (HERE / "turns.md").write_text(
            f"# {intro}\n\n`python -m benchmarks.turns{asked}`, measured {stamp} on "
            f"{where}; medians of {rounds} rounds of {seconds:g} s.\n\n{text}\n",
            "utf-8",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
