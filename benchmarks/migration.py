"""How long a job makes no progress while it moves to another node.

A real pool and a further node's agent on this machine, with a data folder each: whatever one has
of the job's image, the other gets over a connection. The job holds 350 MB that do not compress;
each step changes some pages of them and prints the time, and the blackout is the longest pause
between two steps around an `onefleet migrate`. In the same round, without any pool, the same
program is saved, its files are sent over a connection and written, and it is restored, one after
the other: "plain". Other work on the machine disturbs both. "Beside the transfer" is the blackout
without the time that the bytes alone take over such a connection into files, on the disk at the
end. That can be less than nothing: a move waits for no disk, and sends what it saves meanwhile.

    python -m benchmarks.migration            report to migration.md, exit 1 over budget
    python -m benchmarks.migration --quick    one round, report to the terminal
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from benchmarks import checkpoint
from benchmarks.gateway import machine
from onefleet.agent import memory_images
from onefleet.cli.job_logs import LogReader
from onefleet.cli.job_verb import get_job
from onefleet.config import settings
from onefleet.domain.layout import Layout
from onefleet.drivers.base import WorkerSpec
from onefleet.drivers.criu import CriuDriver, make_finder
from onefleet.drivers.supervisor_files import STDOUT
from onefleet.wire.client import Client

HERE = Path(__file__).resolve().parent
ROUNDS = 3
STATE_MB = 340  # and what Python itself takes
LIMIT_S = 120.0
BUDGET = tomllib.loads((HERE / "migration.budget.toml").read_text("utf-8"))["migration"]
NODES = ("node-local", "node-other")

JOB = f"""
import random, time
source = random.Random(7)
pages = [bytearray(source.randbytes(1_000_000)) for _ in range({STATE_MB})]
step = 0
while True:
    step += 1
    for number in range(200):
        at = (step * 200 + number) % 244 * 4096
        pages[(step + number) % {STATE_MB}][at : at + 8] = step.to_bytes(8, "big")
    print(time.time(), flush=True)
    time.sleep(0.005)
"""
COMMAND = (sys.executable, "-I", "-u", "-c", JOB)


@dataclass(frozen=True)
class Round:
    """Seconds. image_mb: of the moved image."""

    blackout: float
    plain: float
    transfer: float
    image_mb: float

    @property
    def beside_transfer(self) -> float:
        return self.blackout - self.transfer


class Fleet:
    """A pool in one folder, and an agent that joined it in another."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._agent: subprocess.Popen[bytes] | None = None

    def onefleet(self, *words: str) -> str:
        line = [sys.executable, "-m", "onefleet.cli.main", *words]
        return subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    def folder(self, node: str) -> Path:
        return self.root / node

    @contextlib.contextmanager
    def running(self) -> Iterator[Client]:
        """A client of it, while both nodes are there."""
        for node in NODES:
            self.folder(node).mkdir()
            (self.folder(node) / "criu").symlink_to(settings().layout.criu)
        local, other = (str(self.folder(node)) for node in NODES)
        self.onefleet("up", "--data-dir", local, "--port", "0", "--detach", "--cpus", "0")
        try:
            facts = msgspec.json.decode((self.folder(NODES[0]) / "run/pool.json").read_bytes())
            made = self._key(local)
            line = (sys.executable, "-m", "onefleet.cli.main", "agent", "--name", "other")
            line += ("--join", facts["url"], "--data-dir", other, "--cpus", "1")
            with (self.root / "agent.log").open("wb") as log:
                environment = {**os.environ, "ONEFLEET_KEY": made}
                self._agent = subprocess.Popen(line, stdout=log, stderr=log, env=environment)
            until(lambda: self.onefleet("node", "list", "--data-dir", local).count("ready") == 2)
            yield Client(facts["url"], (self.folder(NODES[0]) / "credentials").read_text().strip())
        finally:
            if self._agent is not None:
                self._agent.send_signal(signal.SIGTERM)
                self._agent.wait(LIMIT_S)
            self.onefleet("down", "--data-dir", local)
            for node in NODES:
                shutil.rmtree(memory_images.root(Layout(self.folder(node))), ignore_errors=True)

    def _key(self, local: str) -> str:
        words = ("key", "create", "--role", "node", "--name", "other", "-o", "json")
        told: dict[str, Any] = msgspec.json.decode(self.onefleet(*words, "--data-dir", local))
        return str(told["key"])


class Moving:
    """The job in the fleet, and the times that it printed."""

    def __init__(self, fleet: Fleet, pool: Client) -> None:
        self._fleet, self._pool = fleet, pool
        self._data = ("--data-dir", str(fleet.folder(NODES[0])))
        words = ("run", "--no-code", "--checkpoint-every", "0", *self._data, "--", *COMMAND)
        self.id = fleet.onefleet(*words)
        self._output = LogReader(pool, self.id)

    def times(self) -> list[float]:
        """When it took its steps, since this was asked last."""
        text = "".join(self._output.rest("stdout"))
        return [float(line) for line in text.splitlines()]

    def move(self) -> tuple[float, float]:
        """Move it to the other node; the blackout, and the megabytes of its image."""
        until(self.times)
        here = get_job(self._pool, self.id).node
        target = NODES[1 - NODES.index(here)]
        self._fleet.onefleet("migrate", self.id, "--to", target, "--wait", *self._data)
        found = self.times()
        while not found or time.time() - found[-1] > 0.5:  # until it goes on there
            found += self.times()
            time.sleep(0.02)
        return longest_pause(found), get_job(self._pool, self.id).image_bytes / 1e6

    def is_settled(self) -> bool:
        """Whether nothing of its images is on its way any more."""
        return not any(self._fleet.root.rglob("images/*.partial"))


