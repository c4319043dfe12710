"""Workers of a gang that lie on the same devices take turns: one has its memory there at a time.

A worker is taken *off* its devices: what it has there goes into its own memory, and it runs on; a
call of it to a device waits until the worker is put *on* again. So a peer that waits for it is
answered, as far as that needs no device. Who waits for its peers makes no use of the devices, and
its turn ends early; if nobody can see that, it ends with its slice. Either way the turns go round,
and who is waited for comes on.

A place is the devices that workers of one gang share. Nothing is switched there while anything
else is done with one of its workers: a save, a freeze or a start takes it off and puts it on by
itself. When that is over, each is asked where it is, which also is all that a shell needs to know
that has just been started:

    RESTING --all at hand, and found--> CLEARING --one is left on--> TURNS
       ^---- one is not at hand, one came or went ----'                |
                OPEN <--one cannot be taken off, again and again-------'

While it is OPEN, all are put on, as far as there is room, and the devices' own driver slices their
time: work on a device that waits for a peer's work on the same device can only be done in this way.
Whoever uses no device so far is let alone, and takes part once it does.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar, assert_never

from onefleet.core import turns
from onefleet.core.turns import (
    Looked,
    Run,
    RunFailed,
    Running,
    Stuck,
    Tick,
    Turns,
    Yield,
    Yielded,
    YieldFailed,
)
from onefleet.domain.ids import EPOCH, Instant

WorkerT = TypeVar("WorkerT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class DeviceTurnRules:
    """turns: of the turns themselves; a slice is long against starting what makes the calls.
    rest_ms: how long a place stays open. unable_ms: for how long, at least, a worker is tried to be
    put on before it is given up: others, whom nobody here knows of, may make room.
    """

    turns: turns.TurnRules = field(default_factory=lambda: turns.TurnRules(slice_ms=1_000))
    rest_ms: int = 600_000
    unable_ms: int = 10_000


class Where(StrEnum):
    """Where a worker's device memory is."""

    ON = "on"
    OFF = "off"
    NOWHERE = "nowhere"  # it uses no device so far


@dataclass(frozen=True, slots=True)
class Sharer(Generic[WorkerT]):
    """A worker and the place that it lies on. at_hand: nothing else is being done with it."""

    worker: WorkerT
    place: Hashable
    at_hand: bool


# --- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen(Generic[WorkerT]):
    """All workers on places, in the order of their ranks."""

    sharers: tuple[Sharer[WorkerT], ...]


@dataclass(frozen=True, slots=True)
class Found(Generic[WorkerT]):
    """The answer to Find; None: it could not be found out."""

    worker: WorkerT
    where: Where | None


@dataclass(frozen=True, slots=True)
class Metered(Generic[WorkerT]):
    """What was seen of a worker from outside. holds: memory of its devices is its own. used: it has
    used them since that was told last."""

    worker: WorkerT
    holds: bool
    used: bool


Event = (
    Seen[WorkerT]
    | Found[WorkerT]
    | Metered[WorkerT]
    | Yielded[WorkerT]
    | YieldFailed[WorkerT]
    | Running[WorkerT]
    | RunFailed[WorkerT]
    | Tick
)


# --- effects -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Find(Generic[WorkerT]):
    """Find out where it is. Answered by Found, once nothing that was begun before is under way."""

    worker: WorkerT


@dataclass(frozen=True, slots=True)
class Unable(Generic[WorkerT]):
    """It cannot be put on its devices, again and again: it and its gang cannot go on. beside: who
    is there, and cannot be taken off.
    """

    worker: WorkerT
    why: str
    beside: WorkerT | None = None


Effect = Find[WorkerT] | Yield[WorkerT] | Run[WorkerT] | Unable[WorkerT]
_Ask = Find[WorkerT] | Yield[WorkerT] | Run[WorkerT]
_Answer = Yielded[WorkerT] | YieldFailed[WorkerT] | Running[WorkerT] | RunFailed[WorkerT]


@dataclass(slots=True, eq=False)
class _Member(Generic[WorkerT]):
    """where: None while it is not known; last: where it was when it was. asked: what is unanswered.
    moved_at: when it came on or went off, or somebody tried, as far as that is known. failures:
    of switches, in a row, the first of them failed_at. given_up: that was told. not_before: when it
    may be asked again where it is.
    """

    sharer: Sharer[WorkerT]
    where: Where | None = None
    last: Where | None = None
    asked: _Ask[WorkerT] | None = None
    moved_at: Instant = EPOCH
    failures: int = 0
    failed_at: Instant = EPOCH
    given_up: bool = False
    not_before: Instant = EPOCH

    @property
    def is_lost(self) -> bool:
        """Nobody knows where it is, or is finding it out."""
        return self.sharer.at_hand and self.where is None and self.asked is None


