"""Two nodes on one machine: jobs move between them, and outlive them, with not a bit changed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Node, Pool, two_nodes, until

pytestmark = pytest.mark.e2e

PAIR = Path(__file__).parent / "pair_job.py"
CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pool, Node]]:
    with two_nodes(tmp_path_factory.mktemp("two")) as both:
        yield both


def place(it: Pool, job: str) -> str:
    """The node that a running job is on."""
    found = it.job(job)
    return str(found["node"]) if found["phase"] == "running" else ""


def runs(it: Pool, job: str) -> str:
    return str(until(f"{job} runs", lambda: place(it, job)))


def check(it: Pool, job: str, undisturbed: str) -> dict[str, Any]:
    ended = it.finished(job)
    assert (ended["outcome"], ended["attempts"]) == ("succeeded", 1), ended
    assert it.printed_once(job)
    assert it.digest(job) == undisturbed
    return ended


def test_each_has_its_own_devices(two: tuple[Pool, Node]) -> None:
    it, _ = two
    devices = {device["id"] for device in it.json("device", "list")}
    assert devices == {f"node-local/cpu{CORES[0]}", f"node-n2/cpu{CORES[1]}"}


def test_a_job_moves_there_and_back(two: tuple[Pool, Node], undisturbed: str) -> None:
    it, _ = two
    job = it.submit(name="moves")
    printed = 0
    for _ in range(2):
        other = {"node-local": "node-n2", "node-n2": "node-local"}[runs(it, job)]
        it.run("migrate", job, "--to", other, "--wait")
        assert place(it, job) == other
        so_far, printed = printed, len(it.run("logs", job).splitlines())
        assert printed > so_far  # what it printed is read from wherever it is
    assert check(it, job, undisturbed)["lost_ms"] == 0


def test_a_node_that_leaves_saves_its_job_and_goes_on_with_it(
    two: tuple[Pool, Node], undisturbed: str
) -> None:
    it, n2 = two
    job = it.submit(name="leaves")
    if runs(it, job) != n2.id:
        it.run("migrate", job, "--to", n2.id, "--wait")
    assert n2.leave() == 0 and "its jobs are saved" in n2.log()
    n2.start()
    assert check(it, job, undisturbed)["lost_ms"] == 0


def test_a_killed_agent_finds_its_job_again(two: tuple[Pool, Node], undisturbed: str) -> None:
    it, n2 = two
    job = it.submit(name="adopted")
    if runs(it, job) != n2.id:
        it.run("migrate", job, "--to", n2.id, "--wait")
    n2.leave(9)
    n2.start()
    ended = check(it, job, undisturbed)
    assert ended["lost_ms"] == 0


STEPS = 1_000


def pair(it: Pool, finish: Path, *options: str) -> str:
    """A gang of two that talk to each other at each step, and end once the file is there."""
    command = (sys.executable, str(PAIR), str(STEPS), str(finish))
    job = it.run("run", "--no-code", "--workers", "2", *options, "--", *command)
    goes_on(it, job)
    return job


def goes_on(it: Pool, job: str) -> None:
    before = it.printed(job)
    until("it goes on", lambda: it.printed(job) > before + 5)


def nodes_of(it: Pool, job: str) -> set[str]:
    """Where it runs; nowhere while it is saved, or brought back."""
    found = it.job(job)
    devices = found["devices"] if found["phase"] == "running" else ()
    return {device.partition("/")[0] for device in devices}


def ends_as_undisturbed(it: Pool, job: str, finish: Path, suspends: int) -> None:
    finish.touch()
    ended = it.finished(job)
    found = (ended["outcome"], ended["attempts"], ended["suspends"], ended["lost_ms"])
    assert found == ("succeeded", 1, suspends, 0), ended
    said = [it.run("logs", job, "--rank", rank).splitlines() for rank in "01"]
    assert said == undisturbed_pair(STEPS)


def test_a_gang_on_both_nodes_keeps_its_connection(two: tuple[Pool, Node], tmp_path: Path) -> None:
    it, n2 = two
    job = pair(it, tmp_path / "finish")
    assert nodes_of(it, job) == {"node-local", n2.id}
    assert n2.id in it.run("why", job)
    it.run("suspend", job, "--wait")
    it.run("resume", job, "--wait")
    goes_on(it, job)
    ends_as_undisturbed(it, job, tmp_path / "finish", suspends=1)


def test_a_gang_is_spread_over_both_nodes_and_gathered_again(
    two: tuple[Pool, Node], tmp_path: Path
) -> None:
    it, n2 = two
    job = pair(it, tmp_path / "finish", "--devices", "1..2")
    assert len(nodes_of(it, job)) == 1
    for width, nodes in (("2", {"node-local", n2.id}), ("1", {"node-local"})):
        it.run("scale", job, width)
        until(f"it is on {nodes}", lambda wanted=nodes: nodes_of(it, job) == wanted)
        goes_on(it, job)
    ends_as_undisturbed(it, job, tmp_path / "finish", suspends=2)


def undisturbed_pair(steps: int) -> list[list[str]]:
    """What the two print outside any pool."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    line = [sys.executable, str(PAIR), str(steps)]
    ranks = [
        subprocess.Popen(line, env=common | {"RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    return [rank.communicate(timeout=60)[0].splitlines() for rank in ranks]


def test_who_has_the_wrong_key_or_a_name_that_is_taken_is_told(
    two: tuple[Pool, Node], tmp_path: Path
) -> None:
    it, n2 = two
    common = ("agent", "--join", it.url)
    other = Pool(tmp_path / "other", criu=False)
    wrong = other.attempt(*common, "--name", "n3", "--key-file", str(n2.folder / "key"))
    assert wrong.returncode == 4 and 'this key is of node "n2"' in wrong.stderr
    taken = other.attempt(*common, "--name", "n2", "--key-file", str(n2.folder / "key"))
    assert taken.returncode == 5 and 'a node "n2" already' in taken.stderr
    (tmp_path / "bad").write_text("of-nothing")
    bad = other.attempt(*common, "--name", "n2", "--key-file", str(tmp_path / "bad"))
    assert bad.returncode == 4 and "not good" in bad.stderr
    reserved = it.attempt("key", "create", "--role", "node", "--name", "local")
    assert reserved.returncode == 2 and "own machine" in reserved.stderr
