"""Few moves that make a blocked demand fit, or that make what is free worth more; never at a loss.

    plan = make_room(packer, pieces, ask, workers, gain=...)     # for what waits
    plan = tidy(packer, pieces, horizon_ms=...)                  # in the background

Gains and costs are in device-milliseconds. Moving costs what the caller says for each piece (see
`move_cost`); a piece without a cost stays where it is. A gang moves whole. Moves are to be carried
out in their order: the new place of each is free before its old one is given up, so every moment
in between is feasible, and stopping after any of them leaves a valid layout. The packer is as it
was when a plan is returned.

The search is bounded: it looks at the few nodes that lack least, moves few pieces off one, and
follows a chain (a piece that has to move to let another one move) for two links.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest, nsmallest
from itertools import combinations, islice

from onefleet.core.packing.packer import Host, Packer
from onefleet.core.packing.space import MILLI, Ask, Space, Spot, fits, space_of

#: Nodes looked at for one demand, and for a piece within a chain.
NODES_TRIED = (24, 6)

#: Sets of pieces tried in one search.
TRIES_MAX = 128

#: Of one node: pieces looked at, pieces moved off at most, and sets of them tried.
PIECES_TRIED = 16
PIECES_MOVED = 3
SETS_TRIED = 4

#: Pieces that `tidy` looks at closely.
TIDY_TRIED = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """What is placed: so many equal workers, one a spot. cost: of moving it whole; None: never."""

    id: str
    ask: Ask
    spots: tuple[Spot, ...]
    cost: int | None


@dataclass(frozen=True, slots=True)
class Move:
    """The piece leaves the spots in `old` for those in `new`, worker by worker."""

    id: str
    ask: Ask
    old: tuple[Spot, ...]
    new: tuple[Spot, ...]
    cost: int


@dataclass(frozen=True, slots=True)
class Moves:
    """A plan. spots: where the demand fits when all is done; empty without one."""

    moves: tuple[Move, ...]
    spots: tuple[Spot, ...]
    gain: int

    @property
    def cost(self) -> int:
        return sum(move.cost for move in self.moves)


Pieces = Mapping[str, Sequence[Piece]]  # by node; a gang stands under each of its nodes


def by_node(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """The pieces under each node that they lie on."""
    nodes: dict[str, list[Piece]] = {}
    for piece in pieces:
        for node in dict.fromkeys(spot.node for spot in piece.spots):
            nodes.setdefault(node, []).append(piece)
    return nodes


def move_cost(ask: Ask, workers: int, state_bytes: int, *, fixed_ms: int, bytes_per_ms: int) -> int:
    """Device-milliseconds during which devices of a moved piece do nothing useful."""
    stopped_ms = fixed_ms + state_bytes // max(bytes_per_ms, 1)
    return max(ask.size * workers * stopped_ms // MILLI, 1)


def make_room(
    packer: Packer,
    pieces: Pieces,
    ask: Ask,
    workers: int = 1,
    *,
    gain: int,
    nodes_tried: tuple[int, ...] = NODES_TRIED,
) -> Moves | None:
    """Moves after which all workers fit, costing less than the gain; None where none is found.

    nodes_tried: for the ask, and for what has to move for it, and so on.
    """
    search = _Search(packer, pieces, gain, nodes_tried)
    spots: list[Spot] = []
    for _ in range(workers):
        spot = search.room_for(ask, links=len(nodes_tried))
        if spot is None:
            break
        search.take(ask, spot)
        spots.append(spot)
    search.undo()
    if len(spots) < workers:
        return None
    return Moves(tuple(search.moves), tuple(spots), gain)


def tidy(packer: Packer, pieces: Pieces, *, horizon_ms: int, moves_max: int = 16) -> Moves | None:
    """Moves that make what is free worth more, each by more than it costs; None where none does.

    horizon_ms: for how long the gain is counted; the time until the layout changes anyway.
    """
    search = _Search(packer, pieces, gain=0)
    gain = 0
    for piece in _loosest(packer, pieces):
        if len(search.moves) < moves_max:
            gain += search.better_place(piece, horizon_ms)
    moves = tuple(search.moves)
    search.undo()
    return Moves(moves, (), gain) if moves else None


@dataclass(slots=True)
class _Search:
    """What was moved and taken so far, to be undone at the end; all moves cost less than gain."""

    packer: Packer
    pieces: Pieces
    gain: int
    nodes_tried: tuple[int, ...] = NODES_TRIED
    moves: list[Move] = field(default_factory=list)
    _done: list[tuple[Ask, Spot, bool]] = field(default_factory=list)
    _moved: dict[str, bool] = field(default_factory=dict)
    _short: dict[Ask, list[str]] = field(default_factory=dict)
    _stuck: dict[Ask, bool] = field(default_factory=dict)
    _tries: int = 0

    def take(self, ask: Ask, spot: Spot) -> None:
        self.packer.take(ask, spot)
        self._done.append((ask, spot, True))

    def give_back(self, ask: Ask, spot: Spot) -> None:
        self.packer.give_back(ask, spot)
        self._done.append((ask, spot, False))

    def undo(self, mark: int = 0, moves: int | None = None) -> None:
        """Back to the mark; the moves are forgotten only where their number is said."""
        while len(self._done) > mark:
            ask, spot, taken = self._done.pop()
            (self.packer.give_back if taken else self.packer.take)(ask, spot)
        if moves is not None:
            for move in self.moves[moves:]:
                del self._moved[move.id]
            del self.moves[moves:]

    def room_for(self, ask: Ask, links: int, avoid: tuple[str, ...] = ()) -> Spot | None:
        """A spot for one worker, after moves for which the budget and the links suffice."""
        spot = self.packer.choose(ask, avoid)
        if spot is not None or links == 0:
            return spot
        nodes = [node for node in self._short_of_least(ask) if node not in avoid]
        for node in nodes[: self.nodes_tried[-links]]:
            mark, moves = len(self._done), len(self.moves)
            for few in self._sets_to_move(node, ask):
                if self._tries == TRIES_MAX:
                    return None
                self._tries += 1
                if all(self._move_off(piece, node, links - 1, avoid) for piece in few):
                    return self.packer.choose_on(node, ask)
                self.undo(mark, moves)
        return None

    def better_place(self, piece: Piece, horizon_ms: int) -> int:
        """Move the one worker of a piece to where it hurts less; what that gains, or 0."""
        packer, old = self.packer, piece.spots[0]
        new = packer.choose(piece.ask)
        if new is None or piece.cost is None:
            return 0
        before = self._loss(old.node, new.node)
        mark = len(self._done)
        self.take(piece.ask, new)
        self.give_back(piece.ask, old)
        gain = (before - self._loss(old.node, new.node)) * horizon_ms // 1_000_000
        if gain <= piece.cost:
            self.undo(mark)
            return 0
        self._note(piece, (new,))
        return gain

    def _loss(self, *nodes: str) -> int:
        spaces = [self.packer.space(node) for node in dict.fromkeys(nodes)]
        return sum(self.packer.worth.loss(space) for space in spaces if space is not None)

    def _short_of_least(self, ask: Ask) -> list[str]:
        """The nodes that lacked least to fit the ask when first asked, the least first."""
        known = self._short.get(ask)
        if known is None:
            many = 2 * NODES_TRIED[0]
            short = (
                (lack, nodes)
                for space, nodes in self.packer.groups()
                if (lack := _lack(space, ask)) is not None
            )
            found = nsmallest(many, short, key=lambda entry: (entry[0], entry[1][0]))
            nodes = (node for _, group in found for node in group if node in self.pieces)
            known = self._short[ask] = list(islice(nodes, many))
        return known

    def _sets_to_move(self, node: str, ask: Ask) -> list[tuple[Piece, ...]]:
        """Sets of few pieces without which the ask fits on the node.

        Smaller sets first, then those of pieces that have another place, then the cheaper.
        """
        spent = sum(move.cost for move in self.moves)
        movable = [
            (self._is_stuck(piece.ask), piece.cost, piece.id, piece)
            for piece in self.pieces[node]
            if piece.cost is not None and piece.id not in self._moved
        ]
        movable = nsmallest(PIECES_TRIED, movable, key=lambda entry: entry[:3])
        host = self.packer.host(node)
        assert host is not None
        for count in range(1, PIECES_MOVED + 1):
            sets = [
                (sum(stuck for stuck, *_ in few), cost, at, tuple(piece for *_, piece in few))
                for at, few in enumerate(combinations(movable, count))
                if spent + (cost := sum(entry[1] for entry in few)) < self.gain
                and fits(_without(host, [piece for *_, piece in few]), ask)
            ]
            if sets:
                return [few for *_, few in nsmallest(SETS_TRIED, sets, key=lambda s: s[:3])]
        return []

    def _is_stuck(self, ask: Ask) -> bool:
        """Whether it fitted nowhere when first asked: such pieces move only in a chain."""
        known = self._stuck.get(ask)
        if known is None:
            known = self._stuck[ask] = self.packer.choose(ask) is None
        return known

    def _move_off(self, piece: Piece, node: str, links: int, avoid: tuple[str, ...]) -> bool:
        """Move the piece, and with it its whole gang, to other spots: none on the node."""
        if piece.id in self._moved:
            return False
        new: list[Spot] = []
        for spot in piece.spots:
            if spot.node != node:
                new.append(spot)
                continue
            place = self.room_for(piece.ask, links, (*avoid, node))
            if place is None:
                return False
            self.take(piece.ask, place)
            new.append(place)
        if piece.id in self._moved:  # the chain came back to it
            return False
        for spot in piece.spots:
            if spot.node == node:
                self.give_back(piece.ask, spot)
        self._note(piece, tuple(new))
        return sum(move.cost for move in self.moves) < self.gain

    def _note(self, piece: Piece, new: tuple[Spot, ...]) -> None:
        self.moves.append(Move(piece.id, piece.ask, piece.spots, new, piece.cost or 0))
        self._moved[piece.id] = True


def _lack(space: Space, ask: Ask) -> int | None:
    """How much more would have to be free there, in thousandths of what is asked; None: never."""
    free, devices, milli = space.free, ask.devices, ask.milli
    if devices > len(free) or not ask.accepts(space.product):
        return None
    lack = 0
    for part in free[:devices]:
        if part < milli:
            lack += milli - part
    if ask.cpu_milli > space.cpu_milli:
        lack += MILLI * (ask.cpu_milli - space.cpu_milli) // ask.cpu_milli
    if ask.memory > space.memory:
        lack += MILLI * (ask.memory - space.memory) // ask.memory
    return lack


def _without(host: Host, pieces: Iterable[Piece]) -> Space:
    """What would be free on the node without the pieces."""
    free, cpu, memory = list(host.free), host.cpu_milli, host.memory
    for piece in pieces:
        for spot in piece.spots:
            if spot.node == host.node:
                cpu += piece.ask.cpu_milli
                memory += piece.ask.memory
                for index in spot.devices:
                    free[index] += piece.ask.milli
    return space_of(host.product, cpu, memory, free)


def _loosest(packer: Packer, pieces: Pieces) -> list[Piece]:
    """Pieces of one worker that may move, those first whose leaving alone gains most."""
    leaving = []
    for node, on_node in pieces.items():
        host = packer.host(node)
        if host is None:
            continue
        loss = packer.worth.loss(_without(host, ()))
        for piece in on_node:
            if piece.cost is not None and len(piece.spots) == 1:
                won = loss - packer.worth.loss(_without(host, (piece,)))
                leaving.append((won - piece.ask.size * MILLI, piece))  # it takes as much elsewhere
    return [piece for _, piece in nlargest(TIDY_TRIED, leaving, key=lambda x: (x[0], x[1].id))]