@dataclass(slots=True, eq=False)
class _Place(Generic[WorkerT]):
    """turns: None while it rests, is cleared, or is open. open_until: EPOCH: it is not open. fast:
    who cannot be taken off, so that it is. not_before: of the next try of what failed outside of
    turns. switch_ms: what a switch took in the turns before.
    """

    members: list[_Member[WorkerT]]
    switch_ms: int = 0
    turns: Turns[WorkerT] | None = None
    open_until: Instant = EPOCH
    fast: WorkerT | None = None
    not_before: Instant = EPOCH

    @property
    def rests(self) -> bool:
        return not all(m.sharer.at_hand and m.where is not None for m in self.members)

    def at(self, *wheres: Where) -> list[_Member[WorkerT]]:
        return [m for m in self.members if m.where in wheres]

    @property
    def waiting(self) -> list[_Member[WorkerT]]:
        """Who is off, in the order in which they went."""
        return sorted(self.at(Where.OFF), key=lambda m: m.moved_at)

    def rest(self) -> None:
        """No more turns until all is known anew."""
        if self.turns is not None:
            self.switch_ms, self.turns = self.turns.switch_ms, None


class DeviceTurns(Generic[WorkerT]):
    """The turns on all places of one node; a `Machine`.

    An answer that nobody waits for any more is ignored.
    """

    def __init__(self, rules: DeviceTurnRules) -> None:
        self._rules = rules
        self._members: dict[WorkerT, _Member[WorkerT]] = {}
        self._places: dict[Hashable, _Place[WorkerT]] = {}

    def takers(self, worker: WorkerT) -> int:
        """How many take turns with it, itself included; 0 when it takes none."""
        member = self._members.get(worker)
        if member is None or member.where not in (Where.ON, Where.OFF):
            return 0
        place = self._places[member.sharer.place]
        count = len(place.at(Where.ON, Where.OFF))
        return count if count > 1 and place.open_until == EPOCH else 0

    def handle(self, event: Event[WorkerT], now: Instant) -> Sequence[Effect[WorkerT]]:
        """Take one event; return what is to be done."""
        told: list[Effect[WorkerT]] = []
        match event:
            case Seen(sharers=sharers):
                self._see(sharers)
            case Found():
                self._find(event, now)
            case Metered():
                told += self._meter(event, now)
            case Yielded() | YieldFailed() | Running() | RunFailed():
                told += self._take_answer(event, now)
            case Tick():
                for place in self._places.values():
                    told += self._tell(place, event, now)
            case _:
                assert_never(event)
        for place in self._places.values():
            told += self._decide(place, now)
        return told

    def next_deadline(self) -> Instant | None:
        """When a Tick is due; None: nothing happens without another event."""
        found: list[Instant | None] = []
        for place in self._places.values():
            found += [at for at, _ in self._to_ask(place)]
            if place.turns is not None:
                found.append(place.turns.next_deadline())
            elif place.open_until > EPOCH and not place.rests:
                found.append(place.open_until)
        return min((at for at in found if at is not None), default=None)

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        for place in self._places.values():
            if place.turns is None:
                continue
            place.turns.check()
            assert not place.rests, "turns on a place that rests"
            assert place.open_until == EPOCH, "turns on a place that is open"
            holder = place.turns.holder
            there = [*place.turns.waiting, *([] if holder is None else [holder])]
            takers = [m.sharer.worker for m in place.at(Where.ON, Where.OFF)]
            assert sorted(map(repr, there)) == sorted(map(repr, takers)), "all take turns"
            on = [m.sharer.worker for m in place.at(Where.ON)]
            assert on in ([], [holder]), f"{on} are on, and {holder} has its turn"
            asked = [m for m in place.members if m.asked is not None]
            assert len(asked) <= 1, "one switch at a time"

    # --- what is told ------------------------------------------------------------------------

    def _see(self, sharers: Sequence[Sharer[WorkerT]]) -> None:
        members: dict[WorkerT, _Member[WorkerT]] = {}
        by_place: dict[Hashable, list[_Member[WorkerT]]] = {}
        for sharer in sharers:
            member = self._members.get(sharer.worker)
            if member is None or member.sharer.place != sharer.place:
                member = _Member(sharer)
            member.sharer = sharer
            if not sharer.at_hand:
                member.where = member.asked = None
            members[sharer.worker] = member
            by_place.setdefault(sharer.place, []).append(member)
        places: dict[Hashable, _Place[WorkerT]] = {}
        for key, there in by_place.items():
            known = self._places.get(key)
            if known is None or known.members != there:
                known = _Place(there, 0 if known is None else _switch_ms(known))
            if known.rests:
                known.rest()
            places[key] = known
        self._members, self._places = members, places

    def _find(self, found: Found[WorkerT], now: Instant) -> None:
        member = self._members.get(found.worker)
        if member is not None and isinstance(member.asked, Find):
            member.asked, member.where = None, found.where
            if found.where is None:
                member.not_before = Instant(now + self._rules.turns.retry_ms)
            elif found.where is not member.last:
                member.last, member.moved_at = found.where, now

    def _meter(self, seen: Metered[WorkerT], now: Instant) -> list[Effect[WorkerT]]:
        member = self._members.get(seen.worker)
        if member is None:
            return []
        place = self._places[member.sharer.place]
        if member.where is Where.NOWHERE and seen.holds:
            member.where = member.last = Where.ON
            member.moved_at = now
            place.rest()
        return self._tell(place, Looked(seen.worker, seen.used), now)

    def _take_answer(self, event: _Answer[WorkerT], now: Instant) -> list[Effect[WorkerT]]:
        member = self._members.get(event.worker)
        if member is None or member.asked is None or isinstance(member.asked, Find):
            return []
        place = self._places[member.sharer.place]
        member.asked = None
        match event:
            case Yielded() | RunFailed():
                member.where = Where.OFF
            case Running() | YieldFailed():
                member.where = Where.ON
            case _:
                assert_never(event)
        member.last, member.moved_at = member.where, now
        told: list[Effect[WorkerT]] = []
        if isinstance(event, YieldFailed | RunFailed):
            member.failed_at = now if member.failures == 0 else member.failed_at
            member.failures += 1
            if place.turns is None:
                place.not_before = Instant(now + self._rules.turns.retry_ms)
            if member.failures >= self._rules.turns.failures_max:
                told = self._stuck(place, member, event.why, now)
        else:
            member.failures, member.given_up = 0, False
        return told + self._tell(place, event, now)

    def _stuck(
        self, place: _Place[WorkerT], member: _Member[WorkerT], why: str, now: Instant
    ) -> list[Effect[WorkerT]]:
        """It has failed to be taken off or put on so many times in a row."""
        if member.where is Where.ON:
            place.rest()
            place.open_until = Instant(now + self._rules.rest_ms)
            place.fast = member.sharer.worker
            member.failures = 0  # after that it is tried as often again
            return []
        if member.given_up or now - member.failed_at < self._rules.unable_ms:
            return []
        member.given_up = True
        beside = place.fast if place.open_until > EPOCH else None
        return [Unable(member.sharer.worker, why, beside)]

    # --- what is done ------------------------------------------------------------------------

    def _decide(self, place: _Place[WorkerT], now: Instant) -> list[Effect[WorkerT]]:
        if EPOCH < place.open_until <= now:
            place.open_until = EPOCH
        told: list[Effect[WorkerT]] = []
        for at, ask in self._to_ask(place):
            if at <= now:
                self._members[ask.worker].asked = ask
                told.append(ask)
        idle = place.turns is None and not place.rests and place.open_until == EPOCH
        asked = any(m.asked is not None for m in place.members)
        if idle and not asked and len(place.at(Where.ON)) <= 1 and place.at(Where.ON, Where.OFF):
            told += self._begin(place, now)
        return told

    def _to_ask(self, place: _Place[WorkerT]) -> list[tuple[Instant, _Ask[WorkerT]]]:
        """Outside of turns: what is to be asked, and from when on."""
        if any(m.asked is not None and not isinstance(m.asked, Find) for m in place.members):
            return []
        lost = [m for m in place.members if m.is_lost]
        if lost or place.rests or place.turns is not None:
            return [(m.not_before, Find(m.sharer.worker)) for m in lost]
        if place.open_until > EPOCH:
            return [(place.not_before, Run(m.sharer.worker)) for m in place.waiting[:1]]
        return [(place.not_before, Yield(m.sharer.worker)) for m in place.at(Where.ON)[1:2]]

    def _begin(self, place: _Place[WorkerT], now: Instant) -> list[Effect[WorkerT]]:
        """All is known, and one is on at most: the turns begin."""
        place.turns = Turns(self._rules.turns, place.switch_ms)
        told: list[Effect[WorkerT]] = []
        for member in (*place.at(Where.ON), *place.waiting):
            runs = member.where is Where.ON
            joined = turns.Joined(member.sharer.worker, runs, began=member.moved_at)
            told += self._tell(place, joined, now)
        return told

    def _tell(
        self, place: _Place[WorkerT], event: turns.Event[WorkerT], now: Instant
    ) -> list[Effect[WorkerT]]:
        told: list[Effect[WorkerT]] = []
        for effect in [] if place.turns is None else place.turns.handle(event, now):
            if not isinstance(effect, Stuck):  # failures are counted here, through rests
                self._members[effect.worker].asked = effect
                told.append(effect)
        return told


def _switch_ms(place: _Place[WorkerT]) -> int:
    return place.switch_ms if place.turns is None else place.turns.switch_ms
