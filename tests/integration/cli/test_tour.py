"""The tour against a real pool: what the README shows is what happens."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.e2e.harness import Pool, pool

pytestmark = [pytest.mark.e2e, pytest.mark.criu]

#: The promise is 3 minutes on two cores with the full training; this one is shorter.
COMPUTE_S = "8"
LIMIT_S = 180


def test_the_tour_proves_what_it_says(tmp_path: Path) -> None:
    it = Pool(tmp_path / "data")
    doctor = it.attempt("doctor", "--fix", "-o", "jsonl")
    if '"id": "criu", "result": "pass"' not in doctor.stdout:
        pytest.skip(f"this machine cannot save jobs transparently: {doctor.stdout}")
    with pool(it.folder):
        started = time.monotonic()
        done = it.attempt("tour", "--compute", COMPUTE_S, timeout_s=LIMIT_S)
        assert done.returncode == 0, done.stderr + it.logs()
        assert time.monotonic() - started < LIMIT_S
        digests = [line for line in done.stdout.splitlines() if line.startswith("digest ")]
        assert len(digests) == 2
        assert len({line.split()[1] for line in digests}) == 1
        assert "equal: every printed loss" in done.stdout
        assert "answers 8 of 8" in done.stdout
        assert "\x1b" not in done.stdout + done.stderr
        jobs = {job["name"]: job for job in it.json("ps")}
        assert jobs["tour-training"]["suspends"] == 1
        assert jobs["tour-undisturbed"]["suspends"] == 0
        keys = [key for key in it.json("key", "list") if key["name"] == "tour"]
        assert keys and all(key["revoked_at"] for key in keys), "the tour's key outlives it"