def until(true: Any) -> Any:
    """Wait until something is true; it."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.05)
    raise TimeoutError(true)


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def longest_pause(times: list[float]) -> float:
    return max(after - before for before, after in pairwise(times))


async def plain(root: Path) -> tuple[float, float]:
    """The blackout of the same by hand, and how long the bytes alone took."""
    driver = CriuDriver(make_finder(settings().layout.criu, settings().criu))
    here, there = root / "here", root / "there"
    for folder in (here, there):
        (folder / "work").mkdir(parents=True)
        (folder / "images").mkdir()
    spec = WorkerSpec(here, COMMAND, here / "work", ends_with=os.getpid())
    await driver.start(spec)
    try:
        printed = here / STDOUT
        await checkpoint.until(lambda: printed.exists() and lines_of(printed) >= 20)
        image = here / "images" / "1"
        await driver.save(here, image)
        began = time.monotonic()
        await asyncio.to_thread(send, image, there / "images" / "1")
        transfer = time.monotonic() - began
        shutil.copy2(printed, there / STDOUT)
        moved = WorkerSpec(there, COMMAND, there / "work", ends_with=os.getpid())
        await driver.restore(moved, there / "images" / "1")
        before = lines_of(printed)
        await checkpoint.until(lambda: lines_of(there / STDOUT) >= before + 20)
        text = (there / STDOUT).read_text().splitlines()
        return longest_pause([float(line) for line in text[before // 2 : -1]]), transfer
    finally:
        for folder in (here, there):
            with contextlib.suppress(Exception):
                await driver.stop(folder, 0)


def send(image: Path, target: Path) -> None:
    """All files of a folder over a connection into another folder, on the disk at the end."""
    target.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                for file in sorted(image.iterdir()):
                    with file.open("rb") as opened:
                        peer.sendfile(opened)

        threading.Thread(target=serve, daemon=True).start()
        buffer = memoryview(bytearray(1 << 20))
        with socket.create_connection(server.getsockname()) as peer:
            for file in sorted(image.iterdir()):
                left = file.stat().st_size
                with (target / file.name).open("wb", buffering=0) as out:
                    while left:
                        count = peer.recv_into(buffer[: min(left, len(buffer))])
                        out.write(buffer[:count])
                        left -= count
                    os.fsync(out.fileno())


def measure(root: Path, rounds: int) -> list[Round]:
    fleet = Fleet(root / "fleet")
    (root / "fleet").mkdir()
    found = []
    with fleet.running() as pool:
        job = Moving(fleet, pool)
        for number in range(rounds + 1):  # the first warms up
            until(job.is_settled)
            blackout, size_mb = job.move()
            until(job.is_settled)
            at_plain, transfer = asyncio.run(plain(root / f"plain{number}"))
            shutil.rmtree(root / f"plain{number}")
            print(f"{blackout:.2f} s, plain {at_plain:.2f} s", file=sys.stderr)
            found.append(Round(blackout, at_plain, transfer, size_mb))
        fleet.onefleet("cancel", job.id, "--data-dir", str(fleet.folder(NODES[0])))
    return found[1:]


def report(found: list[Round]) -> str:
    """The results as Markdown."""
    rows = [
        ("image, MB", [r.image_mb for r in found], ".0f"),
        ("**blackout, s**", [r.blackout for r in found], ".2f"),
        ("plain, s", [r.plain for r in found], ".2f"),
        ("**blackout / plain**", [r.blackout / r.plain for r in found], ".2f"),
        ("the bytes alone, s", [r.transfer for r in found], ".2f"),
        ("beside the transfer, s", [r.beside_transfer for r in found], ".2f"),
    ]
    lines = ["| | median | least | most |", "|---|---|---|---|"]
    for name, values, shown in rows:
        cells = (median(values), min(values), max(values))
        lines.append(f"| {name} | " + " | ".join(f"{value:{shown}}" for value in cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, report, and hold the result against the budget. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.migration")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", help="where to work; a disk, not memory", default=None)
    options = parser.parse_args(arguments)
    where = machine()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), 1 if options.quick else ROUNDS)
    text = report(found)
    print(text)
    over = []
    for name, value in (
        ("blackout_s", median(r.blackout for r in found)),
        ("beside_transfer_s", median(r.beside_transfer for r in found)),
    ):
        if value > BUDGET[name]:
            over.append(f"{name} {value:.2f}, at most {BUDGET[name]}")
    for line in over:
        print(f"over budget: {line}", file=sys.stderr)
    if not options.quick:
        intro = (__doc__ or "").split("\n\n    python")[0]
        stamp = time.strftime("%Y-%m-%d", time.gmtime())
        verdict = f"Over budget: {'; '.join(over)}." if over else "Within budget."
        (HERE / "migration.md").write_text(
            f"# {intro}\n\n`python -m benchmarks.migration`, measured {stamp} on {where}; "
            f"{len(found)} rounds. Budget: a blackout of {BUDGET['blackout_s']} s, "
            f"{BUDGET['beside_transfer_s']} s beside the transfer (medians). {verdict}\n\n{text}\n",
            "utf-8",
        )
    return 1 if over and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
