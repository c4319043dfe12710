"""Packing: what fits, which place is chosen, and what is learnt."""

from __future__ import annotations

import pytest

from onefleet.core.packing import Ask, Host, Mix, Packer, Space, Spot, Worth
from onefleet.core.packing.mix import FADE_AT, KINDS_MAX, Fragmentation
from onefleet.core.packing.prices import SHARES_MAX, worths
from onefleet.core.packing.products import pressures, reluctance
from onefleet.core.packing.scores import BestFit, DevicePacking, DotProduct, FirstFit
from onefleet.core.packing.space import afters, fits

SHARE = Ask(1000, 4, 1, 400)
WHOLE = Ask(1000, 4, 1)
DEVICE = 1_000_000  # in prices


def host(name: str, *free: int, product: str = "P", cpu: int = 8000, memory: int = 64) -> Host:
    return Host(name, product, cpu, memory, free)


@pytest.mark.parametrize(
    "fields",
    [
        {"devices": 2, "milli": 500},
        {"devices": 0, "milli": 500},
        {"devices": 1, "milli": 0},
        {"devices": 1, "milli": 1001},
        {"cpu_milli": -1},
    ],
)
def test_an_ask_of_nothing_sensible_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"quantity|share"):
        Ask(**fields)


def test_what_fits() -> None:
    space = Space("P", 4000, 16, (1000, 600, 0))
    assert fits(space, Ask(4000, 16))
    assert not fits(space, Ask(4001, 16))
    assert not fits(space, Ask(4000, 17))
    assert fits(space, Ask(devices=1))
    assert not fits(space, Ask(devices=2))
    assert not fits(space, Ask(devices=4))
    assert fits(space, Ask(devices=1, milli=600, products=("Q", "P")))
    assert not fits(space, Ask(devices=1, milli=600, products=("Q",)))
    assert fits(space, Ask(products=("Q",))), "without a device, its product does not matter"


def test_outcomes_are_the_different_ones() -> None:
    space = Space("P", 4000, 16, (1000, 600, 600, 100))
    assert afters(space, Ask(1000, 6, 1, 600)) == [
        (1000, Space("P", 3000, 10, (600, 600, 400, 100))),
        (600, Space("P", 3000, 10, (1000, 600, 100, 0))),
    ]
    assert afters(space, Ask(devices=1)) == [(1000, Space("P", 4000, 16, (600, 600, 100, 0)))]
    assert afters(space, Ask(4000)) == [(0, Space("P", 0, 16, (1000, 600, 600, 100)))]


def test_a_share_goes_beside_another_and_not_onto_a_free_device() -> None:
    packer = Packer([host("a", 1000, 1000), host("b", 1000, 400)])
    for _ in range(8):
        packer.observe(WHOLE)
        packer.observe(SHARE)
    for _ in range(32):
        packer.observe(WHOLE)
    assert packer.choose(SHARE) == Spot("b", (1,))


def test_what_was_taken_is_not_chosen_until_it_is_given_back() -> None:
    packer = Packer([host("a", 1000, 1000)])
    first = packer.choose(Ask(devices=2))
    assert first == Spot("a", (0, 1))
    packer.take(Ask(devices=2), first)
    assert packer.choose(SHARE) is None
    assert not packer.fits(WHOLE)
    packer.give_back(Ask(devices=2), first)
    assert packer.choose(WHOLE) == Spot("a", (0,))


def test_taking_what_is_not_free_and_giving_back_what_is_not_held_are_refused() -> None:
    packer = Packer([host("a", 1000, 400)])
    for ask, spot in [
        (WHOLE, Spot("a", (1,))),
        (Ask(devices=2), Spot("a", (0, 1))),
        (WHOLE, Spot("a", (0, 1))),
        (Ask(devices=2), Spot("a", (0, 0))),
        (WHOLE, Spot("a", (2,))),
    ]:
        with pytest.raises(ValueError, match="is not free"):
            packer.take(ask, spot)
    with pytest.raises(ValueError, match="is not held"):
        packer.give_back(SHARE, Spot("a", (0,)))
    packer.give_back(SHARE, Spot("gone", (0,)))


def test_a_node_that_leaves_or_changes_is_seen() -> None:
    packer = Packer([host("a", 1000), host("b", 1000)])
    assert packer.choose(WHOLE) == Spot("a", (0,))
    packer.remove("a")
    packer.remove("a")
    assert packer.choose(WHOLE) == Spot("b", (0,))
    packer.put(host("b", 300))
    assert packer.choose(WHOLE) is None
    packer.put(host("a", 1000))
    assert packer.choose(WHOLE, avoid=("b",)) == Spot("a", (0,))
    assert packer.choose(WHOLE, avoid=("a",)) is None
    assert packer.choose(WHOLE) == Spot("a", (0,)), "avoiding once is forgotten"


def test_a_gang_is_placed_on_one_node_where_it_can_and_whole_or_not_at_all() -> None:
    packer = Packer([host("a", 1000, 1000), host("b", 1000, 1000, 1000)])
    assert packer.choose_all(WHOLE, 3) == tuple(Spot("b", (at,)) for at in range(3))
    assert packer.choose_all(Ask(devices=2), 2) == (Spot("a", (0, 1)), Spot("b", (0, 1)))
    assert packer.choose_all(WHOLE, 6) is None
    five = packer.choose_all(WHOLE, 5)
    assert five is not None, "nothing was taken by choosing"
    assert len(set(five)) == 5
    shares = packer.choose_all(SHARE, 4)
    assert shares is not None
    assert len({spot.node for spot in shares}) == 1


