"""What it costs to suspend a job and to bring it back, and what its images take on disk.

Real processes in cells, saved by criu, folded and put together again. A process holds S bytes that
do not compress; each step changes every fifth page of them. Beside each suspend stands the time in
which the same machine, at that moment, writes S bytes into a file and has them on disk; beside each
resume, the time in which it reads S bytes into memory that is new, from the page cache ("warm") or
from the disk ("cold": the cache was told to forget them). The budget is 1.5 times that, plus 0.3 s;
"of budget" is the median over rounds of what was used of it. All of this needs cores and memory at
once, so that other work on the machine counts against it, more than against a plain write or read;
both go ahead of others (`linux.ahead_of_others`), as saves and restores do.

    python -m benchmarks.checkpoint            report to checkpoint.md, exit 1 over budget
    python -m benchmarks.checkpoint --quick    one round, small sizes, report to the terminal
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.gateway import machine
from onefleet.agent import archive
from onefleet.config import settings
from onefleet.domain.layout import Layout
from onefleet.drivers import image as images
from onefleet.drivers import linux
from onefleet.drivers.base import Driver, WorkerSpec
from onefleet.drivers.chunk_store import ChunkStore
from onefleet.drivers.criu import CriuDriver, make_finder
from onefleet.drivers.local import LocalDriver
from onefleet.drivers.supervisor_files import STATE as STATE_FILE
from onefleet.drivers.supervisor_files import STDOUT, read_json

HERE = Path(__file__).resolve().parent
MB = 1_000_000
#: Megabytes, and rounds.
SIZES = ((150, 3), (350, 3), (1000, 3), (2100, 1))
TWINS = 4
TWIN_MB = 150
LIMIT_S = 120.0
#: Between freeing memory and measuring: a virtual machine may have to ask its host for it again.
REST_S = 3.0
BUDGET = tomllib.loads((HERE / "checkpoint.budget.toml").read_text("utf-8"))
TIMES, PLUS_S = BUDGET["moves"]["times"], BUDGET["moves"]["plus_s"]

#: Holds argv[1] megabytes, all the same for the same seed; a line in the file "step" is one step.
STATE = """
import os, random, sys, time
size, rank = int(sys.argv[1]) * 1_000_000 // 4096, sys.argv[2]
source = random.Random(7)
pages = [bytearray(source.randbytes(4096 * 256)) for _ in range(size // 256 + 1)]
own = bytearray(random.Random(rank).randbytes(1_000_000))
done = 0
print("ready", flush=True)
while True:
    while not os.path.exists("step") or os.path.getsize("step") <= done:
        time.sleep(0.005)
    done += 1
    for number in range(done % 5, len(pages) * 256, 5):
        at = number % 256 * 4096
        pages[number // 256][at : at + 8] = done.to_bytes(8, "big")
    print("stepped", done, flush=True)
"""
#: A fixed piece of work of about two seconds; says what CPU time it took.
WORK = """
import time
x, table = 1, {}
for n in range(9_000_000):
    x = (x * 6364136223846793005 + n) & 0xFFFFFFFFFFFFFFFF
    if not n & 15:
        table[x & 4095] = n
print(time.process_time(), flush=True)
"""


@dataclass
class Column:
    """One size: seconds (or ratios) of each round."""

    size_mb: int
    image_mb: float = 0.0
    write: list[float] = field(default_factory=list)
    suspend: list[float] = field(default_factory=list)
    gone: list[float] = field(default_factory=list)
    read_warm: list[float] = field(default_factory=list)
    resume_warm: list[float] = field(default_factory=list)
    read_cold: list[float] = field(default_factory=list)
    resume_cold: list[float] = field(default_factory=list)
    read_packs: list[float] = field(default_factory=list)
    resume_chunks: list[float] = field(default_factory=list)
    fold_mb_s: list[float] = field(default_factory=list)
    stored_first: float = 0.0
    stored_next: list[float] = field(default_factory=list)


class Pool:
    """One node's folder, and a driver that saves what runs in it."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.driver = CriuDriver(make_finder(settings().layout.criu, settings().criu))
        self.driver.keep_ready(True)  # as an agent has it

    def spec(self, worker: str, *command: str) -> WorkerSpec:
        work, _, rank = worker.rpartition(".")
        folder = self.layout.worker(work, int(rank))
        (folder / "work").mkdir(parents=True)
        (folder / "images").mkdir()
        python = (sys.executable, "-I", "-c")
        return WorkerSpec(
            folder,
            (*python, *command),
            folder / "work",
            ends_with=os.getpid(),
            chunks=self.layout.chunks(work),
        )

    def tidy(self) -> dict[str, int]:
        """Fold all, drop all raw files; bytes stored by image."""
        told: list[dict[str, object]] = []
        archive.tidy(self.layout, told.append, room_bytes=0)
        bad = [t for t in told if t["event"] not in ("folded", "freed")]
        assert not bad, bad
        return {str(t["image"]): int(str(t["stored"])) for t in told if t["event"] == "folded"}


async def until(true: Callable[[], bool]) -> None:
    """Wait until something is true of a process."""
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110  (nobody tells us)
            await asyncio.sleep(0.005)


async def said(spec: WorkerSpec, line: str) -> None:
    """Wait for a line of the worker's output."""
    path = spec.folder / STDOUT
    await until(lambda: path.exists() and f"{line}\n" in path.read_text())


async def timed(call: Awaitable[object]) -> float:
    began = time.perf_counter()
    await call
    return time.perf_counter() - began


def write_time(path: Path, size: int) -> float:
    """Seconds to write so many bytes of memory into a new file and have them on disk."""
    block = memoryview(os.urandom(8 * MB))
    began = time.perf_counter()
    with linux.ahead_of_others(), open(path, "wb", buffering=0) as file:
        for at in range(0, size, len(block)):
            file.write(block[: min(len(block), size - at)])
        os.fsync(file.fileno())
    return time.perf_counter() - began


def read_time(path: Path) -> float:
    """Seconds to read the file into memory that nothing was in before."""
    began = time.perf_counter()
    with linux.ahead_of_others(), open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        into = memoryview(bytearray(size))
        done = 0
        while count := file.readinto(into[done : done + 8 * MB]):
            done += count
    return time.perf_counter() - began


def forget(paths: Sequence[Path]) -> None:
    """Have the page cache forget the files."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


async def measure_size(pool: Pool, size_mb: int, rounds: int) -> Column:
    """Suspend and resume a process of that size in every way."""
    column = Column(size_mb)
    spec = pool.spec(f"s{size_mb}.0", STATE, str(size_mb), "0")
    plain = pool.layout.root / "plain"
    driver, folder = pool.driver, spec.folder
    await driver.start(spec)
    await said(spec, "ready")
    count = 0

    async def suspend() -> Path:
        nonlocal count
        count += 1
        (spec.work / "step").write_text("x" * count)
        await said(spec, f"stepped {count}")
        # Both need as much memory for what they write; neither shall get what was just freed.
        plain.unlink(missing_ok=True)
        for older in sorted(folder.glob("images/*"), key=lambda p: int(p.name))[:-1]:
            images.discard(str(older))
        await asyncio.sleep(REST_S)
        if count % 2:
            column.write.append(write_time(plain, size_mb * MB))
        target = folder / "images" / str(count)
        began = time.perf_counter()
        saved = await driver.save(folder, target)
        column.suspend.append(time.perf_counter() - began)
        column.gone.append(saved.frozen_ms / 1000)
        if not count % 2:
            column.write.append(write_time(plain, size_mb * MB))
        return target

    for _ in range(rounds):
        target = await suspend()
        column.image_mb = images.total_bytes(images.read(str(target))) / MB
        column.read_warm.append(read_time(plain))
        column.resume_warm.append(await timed(driver.restore(spec, target)))
        target = await suspend()
        forget([plain, *target.iterdir()])
        column.read_cold.append(read_time(plain))
        column.resume_cold.append(await timed(driver.restore(spec, target)))
        target = await suspend()
        began = time.perf_counter()
        stored = pool.tidy()
        took = time.perf_counter() - began
        raw = column.image_mb * len(stored)
        column.fold_mb_s.append(raw / took)
        share = stored[f"{folder.name}/{target.name}"] / MB / column.image_mb
        if not column.stored_first:
            first = stored.get(f"{folder.name}/{count - 1}", stored[f"{folder.name}/{count}"])
            column.stored_first = first / MB / column.image_mb
        column.stored_next.append(share)
        packs = sorted(pool.layout.chunks(f"s{size_mb}").glob("*.pack"))
        forget([plain, *packs, *target.iterdir()])
        column.read_packs.append(read_time(plain))
        column.resume_chunks.append(await timed(driver.restore(spec, target)))
    await driver.stop(folder, 0)
    shutil.rmtree(folder)
    pool.tidy()
    return column


async def measure_twins(pool: Pool, count: int, size_mb: int) -> list[int]:
    """Bytes that the images of 1, 2, ... identical workers take together."""
    totals = []
    for rank in range(count):
        spec = pool.spec(f"twins.{rank}", STATE, str(size_mb), str(rank))
        await pool.driver.start(spec)
        await said(spec, "ready")
        await pool.driver.save(spec.folder, spec.folder / "images" / "1")
        pool.tidy()
        recipes = sum(p.stat().st_size for p in pool.layout.agent.rglob("recipe.json"))
        totals.append(ChunkStore(pool.layout.chunks("twins")).size_bytes + recipes)
    return totals


async def measure_overhead(pool: Pool, pairs: int) -> list[tuple[float, float]]:
    """CPU and wall seconds of a fixed piece of work: in a cell over plain, a pair a time."""
    ratios = []
    plain = LocalDriver()

    async def once(driver: Driver, name: str) -> tuple[float, float]:
        spec = pool.spec(f"{name}.0", WORK)
        await driver.start(spec)
        started = time.perf_counter()
        await until(lambda: read_json(str(spec.folder / STATE_FILE))["state"] == "ended")
        wall = time.perf_counter() - started
        cpu = float((spec.folder / STDOUT).read_text().split()[0])
        return cpu, wall

    for number in range(pairs):
        both: list[tuple[Driver, str]] = [(pool.driver, f"cell{number}"), (plain, f"bare{number}")]
        if number % 2:
            both.reverse()
        found = {name[:4]: await once(driver, name) for driver, name in both}
        cell, bare = found["cell"], found["bare"]
        ratios.append((cell[0] / bare[0], cell[1] / bare[1]))
    return ratios


def used(times: Sequence[float], bases: Sequence[float]) -> float:
    """The median part of the budget that was used."""
    return median(t / (TIMES * b + PLUS_S) for t, b in zip(times, bases, strict=False))


def packed(column: Column) -> float:
    """`used` by resumes from chunks."""
    return used(column.resume_chunks, column.read_packs)


def report(
    columns: Sequence[Column], twins: Sequence[int], pairs: list[tuple[float, float]]
) -> str:
    """All results as Markdown."""
    rows: list[tuple[str, Callable[[Column], str]]] = [
        ("image, MB", lambda c: f"{c.image_mb:.0f}"),
        ("write S bytes, s", lambda c: f"{median(c.write):.2f}"),
        ("suspend, s", lambda c: f"{median(c.suspend):.2f}"),
        ("**suspend, of budget**", lambda c: f"**{used(c.suspend, c.write):.2f}**"),
        ("of it until no process is left, s", lambda c: f"{median(c.gone):.2f}"),
        ("read S bytes, cold, s", lambda c: f"{median(c.read_cold):.2f}"),
        ("resume, cold, s", lambda c: f"{median(c.resume_cold):.2f}"),
        ("**resume, cold, of budget**", lambda c: f"**{used(c.resume_cold, c.read_cold):.2f}**"),
        ("read S bytes, warm, s", lambda c: f"{median(c.read_warm):.2f}"),
        ("resume, warm, s", lambda c: f"{median(c.resume_warm):.2f}"),
        ("**resume, warm, of budget**", lambda c: f"**{used(c.resume_warm, c.read_warm):.2f}**"),
        ("read S bytes, cold again, s", lambda c: f"{median(c.read_packs):.2f}"),
        ("resume from chunks, cold, s", lambda c: f"{median(c.resume_chunks):.2f}"),
        (
            "**resume from chunks, of budget**",
            lambda c: f"**{used(c.resume_chunks, c.read_packs):.2f}**",
        ),
        ("fold, MB/s", lambda c: f"{median(c.fold_mb_s):.0f}"),
        ("first image, stored / raw", lambda c: f"{c.stored_first:.2f}"),
        ("next image, stored / raw", lambda c: f"{median(c.stored_next):.2f}"),
    ]
    lines = ["| S, MB |" + "".join(f" {c.size_mb} |" for c in columns)]
    lines.append("|---|" + "---|" * len(columns))
    lines += [f"| {name} |" + "".join(f" {show(c)} |" for c in columns) for name, show in rows]
    lines.append("")
    lines.append(
        "| identical workers | " + " | ".join(str(n + 1) for n in range(len(twins))) + " |"
    )
    lines.append("|---|" + "---|" * len(twins))
    multiples = " | ".join(f"{total / twins[0]:.3f}" for total in twins)
    lines.append(f"| their images together, as a multiple of one | {multiples} |")
    lines.append("")
    cpu, wall = median(p[0] for p in pairs), median(p[1] for p in pairs)
    lines.append(
        f"Being suspendable (the same work in a cell and without, {len(pairs)} pairs): CPU time "
        f"x {cpu:.4f}, wall x {wall:.4f} (medians)."
    )
    return "\n".join(lines)


def over_budget(columns: Sequence[Column], pairs: list[tuple[float, float]]) -> list[str]:
    """What costs more than it may."""
    over = []
    for c in columns:
        found = {
            "suspend": used(c.suspend, c.write),
            "cold resume": used(c.resume_cold, c.read_cold),
            "warm resume": used(c.resume_warm, c.read_warm),
            "resume from chunks": packed(c),
        }
        over += [f"{w} of {c.size_mb} MB: {got:.2f} of it" for w, got in found.items() if got > 1]
    percent = (median(p[0] for p in pairs) - 1) * 100
    if percent > BUDGET["overhead"]["cpu_percent"]:
        over.append(f"overhead of being suspendable: {percent:.2f} % of CPU time")
    return over


async def measure(
    root: Path, sizes: Sequence[tuple[int, int]], pairs: int
) -> tuple[list[Column], list[int], list[tuple[float, float]]]:
    """Everything, one after the other."""
    pool = Pool(root)
    capability = await pool.driver.probe()
    assert not capability.reason, capability.reason
    overhead = await measure_overhead(pool, pairs)
    columns = []
    for size, rounds in sizes:
        columns.append(await measure_size(pool, size, rounds))
        print(f"measured {size} MB", file=sys.stderr)
    return columns, await measure_twins(pool, TWINS, TWIN_MB), overhead


def main(arguments: list[str] | None = None) -> int:
    """Measure, report, and hold the result against the budget. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", help="where to work; a disk, not memory", default=None)
    options = parser.parse_args(arguments)
    sizes, pairs = (SIZES, 12) if not options.quick else (((150, 1), (350, 1)), 2)
    where = machine()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = asyncio.run(measure(Path(folder), sizes, pairs))
    text = report(*results)
    print(text)
    if options.quick:
        return 0
    intro = (__doc__ or "").split("\n\n    python")[0]
    rounds = ", ".join(str(count) for _, count in sizes)
    stamp = time.strftime("%Y-%m-%d", time.gmtime())
    (HERE / "checkpoint.md").write_text(
        f"# {intro}\n\n`python -m benchmarks.checkpoint`, measured {stamp} on {where}; "
        f"{rounds} rounds.\n\n{text}\n",
        "utf-8",
    )
    over = over_budget(results[0], results[2])
    for line in over:
        print(f"over budget: {line}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
