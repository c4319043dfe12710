"""Fixtures of the end-to-end tests: a real pool that serves the small committed model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.harness import JOB, STEPS, Pool, pool


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
def undisturbed() -> str:
    """The digest of the job's final state, from a run outside any pool."""
    line = [sys.executable, str(JOB), str(STEPS)]
    out = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    return out.splitlines()[-1]
