"""The tour's job where nobody can save it from outside: it saves itself, and goes on exactly."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onefleet.cli.tour_training import FOLDER, Training

STEPS = {"train.py": 2400, "train_torch.py": 48}


@pytest.mark.parametrize("script", list(STEPS))
def test_a_job_that_saved_itself_ends_as_one_that_ran_through(script: str, tmp_path: Path) -> None:
    if script == "train_torch.py" and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    _, name, *rest = Training(script, STEPS[script], saves_itself=True).command
    line = [sys.executable, str(FOLDER / name), *rest]
    saved = tmp_path / "saved"
    saved.mkdir()
    environment = os.environ | {"ONEFLEET_CHECKPOINT_DIR": str(saved), "TMPDIR": str(tmp_path)}

    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        begun = [first.stdout.readline() for _ in range(4)]
        first.send_signal(signal.SIGTERM)
        begun += first.stdout.readlines()
    assert first.returncode == 0 and not any("digest" in printed for printed in begun)
    assert [p.name for p in saved.iterdir()] == ["state"]

    second = subprocess.check_output(line, env=environment, text=True)
    undisturbed = [word for word in line if word != "--saves-itself"]
    through = subprocess.check_output(undisturbed, env=environment, text=True)
    assert "".join(begun) + second == through
    assert "digest " in second


def test_a_job_that_is_saved_from_outside_is_not_asked_to_save_itself() -> None:
    assert "--saves-itself" not in Training("train.py", 24, saves_itself=False).command
