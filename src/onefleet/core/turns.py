"""Workers that share one place take turns on it: one of them is on it at a time.

How a worker is taken off and put on again is the shell's affair (processes stand still and go on,
device memory is saved and brought back); the machine says who and when:

    FREE --Run--> COMING --Running--> HOLDING --Yield--> LEAVING --Yielded--> FREE

Turns go round in the order in which the waiting gave the place up, so nobody starves. A turn lasts
for a slice, which is long against what a switch costs here, as measured. Who has a larger share of
the place than another has turns that are longer by as much.

Where somebody sees whether the holder uses the place, a turn also ends when it does not: once that
has cost as much as a switch does. So whatever comes next, waiting for it has cost no more than
twice what it had to. Where all only wait, for somebody elsewhere, turns go round ever more rarely.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar, assert_never

from onefleet.domain.ids import EPOCH, Instant, Millis

WorkerT = TypeVar("WorkerT", bound=Hashable)

#: Rounds of failures after which the pause between them grows no further.
_ROUNDS_MAX = 8


@dataclass(frozen=True, slots=True)
class TurnRules:
    """slice_ms: the least. cost_factor: a slice is at least this many times what a switch takes.

    20 leaves 95 % of the time to the workers. idle_ms: for how long, at least, a holder that uses
    nothing keeps its turn. longer_max: how many slices the turn of a large share lasts at most, for
    nobody is to wait for ever. failures_max: failed switches of one worker in a row after which it
    is reported. retry_ms: the pause after a round in which nobody could be put on.
    """

    slice_ms: int = 250
    cost_factor: int = 20
    idle_ms: int = 300
    longer_max: int = 20
    failures_max: int = 3
    retry_ms: int = 1_000


class Stage(StrEnum):
    """What is true of the place."""

    FREE = "free"
    COMING = "coming"
    HOLDING = "holding"
    LEAVING = "leaving"


# --- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Joined(Generic[WorkerT]):
    """A worker shares the place from now on. runs: it is on it already, and nobody else is.

    One that does not run stands still: frozen, or saved. share: how much of the place is its own,
    beside what is the others'. began: when its turn began, of one that runs; None: now.
    """

    worker: WorkerT
    runs: bool = False
    share: int = 1
    began: Instant | None = None


@dataclass(frozen=True, slots=True)
class Left(Generic[WorkerT]):
    """It has ended or gone elsewhere, and is not on the place any more."""

    worker: WorkerT


@dataclass(frozen=True, slots=True)
class Yielded(Generic[WorkerT]):
    """It was taken off, and stands still."""

    worker: WorkerT
    took_ms: Millis


@dataclass(frozen=True, slots=True)
class YieldFailed(Generic[WorkerT]):
    """It could not be taken off, and runs on."""

    worker: WorkerT
    why: str


@dataclass(frozen=True, slots=True)
class Running(Generic[WorkerT]):
    """It was put on, and runs."""

    worker: WorkerT
    took_ms: Millis


@dataclass(frozen=True, slots=True)
class RunFailed(Generic[WorkerT]):
    """It could not be put on; it stands still as before, and the place is free."""

    worker: WorkerT
    why: str


@dataclass(frozen=True, slots=True)
class Looked(Generic[WorkerT]):
    """Whether a worker has used the place since that was told last. A worker of which it is never
    told keeps its turns."""

    worker: WorkerT
    used: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """`next_deadline` has come."""


Event = (
    Joined[WorkerT]
    | Left[WorkerT]
    | Yielded[WorkerT]
    | YieldFailed[WorkerT]
    | Running[WorkerT]
    | RunFailed[WorkerT]
    | Looked[WorkerT]
    | Tick
)


# --- effects -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Yield(Generic[WorkerT]):
    """Take it off. Answered by Yielded, YieldFailed or Left."""

    worker: WorkerT


@dataclass(frozen=True, slots=True)
class Run(Generic[WorkerT]):
    """Put it on. Answered by Running, RunFailed or Left."""

    worker: WorkerT


@dataclass(frozen=True, slots=True)
class Stuck(Generic[WorkerT]):
    """It has failed to be taken off or put on so many times in a row. Said once; tries go on."""

    worker: WorkerT
    failures: int
    why: str


Effect = Yield[WorkerT] | Run[WorkerT] | Stuck[WorkerT]


class Turns(Generic[WorkerT]):
    """The turns on one place; a `Machine`. At most one effect is unanswered at any time.

    switch_ms: what a switch is believed to cost before one was measured. An event of a worker that
    is not, or no longer, in the state that the event belongs to is ignored.
    """

    def __init__(self, rules: TurnRules, switch_ms: int = 0) -> None:
        self._rules = rules
        self._cost = switch_ms
        self._measured = False
        self._queue: deque[WorkerT] = deque()  # all but the holder; the first is next
        self._holder: WorkerT | None = None
        self._stage = Stage.FREE
        self._began = EPOCH  # of the holder's turn
        self._used_at = EPOCH  # when the holder was last seen to use the place, or came
        self._used = self._is_idle = False  # the place, in this turn; and for too long
        self._idle_turns = 0  # in a row, without any use
        self._yield_ms: Millis | None = None  # of the switch that is under way
        self._failures: dict[WorkerT, int] = {}  # in a row, by worker
        self._misses = 0  # runs that failed since one succeeded, in this round
        self._rounds = 0  # of them
        self._retry_at = EPOCH
        self._shares: dict[WorkerT, int] = {}

    @property
    def stage(self) -> Stage:
        return self._stage

    @property
    def holder(self) -> WorkerT | None:
        """Who is on the place, or on the way to or from it."""
        return self._holder

    @property
    def waiting(self) -> tuple[WorkerT, ...]:
        """Who stands still, in the order of their turns."""
        return tuple(self._queue)

    @property
    def is_quiet(self) -> bool:
        """No effect is unanswered."""
        return self._stage in (Stage.FREE, Stage.HOLDING)

    @property
    def switch_ms(self) -> Millis:
        """What a switch costs, as the last few did."""
        return Millis(self._cost)

    @property
    def slice_ms(self) -> Millis:
        """How long the holder's turn lasts; where nobody has it, that of the smallest share."""
        slice_ms = max(self._rules.slice_ms, self._rules.cost_factor * self._cost)
        if self._holder is None:
            return Millis(slice_ms)
        least, share = min(self._shares.values()), self._shares[self._holder]
        return Millis(min(slice_ms * share // least, slice_ms * self._rules.longer_max))

    @property
    def patience_ms(self) -> Millis:
        """For how long a holder that uses nothing keeps its turn now."""
        rounds = self._idle_turns // (len(self._queue) + 1)
        return Millis(max(self._rules.idle_ms, self._cost) << min(rounds, _ROUNDS_MAX))

    def handle(self, event: Event[WorkerT], now: Instant) -> list[Effect[WorkerT]]:
        """Take one event; return what is to be done."""
        told: list[Effect[WorkerT]] = []
        match event:
            case Joined(worker=worker, runs=runs, share=share, began=began):
                self._join(worker, runs, now)
                if runs and began is not None:
                    self._began = began
                self._shares[worker] = share
            case Left(worker=worker):
                self._leave(worker)
            case Yielded(worker=worker, took_ms=took_ms):
                if self._is(worker, Stage.LEAVING):
                    self._yield_ms = took_ms
                    self._idle_turns += not self._used
                    self._failures.pop(worker, None)
                    self._give_up(worker)
            case YieldFailed(worker=worker, why=why):
                if self._is(worker, Stage.LEAVING):
                    self._hold(now)
                    told = self._failed(worker, why)
            case Running(worker=worker, took_ms=took_ms):
                if self._is(worker, Stage.COMING):
                    self._arrive(worker, took_ms, now)
            case RunFailed(worker=worker, why=why):
                if self._is(worker, Stage.COMING):
                    self._give_up(worker)
                    self._miss(now)
                    told = self._failed(worker, why)
            case Looked(worker=worker, used=used):
                if self._is(worker, Stage.HOLDING):
                    self._look(used, now)
            case Tick():
                pass
            case _:
                assert_never(event)
        return told + self._decide(now)

    def next_deadline(self) -> Instant | None:
        """When a Tick is due; None: nothing happens without another event."""
        if not self._queue:
            return None
        match self._stage:
            case Stage.HOLDING:
                return Instant(self._began + self.slice_ms)
            case Stage.FREE:
                return self._retry_at
            case Stage.COMING | Stage.LEAVING:
                return None
        assert_never(self._stage)

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        assert (self._holder is None) == (self._stage is Stage.FREE), "a free place has no holder"
        assert self._holder not in self._queue, "the holder does not wait"
        assert len(set(self._queue)) == len(self._queue), "nobody waits twice"
        known = {*self._queue, self._holder}
        assert all(worker in known for worker in self._failures), "nothing is kept of who left"
        assert self._shares.keys() == known - {None}, "everybody has a share"

    # --- what the events mean ----------------------------------------------------------------

    def _is(self, worker: WorkerT, stage: Stage) -> bool:
        return self._stage is stage and self._holder == worker

    def _join(self, worker: WorkerT, runs: bool, now: Instant) -> None:
        assert worker != self._holder and worker not in self._queue, f"{worker} is here already"
        if runs:
            assert self._stage is Stage.FREE, f"{worker} cannot run: {self._holder} is on it"
            self._holder = worker
            self._hold(now)
        else:
            self._queue.append(worker)

    def _leave(self, worker: WorkerT) -> None:
        self._failures.pop(worker, None)
        self._shares.pop(worker, None)
        if worker == self._holder:
            self._vacate()
            self._yield_ms = None  # half a switch measures nothing
        elif worker in self._queue:
            self._queue.remove(worker)

    def _arrive(self, worker: WorkerT, took_ms: Millis, now: Instant) -> None:
        self._failures.pop(worker, None)
        self._misses = self._rounds = 0
        if self._yield_ms is not None:
            cost = self._yield_ms + took_ms
            self._cost = (3 * self._cost + cost + 3) // 4 if self._measured else cost
            self._measured = True
            self._yield_ms = None
        self._hold(now)

    def _miss(self, now: Instant) -> None:
        """Somebody could not be put on; after a whole round of that, wait."""
        self._misses += 1
        if self._misses >= len(self._queue):
            self._misses = 0
            self._rounds = min(self._rounds + 1, _ROUNDS_MAX)
            self._retry_at = Instant(now + self._rounds * self._rules.retry_ms)

    def _failed(self, worker: WorkerT, why: str) -> list[Effect[WorkerT]]:
        count = self._failures[worker] = self._failures.get(worker, 0) + 1
        return [Stuck(worker, count, why)] if count == self._rules.failures_max else []

    def _look(self, used: bool, now: Instant) -> None:
        if used:
            self._used, self._used_at, self._idle_turns = True, now, 0
        self._is_idle = now - self._used_at >= self.patience_ms

    # --- the place ---------------------------------------------------------------------------

    def _hold(self, now: Instant) -> None:
        """The holder's turn begins."""
        self._stage, self._began = Stage.HOLDING, now
        self._used_at, self._used, self._is_idle = now, False, False

    def _vacate(self) -> None:
        self._holder, self._stage = None, Stage.FREE

    def _give_up(self, worker: WorkerT) -> None:
        """It stands still again, and waits behind all others."""
        self._vacate()
        self._queue.append(worker)

    def _decide(self, now: Instant) -> list[Effect[WorkerT]]:
        if not self._queue:
            return []
        if self._stage is Stage.HOLDING and self._holder is not None:
            if now - self._began < self.slice_ms and not self._is_idle:
                return []
            self._stage = Stage.LEAVING
            return [Yield(self._holder)]
        if self._stage is Stage.FREE and now >= self._retry_at:
            self._holder, self._stage = self._queue.popleft(), Stage.COMING
            return [Run(self._holder)]
        return []
