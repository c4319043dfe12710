"""A real agent puts a real gang onto one GPU that has room for one of its workers, and back.

The GPUs are those of `fake_gpu`; the workers sum over TCP at every step, and every bit of what they
print depends on all numbers that they had from their GPUs and from each other.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.checkpoint import criu_or_skip
from tests.integration.agent.test_agent import Bench, until
from tests.integration.drivers import fake_gpu
from tests.integration.drivers.gangs import RING

from onefleet.domain.ids import DeviceId, Generation, ImageId, WorkId
from onefleet.wire.agent import JobSpec, Observed, Order, OrderVerb, WorkerReport

pytestmark = pytest.mark.criu

RUN, SAVE, FREEZE, STOP = OrderVerb.RUN, OrderVerb.SAVE, OrderVerb.FREEZE, OrderVerb.STOP
MIB = 1 << 20
HELD, ROOM = 40 * MIB, 64 * MIB
A, B = "H100-a", "H100-b"
ROOT = Path(__file__).parents[3]

#: As RING, with a number of the worker's GPU in each step, and as many steps as the file says.
TRAINS = (
    RING.replace(
        "weights = array",
        """import fake_gpu
cuda = fake_gpu.Cuda(sys.argv[4], os.environ["CUDA_VISIBLE_DEVICES"], int(sys.argv[5]))
weights = array""",
    )
    .replace(
        '    while step > last - 3 and not os.path.exists("finish"): time.sleep(0.005)\n',
        """    while step > int(open("limit").read() or 0): time.sleep(0.005)
    for _ in range(20): number = cuda.step()[1] % 997 / 997
""",
    )
    .replace("step * 1e-3) % 1.0", "step * 1e-3 + number) % 1.0")
)

AGENT = """
import sys
from pathlib import Path
from tests.checkpoint import criu_or_skip
from tests.integration.drivers import fake_gpu
from onefleet.agent import counters, crew, process
from onefleet.domain.fleet import Device, DeviceKind
from onefleet.domain.ids import DeviceId
from onefleet.domain.layout import Layout
from onefleet.drivers.criu import CriuDriver
from onefleet.drivers.local import LocalDriver

root, node, held = sys.argv[1:]
program = [sys.executable, fake_gpu.__file__]
tool = criu_or_skip()
criu = CriuDriver(lambda: tool, [*program, "calls", node], [*program, "job", node, held])

class Probe:
    name, kind = "fake", DeviceKind.GPU
    def discover(self, node_id):
        return [
            Device(DeviceId(f"{node_id}/{uuid}"), self.kind, n, "H100", 1 << 26, uuid=uuid)
            for n, uuid in enumerate(("H100-a", "H100-b"))
        ]

