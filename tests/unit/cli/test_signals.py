"""Ctrl-C and readers that leave, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def start(tmp_path: Path, *words: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "ONEFLEET_DATA_DIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    environment.pop("ONEFLEET_KEY", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    line = [sys.executable, "-m", "onefleet.cli.main", *words]
    return subprocess.Popen(line, text=True, env=environment, **pipes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("logs", "-f", "job-1"), "Come back: onefleet logs -f job-1"),
        (("run", "--watch", "--", "true"), "onefleet logs -f job-1 · onefleet cancel job-1"),
    ],
    ids=["logs", "run"],
)
def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(fake, tmp_path, words, said):
    fake.ended = False
    with start(tmp_path, *words) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "step 1\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said in err and "Traceback" not in err
    assert not any(path.endswith("/cancel") for _, path, _ in fake.calls)


def test_ctrl_c_ends_a_watch_without_a_traceback(fake, tmp_path):
    with start(tmp_path, "ps", "--watch") as process:
        assert process.stdout is not None
        assert '"type": "added"' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_a_reader_that_leaves_is_no_error(fake, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with start(tmp_path, "ps", stdout=writer) as process:
        os.close(writer)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, "")
