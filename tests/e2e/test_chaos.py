"""Everything is killed at random, again and again: jobs stay exact, and the pool comes back."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from onefleet.domain.errors import OnefleetError
from tests.e2e.chaos import Storm, call, strangers_of
from tests.e2e.harness import Pool, pool, until

pytestmark = pytest.mark.e2e

#: Longer by hand: ONEFLEET_CHAOS_S=300 ONEFLEET_CHAOS_SEED=7 pytest tests/e2e/test_chaos.py
RAGE_S = float(os.environ.get("ONEFLEET_CHAOS_S", "20"))
SEED = int(os.environ.get("ONEFLEET_CHAOS_SEED", "1"))
#: After the storm: three jobs, one device beside the standing deployment, a burst in between.
END_S = 240.0


def test_a_storm_of_kills_loses_nothing(tmp_path: Path, undisturbed: str) -> None:
    with pool(tmp_path / "data") as it:
        storm = _storm(it)
        storm.rage(RAGE_S)
        try:
            _settles(it, storm, undisturbed)
        except (AssertionError, OnefleetError) as error:
            told = "\n".join((*storm.blows, *map(str, storm.refused.items())))
            raise AssertionError(f"seed {SEED}: {error}\n{told}\n{it.logs()}") from None
        it.down()
        assert strangers_of(it.folder) == []


def _storm(it: Pool) -> Storm:
    it.run("model", "add", "demo:tiny")
    it.run("deploy", "demo:tiny", "--name", "tiny", "--wait")
    it.run("tenant", "create", "burst")
    surge = ("--tenant", "burst", "--tier", "premium", "--replicas", "0..1")
    it.run("deploy", "demo:tiny", "--name", "surge", *surge)
    key = it.json("key", "create", "--tenant", "burst", "--role", "caller")["key"]
    jobs = [it.submit(name=f"storm-{n}") for n in range(3)]
    storm = Storm(it, jobs, SEED)
    storm.chat("tiny", (it.folder / "credentials").read_text().strip(), 0.2)
    storm.chat("surge", key, 8.0)
    return storm


def _settles(it: Pool, storm: Storm, undisturbed: str) -> None:
    until("the API answers", lambda: call(it, "GET", "/api/v1/status")[0] == 200)
    for job in storm.jobs:
        call(it, "POST", f"/api/v1/jobs/{job}/resume")
    for job in storm.jobs:
        ended = it.finished(job, END_S)
        assert (ended["outcome"], ended["why_ended"]) == ("succeeded", "exited with code 0"), ended
        assert it.digest(job) == undisturbed, ended
        if job not in storm.struck and ended["checkpoint"] == "criu":
            assert (ended["attempts"], ended["lost_ms"]) == (1, 0), ended
            assert it.printed_once(job), ended
        elif ended["attempts"] > 1:
            assert ended["lost_ms"] > 0, ended
    assert storm.lies == []
    began = time.monotonic()
    for name, key in storm.keys.items():
        until(f"{name} serves again", lambda name=name, key=key: _answers(it, name, key))
    assert time.monotonic() - began < 60
    holders = [d["holder"] for d in it.json("device", "list") if d["holder"]]
    assert len(holders) == len(dict.fromkeys(holders)), holders


def _answers(it: Pool, model: str, key: str) -> bool:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    return call(it, "POST", "/v1/chat/completions", body, key)[0] == 200


def test_requests_and_left_streams_keep_no_descriptor(serving: Pool) -> None:
    client = serving.client(max_retries=0)

    def ask(count: int) -> None:
        for number in range(count):
            stream = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Hello"}],
                max_tokens=2 if number % 2 else 200,
                stream=True,
            )
            next(iter(stream))
            stream.close()  # every other one in the middle
            assert call(serving, "GET", "/api/v1/jobs")[0] == 200

    def descriptors() -> dict[str, int]:
        names = ("control", "gateway", "agent")
        return {n: len(os.listdir(f"/proc/{serving.pid(n)}/fd")) for n in names}

    ask(20)  # connections that are kept are open now
    before = descriptors()
    ask(200)
    until(
        f"no more than {before} and a few kept connections",
        lambda: all(now <= before[name] + 8 for name, now in descriptors().items()),
        timeout_s=20,
    )
