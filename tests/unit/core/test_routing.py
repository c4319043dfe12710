"""Which replica is chosen, and why."""

from __future__ import annotations

from onefleet.core.routing import Backend, PrefixIndex, choose
from onefleet.domain.ids import Instant

NOW = Instant(1_000)


def backends(*loads: int, slots: int = 8) -> list[Backend]:
    made = []
    for number, load in enumerate(loads):
        backend = Backend(f"rep-{number}", slots)
        backend.in_flight = load
        made.append(backend)
    return made


def chosen(pool: list[Backend], home: str | None = None, now: Instant = NOW) -> str | None:
    backend = choose(pool, home, now)
    return backend.replica_id if backend is not None else None


def test_the_least_busy_is_taken() -> None:
    assert chosen(backends(3, 1, 2)) == "rep-1"


def test_ties_go_to_the_one_that_served_fewest() -> None:
    pool = backends(1, 1, 1)
    pool[0].served = 5
    pool[1].served = 3
    pool[2].served = 4
    assert chosen(pool) == "rep-1"


def test_nobody_is_chosen_when_all_are_full_or_shunned() -> None:
    assert chosen([]) is None
    assert chosen(backends(8, 8)) is None
    pool = backends(0, 8)
    pool[0].shunned_until = Instant(2_000)
    assert chosen(pool) is None
    assert chosen(pool, now=Instant(2_000)) == "rep-0"


def test_the_home_of_a_prefix_is_taken_until_it_is_too_busy() -> None:
    assert chosen(backends(1, 0, 1), "rep-0") == "rep-0"  # 1 <= 125 % of (2 + 1) / 3
    assert chosen(backends(2, 0, 1), "rep-0") == "rep-1"
    assert chosen(backends(5, 4, 4, slots=16), "rep-0") == "rep-0"
    assert chosen(backends(8, 8, 7), "rep-0") == "rep-2"  # its slots are full
    assert chosen(backends(0, 0, 0), "rep-9") == "rep-0"  # it is gone


def test_a_single_replica_is_always_home() -> None:
    assert chosen(backends(7), "rep-0") == "rep-0"


def test_the_longest_prefix_wins_and_the_index_is_bounded() -> None:
    index = PrefixIndex(4)
    index.note((1, 2, 3), "rep-0")
    index.note((1, 2, 9), "rep-1")
    assert index.home((1, 2, 3)) == "rep-0"
    assert index.home((1, 2, 9, 10)) == "rep-1"
    assert index.home((1, 2)) == "rep-1"
    assert index.home((7,)) is None
    assert index.home(()) is None
    index.note((20, 21), "rep-2")
    assert len(index) == 4
    assert index.home((1,)) is None  # the longest unused went first
