"""Whatever the loads are, a choice is possible, bounded and repeatable."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onefleet.core.routing import BOUND_PERCENT, Backend, PrefixIndex, choose
from onefleet.domain.ids import Instant

NOW = Instant(100)


@st.composite
def pools(draw: st.DrawFn) -> list[Backend]:
    made = []
    for number in range(draw(st.integers(0, 8))):
        backend = Backend(f"rep-{number}", draw(st.integers(1, 20)))
        backend.in_flight = draw(st.integers(0, 20))
        backend.served = draw(st.integers(0, 5))
        backend.shunned_until = Instant(draw(st.sampled_from([0, 100, 101])))
        made.append(backend)
    return made


@given(pools(), st.one_of(st.none(), st.integers(0, 9)))
def test_a_choice_is_possible_bounded_and_repeatable(pool: list[Backend], home: int | None) -> None:
    name = None if home is None else f"rep-{home}"
    chosen = choose(pool, name, NOW)
    assert choose(list(pool), name, NOW) is chosen
    able = [one for one in pool if one.in_flight < one.slots and one.shunned_until <= NOW]
    if chosen is None:
        assert able == []
        return
    assert chosen in able
    alive = [one for one in pool if one.shunned_until <= NOW]
    least = min(one.in_flight for one in able)
    mean_with_it = (sum(one.in_flight for one in alive) + 1) / len(alive)
    within = chosen.in_flight < mean_with_it * BOUND_PERCENT / 100
    assert chosen.in_flight == least or (chosen.replica_id == name and within)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(1, 6))
def test_without_homes_the_load_stays_even(ends: list[int], count: int) -> None:
    """Requests come one by one and some end: loads never differ by more than those that ended."""
    pool = [Backend(f"rep-{number}", 1_000) for number in range(count)]
    for _ in ends:
        chosen = choose(pool, None, NOW)
        assert chosen is not None
        chosen.in_flight += 1
        chosen.served += 1
    loads = [one.in_flight for one in pool]
    assert max(loads) - min(loads) <= 1


@given(st.lists(st.lists(st.integers(0, 20), max_size=6), max_size=60), st.integers(1, 12))
def test_the_index_is_bounded_and_tells_the_latest(notes: list[list[int]], limit: int) -> None:
    index = PrefixIndex(limit)
    latest: dict[int, str] = {}
    for number, prefixes in enumerate(notes):
        index.note(prefixes, f"rep-{number}")
        latest.update((prefix, f"rep-{number}") for prefix in prefixes)
        assert len(index) <= limit
        for prefix in range(21):
            assert index.home((prefix,)) in (None, latest.get(prefix))
