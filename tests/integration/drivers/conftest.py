"""Workers for driver tests: programs to run, folders that are cleaned up, a criu set up once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from tests.checkpoint import criu_or_skip

from onefleet.domain.fleet import CheckpointMode
from onefleet.drivers import process_tree
from onefleet.drivers.base import Driver, WorkerSpec
from onefleet.drivers.criu import CriuDriver
from onefleet.drivers.criu_setup import CriuTool
from onefleet.drivers.local import LocalDriver

T = TypeVar("T")
LIMIT_S = 60.0


@pytest.fixture(scope="session")
def criu_tool() -> CriuTool:
    """A criu of this machine, made once for all test processes; skips with the reason."""
    return criu_or_skip()


@pytest.fixture(scope="session")
def can_criu(criu_tool: CriuTool) -> CriuTool:
    """The tool, on a machine where a real save and restore works; skips with the reason."""
    capability = asyncio.run(CriuDriver(lambda: criu_tool).probe())
    if capability.mode is not CheckpointMode.CRIU:
        pytest.skip(f"criu does not work here: {capability.reason}")
    return criu_tool


class Bench:
    """One test's workers. Programs are Python sources; folders lie under a root of the test."""

    def __init__(self, driver: Driver, root: Path) -> None:
        self.driver = driver
        self.root = root
        self.folder = root / "workers" / "w.0"
        self.work = root / "work"
        self.work.mkdir()

    def spec(self, source: str, *arguments: str, **more: object) -> WorkerSpec:
        """A worker that runs the source; it is passed on the command line, with `arguments`."""
        source = textwrap.dedent(source)
        command = (sys.executable, "-I", "-u", "-c", source, *arguments)
        return self.spec_of(*command, **more)

    def spec_of(self, *command: str, **more: object) -> WorkerSpec:
        values = {"folder": self.folder, "command": command, "work": self.work, **more}
        return WorkerSpec(**values)

    def image(self, name: str = "image") -> Path:
        return self.root / name

    def out(self) -> str:
        path = self.folder / "stdout"
        return path.read_text() if path.exists() else ""

    def err(self) -> str:
        return (self.folder / "stderr").read_text()

    def supervisor(self) -> int:
        """Pid of the worker's supervisor."""
        return int(supervisor_state(self.folder)["supervisor"])

    def wait_out(self, ready: Callable[[str], bool]) -> str:
        """Wait until the worker's output satisfies `ready`; the output."""
        return wait_for(self.out, ready)

    def wait_lines(self, count: int) -> list[str]:
        """Wait for that many whole lines; all of them."""
        text = self.wait_out(lambda out: out.count("\n") >= count)
        return text[: text.rfind("\n")].splitlines()

    def close(self) -> None:
        """End whatever a failed test left, by its own id."""
        for folder in sorted((self.root / "workers").glob("*")):
            try:
                state = supervisor_state(folder)
            except ValueError:  # a test tore it
                continue
            if state and state["state"] not in ("ended", "saved"):
                pid = int(state["supervisor"])
                name = Path(f"/proc/{pid}/cmdline")
                if name.exists() and str(folder).encode() in name.read_bytes():
                    os.kill(pid, signal.SIGKILL)


def supervisor_state(folder: Path) -> dict[str, object]:
    from onefleet.drivers.supervisor_files import read_json

    return read_json(str(folder / "state.json"))


def wait_for(look: Callable[[], T], ready: Callable[[T], bool]) -> T:
    """Poll real processes until they did what is expected, or fail."""
    deadline = time.monotonic() + LIMIT_S
    while not ready(value := look()):
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s; last: {value!r}"
        time.sleep(0.01)
    return value


def gone(pid: int) -> bool:
    return process_tree.stat_fields(pid)[:1] in ([], ["Z"])


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(LocalDriver(), tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def criu(tmp_path: Path, can_criu: CriuTool) -> Iterator[Bench]:
    bench = Bench(CriuDriver(lambda: can_criu), tmp_path)
    yield bench
    bench.close()
