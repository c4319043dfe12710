"""Turns on devices, by example: who is taken off, put on, let alone, and given up."""

from __future__ import annotations

from onefleet.core.device_turns import (
    DeviceTurnRules,
    DeviceTurns,
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

RULES = DeviceTurnRules()
BEGAN = 10_000
REST_MS, RETRY_MS = RULES.rest_ms, RULES.turns.retry_ms


class Place:
    """`a` and `b` on one device, and a clock."""

    def __init__(self, **wheres: Where) -> None:
        self.now = BEGAN
        self.machine: DeviceTurns[str] = DeviceTurns(RULES)
        assert self.see(*wheres) == [Find(name) for name in wheres]
        self.effects = self.tell(*(Found(name, where) for name, where in wheres.items()))

    def see(self, *names: str, away: str = "") -> list[object]:
        return self.tell(Seen(tuple(Sharer(n, "gpu", n != away) for n in names)))

    def tell(self, *events: Event[str]) -> list[object]:
        effects: list[object] = []
        for event in events:
            effects += self.machine.handle(event, Instant(self.now))
            self.machine.check()
        return effects

    def wait(self) -> list[object]:
        deadline = self.machine.next_deadline()
        assert deadline is not None
        self.now = max(self.now, deadline)
        return self.tell(Tick())


def test_who_was_taken_off_is_put_on_when_it_is_alone() -> None:
    place = Place(a=Where.OFF)
    assert place.effects == [Run("a")]
    place.tell(Running("a", Millis(5)))
    assert (place.machine.next_deadline(), place.machine.takers("a")) == (None, 0)


def test_of_two_that_are_on_one_is_taken_off_first() -> None:
    place = Place(a=Where.ON, b=Where.ON)
    assert place.effects == [Yield("b")]
    assert place.tell(Yielded("b", Millis(5))) == []
    assert place.machine.takers("a") == place.machine.takers("b") == 2
    assert place.wait() == [Yield("a")]
    assert place.now == BEGAN + RULES.turns.slice_ms
    assert place.tell(Yielded("a", Millis(10))) == [Run("b")]


def test_who_uses_no_device_is_let_alone_until_it_does() -> None:
    place = Place(a=Where.ON, b=Where.NOWHERE)
    assert (place.effects, place.machine.takers("a")) == ([], 0)
    assert place.tell(Metered("b", holds=False, used=False)) == []
    assert place.tell(Metered("b", holds=True, used=True)) == [Yield("b")]


def test_a_turn_ends_when_its_holder_only_waits() -> None:
    place = Place(a=Where.ON, b=Where.OFF)
    for used in (True, True, False):
        place.now += 200
        assert place.tell(Metered("a", holds=True, used=used)) == []
    place.now += 100
    assert place.tell(Metered("a", holds=True, used=False)) == [Yield("a")]


def test_where_all_only_wait_turns_become_rare() -> None:
    place = Place(a=Where.ON, b=Where.OFF)
    holder, lasted = "a", []
    for _ in range(5):
        began = place.now
        while not (effects := place.tell(Metered(holder, holds=True, used=False))):
            place.now += 100
        assert effects == [Yield(holder)]
        lasted.append(place.now - began)
        (run,) = place.tell(Yielded(holder, Millis(0)))
        assert isinstance(run, Run)
        holder = run.worker
        place.tell(Running(holder, Millis(0)))
    assert lasted == [300, 300, 600, 600, 1_000]


def test_nothing_is_switched_while_anything_else_is_done_with_one_of_them() -> None:
    place = Place(a=Where.ON, b=Where.OFF)
    assert place.see("a", "b", away="a") == []
    place.now += 60_000
    assert place.tell(Tick(), Metered("a", holds=True, used=False)) == []
    assert place.see("a", "b") == [Find("a")]
    assert place.tell(Found("a", Where.OFF)) == [Run("b")], "it has been off for longer"


def test_a_place_is_open_while_one_cannot_be_taken_off() -> None:
    """A collective on the device itself: who waits in it cannot leave before the other comes."""
    place = Place(a=Where.ON, b=Where.OFF)
    for tries in range(1, 4):
        assert place.wait() == [Yield("a")]
        effects = place.tell(YieldFailed("a", "its work was not done"))
        assert effects == ([Run("b")] if tries == 3 else [])
    assert place.tell(Running("b", Millis(5))) == []
    assert place.machine.takers("a") == 0
    assert place.see("a", "b", away="b") == []
    assert place.see("a", "b") == [Find("b")]
    assert place.tell(Found("b", Where.ON)) == [], "still open"
    opened = place.now
    assert place.wait() == [Yield("b")]
    assert place.now == opened + REST_MS


def test_one_of_two_that_cannot_be_taken_off_at_first_opens_it_too() -> None:
    place = Place(a=Where.ON, b=Where.ON)
    assert place.effects == [Yield("b")]
    for _ in range(2):
        assert place.tell(YieldFailed("b", "no")) == []
        assert place.wait() == [Yield("b")]
    assert place.tell(YieldFailed("b", "no")) == []
    assert place.now == BEGAN + 2 * RETRY_MS
    assert place.machine.next_deadline() == place.now + REST_MS


def test_who_cannot_be_put_on_is_told_once() -> None:
    place = Place(a=Where.ON, b=Where.OFF)
    told: list[object] = []
    failed_at: list[int] = []
    while len(told) < 1 or place.now < failed_at[0] + 2 * RULES.unable_ms:
        assert place.wait() == [Yield("a")]
        assert place.tell(Yielded("a", Millis(0))) == [Run("b")]
        failed_at.append(place.now)
        *more, run = place.tell(RunFailed("b", "no room"))
        assert run == Run("a"), "and it is tried again when the other is off"
        assert place.tell(Running("a", Millis(0))) == []
        assert bool(told or more) == (place.now - failed_at[0] >= RULES.unable_ms)
        told += more
        assert (place.see("a", "b", away="b"), place.see("a", "b")) == ([], [Find("b")])
        assert place.tell(Found("b", Where.OFF)) == [], "saves in between change nothing"
    assert told == [Unable("b", "no room")]


def test_without_room_beside_one_that_cannot_be_taken_off_nothing_goes_on() -> None:
    place = Place(a=Where.ON, b=Where.OFF)
    effects: list[object] = []
    for _ in range(3):
        assert place.wait() == [Yield("a")]
        effects = place.tell(YieldFailed("a", "its work was not done"))
    began, told = place.now, list[object]()
    while not told:
        assert effects == [Run("b")]
        told = place.tell(RunFailed("b", "no room"))
        effects = place.wait()
    assert told == [Unable("b", "no room", beside="a")]
    assert place.now - RETRY_MS == began + RULES.unable_ms


def test_a_place_is_opened_again_where_one_still_cannot_be_taken_off() -> None:
    place = Place(a=Where.ON, b=Where.OFF)
    effects = place.wait()
    for _ in range(2):
        for tries in range(1, 4):
            assert effects == [Yield("a")]
            effects = place.tell(YieldFailed("a", "its work was not done"))
            effects = place.wait() if tries < 3 else effects
        assert effects == [Run("b")]
        assert place.tell(Running("b", Millis(5))) == []
        assert place.wait() == [Yield("b")]
        effects = place.tell(Yielded("b", Millis(5)))


def test_where_it_could_not_be_found_out_it_is_asked_again() -> None:
    place = Place(a=Where.ON, b=Where.OFF)
    place.see("a", "b", away="b")
    assert place.see("a", "b") == [Find("b")]
    assert place.tell(Found("b", None)) == []
    assert place.wait() == [Find("b")]
    assert place.now == BEGAN + RETRY_MS


def test_an_answer_that_nobody_waits_for_is_ignored() -> None:
    place = Place(a=Where.ON, b=Where.OFF)
    assert place.tell(Yielded("a", Millis(0)), Found("b", Where.ON), Running("z", Millis(0))) == []
    assert place.wait() == [Yield("a")]
