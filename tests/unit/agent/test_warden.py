"""From counters and deaths to devices that get no work."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import pytest

from onefleet.agent import warden as wardens
from onefleet.agent.counters import Finding
from onefleet.agent.warden import Warden
from onefleet.core.health import Counted, HealthPolicy, ProbeFailed
from onefleet.domain.fleet import Device, DeviceKind
from onefleet.domain.ids import DeviceId, Instant, WorkId

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
    def __init__(self) -> None:
        self.now, self.changes, self.source = Instant(1_000), 0, Source()
        policy = HealthPolicy(deaths_max=2, out_ms=500, test_ms=10_000)
        self.warden = Warden([A, B], lambda: self.now, self.change, [self.source], policy)

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
