"""From counters and deaths to devices that get no work."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from onefleet.agent import records
from onefleet.agent import warden as wardens
from onefleet.agent.counters import Finding
from onefleet.agent.warden import Warden
from onefleet.core.health import Counted, HealthPolicy, ProbeFailed
from onefleet.domain.fleet import Device, DeviceKind
from onefleet.domain.ids import DeviceId, Instant, WorkId
from onefleet.domain.layout import Layout

A = Device(DeviceId("n1/cpu0"), DeviceKind.CPU, 0, "test core", 1 << 30)
B = Device(DeviceId("n1/cpu1"), DeviceKind.CPU, 1, "test core", 1 << 30)
SEGV = 128 + signal.SIGSEGV


class Source:
    """Says what it is told to say."""

    kind = DeviceKind.CPU

    def __init__(self) -> None:
        self.says: list[Finding] = []

    def read(self, devices: Sequence[Device]) -> Sequence[Finding]:
        return list(self.says)


class Scene:
    def __init__(self, layout: Layout | None = None) -> None:
        self.now, self.changes, self.source = Instant(1_000), 0, Source()
        self.layout = layout
        self.boot()

    def boot(self) -> None:
        """An agent starts."""
        policy = HealthPolicy(deaths_max=2, out_ms=500, test_ms=10_000)
        known = self.layout and {
            "remembered": records.recall_health(self.layout),
            "remember": partial(records.remember_health, self.layout),
        }
        clock = lambda: self.now  # noqa: E731
        self.warden = Warden([A, B], clock, self.change, [self.source], policy, **(known or {}))

    def change(self) -> None:
        self.changes += 1

    def out(self) -> list[str]:
        return [cordon.device_id for cordon in self.warden.cordons()]


def test_a_fatal_error_takes_a_device_out_and_a_burn_in_brings_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        scene, verdicts = Scene(), ["wrong sum", ""]

        async def burn_in(device: Device) -> str:
            assert device is A
            return verdicts.pop(0)

        monkeypatch.setattr(wardens, "burn_in", burn_in)
        scene.source.says = [Counted(A.id, "uncorrected", 0, fatal=True)]
        await scene.warden.look()
        scene.source.says = [Counted(A.id, "uncorrected", 1, fatal=True)]
        await scene.warden.look()
        assert scene.out() == [A.id] and scene.changes == 1
        assert scene.warden.why_out([B.id, A.id]) == "n1/cpu0: 1 x uncorrected"
        scene.now = Instant(1_500)
        await scene.warden.look()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        (cordon,) = scene.warden.cordons()
        assert "burn-in failed: wrong sum" in cordon.reason and cordon.until == 2_500
        scene.now = Instant(2_500)
        await scene.warden.look()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert scene.out() == [] and scene.warden.why_out([A.id]) == ""

    asyncio.run(main())


def test_the_next_agent_knows_what_is_out_and_how_often_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def main() -> None:
        layout = Layout(tmp_path)
        layout.agent.mkdir(parents=True)
        scene, verdicts = Scene(layout), ["", ""]
        tests = asyncio.Event()

        async def burn_in(device: Device) -> str:
            tests.set()
            return verdicts.pop(0)

        async def tested() -> None:
            await scene.warden.look()
            await tests.wait()
            await asyncio.sleep(0)
            tests.clear()

        monkeypatch.setattr(wardens, "burn_in", burn_in)

        async def goes_out() -> None:
            for value in (0, 1):
                scene.source.says = [Counted(A.id, "uncorrected", value, fatal=True)]
                await scene.warden.look()

        await goes_out()
        scene.boot()
        assert scene.out() == [A.id] and scene.warden.cordons()[0].until == 1_500
        assert scene.warden.why_out([A.id]) == "n1/cpu0: 1 x uncorrected"
        scene.now = Instant(1_499)
        await scene.warden.look()
        assert scene.out() == [A.id]
        scene.now = Instant(1_500)
        await tested()
        assert scene.out() == []
        scene.boot()
        assert scene.out() == []
        await goes_out()
        scene.boot()
        assert scene.warden.cordons()[0].until == 1_500 + 2 * 500, "it is the second time"

        (layout.agent / records.HEALTH).write_bytes(b"torn")
        scene.boot()
        assert scene.out() == []
        monkeypatch.setattr(records, "_replace", lambda *_: (_ for _ in ()).throw(OSError(28, "x")))
        await goes_out()
        assert scene.out() == [A.id], "a full disk does not keep it in use"

    asyncio.run(main())


def test_counters_are_read_again_before_a_death_by_a_fault_is_judged() -> None:
    async def main() -> None:
        scene = Scene()
        scene.source.says = [ProbeFailed(A.id, "it was taken offline")]
        await scene.warden.died(WorkId("j1"), (A.id,), 3)  # the program's own code
        assert scene.out() == []
        await scene.warden.died(WorkId("j1"), (A.id,), SEGV)
        assert scene.out() == [A.id]

    asyncio.run(main())


def test_different_works_that_die_by_a_fault_on_one_device_take_it_out() -> None:
    async def main() -> None:
        scene = Scene()
        for _ in range(3):
            await scene.warden.died(WorkId("j1"), (B.id,), SEGV)
        await scene.warden.died(WorkId("j2"), (B.id,), 128 + signal.SIGKILL)
        assert scene.out() == []
        await scene.warden.died(WorkId("j2"), (B.id,), SEGV)
        assert scene.out() == [B.id]

    asyncio.run(main())
