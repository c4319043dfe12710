"""The packer's shortcuts change nothing: it chooses as one who looks at every node anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onefleet.core.packing import Ask, Host, Mix, Packer, Spot, Worth, packer
from onefleet.core.packing.mix import Fragmentation
from onefleet.core.packing.prices import WHOLE, worths
from onefleet.core.packing.scores import BestFit, FirstFit, Gradient, LeastLoss, Score
from onefleet.core.packing.space import Space, afters, fits, space_of

ASKS = st.sampled_from(
    [
        Ask(1000),
        Ask(1000, 2, 1, 300),
        Ask(500, 1, 1, 500),
        Ask(2000, 4, 1),
        Ask(2000, 4, 2),
        Ask(100, 1, 1, 700, ("Q",)),
    ]
)
HOSTS = st.builds(
    Host,
    node=st.sampled_from("abcdef"),
    product=st.sampled_from("PQ"),
    cpu_milli=st.sampled_from([1000, 4000, 6000]),
    memory=st.integers(0, 12),
    free=st.lists(st.sampled_from([0, 200, 500, 1000]), max_size=3).map(tuple),
)
SCORES = st.sampled_from(["first", "best", "fragmentation", "least loss"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), ASKS),
        st.tuples(st.just("give"), st.integers(0, 30)),
        st.tuples(st.just("put"), HOSTS),
        st.tuples(st.just("remove"), st.sampled_from("abcdef")),
    ),
    max_size=60,
)


def score(name: str, mix: Mix) -> Score:
    match name:
        case "first":
            return FirstFit()
        case "best":
            return BestFit(6000, 3000)
        case "fragmentation":
            return Gradient.over(Worth(mix.counts(), {"P": 6, "Q": 6}))
        case _:
            return LeastLoss(Worth(mix.counts(), {"P": 6, "Q": 6}))


def cheapest(hosts: dict[str, Host], ask: Ask, rule: Score) -> int | None:
    """The least cost over all nodes and all outcomes on them."""
    return min(
        (
            rule.cost(space, ask, after)
            for space in map(space_of_host, hosts.values())
            if fits(space, ask)
            for _, after in afters(space, ask)
        ),
        default=None,
    )


def shape(under_test: Packer) -> dict[Space, list[str]]:
    """A copy of all that is free."""
    return {space: list(nodes) for space, nodes in under_test.groups()}


def space_of_host(host: Host) -> Space:
    return space_of(host.product, host.cpu_milli, host.memory, host.free)


def changed(host: Host, ask: Ask, spot: Spot, sign: int) -> Host:
    free = list(host.free)
    for index in spot.devices:
        free[index] += sign * ask.milli
    cpu, memory = host.cpu_milli + sign * ask.cpu_milli, host.memory + sign * ask.memory
    return Host(host.node, host.product, cpu, memory, tuple(free))


@given(st.lists(HOSTS, max_size=6), STEPS, SCORES, st.lists(ASKS, max_size=20))
def test_it_chooses_the_cheapest_place_after_any_history(
    first: list[Host], steps: list[tuple[str, object]], name: str, seen: list[Ask]
) -> None:
    mix = Mix()
    for ask in seen:
        mix.observe(ask)
    rule = score(name, mix)
    hosts = {host.node: host for host in first}
    held: list[tuple[Ask, Spot]] = []
    keep, packer.LOG_MAX = packer.LOG_MAX, 7  # so that orders are built anew now and then
    try:
        under_test = Packer(hosts.values(), score_of=lambda _: rule, mix=mix)
        for verb, what in steps:
            match verb, what:
                case "take", Ask() as ask:
                    spot = under_test.choose(ask)
                    least = cheapest(hosts, ask, rule)
                    assert (spot is None) == (least is None)
                    if spot is None:
                        continue
                    after = changed(hosts[spot.node], ask, spot, -1)
                    cost = rule.cost(space_of_host(hosts[spot.node]), ask, space_of_host(after))
                    assert cost == least
                    under_test.take(ask, spot)
                    hosts[spot.node] = after
                    held.append((ask, spot))
                case "give", int() as at if held:
                    ask, spot = held.pop(at % len(held))
                    under_test.give_back(ask, spot)
                    hosts[spot.node] = changed(hosts[spot.node], ask, spot, 1)
                case "put", Host() as host:
                    held = [(ask, spot) for ask, spot in held if spot.node != host.node]
                    under_test.put(host)
                    hosts[host.node] = host
                case "remove", str() as node:
                    held = [(ask, spot) for ask, spot in held if spot.node != node]
                    under_test.remove(node)
                    hosts.pop(node, None)
                case _:
                    pass
            for node, host in hosts.items():
                assert under_test.space(node) == space_of_host(host)
    finally:
        packer.LOG_MAX = keep


@given(st.lists(HOSTS, max_size=6), ASKS, st.integers(1, 5))
def test_a_gang_fits_whole_and_choosing_takes_nothing(
    first: list[Host], ask: Ask, workers: int
) -> None:
    under_test = Packer({host.node: host for host in first}.values())
    before = shape(under_test)
    spots = under_test.choose_all(ask, workers)
    assert shape(under_test) == before
    if spots is None:
        return
    assert len(spots) == workers
    for spot in spots:
        under_test.take(ask, spot)
    for spot in spots:
        under_test.give_back(ask, spot)
    assert shape(under_test) == before


@given(st.lists(ASKS, max_size=40), HOSTS)
def test_fragmentation_is_never_negative_nor_more_than_all(seen: list[Ask], host: Host) -> None:
    mix = Mix()
    for ask in seen:
        mix.observe(ask)
    space = space_of_host(host)
    assert 0 <= Fragmentation(mix.counts()).of(space) <= len(seen) * space.size


@given(
    st.one_of(
        st.dictionaries(st.integers(1, 99).map(lambda x: 10 * x), st.integers(0, 500), max_size=12),
        st.dictionaries(st.integers(1, 999), st.integers(0, 500), max_size=6),
    )
)
def test_prices_are_those_of_the_fewest_devices(demand: dict[int, int]) -> None:
    """The worth of all shares together is at most the devices needed, and no cut beats a device."""
    worth = worths(demand)
    assert worth[1000] == WHOLE
    assert list(worth) == sorted(worth)
    total = sum(count * worth[share] for share, count in demand.items())
    assert total <= devices_used(demand) * (WHOLE + 1_000)
    for share in demand:
        assert share == 0 or (1000 // share) * worth[share] <= WHOLE + 1_000


def devices_used(demand: dict[int, int]) -> int:
    """Devices that first-fit decreasing takes: an upper bound."""
    free: list[int] = []
    for share in sorted(demand, reverse=True):
        for _ in range(demand[share]):
            at = next((at for at, part in enumerate(free) if part >= share), None)
            if at is None:
                free.append(1000 - share)
            else:
                free[at] -= share
    return len(free)
