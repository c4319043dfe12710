"""Fixtures of the end-to-end tests: a real pool that serves the small committed model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import JOB, Pool, pool


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool without anything in it, for the tests of one module."""
    with pool(tmp_path_factory.mktemp("pool") / "data") as it:
        yield it


@pytest.fixture(scope="module")
def serving(up: Pool) -> Pool:
    """The same pool, with the deployment `tiny` ready to answer."""
    up.run("model", "add", "demo:tiny")
    up.run("deploy", "demo:tiny", "--name", "tiny", "--wait")
    return up


@pytest.fixture(scope="session")
def undisturbed() -> dict[int, str]:
    """The digest of the job's final state by its number of steps, from runs outside any pool."""
    found: dict[int, str] = {}

    class Runs(dict[int, str]):
        def __missing__(self, steps: int) -> str:
            line = [sys.executable, str(Path(JOB)), str(steps)]
            out = subprocess.run(line, capture_output=True, text=True, check=True).stdout
            self[steps] = out.splitlines()[-1]
            return self[steps]

    return Runs(found)
