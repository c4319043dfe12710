"""A real agent process with real drivers and workers, under orders of a fake control plane."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.integration.agent.fake_control import FakeControl

from onefleet.agent.process import sweep
from onefleet.agent.records import RECORD, Record
from onefleet.domain.fleet import CheckpointMode
from onefleet.domain.ids import DeviceId, Generation, ImageId, WorkId
from onefleet.domain.layout import Layout
from onefleet.drivers.local import LocalDriver
from onefleet.registry import code
from onefleet.wire.agent import EngineSpec, JobSpec, Observed, Order, OrderVerb, WorkerReport

RUN, SAVE, STOP, KEEP = OrderVerb.RUN, OrderVerb.SAVE, OrderVerb.STOP, OrderVerb.KEEP
CORE = sorted(os.sched_getaffinity(0))[0]
COUNT = """
import os, signal, sys, time
path = os.path.join(os.environ["ONEFLEET_CHECKPOINT_DIR"], "n")
n = int(open(path).read()) if os.path.exists(path) else 0
def save(*_):
    open(path, "w").write(str(n))
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
while not os.path.exists(os.environ["GO"]):
    n += 1
    print(n, flush=True)
    time.sleep(0.02)
"""


class Bench:
    """A data folder, a control plane and an agent that can be killed and started again."""

    def __init__(self, root: Path, drivers: str = "local", lease_ms: int = 60_000) -> None:
        self.layout = Layout(root)
        self.control = FakeControl(self.layout.internal_file, lease_ms)
        self._drivers = drivers
        self.agent: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        program = (
            "import sys; from pathlib import Path\n"
            "from onefleet.agent.process import NodeSpec, run\n"
            "from onefleet.domain.layout import Layout\n"
            "from onefleet.drivers.local import LocalDriver\n"
            "from onefleet.drivers.catalog import create_drivers\n"
            f"layout = Layout(Path({str(self.layout.root)!r}))\n"
            f"drivers = {{'local': LocalDriver()}} if {self._drivers!r} == 'local' "
            "else create_drivers(layout, None)\n"
            "run(layout, NodeSpec('n'), drivers)\n"
        )
        with (self.layout.root / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log)

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.agent is not None
        self.agent.send_signal(number)
        return self.agent.wait(30)

    def folder(self) -> Path:
        return self.layout.worker("w-1", 0)

    def stdout(self) -> list[str]:
        path = self.folder() / "stdout"
        return path.read_text().split() if path.exists() else []

    @property
    def go_file(self) -> Path:
        return self.layout.root / "go"

    def finish(self) -> None:
        """Let the count end by itself; it must have counted every number once."""
        seen = len(self.stdout())
        until(lambda: len(self.stdout()) > seen)
        self.go_file.touch()
        assert self.wait(Observed.ENDED).exit_code == 0
        counted = self.stdout()
        assert counted == [str(n) for n in range(1, len(counted) + 1)] and len(counted) > seen

    def wait(self, *states: Observed) -> WorkerReport:
        report = self.control.wait(lambda w: w is not None and w.observed in states)
        assert report is not None
        return report

    def close(self) -> None:
        assert self.agent is not None
        if self.agent.poll() is None:
            self.kill()
        self.control.close()
        assert sweep(self.layout, {"local": LocalDriver()}) or self._drivers != "local"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def made(**options: object) -> Bench:
        benches.append(Bench(tmp_path, **options))  # type: ignore[arg-type]
        return benches[-1]

    yield made
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    return make()


def job(
    *command: str, verb: OrderVerb = RUN, epoch: int = 1, image: str | None = None, **more: object
) -> Order:
    spec = JobSpec(name="count", tenant_id="t", command=command, **more)  # type: ignore[arg-type]
    return Order(
        work_id=WorkId("w-1"), rank=0, epoch=Generation(epoch), verb=verb, job=spec,
        devices=(DeviceId(f"node-n/cpu{CORE}"),), image=ImageId(image) if image else None,
        grace_ms=3_000,
    )  # fmt: skip


def count(bench: Bench, **more: object) -> Order:
    """Counts until it is told to go home; saves itself when asked to end."""
    told = (("GO", str(bench.go_file)),)
    return job(sys.executable, "-c", COUNT, environment=told, **more)  # type: ignore[arg-type]


def engine(**options: str) -> Order:
    spec = EngineSpec(
        engine="simulated", model_id="m", purpose="chat", path="/none", revision="r", slots=2,
        context_length=512, served_name="m", options=options,
    )  # fmt: skip
    return Order(
        work_id=WorkId("w-1"), rank=0, epoch=Generation(1), verb=RUN, engine=spec,
        devices=(DeviceId(f"node-n/cpu{CORE}"),), grace_ms=2_000,
    )  # fmt: skip


def test_a_job_runs_on_its_core_and_its_end_is_told(bench: Bench) -> None:
    show = (
        "import os, sys; print(sorted(os.sched_getaffinity(0)), *(os.environ[n] for n in "
        "('ONEFLEET_JOB_ID', 'ONEFLEET_JOB_NAME', 'RANK', 'WORLD_SIZE', 'OMP_NUM_THREADS', 'A',"
        "'ONEFLEET_ARRAY_INDEX'))); sys.exit(3)"
    )
    bench.control.order(job(sys.executable, "-c", show, environment=(("A", "b"),), index=0))
    ended = bench.wait(Observed.ENDED)
    assert (ended.exit_code, ended.epoch) == (3, 1)
    assert " ".join(bench.stdout()) == f"[{CORE}] w-1 count 0 1 1 b 0"
    node = bench.control.reports[-1]
    assert node.node_id == "node-n" and node.checkpoint_mode is CheckpointMode.COOPERATIVE
    assert 0 < node.memory_free_bytes <= node.memory_bytes
    assert node.data_dir == str(bench.layout.root)
    bench.control.order()
    bench.control.wait(lambda w: w is None)
    assert " ".join(bench.stdout()).endswith("b 0")  # its output stays to be read
    assert not (bench.folder() / RECORD).exists()


def test_a_command_that_does_not_exist(bench: Bench) -> None:
    bench.control.order(job("/no/such/program"))
    ended = bench.wait(Observed.ENDED)
    assert ended.exit_code == 127 and "/no/such/program" in ended.reason


def test_the_code_folder_is_where_it_runs(bench: Bench, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "hello.py").write_text("print('from the code folder')")
    digest = code.store(code.pack(source), bench.layout)
    bench.control.order(job(sys.executable, "hello.py", code=digest))
    assert bench.wait(Observed.ENDED).exit_code == 0
    assert " ".join(bench.stdout()) == "from the code folder"


def test_code_that_the_pool_does_not_have(bench: Bench) -> None:
    bench.control.order(job("true", code="sha256:" + "0" * 64))
    ended = bench.wait(Observed.ENDED)
    assert "sha256:000" in ended.reason and ended.exit_code is None


def test_a_stop_ends_it_and_tells_the_code(bench: Bench) -> None:
    bench.control.order(job("sleep", "600"))
    running = bench.wait(Observed.RUNNING)
    assert running.checkpoint_mode is CheckpointMode.COOPERATIVE
    bench.control.order(job("sleep", "600", verb=STOP))
    assert bench.wait(Observed.ENDED).exit_code == 143


def test_saved_and_brought_back_with_its_own_checkpoint(bench: Bench) -> None:
    bench.control.order(count(bench))
    bench.wait(Observed.RUNNING)
    until(lambda: len(bench.stdout()) > 5)
    bench.control.order(count(bench, verb=SAVE, image="i-1"))
    assert bench.wait(Observed.SAVED).image == "i-1"
    bench.control.order(count(bench, verb=KEEP, image="i-1"))
    bench.control.order(count(bench, epoch=2, image="i-1"))
    bench.finish()


def test_a_killed_agent_loses_no_job(bench: Bench) -> None:
    bench.control.order(count(bench))
    bench.wait(Observed.RUNNING)
    bench.kill()
    bench.control.reports.clear()
    bench.start()
    first = bench.control.wait(lambda w: w is not None)
    assert first is not None and first.observed is Observed.RUNNING and first.epoch == 1
    bench.finish()


def test_what_ended_without_an_agent_is_told_by_the_next(bench: Bench) -> None:
    bench.control.order(job("sh", "-c", "sleep 0.3; exit 5"))
    bench.wait(Observed.RUNNING)
    bench.kill()
    bench.control.reports.clear()
    time.sleep(0.5)
    bench.start()
    assert bench.wait(Observed.ENDED).exit_code == 5


def test_an_orderly_end_of_the_agent_leaves_its_workers(bench: Bench) -> None:
    bench.control.order(job("sleep", "600"))
    bench.wait(Observed.RUNNING)
    assert bench.kill(signal.SIGTERM) == 0
    bench.control.reports.clear()
    bench.start()
    bench.wait(Observed.RUNNING)


def test_a_drain_saves_the_job_and_the_next_agent_goes_on(bench: Bench) -> None:
    bench.control.order(count(bench))
    bench.wait(Observed.RUNNING)
    until(lambda: len(bench.stdout()) > 5)
    assert bench.kill(signal.SIGUSR1) == 0
    seen = bench.control.reports[-1].workers[0]
    assert seen.observed is Observed.SAVED and seen.image
    bench.start()
    bench.finish()


def test_a_lease_that_runs_out_saves_the_job_until_orders_come(make: Callable[..., Bench]) -> None:
    bench = make(lease_ms=4_000)  # a call is held for up to 3 s of it
    bench.control.order(count(bench))
    bench.wait(Observed.RUNNING)
    until(lambda: len(bench.stdout()) > 3)
    internal = bench.layout.internal_file.read_text()
    bench.control.close()
    until(lambda: '"state":"saved"' in (bench.folder() / "state.json").read_text())
    bench.kill()
    bench.control = FakeControl(bench.layout.internal_file, 60_000)
    assert bench.layout.internal_file.read_text() != internal
    bench.control.order(count(bench))
    bench.start()
    bench.finish()


def test_a_job_whose_agent_stays_dead_stands_still_and_the_next_agent_lets_it_go_on(
    make: Callable[..., Bench],
) -> None:
    bench = make(lease_ms=6_000)
    bench.control.order(count(bench))
    bench.wait(Observed.RUNNING)
    bench.kill()
    until(lambda: '"state":"frozen"' in (bench.folder() / "state.json").read_text())
    before = bench.stdout()
    time.sleep(0.3)
    assert bench.stdout() == before
    bench.control.reports.clear()
    bench.start()
    bench.wait(Observed.RUNNING)
    bench.finish()


def test_an_engine_is_running_when_it_answers(bench: Bench) -> None:
    bench.control.order(engine(**{"start-ms": "300"}))
    bench.wait(Observed.STARTING)
    running = bench.wait(Observed.RUNNING)
    assert health(running) == 200
    bench.kill()
    bench.control.reports.clear()
    bench.start()
    again = bench.control.wait(lambda w: w is not None)
    assert again is not None  # told as running at once, at the same address
    assert (again.observed, again.port) == (Observed.RUNNING, running.port)
    bench.control.order()
    bench.control.wait(lambda w: w is None)
    with pytest.raises(OSError):
        health(running)


def test_an_engine_that_dies_is_told(bench: Bench) -> None:
    bench.control.order(engine())
    bench.wait(Observed.RUNNING)
    state = (bench.folder() / "state.json").read_bytes()
    os.kill(msgspec.json.decode(state)["pid"], signal.SIGKILL)
    ended = bench.wait(Observed.ENDED)
    assert ended.exit_code == 137 and ended.port == 0


def test_an_engine_that_cannot_load_its_model_says_why(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    lie = tmp_path / "lie.gguf"
    lie.write_bytes(b"GGUF" + bytes(100))
    order = engine()
    spec = msgspec.structs.replace(order.engine, engine="llamacpp", path=str(lie), context_length=8)
    bench.control.order(msgspec.structs.replace(order, engine=spec))
    ended = bench.wait(Observed.ENDED)
    assert ended.exit_code == 1
    assert ended.reason.startswith("exited with code 1: ") and "load" in ended.reason


def test_an_engine_that_cannot_start_is_told(bench: Bench) -> None:
    bench.control.order(engine(nonsense="1"))
    assert "nonsense" in bench.wait(Observed.ENDED).reason


def test_leftovers_without_an_agent_are_swept(bench: Bench) -> None:
    bench.control.order(count(bench))
    bench.wait(Observed.RUNNING)
    until(lambda: len(bench.stdout()) > 3)
    bench.kill()
    assert sweep(bench.layout, {"local": LocalDriver()})
    record = msgspec.json.decode((bench.folder() / RECORD).read_bytes(), type=Record)
    assert record.image == "own-1-0"
    count_then = len(bench.stdout())
    time.sleep(0.2)
    assert len(bench.stdout()) == count_then


def health(report: WorkerReport) -> int:
    connection = http.client.HTTPConnection(report.host, report.port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


def until(good: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not good():
        assert time.monotonic() < deadline, "not within the limit"
        time.sleep(0.02)
