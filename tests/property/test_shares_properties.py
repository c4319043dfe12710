"""Shares of devices go where what they leave is worth most to what else is asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fleets import a_job, a_node, a_snapshot, placed, planned

from onefleet.core.packing import Ask, Worth
from onefleet.core.packing.space import space_of
from onefleet.core.plan import Place
from onefleet.domain.ids import DeviceId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import WHOLE, Terms, Work

NEVER = Terms(checkpoint_every_ms=0)


def a_share(name: str, milli: int) -> Work:
    return a_job(name, tier=Tier.PREMIUM, milli=milli, terms=NEVER)


def held(name: str, milli: int, node: str, device: int) -> Work:
    work = placed(a_share(name, milli), (node, str(device)))
    return replace(work, placement=tuple(replace(slot, milli=milli) for slot in work.placement))


def chosen(*works: Work, sizes: tuple[int, ...]) -> list[DeviceId]:
    """The device that the one share that waits gets."""
    nodes = [a_node(f"n{i}", size) for i, size in enumerate(sizes)]
    decided = planned(a_snapshot(nodes, works)).decisions
    return [d.placement[0].devices[0] for d in decided if isinstance(d, Place)]


def test_a_whole_device_is_not_broken_while_one_in_part_use_takes_it() -> None:
    half = held("h", 500, "n1", 0)
    assert chosen(half, a_share("s", 500), sizes=(1, 3)) == ["n1/cpu0"]
    assert chosen(half, a_share("s", 501), sizes=(1, 3)) == ["n0/cpu0"]


def test_the_tightest_device_of_all_nodes_is_chosen() -> None:
    works = [held("a", 300, "n0", 0), held("b", 600, "n1", 1), held("c", 500, "n2", 0)]
    assert chosen(*works, a_share("s", 400), sizes=(1, 2, 1)) == ["n1/cpu1"]
    assert chosen(*works, a_share("s", 450), sizes=(1, 2, 1)) == ["n2/cpu0"]


def test_what_is_often_asked_for_keeps_its_place() -> None:
    halves = [held(f"h{i}", 500, f"n{i}", 0) for i in range(4)]
    works = [*halves, held("x", 300, "n4", 0)]
    assert chosen(*works, a_share("s", 200), sizes=(1, 1, 1, 1, 1)) == ["n4/cpu0"]


def is_shared(left: dict[str, int], node: str) -> bool:
    return any(d.startswith(f"{node}/") and 0 < amount < WHOLE for d, amount in left.items())


def whole(left: dict[str, int], node: str) -> int:
    return sum(d.startswith(f"{node}/") and amount == WHOLE for d, amount in left.items())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_none_would_have_cost_less_worth(data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    left: dict[str, int] = {}
    works: list[Work] = []
    for i, size in enumerate(sizes):
        for device in range(size):
            milli = data.draw(st.sampled_from([0, 0, 100, 250, 400, 500, 700, 1_000]))
            left[f"n{i}/cpu{device}"] = WHOLE - milli
            if milli:
                works.append(held(f"x{i}{device}", milli, f"n{i}", device))
    share = data.draw(st.sampled_from([50, 200, 300, 500, 600, 900]))
    found = chosen(*works, a_share("s", share), sizes=sizes)
    asked = Counter([share, *(work.demand.milli for work in works)])
    worth = Worth(
        {Ask(devices=1, milli=m): 1 << n.bit_length() - 1 for m, n in asked.items()},
        {"simulated": len(left)},
    )

    def loss(device: str, taken: int) -> int:
        node = device.partition("/")[0]
        free = {d: amount for d, amount in left.items() if d.startswith(f"{node}/")}
        free[device] -= taken
        return worth.loss(space_of("simulated", 0, 0, free.values()))

    shared = {f"n{i}" for i in range(len(sizes)) if is_shared(left, f"n{i}")}
    opened = min(
        ((n, f"n{i}") for i in range(len(sizes)) if (n := whole(left, f"n{i}"))), default=()
    )
    looked_at = {*shared, *opened[1:]}
    costs = {
        d: loss(d, share) - loss(d, 0)
        for d, amount in left.items()
        if amount >= share and d.partition("/")[0] in looked_at
    }
    assert bool(found) == bool(costs)
    for device in found:
        assert costs[device] == min(costs.values())
        equal = [left[d] for d, cost in costs.items() if cost == costs[device]]
        assert left[device] == min(equal)
