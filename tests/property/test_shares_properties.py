"""Shares of devices go where they fit most tightly, of all nodes, and leave whole devices whole."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fleets import a_job, a_node, a_snapshot, placed, planned

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


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_none_would_have_been_tighter(data: st.DataObject) -> None:
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
    fitting = [amount for amount in left.values() if amount >= share]
    assert [left[device] for device in found] == ([min(fitting)] if fitting else [])