def test_baselines_choose_as_their_names_say() -> None:
    hosts = [host("a", 1000, 1000), host("b", 600, 500, cpu=2000), host("c", 1000, 700)]
    largest = {"cpu_milli_max": 8000, "size_max": 2000}
    chosen = {
        score.name: Packer(hosts, score_of=lambda _, score=score: score).choose(SHARE)
        for score in (FirstFit(), BestFit(**largest), DotProduct(**largest), DevicePacking())
    }
    assert chosen == {
        "first-fit": Spot("a", (0,)),
        "best-fit": Spot("b", (1,)),
        "dot-product": Spot("b", (1,)),
        "device-packing": Spot("b", (1,)),
    }


def test_fragmentation_is_what_the_mix_cannot_use() -> None:
    mix = Mix()
    mix.observe(Ask(1000, 0, 1, 500))
    mix.observe(Ask(3000, 0, 1))
    mix.observe(Ask(9000, 0, 1))
    mix.observe(Ask(0, 0, 1, products=("Q",)))
    mix.observe(Ask(1000))
    measure = Fragmentation(mix.counts())
    # Of (1000, 300) with 4 cores: the share leaves 300 unusable, the whole one too; the others all.
    assert measure.of(Space("P", 4000, 0, (1000, 300))) == 300 + 300 + 3 * 1300
    assert measure.of(Space("Q", 4000, 0, (1000, 300))) == 300 + 300 + 300 + 2 * 1300
    assert measure.of(Space("P", 0, 0, (1000, 300))) == 5 * 1300
    assert measure.of(Space("P", 4000, 0, (0, 0))) == 0


def test_the_mix_is_bounded_and_forgets_the_oldest() -> None:
    mix = Mix()
    for cpu in range(KINDS_MAX + 5):
        mix.observe(Ask(cpu))
    counts = mix.counts()
    assert len(counts) == KINDS_MAX
    assert Ask(4) not in counts
    assert counts[Ask(5)] == 1


def test_what_was_asked_long_ago_fades() -> None:
    mix = Mix()
    mix.observe(SHARE)
    for _ in range(FADE_AT):
        mix.observe(WHOLE)
    assert SHARE not in mix.counts()
    assert FADE_AT // 4 < mix.counts()[WHOLE] < FADE_AT
    assert mix.seen == FADE_AT + 1


def test_prices_of_shares_are_what_they_cost_beside_the_others() -> None:
    worth = worths({470: 100, 810: 100, 650: 50, 320: 60, 160: 5})
    assert worth[1000] == DEVICE
    assert worth[470] == DEVICE // 2
    assert worth[810] == DEVICE
    assert worth[190] == 0, "far more holes of 190 are left than shares of 160 are asked"
    assert abs(worth[680] - worth[320] - worth[350]) <= 1
    assert worths({}) == (0,) * 1000 + (DEVICE,)
    assert worths({333: 7})[333:1000:333] == (333333, 666667, DEVICE)


def test_prices_of_many_different_shares_take_the_next_larger() -> None:
    many = dict.fromkeys(range(300, 300 + 7 * SHARES_MAX), 10)
    worth = worths(many)
    assert worth[299] == 0
    assert worth[499] <= worth[700] <= worth[999] <= DEVICE


def test_free_devices_without_cpu_are_worth_less() -> None:
    worth = Worth({Ask(4000, 4, 1): 10}, {"P": 4})
    rich = worth.loss(Space("P", 8000, 64, (1000, 1000)))
    poor = worth.loss(Space("P", 6000, 64, (1000, 1000)))
    forgetful = worth.loss(Space("P", 8000, 4, (1000, 1000)))
    assert rich < poor < worth.loss(Space("P", 2000, 64, (1000, 1000)))
    assert rich < forgetful
    assert worth.loss(Space("P", 9000, 64, (1000, 1000))) == rich, "more than enough is enough"
    assert worth.loss(Space("P", 0, 0, (0, 0))) == 0


def test_a_share_pairs_with_the_hole_that_it_fills() -> None:
    packer = Packer([host("a", 350, 450, 1000)])
    for milli, count in ((1000, 60), (650, 30), (320, 34), (550, 10), (230, 10), (220, 10)):
        for _ in range(count):
            packer.observe(Ask(0, 0, 1, milli))
    assert packer.choose(Ask(0, 0, 1, 320)) == Spot("a", (0,))
    assert packer.choose(Ask(0, 0, 1, 230)) == Spot("a", (1,)), "not the tightest: 220 goes beside"


def test_the_mix_of_the_past_alone_decides() -> None:
    """What is learnt takes effect after it was seen, and only then."""
    packer = Packer([host("a", 1000)])
    before = packer.worth
    packer.observe(WHOLE)
    packer.choose(WHOLE)
    assert packer.worth is before
    for _ in range(31):
        packer.observe(WHOLE)
    packer.choose(WHOLE)
    assert packer.worth.counts == {WHOLE: 32}


def test_the_faster_product_unless_others_need_it_more() -> None:
    flexible = Ask(devices=1, speeds=(("fast", 2000),))
    only_fast = Ask(devices=1, products=("fast",))
    capacity = {"fast": 4, "slow": 12}
    calm = pressures({flexible: 10}, capacity)
    assert calm == {"fast": 1000, "slow": 1000}
    assert reluctance(flexible, "fast", calm) < reluctance(flexible, "slow", calm)
    sought = pressures({flexible: 10, only_fast: 30}, capacity)
    assert sought["fast"] > 2 * sought["slow"]
    assert reluctance(flexible, "slow", sought) < reluctance(flexible, "fast", sought)
    assert reluctance(only_fast, "fast", sought) == 0

    packer = Packer([host("f", 1000, product="fast"), host("s", 1000, product="slow")])
    assert packer.choose(flexible) == Spot("f", (0,))
