"""Real PyTorch training in a real pool of two nodes: whatever is done to it, not a bit changes.

Each job is disturbed while it takes its steps, and is then held, line by line, against a run of
the same script outside any pool: the bits of every loss, and the digest of all weights and moments.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onefleet.cli.job_logs import LogReader
from onefleet.cli.job_verb import get_job
from onefleet.domain.gang import threads
from onefleet.domain.layout import Layout
from onefleet.wire.api import JobView
from onefleet.wire.client import Client
from tests.e2e.harness import LOCAL, Node, Pool, copies, node, pool, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not here"),
]

SCRIPT = str(Path(__file__).parent / "torch_job.py")
STEPS = 400
CORES = sorted(os.sched_getaffinity(0))[:2]
#: How long a pool may take to give a silent node up, and go on without it.
LOSS_S = 150.0
WAITS = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pool, Node]]:
    """Two nodes of the same two cores of this machine, with a data folder each."""
    if len(CORES) < 2:
        pytest.skip("this machine has one core")
    folder = tmp_path_factory.mktemp("torch")
    cores = ",".join(map(str, CORES))
    with pool(folder / "pool", "--cpus", cores) as it, node(it, "n2", cores) as n2:
        if any(n["checkpoint"] != "criu" for n in it.json("node", "list")):
            pytest.skip("this machine has no criu that works")
        yield it, n2


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What one process prints outside any pool."""
    return outside(1, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What each of two data-parallel processes prints outside any pool."""
    return outside(2, tmp_path_factory.mktemp("pair"))


def outside(workers: int, folder: Path) -> list[list[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common = os.environ | threads(1) | meeting | {"TMPDIR": str(folder)}
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(STEPS), "-"],
            env=common | {"RANK": str(rank), "WORLD_SIZE": str(workers)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(workers)
    ]
    said = [rank.communicate(timeout=300)[0].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * workers
    assert all(len(lines) == STEPS + 1 for lines in said)
    return said


class Training:
    """A job of the script, which takes its time until it is told to end."""

    def __init__(self, it: Pool, folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> None:
        self.it = it
        self.finish = folder / "finish"
        script = (sys.executable, *launcher, SCRIPT, str(STEPS), str(self.finish))
        temporary = ("--env", f"TMPDIR={folder}")  # what PyTorch leaves there goes with the test
        self.id = it.run("run", "--no-code", *temporary, *words, "--", *script)
        key = (it.folder / "credentials").read_text().strip()
        self._api = Client(it.url, key)
        self._output = LogReader(self._api, self.id)
        self.goes_on()

    def seen(self) -> JobView:
        return get_job(self._api, self.id)

    def steps(self) -> int:
        """How many more it has taken since this was asked last."""
        return "".join(self._output.rest("stdout")).count("\n")

    def goes_on(self) -> None:
        """Wait until it has taken a few more steps."""
        self.steps()
        taken = itertools.accumulate(iter(self.steps, None))
        until(f"{self.id} goes on", lambda: next(taken) > 5)

    def lines(self, rank: int = 0) -> list[str]:
        words = ("--stream", "stdout", "--rank", str(rank))
        return self.it.run("logs", self.id, *words).splitlines()

    def told(self, *words: str) -> None:
        """Run `onefleet WORD JOB ... --wait`."""
        verb, *rest = words
        self.it.run(verb, self.id, *rest, "--wait")

    def moves_to(self, node_id: str) -> None:
        self.told("migrate", "--to", node_id)
        assert (self.seen().node, self.seen().phase) == (node_id, "running")
        self.goes_on()

    def ends_well(self) -> JobView:
        """Let it end; it, having succeeded at its first attempt."""
        self.finish.touch()
        ended: JobView = until("it ends", lambda: (job := self.seen()).phase == "ended" and job)
        assert (ended.outcome, ended.attempts) == ("succeeded", 1), ended
        return ended


def other(node_id: str) -> str:
    return {LOCAL: "node-n2", "node-n2": LOCAL}[node_id]


def test_a_burst_of_premium_work_suspends_it(
    two: tuple[Pool, Node], alone: list[list[str]], tmp_path: Path
) -> None:
    it, _ = two
    training = Training(it, tmp_path, "--tier", "basic")
    over = tmp_path / "over"
    waits = (sys.executable, "-c", WAITS, str(over))
    it.run("run", "--no-code", "--array", "4", "--tier", "premium", "--", *waits)
    until("it makes room", lambda: training.seen().phase == "suspended")
    assert training.seen().memory_bytes == 0
    over.touch()
    until("it runs again", lambda: training.seen().phase == "running")
    training.goes_on()
    ended = training.ends_well()
    assert (ended.suspends, ended.lost_ms) == (1, 0)
    assert [training.lines()] == alone
    (receipt,) = it.json("receipts", training.id)
    assert receipt["by"] and receipt["lost_ms"] == 0 and receipt["back_at"]


def test_it_moves_to_another_node_and_back(
    two: tuple[Pool, Node], alone: list[list[str]], tmp_path: Path
) -> None:
    it, _ = two
    training = Training(it, tmp_path)
    first = training.seen().node
    training.moves_to(other(first))
    training.moves_to(first)
    ended = training.ends_well()
    assert (ended.suspends, ended.lost_ms) == (2, 0)
    assert [training.lines()] == alone


def test_two_ranks_on_fewer_devices_and_on_more_again(
    two: tuple[Pool, Node], pair: list[list[str]], tmp_path: Path
) -> None:
    training = Training(two[0], tmp_path, "--workers", "2", "--devices", "1..2")
    resize(training)
    training.ends_well()
    assert [training.lines(rank) for rank in (0, 1)] == pair
    nobody = training.it.attempt("logs", training.id, "--rank", "2")
    assert nobody.returncode == 3 and "its ranks are 0..1" in nobody.stderr


def test_torchrun_on_fewer_devices_and_on_more_again(
    two: tuple[Pool, Node], pair: list[list[str]], tmp_path: Path
) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2")
    words = ("--devices", "1..2", "--env", "OMP_NUM_THREADS=1")
    training = Training(two[0], tmp_path, *words, launcher=torchrun)
    resize(training)
    training.ends_well()
    assert sorted(training.lines()) == sorted(line for rank in pair for line in rank)


def resize(training: Training) -> None:
    """From two devices to one, and back."""
    for devices in (2, 1, 2):
        training.it.run("scale", training.id, str(devices))
        until(f"it is on {devices}", functools.partial(is_on, training, devices))
        training.goes_on()
    assert training.seen().suspends == 0


def is_on(training: Training, devices: int) -> bool:
    return len(set(training.seen().devices)) == devices


def test_two_ranks_stand_still_are_suspended_and_move(
    two: tuple[Pool, Node], pair: list[list[str]], tmp_path: Path
) -> None:
    training = Training(two[0], tmp_path, "--workers", "2")
    training.told("freeze")
    training.steps()
    assert training.it.run("ps") and training.steps() == 0
    training.told("resume")
    training.goes_on()
    training.told("suspend")
    assert training.seen().memory_bytes == 0
    training.told("resume")
    training.goes_on()
    training.moves_to(other(training.seen().node))
    ended = training.ends_well()
    assert (ended.suspends, ended.lost_ms) == (2, 0)
    assert [training.lines(rank) for rank in (0, 1)] == pair


def test_its_node_dies_and_it_goes_on_elsewhere_from_its_last_image(
    two: tuple[Pool, Node], alone: list[list[str]], tmp_path: Path
) -> None:
    it, n2 = two
    training = Training(it, tmp_path, "--checkpoint-every", "10s")
    if training.seen().node != n2.id:
        training.moves_to(n2.id)
    here = Layout(it.folder).worker(training.id, 0) / "images"
    before, moved_as = copies(here), training.seen().saved_at
    saved = until("it is saved as it runs", lambda: later(training.seen().saved_at, moved_as))
    until("a copy is here", lambda: copies(here) - before)
    training.goes_on()
    assert training.seen().unsaved_ms > 0
    n2.die()
    until("it runs here", lambda: running_on(training, LOCAL), LOSS_S)
    back = training.seen()
    assert back.lost_ms > 0 and saved <= back.saved_at
    (receipt,) = [r for r in it.json("receipts", training.id) if "lost" in r["reason"]]
    assert receipt["lost_ms"] == back.lost_ms and n2.id in receipt["reason"]
    training.goes_on()
    n2.start()  # it finds nothing of the job that it might go on with
    training.ends_well()
    assert [training.lines()] == alone


def later(at: int | None, than: int | None) -> int | None:
    return at if at is not None and (than is None or at > than) else None


def running_on(training: Training, node_id: str) -> bool:
    seen = training.seen()
    return bool(seen.phase == "running" and seen.node == node_id)
