"""Which moves are found for a blocked demand and in the background, and which are not worth it."""

from __future__ import annotations

from onefleet.core.packing import Ask, Host, Packer, Spot
from onefleet.core.packing.defragment import Move, Piece, by_node, make_room, move_cost, tidy

ONE, TWO, FOUR = Ask(devices=1), Ask(devices=2), Ask(devices=4)
PLENTY = 10**9


def fleet(*devices: int, pieces: list[Piece]) -> Packer:
    """Nodes a, b, c... of so many devices, with the pieces on them."""
    hosts = [
        Host(node, "P", 64_000, 64, (1000,) * count)
        for node, count in zip("abcdef", devices, strict=False)
    ]
    packer = Packer(hosts)
    for piece in pieces:
        for spot in piece.spots:
            packer.take(piece.ask, spot)
    return packer


def piece(name: str, ask: Ask, *spots: Spot, cost: int | None = 10) -> Piece:
    return Piece(name, ask, spots, cost)


def test_what_fits_needs_no_move() -> None:
    plan = make_room(fleet(2, pieces=[]), {}, TWO, gain=1)
    assert plan is not None
    assert plan.moves == ()
    assert plan.spots == (Spot("a", (0, 1)),)


def test_one_move_makes_room() -> None:
    pieces = [piece("p", ONE, Spot("a", (0,))), piece("q", ONE, Spot("b", (1,)), cost=9)]
    packer = fleet(2, 2, pieces=pieces)
    plan = make_room(packer, by_node(pieces), TWO, gain=PLENTY)
    assert plan is not None
    assert [move.id for move in plan.moves] == ["p"] or [move.id for move in plan.moves] == ["q"]
    assert plan.cost <= 10
    left = {"p": "a", "q": "b"}[plan.moves[0].id]
    assert plan.spots == (Spot(left, (0, 1)),)
    assert packer.choose(TWO) is None, "nothing was done yet"


def test_no_move_at_a_loss_and_none_of_what_must_stay() -> None:
    pieces = [piece("p", ONE, Spot("a", (0,))), piece("q", ONE, Spot("b", (1,)))]
    assert make_room(fleet(2, 2, pieces=pieces), by_node(pieces), TWO, gain=10) is None
    assert make_room(fleet(2, 2, pieces=pieces), by_node(pieces), TWO, gain=11) is not None
    fixed = [piece("p", ONE, Spot("a", (0,)), cost=None), piece("q", ONE, Spot("b", (1,)))]
    plan = make_room(fleet(2, 2, pieces=fixed), by_node(fixed), TWO, gain=PLENTY)
    assert plan is not None
    assert [move.id for move in plan.moves] == ["q"]
    stuck = [piece(p.id, p.ask, *p.spots, cost=None) for p in pieces]
    assert make_room(fleet(2, 2, pieces=stuck), by_node(stuck), TWO, gain=PLENTY) is None


def test_a_chain_makes_room_where_one_move_cannot() -> None:
    """Two leave their half of c only if a third first makes its node whole again for them."""
    pieces = [
        piece("pair", TWO, Spot("c", (0, 1))),
        piece("x", ONE, Spot("a", (0,))),
        piece("y", ONE, Spot("b", (0,)), cost=None),
    ]
    packer = fleet(2, 2, 4, pieces=pieces)
    plan = make_room(packer, by_node(pieces), FOUR, gain=PLENTY)
    assert plan is not None
    assert [move.id for move in plan.moves] == ["x", "pair"]
    assert plan.moves[0] == Move("x", ONE, (Spot("a", (0,)),), (Spot("b", (1,)),), 10)
    assert plan.spots == (Spot("c", (0, 1, 2, 3)),)


def test_a_gang_moves_whole_and_once() -> None:
    pieces = [
        piece("gang", ONE, Spot("a", (0,)), Spot("b", (0,)), cost=40),
        piece("y", ONE, Spot("c", (0,)), cost=None),
    ]
    packer = fleet(2, 2, 3, pieces=pieces)
    plan = make_room(packer, by_node(pieces), TWO, workers=2, gain=PLENTY)
    assert plan is not None
    assert sum(move.id == "gang" for move in plan.moves) <= 1
    assert plan.cost == 40 * len(plan.moves)
    assert len(plan.spots) == 2


def test_a_gang_that_waits_gets_room_for_all_its_workers_or_nothing() -> None:
    pieces = [piece(name, ONE, Spot(name, (0,))) for name in "abcd"]
    packer = fleet(2, 2, 2, 2, pieces=pieces)
    plan = make_room(packer, by_node(pieces), TWO, workers=2, gain=PLENTY)
    assert plan is not None
    assert len(plan.moves) == 2
    assert make_room(packer, by_node(pieces), TWO, workers=3, gain=PLENTY) is None
    assert make_room(packer, by_node(pieces), TWO, workers=2, gain=15) is None


def test_tidying_puts_a_share_into_the_hole_made_for_it() -> None:
    small = Ask(0, 0, 1, 190)
    pieces = [
        piece("big", Ask(0, 0, 1, 810), Spot("a", (0,)), cost=None),
        piece("small", small, Spot("b", (0,))),
    ]
    packer = fleet(1, 1, pieces=pieces)
    for _ in range(40):
        packer.observe(ONE)
    plan = tidy(packer, by_node(pieces), horizon_ms=1000)
    assert plan is not None
    assert [(move.id, move.new) for move in plan.moves] == [("small", (Spot("a", (0,)),))]
    assert plan.gain > plan.cost == 10
    dear = [piece(p.id, p.ask, *p.spots, cost=p.cost and 10**6) for p in pieces]
    assert tidy(packer, by_node(dear), horizon_ms=1000) is None
    assert tidy(packer, by_node(pieces), horizon_ms=1000, moves_max=0) is None


def test_what_a_move_costs() -> None:
    assert move_cost(TWO, 3, 4_000_000, fixed_ms=500, bytes_per_ms=1000) == 6 * 4500
    assert move_cost(Ask(0, 0, 1, 250), 1, 0, fixed_ms=400, bytes_per_ms=1) == 100
    assert move_cost(Ask(), 1, 0, fixed_ms=0, bytes_per_ms=0) == 1, "nothing is moved for nothing"
