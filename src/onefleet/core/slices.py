"""Works that share a core take turns on it, if each of them could use all of it.

The kernel knows nothing of what share of a core a work was given. And of programs that run on one
core at once each loses what the other throws out of the caches or, when their threads wait for each
other, much more. In turns of a quarter of a second they have their shares and lose next to nothing.

Turns only help those that would use all of theirs. So every sharer begins *free*: it runs whenever
it likes, as the kernel sees fit. One that would use nearly all of the core is *busy*, and takes
turns (`core/turns.py`) with the other busy ones there. One that often waits for a disk or a peer is
free, and uses what its neighbours leave. Which of the two it is does not depend on them: it is what
it used, over the time in which it ran and nobody kept it from the core.

How a sharer is let stand still and go on is the shell's affair. One that nobody tells to stand
still again goes on by itself after `pause_ms`: a shell that died stops nobody.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, assert_never

from onefleet.core import turns
from onefleet.core.turns import Run, RunFailed, Running, Tick, Turns, Yield, Yielded, YieldFailed
from onefleet.domain.ids import EPOCH, DeviceId, Instant

WorkerT = TypeVar("WorkerT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class SliceRules:
    """turns: of the turns themselves. pause_ms: see the top. window_ms: running time after which is
    judged what was used of it. busy_permille: of the core; one that would use as much becomes busy.
    idle_permille: one that would use less becomes free. rest_ms: how long one takes no turns that
    could not be let stand still or go on.
    """

    turns: turns.TurnRules = field(default_factory=turns.TurnRules)
    pause_ms: int = 5_000
    window_ms: int = 400
    busy_permille: int = 800
    idle_permille: int = 600
    rest_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class Sharer(Generic[WorkerT]):
    """A worker that has `milli` thousandths of `core`, and may be told to wait for its turn."""

    worker: WorkerT
    core: DeviceId
    milli: int


@dataclass(frozen=True, slots=True)
class Seen(Generic[WorkerT]):
    """All that share cores now. Who is not named any more takes no turns, whatever becomes of it:
    something else is to be done with it, and ends its pause."""

    sharers: tuple[Sharer[WorkerT], ...]


@dataclass(frozen=True, slots=True)
class Used(Generic[WorkerT]):
    """What a worker's threads have used of the processor since they were started, and how long they
    were ready for it while another had it."""

    worker: WorkerT
    used_ms: int
    kept_ms: int


@dataclass(frozen=True, slots=True)
class Renew(Generic[WorkerT]):
    """Tell it once more to stand still; not answered."""

    worker: WorkerT


Event = (
    Seen[WorkerT]
    | Used[WorkerT]
    | Yielded[WorkerT]
    | YieldFailed[WorkerT]
    | Running[WorkerT]
    | RunFailed[WorkerT]
    | Tick
)
Effect = Yield[WorkerT] | Run[WorkerT] | Renew[WorkerT]


@dataclass(slots=True)
class _Known(Generic[WorkerT]):
    """What is known of a sharer.

    busy: it takes turns, or is `joining` those who do: told to stand still, which is not done yet.
    until: when its pause ends by itself; None: it runs. window: what `Used` said as it began; None:
    there is none. ran_ms: running time in the window up to `since`, from when on it has run.
    """

    sharer: Sharer[WorkerT]
    since: Instant
    busy: bool = False
    joining: bool = False
    until: Instant | None = None
    window: Used[WorkerT] | None = None
    ran_ms: int = 0
    not_before: Instant = EPOCH

    def ran(self, now: Instant) -> int:
        return self.ran_ms + (now - self.since if self.until is None else 0)

    def stands(self, now: Instant, pause_ms: int) -> None:
        self.ran_ms = self.ran(now)
        self.until = Instant(now + pause_ms)

    def runs(self, now: Instant) -> None:
        if self.until is not None:
            self.since, self.until = now, None

    def begin_window(self, used: Used[WorkerT], now: Instant) -> None:
        self.window, self.ran_ms, self.since = used, 0, now


class Slices(Generic[WorkerT]):
    """The turns on all cores of one node that are shared; a `Machine`.

    Each Yield is answered by Yielded or YieldFailed, each Run by Running or RunFailed; an answer
    for a worker that is not known any more is ignored.
    """

    def __init__(self, rules: SliceRules) -> None:
        self._rules = rules
        self._known: dict[WorkerT, _Known[WorkerT]] = {}
        self._turns: dict[DeviceId, Turns[WorkerT]] = {}

    def takers(self, worker: WorkerT) -> int:
        """How many take turns with it, itself included; 0 when it takes none."""
        known = self._known.get(worker)
        if known is None or not known.busy:
            return 0
        core = known.sharer.core
        count = sum(1 for k in self._known.values() if k.busy and k.sharer.core == core)
        return count if count > 1 else 0

    def handle(self, event: Event[WorkerT], now: Instant) -> Sequence[Effect[WorkerT]]:
        """Take one event; return what is to be done."""
        match event:
            case Seen(sharers=sharers):
                return self._see(sharers, now)
            case Used(worker=worker):
                known = self._known.get(worker)
                return [] if known is None else self._measure(known, event, now)
            case Yielded(worker=worker) | YieldFailed(worker=worker):
                known = self._known.get(worker)
                return [] if known is None else self._stood(known, event, now)
            case Running(worker=worker) | RunFailed(worker=worker):
                known = self._known.get(worker)
                if known is None or not known.busy:
                    return []
                if isinstance(event, Running):
                    known.runs(now)
                return self._tell(known.sharer.core, event, now)
            case Tick():
                told = [e for core in list(self._turns) for e in self._tell(core, event, now)]
                return [*told, *self._renew(now)]
            case _:
                assert_never(event)

    def next_deadline(self) -> Instant | None:
        """When a Tick is due; None: nothing happens without another event."""
        ends = [t.next_deadline() for t in self._turns.values()]
        ends += [self._renew_at(k) for k in self._known.values()]
        return min((at for at in ends if at is not None), default=None)

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        for core, place in self._turns.items():
            place.check()
            mine = {k.sharer.worker: k for k in self._known.values() if k.sharer.core == core}
            there = [*place.waiting, *([] if place.holder is None else [place.holder])]
            in_turns = [w for w, k in mine.items() if k.busy and not k.joining]
            assert sorted(map(repr, there)) == sorted(map(repr, in_turns)), "the busy take turns"
            for worker in place.waiting:
                assert mine[worker].until is not None, f"{worker} waits, but runs"
        for known in self._known.values():
            assert known.busy or (known.until is None and not known.joining), "the free run"

    # --- who is there ------------------------------------------------------------------------

    def _see(self, sharers: Sequence[Sharer[WorkerT]], now: Instant) -> list[Effect[WorkerT]]:
        named = {sharer.worker: sharer for sharer in sharers}
        told: list[Effect[WorkerT]] = []
        for worker, known in list(self._known.items()):
            if named.get(worker) != known.sharer:
                del self._known[worker]
                told += self._leave_turns(known, now)
        for worker, sharer in named.items():
            if worker not in self._known:
                self._known[worker] = _Known(sharer, now)
        cores = {known.sharer.core for known in self._known.values()}
        for core in [core for core in self._turns if core not in cores]:
            del self._turns[core]
        return told

    def _leave_turns(self, known: _Known[WorkerT], now: Instant) -> list[Effect[WorkerT]]:
        if not known.busy or known.joining:
            return []
        return self._tell(known.sharer.core, turns.Left(known.sharer.worker), now)

    # --- what they use -----------------------------------------------------------------------

    def _measure(
        self, known: _Known[WorkerT], used: Used[WorkerT], now: Instant
    ) -> list[Effect[WorkerT]]:
        before = known.window
        fell = before is not None and (
            used.used_ms < before.used_ms or used.kept_ms < before.kept_ms
        )
        if before is None or fell:  # threads that have ended are not counted any more
            known.begin_window(used, now)
            return []
        ran_ms = known.ran(now)
        if known.joining or ran_ms < self._rules.window_ms:
            return []
        used_ms = used.used_ms - before.used_ms
        could_ms = max(ran_ms - (used.kept_ms - before.kept_ms), used_ms, 1)
        permille = used_ms * 1_000 // could_ms
        known.begin_window(used, now)
        if not known.busy and permille >= self._rules.busy_permille and now >= known.not_before:
            return self._make_busy(known, now)
        if known.busy and permille < self._rules.idle_permille:
            return self._make_free(known, now)
        return []

    def _make_busy(self, known: _Known[WorkerT], now: Instant) -> list[Effect[WorkerT]]:
        core = known.sharer.core
        place = self._turns.setdefault(core, Turns(self._rules.turns))
        known.busy = True
        if place.holder is None and not place.waiting:
            return self._tell(core, self._joined(known, runs=True), now)
        known.joining = True
        return [Yield(known.sharer.worker)]

    def _joined(self, known: _Known[WorkerT], runs: bool) -> turns.Joined[WorkerT]:
        return turns.Joined(known.sharer.worker, runs=runs, share=known.sharer.milli)

    def _make_free(self, known: _Known[WorkerT], now: Instant) -> list[Effect[WorkerT]]:
        """It runs whenever it likes from now on."""
        told = self._leave_turns(known, now)
        stood = known.until is not None
        known.busy = known.joining = False
        known.runs(now)
        return [*told, Run(known.sharer.worker)] if stood else told

    # --- what became of what was to be done --------------------------------------------------

    def _stood(
        self, known: _Known[WorkerT], event: Yielded[WorkerT] | YieldFailed[WorkerT], now: Instant
    ) -> list[Effect[WorkerT]]:
        core = known.sharer.core
        if isinstance(event, YieldFailed):
            if known.joining:
                return self._give_up(known, now)
            return self._tell(core, event, now) if known.busy else []
        if not known.busy:  # it became free meanwhile
            return [Run(known.sharer.worker)]
        known.stands(now, self._rules.pause_ms)
        if not known.joining:
            return self._tell(core, event, now)
        known.joining = False
        return self._tell(core, self._joined(known, runs=False), now)

    def _tell(
        self, core: DeviceId, event: turns.Event[WorkerT], now: Instant
    ) -> list[Effect[WorkerT]]:
        told: list[Effect[WorkerT]] = []
        for effect in self._turns[core].handle(event, now):
            if isinstance(effect, turns.Stuck):
                told += self._give_up(self._known[effect.worker], now)
            else:
                told.append(effect)
        return told

    def _give_up(self, known: _Known[WorkerT], now: Instant) -> list[Effect[WorkerT]]:
        """It cannot be let stand still, or go on: it takes no turns for a while."""
        known.not_before = Instant(now + self._rules.rest_ms)
        return self._make_free(known, now)

    # --- pauses end by themselves ------------------------------------------------------------

    def _renew_at(self, known: _Known[WorkerT]) -> Instant | None:
        """Half of its pause before that is over, for who waits."""
        if known.until is None or not known.busy or known.joining:
            return None
        if known.sharer.worker not in self._turns[known.sharer.core].waiting:
            return None
        return Instant(known.until - self._rules.pause_ms // 2)

    def _renew(self, now: Instant) -> list[Effect[WorkerT]]:
        due: list[Effect[WorkerT]] = []
        for worker, known in self._known.items():
            at = self._renew_at(known)
            if at is not None and now >= at:
                known.until = Instant(now + self._rules.pause_ms)
                due.append(Renew(worker))
        return due
