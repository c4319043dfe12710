"""Serving takes devices from a job and gives them back, and the job does not notice."""

from __future__ import annotations

import concurrent.futures
import os
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import JOB, STEPS, Pool, pool, until

pytestmark = pytest.mark.e2e

DEVICES = len(os.sched_getaffinity(0))


@pytest.mark.skipif(DEVICES < 2, reason="this machine has one core")
def test_an_elastic_job_lends_a_newcomer_a_core_and_gets_it_back(
    up: Pool, undisturbed: str
) -> None:
    wide = up.submit(name="wide", devices=f"1..{DEVICES}")
    until("it has all cores", lambda: len(up.job(wide)["devices"]) == DEVICES)
    second = up.submit(name="second")
    assert up.finished(second)["outcome"] == "succeeded"
    assert up.digest(second) == undisturbed
    until("it has all cores again", lambda: len(up.job(wide)["devices"]) == DEVICES)
    ended = up.finished(wide)
    assert (ended["outcome"], ended["suspends"], ended["attempts"]) == ("succeeded", 0, 1)
    assert up.digest(wide) == undisturbed


def test_a_job_stands_still_for_a_premium_one_that_its_memory_leaves_room_for(
    up: Pool, undisturbed: str
) -> None:
    all_of_it = {"devices": str(DEVICES)}
    words = ("--memory", str(64 << 20))
    held = up.submit("--tier", "basic", *words, name="held", **all_of_it)
    until("the basic job runs", lambda: up.printed(held))
    urgent = up.submit("--tier", "premium", *words, name="urgent", **all_of_it)
    until("it stands still", lambda: up.phase(held) in ("frozen", "suspended"))
    assert up.finished(urgent)["outcome"] == "succeeded"
    ended = up.finished(held)
    assert (ended["outcome"], ended["attempts"], ended["lost_ms"]) == ("succeeded", 1, 0)
    assert up.digest(held) == undisturbed
    (receipt,) = up.json("receipts", held)
    assert (receipt["by"], receipt["lost_ms"]) == (urgent, 0)
    if ended["checkpoint"] == "criu":
        assert ended["suspends"] == 0


def test_a_burst_suspends_a_job_and_the_job_ends_as_if_undisturbed(
    serving: Pool, undisturbed: str
) -> None:
    serving.run("tenant", "create", "burst")
    key = serving.json("key", "create", "--tenant", "burst", "--role", "caller")["key"]
    serving.run(
        "deploy", "demo:tiny", "--name", "surge", "--tenant", "burst",
        "--tier", "premium", "--replicas", "0..1",
    )  # fmt: skip
    spare = DEVICES - 1
    job = serving.submit("--tier", "standard", name="shared", devices=str(spare))
    until("the job runs", lambda: serving.phase(job) == "running")
    client = serving.client().with_options(api_key=key)

    def ask(number: int) -> bool:
        said = client.chat.completions.create(
            model="surge",
            messages=[{"role": "user", "content": f"Number {number}?"}],
            max_tokens=8,
        )
        return bool(said.choices)

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(16)))
    during = serving.job(job)
    assert during["suspends"] == 1
    assert during["phase"] in ("suspended", "saving")
    assert during["memory_bytes"] == 0
    ended = serving.finished(job)
    assert ended["outcome"] == "succeeded"
    if ended["checkpoint"] == "criu":
        assert ended["lost_ms"] == 0
        assert serving.printed_once(job)
    assert serving.digest(job) == undisturbed


def test_a_user_can_suspend_and_resume(serving: Pool, undisturbed: str) -> None:
    job = serving.submit(name="by-hand")
    until("it prints", lambda: serving.printed(job))
    serving.run("suspend", job)
    until("it is suspended", lambda: serving.phase(job) == "suspended")
    said = serving.json("why", job)
    assert said["blockers"]
    serving.run("resume", job)
    ended = serving.finished(job)
    assert (ended["outcome"], ended["suspends"]) == ("succeeded", 1)
    assert ended["checkpoint"] != "criu" or serving.printed_once(job)
    assert serving.digest(job) == undisturbed


def test_a_waiting_job_says_who_holds_what_it_waits_for(serving: Pool) -> None:
    first = serving.submit(name="holder", devices=str(DEVICES - 1))
    until("it runs", lambda: serving.phase(first) == "running")
    second = serving.submit(name="waiter")
    said = serving.json("why", second)
    assert said["phase"] == "pending"
    assert any(first in holder for b in said["blockers"] for holder in b["holders"])
    serving.run("cancel", first)
    assert serving.ended(first)["outcome"] == "cancelled"
    assert serving.finished(second)["outcome"] == "succeeded"


def test_watching_a_job_returns_its_own_code(serving: Pool) -> None:
    done = serving.attempt("run", "--watch", "--", "/bin/sh", "-c", "echo hello; exit 7")
    assert done.returncode == 7
    assert "hello" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run", "--devices", "4096", "--", "true"), 6, "4096"),
        (("run", "--watch", "--", "no-such-program"), 127, "no-such-program"),
        (("deploy", "nothing:here"), 3, "nothing:here"),
        (("why", "job-nobody"), 3, "job-nobody"),
        (("logs", "job-nobody"), 3, "job-nobody"),
        (("model", "add", "/no/such/file.gguf"), 2, "/no/such/file.gguf"),
        (("tenant", "create", "default"), 5, "default"),
        (("run", "--tier", "golden", "--", "true"), 2, "golden"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_own_code(
    serving: Pool, words: tuple[str, ...], code: int, said: str
) -> None:
    done = serving.attempt(*words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_lies_about_itself_is_refused(serving: Pool) -> None:
    lie = serving.folder.parent / "lie.gguf"
    lie.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2)
    done = serving.attempt("model", "add", str(lie))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


#: Has a child that it traces, so that nobody else can: no save can be made of it from outside.
TRACED = """
import ctypes, os, runpy, sys, time
if os.fork() == 0:
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    while os.getppid() != 1: time.sleep(0.05)
    os._exit(0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
os._exit(0)
"""


@pytest.mark.criu
def test_a_reservation_has_its_cores_in_time_from_a_job_that_cannot_be_saved(
    tmp_path: Path, undisturbed: str
) -> None:
    with pool(tmp_path / "data") as up:
        up.run("reservation", "create", "default", str(DEVICES), "--within", "4")
        finish = up.folder.parent / "finish-stuck"
        command = (sys.executable, "-c", TRACED, str(JOB), str(STEPS), str(finish))
        all_of_it = ("--devices", str(DEVICES))
        stuck = up.run("run", "--tier", "basic", "--name", "stuck", *all_of_it, "--", *command)
        until("it prints", lambda: up.printed(stuck))
        urgent = up.submit("--tier", "premium", name="urgent", devices=str(DEVICES))
        until("a save of it fails", lambda: "not saved" in up.job(stuck)["reason"])
        assert up.finished(urgent)["outcome"] == "succeeded"
        ended = up.finished(stuck)
        assert (ended["outcome"], ended["attempts"]) == ("succeeded", 2)
        assert up.digest(stuck) == undisturbed
        receipts = up.json("receipts", stuck)
        assert all(receipt["by"] == urgent for receipt in receipts)
        assert receipts[-1]["lost_ms"] == ended["lost_ms"] > 0
        assert "could not be saved in time" in receipts[-1]["reason"]
