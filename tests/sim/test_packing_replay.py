"""The replay of packing on a trace: the protocol, what migration does, and the ceiling."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from math import exp

import pytest

from onefleet.core.packing import Ask, Host, Packer, Space, Spot
from onefleet.core.packing.scores import BestFit, Gradient, LeastLoss
from onefleet.domain.errors import InvalidRequest
from onefleet.sim.packing import (
    Migration,
    arrivals,
    ask_of,
    at_random,
    first_devices,
    hosts_of,
    replay,
)
from onefleet.sim.packing_ceiling import ceiling
from onefleet.sim.packing_fgd import ArtifactGradient, in_random_order
from onefleet.sim.traces import imitate
from onefleet.sim.traces.openb import OpenbNode

HOSTS = hosts_of(imitate.openb_nodes(1, 160))
ASKS = [ask_of(pod) for pod in imitate.openb_pods(1, 900)]
CAPACITY = sum(sum(host.free) for host in HOSTS)


def a_host(name: str, devices: int, cpu_milli: int = 64_000) -> Host:
    return Host(name, "P", cpu_milli, 1_000_000, (1000,) * devices)


def test_only_nodes_with_gpus_count() -> None:
    nodes = [OpenbNode("a", 8000, 64, 0, ""), OpenbNode("b", 16000, 64, 2, "T4")]
    assert hosts_of(nodes) == [Host("b", "T4", 16000, 64, (1000, 1000))]


def test_demand_is_made_up_or_cut_down_to_what_the_protocol_says() -> None:
    few, many = ASKS[:100], ASKS * 5
    for asks in (few, many):
        order = arrivals(asks, CAPACITY, random.Random(3))
        size = sum(ask.size for ask in order)
        assert 1.3 * CAPACITY - 8000 < size <= 1.3 * CAPACITY
        assert order == arrivals(asks, CAPACITY, random.Random(3))
        assert order != arrivals(asks, CAPACITY, random.Random(4))
    assert sorted(map(repr, arrivals(few, CAPACITY, random.Random(3))[:100])) == sorted(
        map(repr, few)
    )


def test_a_replay_counts_what_is_held() -> None:
    packer = Packer([a_host("a", 2)])
    found = replay(packer, [Ask(devices=1), Ask(0, 0, 1, 500), Ask(devices=1), Ask(0, 0, 1, 100)])
    assert (found.placed, found.refused) == (3, 1)
    assert found.at_end == pytest.approx(80.0)
    assert found.held == {Ask(devices=1): 1, Ask(0, 0, 1, 500): 1, Ask(0, 0, 1, 100): 1}


def test_at_random_is_a_draw_among_all_nodes_that_fit() -> None:
    hosts = [a_host(name, 1) for name in "abcd"]
    chosen = set()
    for seed in range(40):
        packer = Packer(hosts, score_of=first_devices)
        spot = at_random(random.Random(seed))(packer, Ask(devices=1))
        assert spot is not None
        chosen.add(spot.node)
    assert chosen == set("abcd")
    packer = Packer(hosts, score_of=first_devices)
    assert at_random(random.Random(0))(packer, Ask(devices=2)) is None


def test_ours_beats_fragmentation_alone_and_that_beats_best_fit() -> None:
    held = {"best": 0.0, "fragmentation": 0.0, "ours": 0.0}
    for seed, (name, score_of) in product(
        range(3),
        [
            ("best", lambda _: BestFit(128_000, 8_000)),
            ("fragmentation", Gradient.over),
            ("ours", LeastLoss),
        ],
    ):
        order = arrivals(ASKS, CAPACITY, random.Random(seed))
        held[name] += replay(Packer(HOSTS, score_of=score_of), order, until=101).at_full
    assert held["best"] < held["fragmentation"] < held["ours"]


def test_migration_holds_more_and_tells_what_it_cost() -> None:
    order = arrivals(ASKS, CAPACITY, random.Random(0))
    still = replay(Packer(HOSTS, score_of=Gradient.over), order, until=101)
    moved = replay(Packer(HOSTS, score_of=Gradient.over), order, until=101, migration=Migration())
    assert moved.at_full > still.at_full
    assert moved.moves > 0
    assert moved.cost >= moved.moves * Migration().fixed_ms // 20
    assert (still.moves, still.cost) == (0, 0)


def test_others_move_for_what_has_no_room_and_where_that_does_not_help_it_waits() -> None:
    """Halves on two devices: one moves beside the other, then no move helps any more."""
    half, whole = Ask(0, 0, 1, 500), Ask(0, 0, 1)
    packer = Packer([a_host("a", 1), a_host("b", 1)], score_of=first_devices)
    pinned = [Ask(0, 0, 1, 500, ("P",)), half]

    def apart(packer: Packer, ask: Ask) -> Spot | None:
        return packer.choose_on("b" if ask is half else "a", ask)

    found = replay(packer, [*pinned, whole, whole], choose=apart, migration=Migration(), until=200)
    assert (found.placed, found.refused, found.moves) == (3, 1, 1)


def test_fgd_as_its_authors_ran_it() -> None:
    """Growth within a fortieth of a device makes no difference, and the rest is a sigmoid's."""
    common, rare = Ask(4000, 9, 1, 500), Ask(1000, 7, 1, 20)
    score = ArtifactGradient.over([common] * 97 + [rare] * 3)
    assert set(score.measure.counts) == {Ask(4000, 0, 1, 500)}, (
        "memory and what is rare are left out"
    )
    space = Space("P", 64_000, 1_000_000, (1000,))
    grows = Space("P", 64_000, 1_000_000, (400,))
    assert score.cost(space, rare, space) == -50
    assert score.cost(space, common, grows) == -int(100 / (1 + exp(0.4)))
    assert score.cost(grows, common, space) == -int(100 / (1 + exp(-0.4)))
    near = Space("P", 64_000, 1_000_000, (499,))
    assert score.cost(near, rare, Space("P", 64_000, 1_000_000, (480,))) == -50


