"""The tour's training job: which script, how long, and what its output says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from onefleet.cli.job_logs import LogReader
from onefleet.domain.errors import InternalError, Unsupported
from onefleet.wire.client import Client

FOLDER = Path(__file__).parent / "tour_job"
#: How long one run shall compute, undisturbed. The tour runs it twice and stays under 3 minutes.
COMPUTE_S = 24.0
MEASURE_TIMEOUT_S = 60.0
DIGEST = "digest "


@dataclass(frozen=True)
class Training:
    """A script and a number of steps that it does in the time that was asked for.

    saves_itself: nobody can save it from outside, so it is asked to.
    """

    script: str
    steps: int
    saves_itself: bool

    @property
    def command(self) -> tuple[str, ...]:
        own = ("--saves-itself",) if self.saves_itself else ()
        return (sys.executable, self.script, "--steps", str(self.steps), *own)

    @property
    def what(self) -> str:
        if self.script == "train_torch.py":
            return "PyTorch, a GRU that learns to write sonnets"
        return "plain Python (PyTorch is not installed), a language model that learns sonnets"


def choose_training(compute_s: float, saves_itself: bool) -> Training:
    """The PyTorch script where torch is installed; as many steps as this machine does in so long,
    by a measurement of a second.
    """
    has_torch = importlib.util.find_spec("torch") is not None
    script = "train_torch.py" if has_torch else "train.py"
    line = [sys.executable, str(FOLDER / script), "--measure"]
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=MEASURE_TIMEOUT_S, check=True
        )
        speed = float(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise Unsupported(
            f"{script} does not run here", why=str(said).strip()[-400:], hint=" ".join(line)
        ) from error
    return Training(script, max(int(speed * compute_s), 24), saves_itself)


@dataclass(frozen=True)
class Output:
    """All that a finished run printed on stdout."""

    text: str

    @cached_property
    def losses(self) -> list[str]:
        return [line for line in self.text.splitlines() if " loss " in line]

    @cached_property
    def verse(self) -> str:
        lines = [line for line in self.text.splitlines() if line.startswith("verse: ")]
        return lines[0].removeprefix("verse: ") if lines else ""

    @cached_property
    def digest(self) -> str:
        last = self.text.splitlines()[-1] if self.text else ""
        if not last.startswith(DIGEST):
            raise InternalError(
                "the job ended without its digest", why=f"its last line is {last!r}"
            )
        return last.removeprefix(DIGEST)


def output(pool: Client, job_id: str) -> Output:
    """What a job has printed so far."""
    return Output("".join(LogReader(pool, job_id).rest("stdout")))
