"""Whoever shares a place: one is on it at a time, all get their turns, failures end nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from onefleet.core.turns import (
    Effect,
    Event,
    Joined,
    Left,
    Run,
    RunFailed,
    Running,
    Stage,
    Stuck,
    Tick,
    TurnRules,
    Turns,
    Yield,
    Yielded,
    YieldFailed,
)
from onefleet.domain.ids import Instant, Millis

many = settings(max_examples=200, deadline=None, derandomize=True)
RULES = TurnRules()


@dataclass
class Place:
    """What is really on the place, told by nobody but the outcomes of what was asked."""

    machine: Turns[str]
    now: int = 0
    on: list[str] = field(default_factory=list)
    asked: Yield[str] | Run[str] | None = None
    known: list[str] = field(default_factory=list)
    turns: list[tuple[int, str]] = field(default_factory=list)  # when each turn began, and whose
    off: list[int] = field(default_factory=list)  # when each Yield was asked for
    stuck: list[Stuck[str]] = field(default_factory=list)

    def tell(self, event: Event[str]) -> None:
        for effect in self.machine.handle(event, Instant(self.now)):
            self.obey(effect)
        self.machine.check()
        assert self.machine.is_quiet == (self.asked is None)
        holder = [] if self.machine.holder is None else [self.machine.holder]
        assert sorted([*self.machine.waiting, *holder]) == sorted(self.known)

    def obey(self, effect: Effect[str]) -> None:
        if isinstance(effect, Stuck):
            self.stuck.append(effect)
            return
        assert self.asked is None, "one effect at a time"
        if isinstance(effect, Run):
            assert self.on == [], f"{effect.worker} is put on, and {self.on} is there"
        else:
            assert self.on == [effect.worker]
            self.off.append(self.now)
        self.asked = effect

    def answer(self, well: bool, took_ms: int) -> None:
        """What was asked for has taken so long, and went well or not."""
        asked, self.asked = self.asked, None
        assert asked is not None
        self.now += took_ms
        match asked:
            case Yield(worker=worker):
                if well:
                    self.on.remove(worker)
                    self.tell(Yielded(worker, Millis(took_ms)))
                else:
                    self.tell(YieldFailed(worker, "it holds fast"))
            case Run(worker=worker):
                if well:
                    self.on.append(worker)
                    self.turns.append((self.now, worker))
                    self.tell(Running(worker, Millis(took_ms)))
                else:
                    self.tell(RunFailed(worker, "no room"))

    def join(self, worker: str, runs: bool = False, share: int = 1) -> None:
        self.known.append(worker)
        if runs:
            self.on.append(worker)
            self.turns.append((self.now, worker))
        self.tell(Joined(worker, runs, share))

    def leave(self, worker: str) -> None:
        self.known.remove(worker)
        self.on = [other for other in self.on if other != worker]
        if self.asked is not None and self.asked.worker == worker:
            self.asked = None
        self.tell(Left(worker))

    def wait(self) -> bool:
        """Until the next deadline; False when there is none."""
        deadline = self.machine.next_deadline()
        if deadline is None:
            return False
        self.now = max(self.now, deadline)
        self.tell(Tick())
        return True


def a_place(workers: int, rules: TurnRules = RULES) -> Place:
    place = Place(Turns(rules))
    for rank in range(workers):
        place.join(f"w{rank}")
    return place


@many
@given(st.data())
def test_any_history_keeps_one_worker_on_the_place(data: st.DataObject) -> None:
    place = a_place(data.draw(st.integers(0, 3)))
    fresh = 10
    for _ in range(data.draw(st.integers(1, 60))):
        place.now += data.draw(st.integers(0, 400))
        choices = ["join", "tick", "tick", "stale"]
        choices += ["answer"] * 6 if place.asked else []
        choices += ["leave"] if place.known else []
        match data.draw(st.sampled_from(choices)):
            case "join":
                free = place.machine.stage is Stage.FREE
                place.join(f"w{fresh}", runs=free and data.draw(st.booleans()))
                fresh += 1
            case "leave":
                place.leave(data.draw(st.sampled_from(place.known)))
            case "answer":
                place.answer(data.draw(st.booleans()), data.draw(st.integers(0, 50)))
            case "stale":
                place.tell(Yielded("nobody", Millis(1)))
            case _:
                place.tell(Tick())


@many
@given(
    st.integers(2, 6),
    st.lists(st.tuples(st.booleans(), st.integers(0, 100)), min_size=1, max_size=40),
)
def test_after_any_failures_all_workers_get_their_turns(
    workers: int, trouble: list[tuple[bool, int]]
) -> None:
    """A failed switch leaves something that runs: once switches work again, all go round."""
    place = a_place(workers)
    for well, took_ms in trouble:
        if place.asked is None:
            assert place.wait()
        if place.asked is not None:
            place.answer(well, took_ms)
    began = len(place.turns)
    for _ in range(6 * workers):
        if place.asked is None:
            assert place.wait()
        if place.asked is not None:
            place.answer(True, 5)
    order = [worker for _, worker in place.turns[began:]]
    assert sorted(order[-workers:]) == sorted(place.known), "each once in a round"


@many
@given(st.integers(2, 6), st.integers(0, 3_000), st.integers(0, 3_000), st.integers(1, 40))
def test_switching_takes_no_more_than_its_share(
    workers: int, off_ms: int, on_ms: int, factor: int
) -> None:
    """Of the time of a whole round, once the cost is known."""
    place = a_place(workers, TurnRules(cost_factor=factor))
    for _ in range(4 * workers):  # the cost is learnt
        place.answer(True, off_ms if isinstance(place.asked, Yield) else on_ms)
        if place.asked is None:
            place.wait()
    started, switching = place.now, 0
    assert place.asked is not None
    for _ in range(4 * workers):
        took = off_ms if isinstance(place.asked, Yield) else on_ms
        switching += took
        place.answer(True, took)
        if place.asked is None:
            place.wait()
    assert switching * (1 + factor) <= (place.now - started) + factor * (off_ms + on_ms)
    gaps = [b - a for (a, _), (b, _) in zip(place.turns, place.turns[1:], strict=False)]
    assert min(gaps) >= RULES.slice_ms


@many
@given(st.lists(st.integers(1, 10), min_size=2, max_size=5))
def test_everybody_has_the_place_for_as_much_of_the_time_as_is_its_share(shares: list[int]) -> None:
    place = Place(Turns(RULES))
    for rank, share in enumerate(shares):
        place.join(f"w{rank}", share=share)
    rounds = 3 * len(shares)
    while len(place.turns) <= rounds:
        if place.asked is None:
            place.wait()
        else:
            place.answer(True, 0)
    had = dict.fromkeys(place.known, 0)
    for (began, worker), (ended, _) in zip(place.turns, place.turns[1:], strict=False):
        had[worker] += ended - began
    whole, parts = sum(had.values()), sum(shares)
    for worker, share in zip(place.known, shares, strict=True):
        assert abs(had[worker] * parts - share * whole) <= 3 * parts * len(shares), had