counters.GpuCounters.read = lambda *_: []
crew.nvidia_driver = lambda: fake_gpu.DRIVER
process.NvidiaMeter = lambda: fake_gpu.Meter(node)
drivers = {"local": LocalDriver(), "criu": criu}
process.run(Layout(Path(root)), process.NodeSpec("n"), drivers, [Probe()])
"""


class GpuBench(Bench):
    """An agent of a node with two GPUs, and a gang of two."""

    def __init__(self, root: Path) -> None:
        self.node = root / "node"
        self.node.mkdir()
        told = ("node", str(self.node), f"{A}:{ROOM}", f"{B}:{ROOM}")
        self._gpus = subprocess.Popen(
            [sys.executable, fake_gpu.__file__, *told], stdout=subprocess.PIPE
        )
        assert self._gpus.stdout is not None and self._gpus.stdout.readline() == b"up\n"
        # A gang's network is found by its name, on the whole machine.
        self.gang, self.other = (f"{n}-{uuid.uuid4().hex[:8]}" for n in ("gang", "other"))
        self.most = 0  # memory that was seen in use on A while the gang was packed on it
        super().__init__(root)

    def start(self) -> None:
        arguments = str(self.layout.root), str(self.node), str(HELD)
        with (self.layout.root / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                [sys.executable, "-c", AGENT, *arguments],
                stdout=log, stderr=log, cwd=ROOT, env={"PYTHONPATH": ":".join(sys.path)},
            )  # fmt: skip

    def used(self) -> dict[str, int]:
        with contextlib.closing(fake_gpu.Line(f"{self.node}/{fake_gpu.NODE}")) as line:
            return {g["name"]: g["used_bytes"] for g in line.ask(op="node")["gpus"]}

    def orders(self, *gpus: str, verb: OrderVerb = RUN, name: str = "", **more: object) -> None:
        """One order for each worker, which is to be on that GPU."""
        name = name or self.gang
        here = str(Path(fake_gpu.__file__).parent)
        arguments = ("10000", "40", "0.002", str(self.node), str(HELD))
        spec = JobSpec(
            name=name, tenant_id="t", workers=2, network="gang",
            command=(sys.executable, "-u", "-c", TRAINS, *arguments),
            environment=(("PYTHONPATH", here),),
        )  # fmt: skip
        values: dict[str, object] = {"epoch": Generation(1), "grace_ms": 1_000, **more}
        told = (
            Order(
                work_id=WorkId(name), rank=rank, verb=verb, job=spec,
                devices=(DeviceId(f"node-n/{gpu}"),), **values,  # type: ignore[arg-type]
            )
            for rank, gpu in enumerate(gpus)
        )  # fmt: skip
        self.control.order(*told)

    def reports(self) -> list[WorkerReport]:
        return list(self.control.reports[-1].workers) if self.control.reports else []

    def all(self, good: Callable[[WorkerReport], bool]) -> None:
        until(lambda: len(self.reports()) == 2 and all(good(r) for r in self.reports()), 90)

    def seen(self, state: Observed) -> None:
        self.all(lambda report: report.observed is state)

    def lines(self, rank: int, name: str = "") -> list[str]:
        path = self.layout.worker(WorkId(name or self.gang), rank) / "stdout"
        text = path.read_text() if path.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()

    def goes_on(self, steps: int = 3, name: str = "") -> None:
        """Let both make so many more steps."""
        wanted = max(len(self.lines(rank, name)) for rank in range(2)) + steps
        for rank in range(2):
            limit = self.layout.worker(WorkId(name or self.gang), rank) / "work" / "limit"
            until(limit.parent.is_dir)
            limit.with_name("next").write_text(str(wanted))
            limit.with_name("next").rename(limit)

        def done() -> bool:
            self.most = max(self.most, self.used()[A])
            return all(len(self.lines(rank, name)) >= wanted for rank in range(2))

        until(done, 90)

    def close(self) -> None:
        self.control.order()
        with contextlib.suppress(AssertionError):
            until(lambda: not self.reports(), 30)
        super().close()
        self._gpus.kill()
        self._gpus.communicate()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[GpuBench]:
    criu_or_skip()
    made = GpuBench(tmp_path)
    yield made
    made.close()


def test_a_gang_takes_turns_on_a_gpu_through_everything_and_loses_no_bit(bench: GpuBench) -> None:
    bench.orders(A, B)
    bench.goes_on()
    assert bench.used() == {A: HELD, B: HELD}

    # Packed: its workers go to one GPU, where only one of them has room.
    bench.orders(A, A)
    bench.all(lambda report: report.turns == 2)
    bench.most = 0
    bench.goes_on()
    assert [r.observed for r in bench.reports()] == [Observed.RUNNING] * 2
    assert bench.used()[B] == 0

    # Its agent dies amid the turns.
    for _ in range(2):
        bench.kill(signal.SIGKILL)
        bench.start()
        bench.goes_on()

    # An image is made of it as it runs.
    bench.orders(A, A, making=ImageId("i-1"))
    bench.all(lambda report: report.made is not None and report.made.image == "i-1")
    assert [r.made.error for r in bench.reports() if r.made] == ["", ""]
    bench.orders(A, A, keep=(ImageId("i-1"),))
    bench.goes_on()

    # It is frozen, and leaves the GPU to others; and goes on.
    bench.orders(A, A, verb=FREEZE, keep=(ImageId("i-1"),))
    bench.seen(Observed.FROZEN)
    assert bench.used()[A] == 0
    bench.orders(A, A, keep=(ImageId("i-1"),))
    bench.goes_on()

    # It is suspended, and comes back onto the same single GPU.
    bench.orders(A, A, verb=SAVE, image=ImageId("i-2"), hold=True)
    bench.seen(Observed.SAVE_HELD)
    bench.orders(A, A, verb=SAVE, image=ImageId("i-2"))
    bench.seen(Observed.SAVED)
    assert bench.used() == {A: 0, B: 0}
    bench.orders(A, A, epoch=Generation(2), image=ImageId("i-2"), hold=True)
    bench.seen(Observed.RESTORE_HELD)
    bench.orders(A, A, epoch=Generation(2), image=ImageId("i-2"))
    bench.goes_on()
    assert bench.most == HELD, "one of them is there at a time"

    # Spread out again, it runs as before.
    bench.orders(B, A, epoch=Generation(2), image=ImageId("i-2"))
    until(lambda: bench.used() == {A: HELD, B: HELD}, 60)
    bench.goes_on()
    bench.all(lambda report: report.turns == 0)
    disturbed = [bench.lines(rank) for rank in range(2)]

    bench.control.order()
    until(lambda: not bench.reports(), 60)
    bench.orders(A, B, name=bench.other)
    bench.goes_on(len(disturbed[0]), bench.other)
    assert [bench.lines(rank, bench.other) for rank in range(2)] == disturbed


def test_a_packed_gang_ends_when_it_is_told_to(bench: GpuBench) -> None:
    bench.orders(A, B)
    bench.goes_on()
    bench.orders(A, A)
    bench.all(lambda report: report.turns == 2)
    bench.orders(A, A, verb=STOP)
    began = time.monotonic()
    bench.seen(Observed.ENDED)
    assert time.monotonic() - began < 30
    until(lambda: bench.used() == {A: 0, B: 0}, 30)


def test_a_gang_that_finds_its_gpu_taken_is_ended_with_that_reason(bench: GpuBench) -> None:
    bench.orders(A, B)
    bench.goes_on()
    bench.orders(A, A)
    bench.all(lambda report: report.turns == 2)
    bench.goes_on(1)
    line = fake_gpu.Line(f"{bench.node}/{fake_gpu.NODE}")
    with contextlib.closing(line):

        def taken() -> bool:
            """In a moment in which none of them is there."""
            return line.ask(op="open", gpu=A, bytes=ROOM // 2) == {"error": ""}

        until(taken)
        until(lambda: any(r.observed is Observed.ENDED for r in bench.reports()), 60)
        ended = next(r for r in bench.reports() if r.observed is Observed.ENDED)
        assert ended.exit_code is None, "the control plane brings the gang back from its image"
        assert "could not be put on its GPUs again" in ended.reason
        assert f"{HELD} bytes, and {ROOM // 2} are free" in ended.reason
