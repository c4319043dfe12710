"""A real pool in a folder of its own, driven through the command line as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from openai import OpenAI

from onefleet.agent import memory_images
from onefleet.cli.job_logs import LogReader
from onefleet.cli.job_verb import get_job
from onefleet.domain.errors import OnefleetError
from onefleet.domain.layout import Layout
from onefleet.drivers.image import PARTIAL
from onefleet.wire.api import NodeView, Page
from onefleet.wire.client import Client
from tests.checkpoint import criu_home, make_criu

#: How long a state may take to come about on a busy machine, in seconds.
PATIENCE_S = 90.0

#: The node on the pool's own machine.
LOCAL = "node-local"
JOB = Path(__file__).parent / "job.py"
#: Of the job: more than it takes in its time, whatever is done to it.
STEPS = 3_000


def until(what: str, probe: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """Ask until the answer is true; fail naming what did not come about."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.05)


class Pool:
    """One data folder and, while it is up, its processes."""

    def __init__(self, folder: Path, *, criu: bool = True) -> None:
        """The folder is made, and borrows the tests' criu where this machine can have one."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if not criu:
            return
        borrow_criu(folder)

    def run(self, *words: str, code: int | None = 0, timeout_s: float = 180) -> str:
        """Run one command; return its stdout. `code` None: any exit code will do."""
        done = self.attempt(*words, timeout_s=timeout_s)
        if code is not None and done.returncode != code:
            raise AssertionError(
                f"onefleet {' '.join(words)}: exit {done.returncode}, not {code}\n"
                f"{done.stdout}\n{done.stderr}\n{self.logs()}"
            )
        return done.stdout.strip()

    def attempt(
        self, *words: str, timeout_s: float = 180, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command and return how it went."""
        head, *rest = words
        line = [sys.executable, "-m", "onefleet.cli.main", head]
        split = rest.index("--") if "--" in rest else len(rest)
        line += [*rest[:split], "--data-dir", str(self.folder), *rest[split:]]
        return subprocess.run(
            line,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=cwd or self.folder.parent,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def json(self, *words: str) -> Any:
        """Run one command with -o json and return what it printed."""
        split = words.index("--") if "--" in words else len(words)
        return json.loads(self.run(*words[:split], "-o", "json", *words[split:]))

    def up(self, *words: str) -> None:
        self.run("up", "--port", "0", "--detach", *words)

    def down(self) -> None:
        self.run("down")

    @property
    def facts(self) -> dict[str, Any]:
        """What the pool says of itself while it is up."""
        text = (self.folder / "run" / "pool.json").read_text()
        return dict(json.loads(text))

    @property
    def url(self) -> str:
        return str(self.facts["url"])

    def pid(self, process: str) -> int:
        """The process id of control, gateway or agent; 0 while it is being started again."""
        return int(self.facts["pids"].get(process, 0))

    def kill(self, pid: int) -> None:
        """End one process at once, as a crash would."""
        os.kill(pid, signal.SIGKILL)

    def client(self, **options: Any) -> OpenAI:
        key = (self.folder / "credentials").read_text().strip()
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, **options)

    def api(self) -> Client:
        """For what is asked again and again: each command is a process of its own."""
        return Client(self.url, (self.folder / "credentials").read_text().strip())

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(msgspec.to_builtins(get_job(self.api(), job_id)))

    def phase(self, job_id: str) -> str:
        return str(self.job(job_id)["phase"])

    def submit(self, *words: str, name: str, devices: str = "1") -> str:
        """Start the deterministic job, which goes on until `finish`; return its id."""
        command = [sys.executable, str(JOB), str(STEPS), str(self._finish(name))]
        return self.run("run", "--name", name, "--devices", devices, *words, "--", *command)

    def finish(self, job_id: str) -> None:
        """Let the deterministic job come to its end."""
        self._finish(str(self.job(job_id)["name"])).touch()

    def _finish(self, name: str) -> Path:
        return self.folder.parent / f"finish-{name}"

    def digest(self, job_id: str) -> str:
        """The last line of a finished job: the digest of its final state."""
        return self.run("logs", job_id).splitlines()[-1]

    def printed(self, job_id: str) -> int:
        """How many lines it has printed."""
        return "".join(LogReader(self.api(), job_id).rest("stdout")).count("\n")

    def printed_once(self, job_id: str) -> bool:
        """Whether the job printed each of its steps once, in order: nothing lost or repeated."""
        lines = self.run("logs", job_id).splitlines()[:-1]
        return [int(line.split()[1]) for line in lines] == list(range(STEPS))

    def finished(self, job_id: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Let a job come to its end, and wait for it; return it."""
        self.finish(job_id)
        return self.ended(job_id, timeout_s)

    def ended(self, job_id: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until a job is over; return it."""
        over = lambda: (job := self.job(job_id))["phase"] == "ended" and job  # noqa: E731
        try:
            return dict(until(f"{job_id} ends", over, timeout_s))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.job(job_id)}\n{self.logs()}") from None

    def engine_pids(self) -> list[int]:
        """The engine processes of this pool's replicas."""
        return [p.pid for p in self.processes() if "engines." in told_by(p)]

    def processes(self) -> list[psutil.Process]:
        """Every live process that works in or for this pool's folder."""
        return processes_of(self.folder)

    def logs(self) -> str:
        """The end of each process's log, for a failure's report."""
        tails = []
        for path in sorted((self.folder / "log").glob("*.log")):
            tails.append(f"--- {path.name}\n" + path.read_text(errors="replace")[-3000:])
        return "\n".join(tails)


