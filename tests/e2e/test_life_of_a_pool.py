"""A pool goes down and comes up again with everything that it had."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Pool, pool, until

pytestmark = pytest.mark.e2e

#: How long the pool is down: well over what a start and a stop take to be told.
NIGHT_S = 3


def test_the_second_start_finds_everything(tmp_path: Path, undisturbed: str) -> None:
    it = Pool(tmp_path / "data")
    with pool(it.folder):
        it.run("model", "add", "demo:tiny")
        it.run("deploy", "demo:tiny", "--name", "tiny", "--wait")
        made = it.json("key", "create", "--name", "kept")
        job = it.submit(name="over-night")
        until("the job runs", lambda: it.phase(job) == "running")
        it.down()
        assert it.processes() == []
        time.sleep(NIGHT_S)
        started = time.monotonic()
        it.up()
        assert time.monotonic() - started < 60
        assert [k["id"] for k in it.json("key", "list") if k["name"] == "kept"] == [made["id"]]
        assert [m["id"] for m in it.json("model", "list")] == ["demo:tiny"]
        client = it.client(max_retries=8).with_options(api_key=made["key"])
        assert client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=2
        ).choices
        ended = it.finished(job)
        assert ended["outcome"] == "succeeded"
        assert it.digest(job) == undisturbed
        whole_ms = ended["ended_at"] - ended["submitted_at"]
        assert ended["suspends"] == 1
        assert ended["ran_ms"] <= whole_ms - NIGHT_S * 1000, "the night was not run time"


def test_a_program_that_saved_nothing_is_told_what_it_lost(tmp_path: Path) -> None:
    with pool(tmp_path / "data", criu=False) as it:
        job = it.submit(name="careless")
        until("the job runs", lambda: it.phase(job) == "running")
        if it.job(job)["checkpoint"] == "criu":
            pytest.skip("this machine has a criu of its own, so every job is saved whole")
        time.sleep(1)
        it.run("suspend", job)
        until("it is suspended", lambda: it.phase(job) == "suspended")
        seen = it.job(job)
        assert seen["lost_ms"] == seen["ran_ms"] > 0
        assert "are lost" in seen["reason"]
        it.run("cancel", job)


def test_one_folder_has_one_pool_and_one_port_one_owner(tmp_path: Path) -> None:
    with pool(tmp_path / "data") as it:
        second = it.attempt("up", "--port", "0", "--detach")
        assert second.returncode == 5
        assert it.url in second.stderr
        other = Pool(tmp_path / "other")
        port = it.url.rsplit(":", 1)[1]
        taken = other.attempt("up", "--port", port, "--detach")
        assert taken.returncode == 5
        assert port in taken.stderr


def test_a_port_that_a_stranger_holds_is_named(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = str(stranger.getsockname()[1])
        it = Pool(tmp_path / "data")
        done = it.attempt("up", "--port", port, "--detach")
        assert done.returncode == 5
        assert port in done.stderr


def test_without_a_pool_commands_say_how_to_start_one(tmp_path: Path) -> None:
    done = Pool(tmp_path / "data").attempt("ps")
    assert done.returncode == 7
    assert "onefleet up" in done.stderr
