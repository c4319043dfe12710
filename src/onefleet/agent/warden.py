"""Watches over this node's devices: reads their counters, judges by `core/health.py`, burns in.

A program that a signal ended which nobody sent may have died of its device. So the counters are
read once more before its end is told: if they speak against the device, the pool takes the work to
be lost with it, and brings it back elsewhere, in place of calling it the program's own failure.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence

import structlog

from onefleet.agent.counters import HealthSource, burn_in, default_sources
from onefleet.core.health import (
    BringBack,
    BurnIn,
    BurntIn,
    Event,
    Health,
    HealthPolicy,
    Remembered,
    TakeOut,
    Tick,
    WorkDied,
)
from onefleet.domain.fleet import Cordon, Device
from onefleet.domain.ids import DeviceId, Instant, WorkId

log = structlog.get_logger()

#: Between looks at the counters.
LOOK_S = 10.0
#: Exit codes of programs that a fault ended, be it theirs or their device's.
FAULTS = {
    128 + number: signal.Signals(number).name
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
}


class Warden:
    """One node's. clock: milliseconds since 1970. changed: called when devices go out or back.
    remembered: what an earlier one gave to `remember`, that the pool's next agent knows it."""

    def __init__(
        self,
        devices: Sequence[Device],
        clock: Callable[[], Instant],
        changed: Callable[[], None],
        sources: Sequence[HealthSource] | None = None,
        policy: HealthPolicy | None = None,
        remembered: Sequence[Remembered] = (),
        remember: Callable[[Sequence[Remembered]], None] | None = None,
    ) -> None:
        self._devices = {device.id: device for device in devices}
        self._health = Health(policy or HealthPolicy(), tuple(self._devices), remembered)
        self._remember = remember
        self._clock = clock
        self._changed = changed
        self._sources = default_sources() if sources is None else tuple(sources)
        self._tests: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Look again and again."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._tests:
                task.cancel()
            await asyncio.gather(*self._tests, return_exceptions=True)

    async def look(self) -> None:
        """Read all counters once, and judge."""
        for source in self._sources:
            devices = [d for d in self._devices.values() if d.kind is source.kind]
            if devices:
                for finding in await asyncio.to_thread(source.read, devices):
                    self._feed(finding)
        self._feed(Tick())

    async def died(self, work_id: WorkId, device_ids: tuple[DeviceId, ...], exit_code: int) -> None:
        """A work that had these devices ended so, and nobody had told it to."""
        if exit_code in FAULTS:
            self._feed(WorkDied(work_id, device_ids, f"killed by {FAULTS[exit_code]}"))
            await self.look()

    def cordons(self) -> tuple[Cordon, ...]:
        """The devices that get no work, by id."""
        now = self._clock()
        return tuple(Cordon(name, reason, now, until) for name, reason, until in self._health.out())

    def why_out(self, device_ids: Sequence[DeviceId]) -> str:
        """What speaks against the first of these that is out; empty when none is."""
        out = {name: reason for name, reason, _ in self._health.out()}
        return next((f"{name}: {out[name]}" for name in device_ids if name in out), "")

    def _feed(self, event: Event) -> None:
        for effect in self._health.handle(event, self._clock()):
            match effect:
                case TakeOut(name, reason, _):
                    log.warning("a device is taken out", device=name, reason=reason)
                    self._stands_otherwise()
                case BurnIn(name):
                    task = asyncio.create_task(self._burn_in(self._devices[name]))
                    self._tests.add(task)
                    task.add_done_callback(self._tests.discard)
                case BringBack(name):
                    log.info("a device is used again", device=name)
                    self._stands_otherwise()

    def _stands_otherwise(self) -> None:
        if self._remember is not None:
            self._remember(self._health.remembered())
        self._changed()

    async def _burn_in(self, device: Device) -> None:
        self._feed(BurntIn(device.id, await burn_in(device)))