def borrow_criu(folder: Path) -> None:
    """Give a data folder the tests' criu where this machine can have one."""
    with contextlib.suppress(OnefleetError, OSError):
        make_criu()
        (folder / "criu").symlink_to(criu_home())


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every live process that works in or for a data folder."""
    return [p for p in psutil.process_iter() if str(folder) in told_by(p)]


def told_by(process: psutil.Process) -> str:
    """Its command line and the folder that it works in, where a supervisor may say whose it is."""
    try:
        return " ".join([*process.cmdline(), process.cwd()])
    except psutil.Error:
        return ""


class Node:
    """A further node of a pool on this machine: its folder, its key and, at times, its agent."""

    def __init__(self, it: Pool, name: str, cpus: str, folder: Path) -> None:
        self.folder = folder
        self.name = name
        self._pool = it
        self._cpus = cpus
        folder.mkdir(parents=True)
        borrow_criu(folder)
        made = it.json("key", "create", "--role", "node", "--name", name)
        (folder / "key").write_text(made["key"])
        self.agent: subprocess.Popen[bytes] | None = None

    @property
    def id(self) -> str:
        return f"node-{self.name}"

    def start(self) -> None:
        """Start its agent, and wait until the pool counts it in."""
        line = [
            *(sys.executable, "-m", "onefleet.cli.main", "agent", "--name", self.name),
            *("--join", self._pool.url, "--key-file", str(self.folder / "key")),
            *("--data-dir", str(self.folder), "--cpus", self._cpus),
        ]
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until(f"{self.name} is ready", lambda: self.state() == "ready")

    def state(self) -> str:
        """What the pool says of it; empty while it does not know it."""
        nodes = self._pool.api().get("/api/v1/nodes", Page[NodeView]).data
        return next((str(node.state) for node in nodes if node.id == self.id), "")

    def leave(self, number: int = signal.SIGTERM) -> int:
        """End its agent, which saves its jobs first (but for SIGKILL); its exit code."""
        assert self.agent is not None
        self.agent.send_signal(number)
        return self.agent.wait(120)

    def die(self) -> None:
        """End everything that runs on it at once, as if the machine had lost its power."""
        for process in processes_of(self.folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.agent is not None:
            self.agent.wait(30)

    def log(self) -> str:
        return (self.folder / "agent.log").read_text(errors="replace")


@contextlib.contextmanager
def pool(folder: Path, *words: str, criu: bool = True) -> Iterator[Pool]:
    """A pool that is up inside the block and leaves no process behind. words: further of `up`."""
    it = Pool(folder, criu=criu)
    it.up(*words)
    try:
        yield it
    finally:
        it.run("down", code=None)
        end_all(folder)


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Pool, Node]]:
    """A pool on one core of this machine, and a further node on another; skips where it has one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("this machine has one core")
    here, there = map(str, cores[:2])
    with pool(folder / "pool", "--cpus", here) as it, node(it, "n2", there) as n2:
        yield it, n2


@contextlib.contextmanager
def node(it: Pool, name: str, cpus: str) -> Iterator[Node]:
    """A further node of the pool inside the block; it leaves no process behind."""
    found = Node(it, name, cpus, it.folder.parent / name)
    try:
        found.start()
        yield found
    finally:
        if found.agent is not None and found.agent.poll() is None:
            found.leave()
        it.attempt("down", "--data-dir", str(found.folder))
        end_all(found.folder)


def copies(folder: Path) -> set[Path]:
    """The whole images in it."""
    return {p for p in folder.glob("*") if p.suffix != PARTIAL}


def end_all(folder: Path) -> None:
    """Whatever is left in or for a folder is ended, and fails the test."""
    shutil.rmtree(memory_images.root(Layout(folder)), ignore_errors=True)
    left = processes_of(folder)
    told = [told_by(p) for p in left]
    for process in left:
        process.kill()
    assert told == []
