"""Which devices of a node may be trusted: error counters, probes and deaths in, cordons out.

A device is *good* until something speaks against it. What is beyond doubt (a fatal error, a probe
that fails) takes it out at once; what may be chance (corrected errors, programs that died on it)
takes it out when it adds up within a window. Out, it gets no work for a while, which doubles with
each time; then it is *tested* with a short burn-in, and is good again only if that passes.

Counters are levels: a source that starts again from 0 has begun anew. One failing program is its
own fault; different programs that die by a signal on one device are the device's. What a person
cordoned is not this machine's to take back, and does not pass through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from onefleet.domain.ids import EPOCH, DeviceId, Instant, WorkId


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """soft_max: corrected errors within window_ms that are too many. deaths_max: different works
    that died by a signal on the device within window_ms that are too many. out_ms: how long the
    first time out lasts, out_ms_max the longest. calm_ms: after so long without a word against it
    the next time out is a first one again. test_ms: how long a burn-in may take.
    """

    soft_max: int = 100
    deaths_max: int = 3
    window_ms: int = 3_600_000
    out_ms: int = 600_000
    out_ms_max: int = 86_400_000
    calm_ms: int = 7 * 86_400_000
    test_ms: int = 60_000


class Standing(StrEnum):
    GOOD = "good"
    OUT = "out"  # gets no work until its time is over
    TESTING = "testing"  # gets no work; a burn-in runs


# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counted:
    """What a counter of the device stands at. fatal: one such error is one too many."""

    device_id: DeviceId
    counter: str
    value: int
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """The device does not do what a look at it asks: it is gone, or its driver says so."""

    device_id: DeviceId
    reason: str


@dataclass(frozen=True, slots=True)
class WorkDied:
    """A work that ran on these devices was ended by a signal that nobody sent."""

    work_id: WorkId
    device_ids: tuple[DeviceId, ...]
    how: str


@dataclass(frozen=True, slots=True)
class BurntIn:
    """A burn-in is over. error: empty when it passed."""

    device_id: DeviceId
    error: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Counted | ProbeFailed | WorkDied | BurntIn | Tick


# --- effects -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TakeOut:
    """Give the device no work. until: when it is tested."""

    device_id: DeviceId
    reason: str
    until: Instant


@dataclass(frozen=True, slots=True)
class BurnIn:
    """Run a burn-in on the device, and say how it went (`BurntIn`)."""

    device_id: DeviceId


@dataclass(frozen=True, slots=True)
class BringBack:
    """The device is good again."""

    device_id: DeviceId


Effect = TakeOut | BurnIn | BringBack


@dataclass(frozen=True, slots=True)
class Remembered:
    """What outlives the machine's process of a device that was ever out. reason: empty when it is
    good again. until, last_word: by the clock of `handle`."""

    device_id: DeviceId
    reason: str
    until: Instant
    times_out: int
    last_word: Instant


@dataclass(slots=True)
class _Record:
    """What is known of one device. counters: name -> the last value. soft: (when, how many)."""

    standing: Standing = Standing.GOOD
    until: Instant = EPOCH
    reason: str = ""
    times_out: int = 0
    last_word: Instant = EPOCH  # against it
    counters: dict[str, int] = field(default_factory=dict)
    soft: list[tuple[Instant, int]] = field(default_factory=list)
    deaths: dict[WorkId, Instant] = field(default_factory=dict)


class Health:
    """The devices of one node; a `Machine` (core/machine.py)."""

    def __init__(
        self,
        policy: HealthPolicy,
        device_ids: Sequence[DeviceId],
        remembered: Sequence[Remembered] = (),
    ) -> None:
        """remembered: of the devices of an earlier one. A burn-in that it began is done again."""
        self._policy = policy
        self._records = {device_id: _Record() for device_id in sorted(device_ids)}
        for known in remembered:
            if (record := self._records.get(known.device_id)) is not None:
                record.standing = Standing.OUT if known.reason else Standing.GOOD
                record.reason, record.until = known.reason, known.until
                record.times_out, record.last_word = known.times_out, known.last_word

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """Take one event; return what is to be done, in order. Unknown devices are ignored."""
        effects: list[Effect] = []
        match event:
            case Counted():
                effects += self._counted(event, now)
            case ProbeFailed(device_id, reason):
                effects += self._take_out(device_id, reason, now)
            case WorkDied():
                for device_id in event.device_ids:
                    effects += self._died(device_id, event, now)
            case BurntIn(device_id, error):
                effects += self._tested(device_id, error, now)
            case Tick():
                pass
            case _:
                assert_never(event)
        return [*effects, *self._due(now)]

    def next_deadline(self) -> Instant | None:
        """When the next time out is over, or a burn-in has taken too long."""
        waits = [r.until for r in self._records.values() if r.standing is not Standing.GOOD]
        return min(waits, default=None)

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        for device_id, record in self._records.items():
            out = record.standing is not Standing.GOOD
            assert bool(record.reason) == out, device_id
            assert not out or record.times_out > 0, device_id

    def standing(self, device_id: DeviceId) -> Standing:
        return self._records[device_id].standing

    def out(self) -> Sequence[tuple[DeviceId, str, Instant]]:
        """Devices that get no work, with the reason, and until when at least; by id."""
        return [
            (device_id, record.reason, record.until)
            for device_id, record in self._records.items()
            if record.standing is not Standing.GOOD
        ]

    def remembered(self) -> tuple[Remembered, ...]:
        """What a later machine is to know of its devices."""
        return tuple(
            Remembered(name, record.reason, record.until, record.times_out, record.last_word)
            for name, record in self._records.items()
            if record.times_out
        )

    # --- what speaks against a device -----------------------------------------------------------

    def _counted(self, event: Counted, now: Instant) -> list[Effect]:
        record = self._records.get(event.device_id)
        if record is None:
            return []
        before = record.counters.get(event.counter)
        record.counters[event.counter] = event.value
        if before is None:
            return []  # what happened before anybody looked
        more = event.value - before if event.value >= before else event.value
        if more <= 0:
            return []
        if event.fatal:
            return self._take_out(event.device_id, f"{more} x {event.counter}", now)
        since = now - self._policy.window_ms
        record.last_word = now
        record.soft = [*((at, n) for at, n in record.soft if at > since), (now, more)]
        total = sum(n for _, n in record.soft)
        if total <= self._policy.soft_max:
            return []
        hours = self._policy.window_ms / 3_600_000
        return self._take_out(event.device_id, f"{total} x {event.counter} in {hours:g} h", now)

    def _died(self, device_id: DeviceId, event: WorkDied, now: Instant) -> list[Effect]:
        record = self._records.get(device_id)
        if record is None:
            return []
        since = now - self._policy.window_ms
        record.last_word = now
        record.deaths = {work: at for work, at in record.deaths.items() if at > since}
        record.deaths[event.work_id] = now
        if len(record.deaths) < self._policy.deaths_max:
            return []
        names = ", ".join(record.deaths)
        return self._take_out(device_id, f"works died on it: {names} (last {event.how})", now)

    def _take_out(self, device_id: DeviceId, reason: str, now: Instant) -> list[Effect]:
        record = self._records.get(device_id)
        if record is None:
            return []
        if record.standing is Standing.GOOD and now - record.last_word >= self._policy.calm_ms:
            record.times_out = 0
        if record.standing is not Standing.OUT:
            record.times_out += 1
        record.last_word = now
        record.standing = Standing.OUT
        record.reason = reason
        record.soft, record.deaths = [], {}
        doubled = self._policy.out_ms << min(record.times_out - 1, 32)
        record.until = Instant(now + min(doubled, self._policy.out_ms_max))
        return [TakeOut(device_id, reason, record.until)]

    # --- the way back -----------------------------------------------------------------------------

    def _tested(self, device_id: DeviceId, error: str, now: Instant) -> list[Effect]:
        record = self._records.get(device_id)
        if record is None or record.standing is not Standing.TESTING:
            return []  # it was taken out meanwhile: that counts
        if error:
            return self._take_out(device_id, f"its burn-in failed: {error}", now)
        record.standing, record.reason = Standing.GOOD, ""
        return [BringBack(device_id)]

    def _due(self, now: Instant) -> list[Effect]:
        effects: list[Effect] = []
        for device_id, record in self._records.items():
            if record.standing is Standing.OUT and now >= record.until:
                record.standing = Standing.TESTING
                record.until = Instant(now + self._policy.test_ms)
                effects.append(BurnIn(device_id))
            elif record.standing is Standing.TESTING and now >= record.until:
                effects += self._take_out(device_id, "its burn-in did not come to an end", now)
        return effects
