"""A real control process on a port of its own, and a node that does as it is told."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from onefleet.domain.errors import WorldError
from onefleet.domain.fleet import CheckpointMode, Device, DeviceKind
from onefleet.domain.ids import DeviceId, Generation, ImageId, Instant, NodeId, WorkId
from onefleet.domain.layout import Layout
from onefleet.wire.agent import (
    NodeOrders,
    NodeReport,
    Observed,
    Order,
    OrderVerb,
    WorkerReport,
)
from onefleet.wire.api import JobView, StatusView
from onefleet.wire.client import Client

TOKEN = "internal-token-of-the-tests"
#: How long a state may take to come about on a busy machine.
PATIENCE_S = 30.0

_SERVE = """
import sys
from pathlib import Path
from onefleet.control.process import run
from onefleet.domain.layout import Layout
run(int(sys.argv[1]), Layout(Path(sys.argv[2])), sys.argv[3])
"""


class Control:
    """One data folder, a listening socket that outlives restarts, and the process on it."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.log = folder.parent / f"{folder.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Control:
        """Start it and wait until it is ready."""
        descriptor = self.listener.fileno()
        words = [sys.executable, "-c", _SERVE, str(descriptor), str(self.layout.root), TOKEN]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words, pass_fds=[descriptor], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.until("the control plane is ready", self._ready)
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            Client(self.url, timeout_s=5).get("/ready", object)
        except WorldError:
            return False
        return True

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it in good order; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.listener.close()

    def admin(self) -> Client:
        """A client with the administrator's key."""
        return self.client(self.layout.credentials.read_text().strip())

    def client(self, key: str | None) -> Client:
        return Client(self.url, key=key, timeout_s=40)

    def internal(self) -> Client:
        return Client(self.url, internal_token=TOKEN, timeout_s=40)

    def status(self) -> StatusView:
        return self.admin().get("/api/v1/status", StatusView)

    def job(self, name: str) -> JobView:
        return self.admin().get(f"/api/v1/jobs/{name}", JobView)

    def until(self, what: str, probe: Callable[[], object]) -> None:
        """Ask until the answer is true; fail naming what did not come about."""
        deadline = time.monotonic() + PATIENCE_S
        while not probe():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {PATIENCE_S} s: {what}\n{self.log.read_text()}")
            time.sleep(0.02)


class FakeNode:
    """An agent without processes: it does at once what it is ordered, and says so.

    slow: verbs that it does not act on until they are taken out. gone: forget works, as a node
    that lost them would.
    """

    def __init__(self, control: Control, name: str = "node-1", devices: int = 2) -> None:
        self.control = control
        self.name = name
        self.devices = tuple(
            Device(DeviceId(f"{name}/cpu{i}"), DeviceKind.CPU, i, "test core", 1 << 30, True)
            for i in range(devices)
        )
        self.seen = Generation(0)
        self.workers: dict[tuple[WorkId, int], WorkerReport] = {}
        self.orders: tuple[Order, ...] = ()
        self.verbs: list[tuple[WorkId, OrderVerb, int]] = []
        self.slow: list[OrderVerb] = []

    def report(self, wait_ms: int = 0) -> NodeReport:
        return NodeReport(
            node_id=NodeId(self.name),
            name=self.name,
            devices=self.devices,
            memory_bytes=1 << 33,
            memory_free_bytes=1 << 32,
            cpu_busy_permille=10,
            checkpoint_mode=CheckpointMode.CRIU,
            checkpoint_reason="",
            seen=self.seen,
            wait_ms=wait_ms,
            workers=tuple(self.workers[key] for key in sorted(self.workers)),
            sent_at=Instant(0),
            data_dir=f"/data/{self.name}",
        )

    def sync(self, wait_ms: int = 0) -> NodeOrders:
        """One call, and everything that was ordered is done."""
        answer = self.control.internal().post(
            "/internal/agent/sync", self.report(wait_ms), NodeOrders
        )
        self.seen = answer.generation
        self.orders = answer.orders
        named = {(order.work_id, order.rank): order for order in answer.orders}
        for key in [key for key in self.workers if key not in named]:
            del self.workers[key]
        for key, order in named.items():
            self._obey(key, order)
        return answer

    def until(self, what: str, probe: Callable[[], object]) -> None:
        """Go on as an agent does until something is true."""

        def step() -> object:
            self.sync()
            return probe()

        self.control.until(what, step)

    def end(self, work_id: str, exit_code: int, reason: str = "") -> None:
        """The worker's process ends by itself."""
        key = (WorkId(work_id), 0)
        self.workers[key] = self._made(key, self.workers[key].epoch, Observed.ENDED, exit_code)

    def _obey(self, key: tuple[WorkId, int], order: Order) -> None:
        known = self.workers.get(key)
        line = (order.work_id, order.verb, order.epoch)
        if line not in self.verbs:
            self.verbs.append(line)
        if order.verb in self.slow:
            return
        done = {
            OrderVerb.RUN: Observed.RUNNING,
            OrderVerb.SAVE: Observed.SAVED,
            OrderVerb.KEEP: Observed.SAVED,
            OrderVerb.STOP: Observed.ENDED,
        }[order.verb]
        ended = known is not None and known.epoch == order.epoch
        if ended and known is not None and known.observed is Observed.ENDED:
            return
        report = self._made(key, order.epoch, done, 143 if done is Observed.ENDED else None)
        if done is Observed.SAVED:
            report = _with_image(report, order.image)
        if order.engine is not None and done is Observed.RUNNING:
            report = _with_port(report, 4_000 + len(self.verbs))
        if known is not None and known.observed == done and known.epoch == order.epoch:
            return
        self.workers[key] = report

    def _made(
        self, key: tuple[WorkId, int], epoch: Generation, observed: Observed, code: int | None
    ) -> WorkerReport:
        return WorkerReport(
            work_id=key[0],
            rank=key[1],
            epoch=epoch,
            observed=observed,
            exit_code=code,
            memory_bytes=1 << 20,
            checkpoint_mode=CheckpointMode.CRIU,
        )


def _with_image(report: WorkerReport, image: ImageId | None) -> WorkerReport:
    return msgspec.structs.replace(report, image=image, image_bytes=4_096)


def _with_port(report: WorkerReport, port: int) -> WorkerReport:
    return msgspec.structs.replace(report, host="127.0.0.1", port=port)