def test_nodes_in_a_random_order_are_the_same_nodes() -> None:
    mixed = in_random_order(HOSTS, random.Random(1))
    assert (
        mixed
        == in_random_order(HOSTS, random.Random(1))
        != in_random_order(HOSTS, random.Random(2))
    )
    assert sorted(h.node for h in mixed) == sorted(h.node for h in HOSTS)
    assert [replace(h, node="") for h in mixed] == [replace(h, node="") for h in HOSTS]


def test_the_ceiling_is_below_what_can_be_counted_by_hand() -> None:
    """Of n shares of 0.81 on 100 devices, each leaves 0.19 that nothing else here can use."""
    large, small = Ask(0, 0, 1, 810), Ask(0, 0, 1, 100)
    asks = [large] * 110 + [small] * 9 + [Ask(0, 0, 1)] * 10
    assert sum(ask.size for ask in asks) == 100_000
    most = ceiling([a_host(f"n{n}", 4, 10**9) for n in range(25)], asks)
    by_hand = max(min(100_000 - 190 * n + 900, 10_000 + 900 + 810 * n) for n in range(101))
    assert 0 < most <= by_hand


def test_no_policy_is_above_the_ceiling() -> None:
    order = arrivals(ASKS, CAPACITY, random.Random(0))
    most = 100 * ceiling(HOSTS, order) / CAPACITY
    found = replay(Packer(HOSTS), order)
    moving = 100 * ceiling(HOSTS, order, found.held) / CAPACITY
    assert found.at_end <= moving + 1e-6
    assert moving <= most + 1e-6 <= 100


@pytest.mark.parametrize(
    ("asks", "most"),
    [
        ([Ask(0, 0, 1, 600)] * 3, 1200),  # two devices hold one each
        ([Ask(0, 0, 1, 600), Ask(0, 0, 1, 400)] * 2, 2000),
        ([Ask(0, 0, 1, 470)] * 9, 1880),
        ([Ask(devices=2), Ask(devices=1)], 2000),
        ([Ask(devices=4)], 0),  # no node has so many
        ([Ask(40_000, 0, 1), Ask(40_000, 0, 1)], 1600),  # 64 cores run one and a half
        ([Ask(devices=1, products=("Q",))], 0),
        ([Ask(1000)], 0),
    ],
)
def test_the_ceiling_of_small_fleets(asks: list[Ask], most: int) -> None:
    assert ceiling([a_host("a", 2)], asks) == pytest.approx(most)


def test_what_is_kept_lowers_the_ceiling() -> None:
    asks = [Ask(0, 0, 1, 600)] * 2 + [Ask(devices=1)] * 2
    assert ceiling([a_host("a", 2)], asks) == pytest.approx(2000)
    assert ceiling([a_host("a", 2)], asks, {Ask(0, 0, 1, 600): 1}) == pytest.approx(1600)


def test_shares_too_many_to_enumerate_are_refused() -> None:
    asks = [Ask(0, 0, 1, share) for share in range(20, 420, 7)]
    with pytest.raises(InvalidRequest, match="too many ways"):
        ceiling([a_host("a", 2)], asks)
