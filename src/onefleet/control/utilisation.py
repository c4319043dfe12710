"""Who held the pool's devices, added up over time.

A pure accumulator: it is told the state at each change, and integrates what was held until then.
What happened in this control plane's life is known to the millisecond; before that, by the
minute, from what was written to the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onefleet.core.snapshot import devices_held
from onefleet.domain.events import Held
from onefleet.domain.fleet import NodeState
from onefleet.domain.ids import Instant, WorkId
from onefleet.domain.work import Phase
from onefleet.store.base import State

#: Stretches of time with nothing changing that are known to the millisecond.
STRETCHES_KEPT = 20_000
#: Minutes of earlier control planes that are looked back upon.
LOOK_BACK_MS = 7 * 24 * 3_600_000

CAPACITY = "capacity"
SUSPENDS = "suspends"
RESUMES = "resumes"

_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class _Stretch:
    """From start to end, so many devices were held by each label; counts happened at its end."""

    start: Instant
    end: Instant
    devices: Mapping[str, int]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Totals:
    """Device-milliseconds from since to until; since is later than asked when less is known."""

    since: Instant
    until: Instant
    capacity_device_ms: int
    held_device_ms: Mapping[str, int]
    suspends: int
    resumes: int


class Utilisation:
    """Integrates held devices. past: what earlier control planes wrote, oldest first."""

    def __init__(self, started_at: Instant, past: Sequence[Held] = ()) -> None:
        self._past = list(past)
        self._stretches: deque[_Stretch] = deque()
        self._unwritten: dict[tuple[Instant, str], int] = {}
        self._at = started_at
        self._devices: Mapping[str, int] = {}
        self._phases: Mapping[WorkId, Phase] = {}

    def advance(self, state: State, now: Instant) -> None:
        """The state is this now; until now it was what the last call said."""
        phases = {work.id: work.phase for work in state.works.values()}
        counts = _counts(self._phases, phases) if self._phases else {}
        devices = _devices(state)
        if devices != self._devices or counts or now - self._at >= _MINUTE_MS:
            self._close(now, counts)
        self._devices, self._phases = devices, phases

    def unwritten(self, now: Instant) -> Sequence[Held]:
        """What was integrated since the last call of `written`, by whole minutes."""
        self._close(now, {})
        return tuple(Held(m, label, n) for (m, label), n in sorted(self._unwritten.items()))

    def written(self) -> None:
        """What the last `unwritten` gave is in the store."""
        self._unwritten.clear()

    def totals(self, since: Instant, now: Instant) -> Totals:
        """Everything from since until now."""
        self._close(now, {})
        sums: dict[str, int] = {}
        first = self._stretches[0].start if self._stretches else now
        for held in self._past:
            if since <= held.minute < now:
                first = min(first, held.minute)
                sums[held.label] = sums.get(held.label, 0) + held.amount
        for stretch in self._stretches:
            lasted = stretch.end - max(stretch.start, since)
            if lasted >= 0 and stretch.end >= since:
                _add(sums, stretch.devices, lasted)
                _add(sums, stretch.counts, 1)
        return Totals(
            since=max(since, first),
            until=now,
            capacity_device_ms=sums.pop(CAPACITY, 0),
            suspends=sums.pop(SUSPENDS, 0),
            resumes=sums.pop(RESUMES, 0),
            held_device_ms=dict(sorted(sums.items())),
        )

    def _close(self, now: Instant, counts: Mapping[str, int]) -> None:
        """End the stretch that is under way."""
        if now <= self._at and not counts:
            return
        stretch = _Stretch(self._at, now, self._devices, counts)
        self._stretches.append(stretch)
        if len(self._stretches) > STRETCHES_KEPT:
            self._past.extend(_by_minute(self._stretches.popleft()))
        for held in _by_minute(stretch):
            place = (held.minute, held.label)
            self._unwritten[place] = self._unwritten.get(place, 0) + held.amount
        self._at = now


def _add(sums: dict[str, int], amounts: Mapping[str, int], times: int) -> None:
    for label, amount in amounts.items():
        sums[label] = sums.get(label, 0) + amount * times


def _by_minute(stretch: _Stretch) -> list[Held]:
    """A stretch cut at the minutes."""
    found = []
    start = stretch.start
    while start < stretch.end:
        minute = Instant(start - start % _MINUTE_MS)
        end = min(Instant(minute + _MINUTE_MS), stretch.end)
        found += [Held(minute, label, n * (end - start)) for label, n in stretch.devices.items()]
        start = end
    last = Instant(stretch.end - stretch.end % _MINUTE_MS)
    return found + [Held(last, label, count) for label, count in stretch.counts.items()]


def _devices(state: State) -> Mapping[str, int]:
    sums: dict[str, int] = {}
    for node in state.nodes.values():
        if node.state is not NodeState.LOST:
            sums[CAPACITY] = sums.get(CAPACITY, 0) + len(node.devices)
    for work in state.works.values():
        if work.placement:
            label = f"{work.tier}.{work.kind}"
            sums[label] = sums.get(label, 0) + devices_held(work)
    return sums


def _counts(before: Mapping[WorkId, Phase], after: Mapping[WorkId, Phase]) -> Mapping[str, int]:
    suspends = _changes(before, after, Phase.SAVING, Phase.SUSPENDED)
    resumes = _changes(before, after, Phase.RESTORING, Phase.RUNNING)
    counts = {SUSPENDS: suspends, RESUMES: resumes}
    return {label: count for label, count in counts.items() if count}


def _changes(
    before: Mapping[WorkId, Phase], after: Mapping[WorkId, Phase], old: Phase, new: Phase
) -> int:
    return sum(1 for name, phase in after.items() if phase is new and before.get(name) is old)
