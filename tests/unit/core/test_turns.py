"""Turns on one place, by example."""

from __future__ import annotations

import pytest

from onefleet.core.turns import (
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


def told(machine: Turns[str], now: int, *events: Event[str]) -> list[object]:
    effects: list[object] = []
    for event in events:
        effects += machine.handle(event, Instant(now))
        machine.check()
    return effects


def two(rules: TurnRules | None = None, switch_ms: int = 0) -> Turns[str]:
    """`a` is on the place since 0, `b` waits."""
    machine: Turns[str] = Turns(rules or TurnRules(), switch_ms)
    assert told(machine, 0, Joined("a", runs=True), Joined("b")) == []
    return machine


def test_a_worker_alone_is_never_disturbed() -> None:
    machine: Turns[str] = Turns(TurnRules())
    assert told(machine, 0, Joined("a")) == [Run("a")]
    assert told(machine, 5, Running("a", Millis(5))) == []
    assert machine.next_deadline() is None
    assert told(machine, 99_999, Tick()) == []


def test_a_slice_ends_with_a_switch_of_two_answered_steps() -> None:
    machine = two()
    assert machine.next_deadline() == 250
    assert told(machine, 249, Tick()) == []
    assert told(machine, 250, Tick()) == [Yield("a")]
    assert (machine.stage, machine.next_deadline()) == (Stage.LEAVING, None)
    assert told(machine, 260, Yielded("a", Millis(10))) == [Run("b")]
    assert told(machine, 275, Running("b", Millis(15))) == []
    assert (machine.holder, machine.waiting, machine.next_deadline()) == ("b", ("a",), 775)


def test_a_slice_is_long_against_what_a_switch_costs() -> None:
    machine = two(TurnRules(cost_factor=10), switch_ms=300)
    assert machine.slice_ms == 3_000
    told(machine, 3_000, Tick(), Yielded("a", Millis(40)), Running("b", Millis(60)))
    assert (machine.switch_ms, machine.slice_ms) == (100, 1_000)  # measured, not believed
    told(machine, 4_000, Tick(), Yielded("b", Millis(100)), Running("a", Millis(100)))
    assert machine.switch_ms == 125


def test_turns_are_as_long_as_the_shares_are_large() -> None:
    machine: Turns[str] = Turns(TurnRules(longer_max=4))
    told(machine, 0, Joined("small", runs=True, share=100), Joined("large", share=300))
    assert machine.slice_ms == 250
    told(machine, 250, Tick(), Yielded("small", Millis(0)), Running("large", Millis(0)))
    assert machine.next_deadline() == 250 + 750
    told(machine, 300, Joined("tiny", share=10))
    assert machine.slice_ms == 1_000, "nobody waits for ever"
    told(machine, 400, Left("tiny"))
    assert machine.slice_ms == 750
    told(machine, 500, Left("small"))
    assert (machine.slice_ms, machine.next_deadline()) == (250, None)


def test_who_cannot_be_taken_off_runs_on_and_is_reported_once() -> None:
    machine = two()
    now, effects = 0, []
    for _ in range(5):
        now += 250
        assert told(machine, now, Tick()) == [Yield("a")]
        effects += told(machine, now, YieldFailed("a", "it maps the other device"))
        assert (machine.holder, machine.stage) == ("a", Stage.HOLDING)
        assert told(machine, now, Tick()) == []  # not again at once
    assert effects == [Stuck("a", 3, "it maps the other device")]


def test_who_cannot_be_put_on_is_passed_over() -> None:
    machine = two()
    told(machine, 0, Joined("c"))
    assert told(machine, 250, Tick(), Yielded("a", Millis(0))) == [Yield("a"), Run("b")]
    assert told(machine, 250, RunFailed("b", "out of memory")) == [Run("c")]
    assert told(machine, 250, Running("c", Millis(0))) == []
    assert machine.waiting == ("a", "b")


def test_when_nobody_can_be_put_on_the_tries_grow_rare() -> None:
    machine: Turns[str] = Turns(TurnRules())
    assert told(machine, 0, Joined("a"), Joined("b")) == [Run("a")]
    assert told(machine, 0, RunFailed("a", "lost")) == [Run("b")]
    assert told(machine, 0, RunFailed("b", "lost")) == []
    assert machine.next_deadline() == 1_000
    assert told(machine, 999, Tick()) == []
    assert told(machine, 1_000, Tick(), RunFailed("a", "lost")) == [Run("a"), Run("b")]
    assert told(machine, 1_000, RunFailed("b", "lost")) == []
    assert machine.next_deadline() == 3_000


@pytest.mark.parametrize("when", ["holding", "leaving", "coming"])
def test_who_leaves_makes_room(when: str) -> None:
    machine = two()
    if when != "holding":
        told(machine, 250, Tick())
    if when == "coming":
        told(machine, 250, Joined("c"), Yielded("a", Millis(1)))
        assert told(machine, 251, Left("b")) == [Run("c")]
        assert told(machine, 252, Running("b", Millis(1))) == [], "it has left"
        assert machine.holder == "c"
    else:
        assert told(machine, 251, Left("a")) == [Run("b")]
