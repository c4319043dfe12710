"""The real pool by its command line: up, serve, run, kill -9 of each process, down, up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from onefleet.cli import pool_folder
from onefleet.cli.pool_folder import Process
from onefleet.domain.errors import OnefleetError
from onefleet.domain.layout import Layout
from onefleet.wire.api import DeploymentView, JobView, NewDeployment, NewJob, NewModel, Page
from onefleet.wire.client import Client

T = TypeVar("T")
LIMIT_S = 90.0
TINY = Path(__file__).parents[3] / "src/onefleet/registry/data/tiny.gguf"
COUNT = """
import os, sys, time
n = 0
while not os.path.exists(sys.argv[1]):
    n += 1
    print(n, flush=True)
    time.sleep(0.02)
"""


class Pool:
    """A pool in a data folder of its own, driven by its real command line."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.seen: list[Process] = []

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "onefleet.cli.main", *words, "--data-dir", self.layout.root],
            capture_output=True,
            text=True,
            timeout=240,
        )
        return done

    def up(self) -> None:
        done = self.command("up", "--port", "0", "--detach")
        assert done.returncode == 0 and "pool is ready" in done.stderr, done.stderr
        self.note()

    def down(self) -> None:
        done = self.command("down")
        assert done.returncode == 0, done.stderr
        assert not [p for p in self.seen if p.alive]

    def note(self) -> pool_folder.Pool:
        pool = pool_folder.read_pool(self.layout)
        assert pool is not None
        self.seen += [pool.launcher, *pool.processes.values()]
        return pool

    @property
    def client(self) -> Client:
        return Client(self.note().url, self.layout.credentials.read_text().strip(), timeout_s=60)

    def chat(self) -> bool:
        body = {
            "model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}],
        }  # fmt: skip
        answer = self.client.post("/v1/chat/completions", body, dict)
        return bool(answer["choices"][0]["message"]["content"])

    def job(self, job_id: str) -> JobView:
        return self.client.get(f"/api/v1/jobs/{job_id}", JobView)

    def lines(self, job_id: str) -> list[str]:
        return (self.layout.worker(job_id, 0) / "stdout").read_text().split()


def eventually(what: Callable[[], T], good: Callable[[T], bool] = bool) -> T:
    """Ask until the answer is good; while the pool mends itself, errors are answers too."""
    deadline = time.monotonic() + LIMIT_S
    last: Any = None
    while time.monotonic() < deadline:
        try:
            last = what()
            if good(last):
                return last  # type: ignore[no-any-return]
        except (OnefleetError, OSError, AssertionError) as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"not within {LIMIT_S:g} s: {last}")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    pool = Pool(tmp_path / "pool")
    pool.up()
    yield pool
    pool.down()


def count(pool: Pool) -> tuple[str, Path]:
    """A job that counts until a file appears; its id and the file."""
    go = pool.layout.root / "go"
    new = NewJob(command=(sys.executable, "-c", COUNT, str(go)), network="host")
    job = pool.client.post("/api/v1/jobs", new, JobView)
    eventually(lambda: len(pool.lines(job.id)) > 3)
    return job.id, go


def serve(pool: Pool) -> None:
    pool.client.post("/api/v1/models", NewModel(source=str(TINY), name="tiny"), dict)
    pool.client.post("/api/v1/deployments", NewDeployment(model="tiny"), DeploymentView)
    eventually(pool.chat)


def test_each_process_may_be_killed_and_nothing_is_lost(pool: Pool) -> None:
    pytest.importorskip("xllamacpp")
    serve(pool)
    job_id, go = count(pool)
    for name in ("gateway", "control", "agent"):
        os.kill(pool.note().processes[name].pid, signal.SIGKILL)
        eventually(pool.chat)
        before = len(pool.lines(job_id))
        eventually(lambda before=before: len(pool.lines(job_id)) > before)  # type: ignore[misc]
    state = next((pool.layout.agent / "workers").glob("rep-*/state.json"))
    os.kill(msgspec.json.decode(state.read_bytes())["pid"], signal.SIGKILL)
    eventually(pool.chat)
    pool.note().launcher.signal(signal.SIGKILL)
    pool.up()
    eventually(pool.chat)
    go.touch()
    job = eventually(lambda: pool.job(job_id), lambda j: j.phase == "ended")
    assert (job.exit_code, job.attempts) == (0, 1)
    counted = pool.lines(job_id)
    assert counted == [str(n) for n in range(1, len(counted) + 1)]  # one process, all along


def test_down_suspends_the_job_and_the_next_up_goes_on_with_everything(pool: Pool) -> None:
    job_id, go = count(pool)
    job = pool.job(job_id)
    pool.down()
    before = pool.lines(job_id)
    began = time.monotonic()
    pool.up()
    eventually(lambda: pool.job(job_id), lambda j: j.phase == "running")
    assert time.monotonic() - began < 60  # 15 s on a quiet machine; tests share theirs
    go.touch()
    job = eventually(lambda: pool.job(job_id), lambda j: j.phase == "ended")
    assert job.exit_code == 0
    if job.checkpoint == "criu":
        counted = pool.lines(job_id)
        assert counted == [str(n) for n in range(1, len(counted) + 1)]
        assert len(counted) > len(before)


def test_leftovers_of_a_killed_launcher_are_ended_by_down(pool: Pool) -> None:
    job_id, _ = count(pool)
    launcher = pool.note().launcher
    launcher.signal(signal.SIGKILL)
    assert launcher.wait(10)
    done = pool.command("down")
    assert done.returncode == 0 and "killed" in done.stderr
    before = len(pool.lines(job_id))
    assert not [p for p in pool.seen if p.alive]
    time.sleep(0.3)
    assert len(pool.lines(job_id)) == before
    pool.up()
    eventually(lambda: pool.job(job_id), lambda j: j.phase == "running")


def test_the_pool_file_is_for_programs(pool: Pool) -> None:
    value = json.loads(pool.layout.pool_file.read_text())
    assert set(value) >= {"url", "pid", "pids", "version", "started_at"}
    nodes = pool.client.get("/api/v1/nodes", Page[dict[str, Any]])
    assert len(nodes.data) == 1
    second = pool.command("up", "--port", "0")
    assert second.returncode == 5 and value["url"] in second.stderr
