"""A real agent lets real jobs take turns on a core that they share."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from tests.integration.agent.test_agent import CORE, Bench, until

from onefleet.domain.ids import DeviceId, Generation, ImageId, WorkId
from onefleet.wire.agent import JobSpec, Observed, Order, OrderVerb, WorkerReport

RUN, SAVE, FREEZE, KEEP = OrderVerb.RUN, OrderVerb.SAVE, OrderVerb.FREEZE, OrderVerb.KEEP
#: Computes, and says every few milliseconds of computing when that was; ends when asked to.
COMPUTES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    until = time.process_time() + 0.005
    while time.process_time() < until:
        pass
    print(time.monotonic_ns() // 1_000_000, flush=True)
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def order(name: str, milli: int, verb: OrderVerb = RUN, image: str | None = None) -> Order:
    spec = JobSpec(name=name, tenant_id="t", command=(sys.executable, "-c", COMPUTES))
    return Order(
        work_id=WorkId(name), rank=0, epoch=Generation(1), verb=verb, job=spec, milli=milli,
        devices=(DeviceId(f"node-n/cpu{CORE}"),), image=ImageId(image) if image else None,
        grace_ms=20_000,
    )  # fmt: skip


def reports(bench: Bench) -> dict[str, WorkerReport]:
    newest = bench.control.reports[-1].workers if bench.control.reports else ()
    return {report.work_id: report for report in newest}


def wait(bench: Bench, good: Callable[[dict[str, WorkerReport]], bool]) -> None:
    until(lambda: good(reports(bench)))


def turns(bench: Bench, **wanted: int) -> Callable[[dict[str, WorkerReport]], bool]:
    return lambda found: {name: found[name].turns for name in wanted if name in found} == wanted


def times(bench: Bench, name: str) -> list[int]:
    text = (bench.layout.worker(WorkId(name), 0) / "stdout").read_text()
    return [int(line) for line in text[: text.rfind("\n") + 1].split()]


def stretches(at: Sequence[int], gap_ms: int = 150) -> list[tuple[int, int]]:
    """Times without a pause that is longer than this."""
    found, begin = [], at[0]
    for before, after in itertools.pairwise(at):
        if after - before > gap_ms:
            found.append((begin, before))
            begin = after
    return [*found, (begin, at[-1])]


def test_two_jobs_on_a_core_take_turns_by_their_shares_until_one_is_saved(bench: Bench) -> None:
    bench.control.order(order("large", 700), order("small", 300))
    wait(bench, turns(bench, large=2, small=2))
    began = time.monotonic_ns() // 1_000_000

    def since(name: str) -> list[int]:
        return [t for t in times(bench, name) if t > began] or [began]

    until(lambda: all(len(stretches(since(name))) > 5 for name in ("large", "small")))
    ran = {name: since(name) for name in ("large", "small")}
    together = sum(
        max(min(b, d) - max(a, c), 0)
        for a, b in stretches(ran["large"])
        for c, d in stretches(ran["small"])
    )
    lasted = max(*ran["large"], *ran["small"]) - began
    assert together < lasted / 5, "one of them is on the core at a time"
    assert 1.4 < len(ran["large"]) / len(ran["small"]) < 5
    seen = reports(bench)
    assert [r.observed for r in seen.values()] == [Observed.RUNNING] * 2, "nobody need know"

    bench.control.order(order("large", 700), order("small", 300, SAVE, "i-1"))
    wait(bench, lambda found: found["small"].observed is Observed.SAVED)
    began = time.monotonic_ns() // 1_000_000
    wait(bench, turns(bench, large=0))
    time.sleep(1.5)
    assert len(stretches([t for t in times(bench, "large") if t > began], 1_000)) == 1

    bench.control.order(order("large", 700, FREEZE), order("small", 300, KEEP, "i-1"))
    wait(bench, lambda found: found["large"].observed is Observed.FROZEN)
    before = times(bench, "large")
    time.sleep(0.5)
    assert times(bench, "large") == before, "nobody's turn comes who was frozen"


def test_when_the_agent_dies_nobody_waits_for_ever(bench: Bench) -> None:
    bench.control.order(order("a", 500), order("b", 500))
    wait(bench, turns(bench, a=2, b=2))
    bench.kill(signal.SIGKILL)
    time.sleep(5.5)  # how long a pause lasts that nobody renews
    began = {name: len(times(bench, name)) for name in "ab"}
    until(lambda: all(len(times(bench, name)) > count + 20 for name, count in began.items()))
    bench.start()
    bench.control.reports.clear()
    wait(bench, turns(bench, a=2, b=2))
    pids = [_pid(bench, name) for name in "ab"]
    bench.control.order()
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


def _pid(bench: Bench, name: str) -> int:
    state = (bench.layout.worker(WorkId(name), 0) / "state.json").read_bytes()
    return int(msgspec.json.decode(state)["pid"])
