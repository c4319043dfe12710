"""A gang of many workers on few devices goes on, whatever fails and whoever dies, one on each.

The model: every worker computes on its device for a while, then waits for all others, again and
again, as a data-parallel job does. It computes only while it is on; it waits where it is.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from onefleet.core.device_turns import (
    DeviceTurnRules,
    DeviceTurns,
    Effect,
    Event,
    Find,
    Found,
    Metered,
    Seen,
    Sharer,
    Unable,
    Where,
)
from onefleet.core.turns import Run, RunFailed, Running, Tick, Yield, Yielded, YieldFailed
from onefleet.domain.ids import Instant, Millis

many = settings(max_examples=60, deadline=None, derandomize=True)
RULES = DeviceTurnRules()
LOOK_MS = 200


@dataclass(slots=True)
class Rank:
    """needs_ms: of a step. left_ms: of this one. where: of its device memory; busy: a switch of it
    is under way. fresh: it came on by itself, as it began, and has not been off yet."""

    place: int
    needs_ms: int
    begins_at: int
    left_ms: int = 0
    step: int = 0
    where: Where = Where.NOWHERE
    busy: Yield[int] | Run[int] | None = None
    fresh: bool = True
    used: bool = False
    at_hand: bool = True


@dataclass
class Gang:
    """ranks on places, in virtual time. off_ms, on_ms: of a switch. metered: whether anybody sees
    who uses the devices. trouble: whether each next switch fails.
    """

    ranks: list[Rank]
    steps: int
    off_ms: int
    on_ms: int
    metered: bool = True
    trouble: list[bool] = field(default_factory=list)
    rules: DeviceTurnRules = RULES
    now: int = 0
    switches: int = 0
    unable: list[Unable[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._later: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._agent = 0
        for rank in self.ranks:
            rank.left_ms = rank.needs_ms
        self.restart()
        self._every(LOOK_MS, self._look)

    @property
    def done(self) -> bool:
        return all(rank.step == self.steps for rank in self.ranks)

    def at(self, ms: int, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (ms, next(self._numbers), act))

    def run(self, limit_ms: int) -> None:
        """Until all is computed. A deadline that passes without an effect would spin for ever."""
        while not self.done:
            assert self.now <= limit_ms, f"not done: {self.ranks}"
            ahead = [limit_ms + 1]
            ahead += [self._later[0][0]] if self._later else []
            ahead += [self._ends(rank) for rank in self.ranks if self._computes(rank)]
            ahead += [r.begins_at for r in self.ranks if r.begins_at > self.now]
            deadline = self.machine.next_deadline()
            ahead += [max(deadline, self.now)] if deadline is not None else []
            self._compute_until(min(ahead))
            while self._later and self._later[0][0] <= self.now:
                heapq.heappop(self._later)[2]()
            if deadline is not None and self.now >= deadline:
                self.tell(Tick())
                later = self.machine.next_deadline()
                assert later is None or later > self.now, "what is due is done"

    def tell(self, event: Event[int]) -> None:
        effects = self.machine.handle(event, Instant(self.now))
        self.machine.check()
        for effect in effects:
            self._obey(effect)

    def restart(self) -> None:
        """The shell dies, and is there again. What its supervisors were told goes on."""
        self._agent += 1
        self.machine: DeviceTurns[int] = DeviceTurns(self.rules)
        self._see()

    def set_aside(self, ranks: list[int], ms: int) -> None:
        """Something else is done with them."""
        for number in ranks:
            self.ranks[number].at_hand = False
        self._see()

        def back() -> None:
            for number in ranks:
                self.ranks[number].at_hand = True
            self._see()

        self.at(self.now + ms, back)

    # --- the world ---------------------------------------------------------------------------

    def _see(self) -> None:
        told = [Sharer(n, rank.place, rank.at_hand) for n, rank in enumerate(self.ranks)]
        self.tell(Seen(tuple(told)))

    def _computes(self, rank: Rank) -> bool:
        begun = rank.begins_at <= self.now and rank.busy is None and rank.where is not Where.OFF
        level = min(r.step for r in self.ranks)
        return begun and rank.left_ms > 0 and rank.step == level and rank.step < self.steps

    def _ends(self, rank: Rank) -> int:
        return self.now + rank.left_ms

    def _compute_until(self, then: int) -> None:
        computing = [rank for rank in self.ranks if self._computes(rank)]
        for rank in computing:
            rank.where, rank.used = Where.ON, True
            rank.left_ms -= then - self.now
            if rank.left_ms == 0:
                rank.step, rank.left_ms = rank.step + 1, rank.needs_ms
        self.now = then

    def _every(self, ms: int, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self._every(ms, act)

        self.at(self.now + ms, again)

    def _look(self) -> None:
        for number, rank in enumerate(self.ranks):
            holds, used = rank.where is Where.ON, rank.used
            rank.used = False
            self.tell(Metered(number, holds, used or not self.metered))

    def _obey(self, effect: Effect[int]) -> None:
        if isinstance(effect, Unable):
            self.unable.append(effect)
            return
        rank, agent = self.ranks[effect.worker], self._agent
        if isinstance(effect, Find):
            self._answer_find(effect.worker, agent)
            return
        assert rank.busy is None, "one switch of a worker at a time"
        rank.busy = effect
        if isinstance(effect, Run):
            self._one_at_a_time(rank.place)
        fails = bool(self.trouble) and self.trouble.pop()
        took = self.off_ms if isinstance(effect, Yield) else self.on_ms
        self.at(self.now + took, lambda: self._switched(effect, agent, fails, Millis(took)))

    def _one_at_a_time(self, place: int) -> None:
        there = [r for r in self.ranks if r.place == place and not r.fresh]
        on = [r for r in there if r.where is Where.ON or isinstance(r.busy, Run)]
        assert len(on) <= 1, f"more than one is put on: {on}"

    def _switched(
        self, effect: Yield[int] | Run[int], agent: int, fails: bool, took_ms: Millis
    ) -> None:
        rank, worker = self.ranks[effect.worker], effect.worker
        rank.busy = None
        answer: Event[int]
        if isinstance(effect, Yield):
            if not fails:
                rank.where, rank.fresh = Where.OFF, False
                self.switches += 1
            answer = YieldFailed(worker, "busy") if fails else Yielded(worker, took_ms)
        else:
            if not fails:
                rank.where = Where.ON
            answer = RunFailed(worker, "no room") if fails else Running(worker, took_ms)
        if agent == self._agent:
            self.tell(answer)

    def _answer_find(self, worker: int, agent: int) -> None:
        """After what is under way, as supervisors answer one after the other."""

        def answer() -> None:
            if self.ranks[worker].busy is not None:
                self.at(self.now + 1, answer)
            elif agent == self._agent:
                self.tell(Found(worker, self.ranks[worker].where))

        self.at(self.now, answer)


def a_gang(
    data: st.DataObject, workers: int, places: int, longest_ms: int = 4_000, **more: object
) -> Gang:
    needs = st.integers(50, longest_ms)
    ranks = [
        Rank(n * places // workers, data.draw(needs), data.draw(st.integers(0, 1_500)))
        for n in range(workers)
    ]
    switch = st.integers(0, 400)
    return Gang(ranks, 4, data.draw(switch), data.draw(switch), **more)  # type: ignore[arg-type]


def bound(gang: Gang) -> int:
    """Enough for every step: who is waited for gets a whole slice in each round."""
    cost = gang.off_ms + gang.on_ms
    slice_ms = max(RULES.turns.slice_ms, RULES.turns.cost_factor * (cost + 1))
    rounds = max(rank.needs_ms for rank in gang.ranks) // slice_ms + 3
    return (gang.steps + 1) * rounds * len(gang.ranks) * (slice_ms + cost + LOOK_MS) + 1_500


shapes = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda s: (s[0] * s[1], s[1]))


@many
@given(st.data(), shapes, st.booleans())
def test_a_gang_that_waits_for_itself_comes_to_its_end(
    data: st.DataObject, shape: tuple[int, int], metered: bool
) -> None:
    """Whether or not anybody sees that a worker only waits."""
    gang = a_gang(data, *shape, metered=metered)
    gang.run(bound(gang))
    assert gang.unable == []


@many
@given(st.data(), shapes, st.lists(st.booleans(), max_size=2))
def test_neither_failures_nor_deaths_nor_saves_stop_it(
    data: st.DataObject, shape: tuple[int, int], trouble: list[bool]
) -> None:
    gang = a_gang(data, *shape, trouble=trouble, metered=data.draw(st.booleans()))
    times = data.draw(st.lists(st.integers(0, 20_000), max_size=6))
    for at in times:
        if data.draw(st.booleans()):
            gang.at(at, gang.restart)
        else:
            some = data.draw(st.lists(st.integers(0, shape[0] - 1), unique=True, max_size=3))
            took = data.draw(st.integers(0, 900))
            gang.at(at, lambda some=some, took=took: gang.set_aside(some, took))
    gang.run(bound(gang) + sum(times) + 100_000)
    assert gang.unable == []


@many
@given(st.data(), st.integers(2, 5))
def test_a_worker_that_only_waits_costs_the_others_little(
    data: st.DataObject, workers: int
) -> None:
    """On one device, a step that fits into a slice takes what its workers compute, and for each of
    them a switch, as long again until it is clear that it waits, and two looks."""
    gang = a_gang(data, workers, 1, longest_ms=800)
    cost = gang.off_ms + gang.on_ms
    each = cost + max(cost, RULES.turns.idle_ms) + 2 * LOOK_MS
    computed = sum(rank.needs_ms for rank in gang.ranks)
    gang.run(bound(gang))
    assert gang.now <= 1_500 + (gang.steps + 1) * (computed + workers * each)


@many
@given(st.data(), shapes, st.integers(300, 1_200))
def test_what_is_tried_again_and_again_with_one_of_them_keeps_nobody_from_a_turn(
    data: st.DataObject, shape: tuple[int, int], every_ms: int
) -> None:
    """Such as a move that fails, and fails again a second later."""
    gang = a_gang(data, *shape, metered=False)

    def again() -> None:
        gang.set_aside([0], 20)
        gang.at(gang.now + every_ms, again)

    gang.at(0, again)
    gang.run(2 * bound(gang))
