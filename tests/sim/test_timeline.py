"""Virtual time: the same order under both drivers, and no waiting for anything real."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

from onefleet.domain.ids import Instant
from onefleet.sim.timeline import HeapTimeline, LoopTimeline, Timeline, run_now


class Unready:
    """What an event loop would have to wait for."""

    def __await__(self) -> Generator[None, None, None]:
        yield


BOTH = pytest.mark.parametrize("make", [HeapTimeline, LoopTimeline])


@BOTH
def test_actions_run_in_the_order_of_time_then_of_asking(make: Callable[[], Timeline]) -> None:
    timeline = make()
    seen: list[tuple[int, str]] = []

    def note(name: str, *then: tuple[int, str]) -> Callable[[], object]:
        async def action() -> None:
            seen.append((timeline.now(), name))
            for when, what in then:
                timeline.at(Instant(when), note(what))  # type: ignore[arg-type]

        return action

    timeline.at(Instant(5), note("b", (5, "d"), (0, "late"), (7, "f")))  # type: ignore[arg-type]
    timeline.at(Instant(5), note("c"))  # type: ignore[arg-type]
    timeline.at(Instant(1), note("a"))  # type: ignore[arg-type]
    timeline.at(Instant(6), note("e"))  # type: ignore[arg-type]
    timeline.at(Instant(9), note("never"))  # type: ignore[arg-type]
    timeline.run(Instant(8), lambda: False)
    assert seen == [(1, "a"), (5, "b"), (5, "c"), (5, "d"), (5, "late"), (6, "e"), (7, "f")]


@BOTH
def test_a_run_can_be_ended_and_its_errors_come_out(make: Callable[[], Timeline]) -> None:
    timeline = make()
    seen: list[int] = []

    async def step() -> None:
        seen.append(timeline.now())

    for when in (1, 2, 3):
        timeline.at(Instant(when), step)
    timeline.run(Instant(9), lambda: len(seen) == 2)
    assert seen == [1, 2]
    failing = make()

    async def fail() -> None:
        raise ValueError("broken")

    failing.at(Instant(1), fail)
    with pytest.raises(ValueError, match="broken"):
        failing.run(Instant(9), lambda: False)


def test_what_waits_for_something_real_is_refused() -> None:
    async def value() -> int:
        return 7

    async def wait() -> None:
        await Unready()

    assert run_now(value()) == 7
    with pytest.raises(AssertionError, match="real I/O"):
        run_now(wait())
