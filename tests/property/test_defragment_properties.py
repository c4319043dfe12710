"""Every plan of moves can be carried out move by move, pays, and touches nothing that must stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onefleet.core.packing import Ask, Host, Packer, Spot
from onefleet.core.packing.defragment import Moves, Piece, by_node, make_room, tidy

ASKS = st.sampled_from(
    [
        Ask(1000, 1),
        Ask(1000, 1, 1, 300),
        Ask(1000, 1, 1, 500),
        Ask(2000, 2, 1, 700),
        Ask(2000, 2, 1),
        Ask(3000, 2, 2),
        Ask(3000, 2, 1, products=("Q",)),
    ]
)
HOSTS = st.lists(
    st.tuples(
        st.sampled_from("PQ"),
        st.sampled_from([4000, 8000]),
        st.sampled_from([6, 12]),
        st.sampled_from([1, 2, 4]),
    ),
    min_size=2,
    max_size=5,
)
WANTED = st.lists(
    st.tuples(
        ASKS,
        st.sampled_from([1, 1, 1, 2]),
        st.one_of(st.none(), st.integers(1, 20), st.integers(1, 20)),
        st.booleans(),
    ),
    min_size=8,
    max_size=30,
)
LARGE = st.sampled_from([Ask(2000, 2, 1), Ask(3000, 2, 2), Ask(4000, 4, 2), Ask(2000, 2, 4)])


class World:
    """An own account of what is free, to hold plans against."""

    def __init__(self, hosts: list[Host], pieces: list[Piece]) -> None:
        self.rooms = {h.node: [h.cpu_milli, h.memory, list(h.free), h.product] for h in hosts}
        self.pieces = {piece.id: piece for piece in pieces}
        for piece in pieces:
            for spot in piece.spots:
                self.put(piece.ask, spot)

    def put(self, ask: Ask, spot: Spot, sign: int = 1) -> None:
        cpu, memory, free, product = self.rooms[spot.node]
        assert ask.accepts(product)
        assert len(set(spot.devices)) == ask.devices
        for index in spot.devices:
            free[index] -= sign * ask.milli
            assert 0 <= free[index] <= 1000
        cpu, memory = cpu - sign * ask.cpu_milli, memory - sign * ask.memory
        assert cpu >= 0
        assert memory >= 0
        self.rooms[spot.node] = [cpu, memory, free, product]

    def carry_out(self, plan: Moves) -> None:
        """Move by move; a new place is taken before the old one is given up."""
        for move in plan.moves:
            piece = self.pieces.pop(move.id)  # each at most once
            assert piece.cost == move.cost
            assert move.old == piece.spots
            assert len(move.new) == len(move.old)
            for old, new in zip(move.old, move.new, strict=True):
                if old != new:
                    self.put(move.ask, new)
            for old, new in zip(move.old, move.new, strict=True):
                if old != new:
                    self.put(move.ask, old, -1)


def filled(
    sizes: list[tuple[str, int, int, int]], wanted: list[tuple[Ask, int, int | None, bool]]
) -> tuple[list[Host], Packer, list[Piece]]:
    """A fleet in which some of what was placed has left again, so that it is fragmented."""
    hosts = [
        Host(f"n{at}", product, cpu, memory, (1000,) * devices)
        for at, (product, cpu, memory, devices) in enumerate(sizes)
    ]
    packer = Packer(hosts)
    pieces, leaving = [], []
    for at, (ask, workers, cost, stays) in enumerate(wanted):
        packer.observe(ask)
        spots = packer.choose_all(ask, workers)
        if spots is None:
            continue
        for spot in spots:
            packer.take(ask, spot)
        (pieces if stays else leaving).append(Piece(f"p{at}", ask, spots, cost))
    for piece in leaving:
        for spot in piece.spots:
            packer.give_back(piece.ask, spot)
    return hosts, packer, pieces


def content(packer: Packer) -> dict[object, list[str]]:
    return {space: list(nodes) for space, nodes in packer.groups()}


@given(HOSTS, WANTED, LARGE, st.integers(1, 2), st.integers(0, 120))
def test_room_is_made_by_moves_that_are_feasible_one_by_one(
    sizes: list[tuple[str, int, int, int]],
    wanted: list[tuple[Ask, int, int | None, bool]],
    ask: Ask,
    workers: int,
    gain: int,
) -> None:
    hosts, packer, pieces = filled(sizes, wanted)
    before = content(packer)
    plan = make_room(packer, by_node(pieces), ask, workers, gain=gain)
    assert content(packer) == before
    if packer.choose_all(ask, workers) is not None:
        assert plan is not None
        assert plan.moves == ()
    if plan is None:
        return
    assert plan.cost < gain or not plan.moves
    world = World(hosts, pieces)
    world.carry_out(plan)
    assert len(plan.spots) == workers
    for spot in plan.spots:
        world.put(ask, spot)


@given(HOSTS, WANTED, st.integers(1, 100_000), st.integers(0, 4))
def test_tidying_pays_and_is_feasible_move_by_move(
    sizes: list[tuple[str, int, int, int]],
    wanted: list[tuple[Ask, int, int | None, bool]],
    horizon_ms: int,
    moves_max: int,
) -> None:
    hosts, packer, pieces = filled(sizes, wanted)
    before = content(packer)
    plan = tidy(packer, by_node(pieces), horizon_ms=horizon_ms, moves_max=moves_max)
    assert content(packer) == before
    if plan is None:
        return
    assert 0 < len(plan.moves) <= moves_max
    assert plan.gain > plan.cost
    World(hosts, pieces).carry_out(plan)
    loss = sum(packer.worth.loss(space) * len(nodes) for space, nodes in packer.groups())
    for move in plan.moves:
        for spot in move.old:
            packer.give_back(move.ask, spot)
        for spot in move.new:
            packer.take(move.ask, spot)
    after = sum(packer.worth.loss(space) * len(nodes) for space, nodes in packer.groups())
    assert (loss - after) * horizon_ms // 1_000_000 >= plan.gain - len(plan.moves)
