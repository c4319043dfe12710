"""A hostile environment for one real pool: seeded kills and suspends while it serves and trains.

Only what is random in the choice of blows is seeded; when they fall in the life of a save is up to
the machine. So a failure names its seed and the blows that fell, in order.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil

from onefleet.domain.errors import OnefleetError
from tests.e2e.harness import Pool

CHILDREN = ("control", "gateway", "agent")
#: How long one client may wait for an answer while everything around it is killed, in seconds.
ANSWER_LIMIT_S = 60.0


class Storm:
    """Blows against one pool, and what its clients saw meanwhile."""

    def __init__(self, it: Pool, jobs: list[str], seed: int) -> None:
        """jobs: ids of the jobs that may be suspended, and whose supervisors may be killed."""
        self.it = it
        self.jobs = jobs
        self.blows: list[str] = []
        #: Jobs whose supervisor was killed: they may be started afresh, and must say so.
        self.struck: dict[str, bool] = {}
        self.answered: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.lies: list[str] = []
        #: By deployment, the key that may ask it.
        self.keys: dict[str, str] = {}
        self._rng = random.Random(seed)
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    # --- clients ---------------------------------------------------------------------------------

    def chat(self, model: str, key: str, pause_s: float) -> None:
        """Ask a deployment again and again from a thread of its own."""
        self.keys[model] = key
        client = self.it.client(max_retries=0, timeout=ANSWER_LIMIT_S).with_options(api_key=key)
        thread = threading.Thread(target=self._ask, args=(client, model, pause_s), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _ask(self, client: openai.OpenAI, model: str, pause_s: float) -> None:
        while not self._over.is_set():
            try:
                stream = client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": "Hello"}],
                    max_tokens=8,
                    stream=True,
                )
                reasons = [c.choices[0].finish_reason for c in stream if c.choices]
                if not reasons or reasons[-1] is None:
                    self.lies.append(f"{model}: a stream ended without an end or an error")
                self.answered[model] = self.answered.get(model, 0) + 1
            except openai.OpenAIError as error:
                told = f"{model}: {type(error).__name__}: {error}"
                self.refused[told] = self.refused.get(told, 0) + 1
            except httpx2.HTTPError as error:  # a stream torn after its head comes through as it is
                told = f"{model}: {type(error).__name__}: {error}"
                self.refused[told] = self.refused.get(told, 0) + 1
            self._over.wait(pause_s)

    # --- blows -----------------------------------------------------------------------------------

    def rage(self, for_s: float) -> None:
        """Let blows fall for so long, then stop the clients."""
        blows: tuple[tuple[int, Callable[[], str]], ...] = (
            *((2, lambda name=name: self._child(name)) for name in CHILDREN),
            (1, self._all_children),
            (2, self._engine),
            (1, self._supervisor),
            (3, self._criu),
            (4, lambda: self._verb("suspend")),
            (5, lambda: self._verb("resume")),
            (1, self._finish),
        )
        weights = [weight for weight, _ in blows]
        until = time.monotonic() + for_s
        began = time.monotonic()
        while time.monotonic() < until:
            (_, blow), *_ = self._rng.choices(blows, weights)
            told = blow()
            if told:
                self.blows.append(f"{time.monotonic() - began:6.2f} {told}")
            time.sleep(self._rng.uniform(0.1, 1.5))
        self._over.set()
        for thread in self._threads:
            thread.join(ANSWER_LIMIT_S + 10)

    def _child(self, name: str) -> str:
        with suppress(ProcessLookupError, FileNotFoundError):
            pid = self.it.pid(name)
            if pid:
                os.kill(pid, signal.SIGKILL)
                return f"kill {name} {pid}"
        return ""

    def _all_children(self) -> str:
        return "; ".join(self._child(name) for name in CHILDREN)

    def _engine(self) -> str:
        pids = sorted(self.it.engine_pids())
        if not pids:
            return ""
        pid = self._rng.choice(pids)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return f"kill engine {pid}"

    def _supervisor(self) -> str:
        job = self._rng.choice(self.jobs)
        pid = supervisor(self.it, job)
        if not pid:
            return ""
        self.struck[job] = True
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return f"kill supervisor {pid} of {job}"

    def _criu(self) -> str:
        """Suspend a job that runs and kill criu in the middle, where it can be caught."""
        running = [j for j in self.jobs if supervisor(self.it, j)]
        if not running:
            return ""
        job = self._rng.choice(running)
        pid = supervisor(self.it, job)
        self._verb("suspend", job)
        deadline = time.monotonic() + 2
        while pid and time.monotonic() < deadline:
            with suppress(psutil.Error):
                for child in psutil.Process(pid).children():
                    if child.name() == "criu":
                        self.struck[job] = True
                        time.sleep(self._rng.uniform(0, 0.05))
                        child.kill()
                        return f"kill criu {child.pid} of {job}"
        return f"suspend {job}, criu not caught"

    def _finish(self) -> str:
        job = self._rng.choice(self.jobs)
        with suppress(OnefleetError):
            self.it.finish(job)
            return f"let {job} end"
        return ""

    def _verb(self, verb: str, job: str = "") -> str:
        job = job or self._rng.choice(self.jobs)
        status, _ = call(self.it, "POST", f"/api/v1/jobs/{job}/{verb}")
        return f"{verb} {job} -> {status}"


def call(it: Pool, method: str, path: str, body: Any = None, key: str = "") -> tuple[int, Any]:
    """One call of the public API, as the administrator unless a key is given; status 0 when
    nobody answered."""
    key = key or (it.folder / "credentials").read_text().strip()
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        request = urllib.request.Request(it.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"{}")
    except (OSError, ValueError):
        return 0, {}


def worker_folder(it: Pool, work: str) -> Path:
    return it.folder / "agent" / "workers" / f"{work}.0"


def supervisor(it: Pool, work: str) -> int:
    """The pid of the living supervisor of a work's worker; 0 when there is none."""
    try:
        state = json.loads((worker_folder(it, work) / "state.json").read_text())
        process = psutil.Process(int(state["supervisor"]))
        return process.pid if str(it.folder) in " ".join(process.cmdline()) else 0
    except (OSError, ValueError, KeyError, psutil.Error):
        return 0


def strangers_of(folder: Path) -> list[str]:
    """What is left on the machine of a pool that is down: processes and mounts."""
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if str(folder) in line:
                left.append(f"process {process.pid}: {line}")
    mounts = Path("/proc/self/mounts").read_text()
    left += [f"mount {line}" for line in mounts.splitlines() if str(folder) in line]
    return left
