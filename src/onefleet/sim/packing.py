"""Packing replayed on a trace: pods come one by one and stay; how much of the devices gets used.

The protocol is that of FGD's artifact (hkust-adsl/kubernetes-scheduler-simulator, ATC 2023): only
nodes with GPUs; the trace's pods in a random order, then pods drawn from it until their devices
reach 130 % of the fleet's (or, if the trace has more, pods taken out at random until they do); a
pod that does not fit is not tried again. With `Migration`, a pod that does not fit may have others
moved for it, and waits if that does not help.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onefleet.core.packing import MILLI, Ask, Host, Packer, Spot
from onefleet.core.packing.defragment import Moves, Piece, make_room, move_cost, tidy
from onefleet.core.packing.scores import FirstFit
from onefleet.core.packing.space import fits
from onefleet.sim.traces.openb import OpenbNode, OpenbPod

#: Demand in parts of the fleet's devices, at its end.
INFLATED = 1.3

#: Arrivals in percent of the fleet's devices that count as 100: as FGD's artifact rounds.
FULL_FROM, FULL_TO = 99.5, 100.5


@dataclass(frozen=True, slots=True)
class Migration:
    """When pods are moved, and what that costs. A pod's memory is its state.

    horizon_ms: how long a gain is counted. tidy_each: of the fleet's devices arriving, in percent.
    """

    horizon_ms: int = 3_600_000
    fixed_ms: int = 20_000
    bytes_per_ms: int = 1_000_000
    tidy_each: float = 1.0
    tidy_moves: int = 64


@dataclass(frozen=True, slots=True)
class Replayed:
    """Shares in percent of the fleet's devices. cost: device-milliseconds that moves took.

    held: what was placed, by shape.
    """

    at_full: float  # mean while arrivals round to 100 %
    at_end: float
    placed: int
    refused: int
    held: Mapping[Ask, int]
    moves: int = 0
    cost: int = 0


def hosts_of(nodes: Iterable[OpenbNode]) -> list[Host]:
    """The nodes with GPUs."""
    return [
        Host(node.name, node.model, node.cpu_milli, node.memory_mib, (MILLI,) * node.gpus)
        for node in nodes
        if node.gpus
    ]


def ask_of(pod: OpenbPod) -> Ask:
    """What a pod asks for; memory in MiB."""
    milli = pod.gpu_milli if pod.gpus else MILLI
    return Ask(pod.cpu_milli, pod.memory_mib, pod.gpus, milli, pod.models)


def arrivals(asks: Sequence[Ask], capacity: int, rng: random.Random) -> list[Ask]:
    """The asks in a random order, made up to INFLATED times the capacity or cut down to it."""
    order = list(asks)
    rng.shuffle(order)
    size = sum(ask.size for ask in order)
    while size > INFLATED * capacity:
        size -= order.pop(rng.randrange(len(order))).size
    while True:
        ask = rng.choice(asks)
        if size + ask.size > INFLATED * capacity:
            return order
        size += ask.size
        order.append(ask)


Choose = Callable[[Packer, Ask], Spot | None]


def best(packer: Packer, ask: Ask) -> Spot | None:
    """The place that the packer's score likes best."""
    return packer.choose(ask)


def at_random(rng: random.Random) -> Choose:
    """Any node that fits; needs a packer that takes the first devices of a node."""

    def choose(packer: Packer, ask: Ask) -> Spot | None:
        fitting = [nodes for space, nodes in packer.groups() if fits(space, ask)]
        drawn = rng.randrange(max(sum(map(len, fitting)), 1))
        for nodes in fitting:
            if drawn < len(nodes):
                return packer.choose_on(nodes[drawn], ask)
            drawn -= len(nodes)
        return None

    return choose


def first_devices(_: object) -> FirstFit:
    """The score for `at_random`."""
    return FirstFit()


def replay(
    packer: Packer,
    asks: Sequence[Ask],
    *,
    choose: Choose = best,
    migration: Migration | None = None,
    until: float = 100 * INFLATED,
) -> Replayed:
    """Let the asks come to the packer's empty fleet, until so many percent of it have come."""
    capacity = sum(space.size * len(nodes) for space, nodes in packer.groups())
    layout = _Layout(packer, migration or Migration())
    arrived, at_full, next_tidy = 0, [], 0.0
    for ask in asks:
        arrived += ask.size
        percent = 100 * arrived / capacity
        if percent > until:
            break
        packer.observe(ask)
        spot = choose(packer, ask)
        if spot is not None:
            layout.place(ask, spot)
        elif migration is None or not layout.make_room(ask):
            layout.waiting.append(ask)
        if migration is not None and percent >= next_tidy:
            next_tidy = percent + migration.tidy_each
            layout.tidy()
        if FULL_FROM <= percent < FULL_TO:
            at_full.append(100 * layout.size / capacity)
    return Replayed(
        sum(at_full) / len(at_full) if at_full else 0.0,
        100 * layout.size / capacity,
        layout.placed,
        len(layout.waiting),
        layout.held,
        layout.moves,
        layout.cost,
    )


@dataclass(slots=True)
class _Layout:
    """What lies where."""

    packer: Packer
    migration: Migration
    waiting: list[Ask] = field(default_factory=list)
    size: int = 0
    placed: int = 0
    moves: int = 0
    cost: int = 0
    held: Counter[Ask] = field(default_factory=Counter)
    _by_node: dict[str, dict[str, Piece]] = field(default_factory=dict)
    _hopeless: dict[Ask, int] = field(default_factory=dict)  # and how many moves there were then

    def place(self, ask: Ask, spot: Spot) -> None:
        self.packer.take(ask, spot)
        by = self.migration
        cost = move_cost(
            ask, 1, ask.memory << 20, fixed_ms=by.fixed_ms, bytes_per_ms=by.bytes_per_ms
        )
        self.placed += 1
        self.size += ask.size
        self.held[ask] += 1
        piece = Piece(f"pod-{self.placed:06d}", ask, (spot,), cost)
        self._by_node.setdefault(spot.node, {})[piece.id] = piece

    def make_room(self, ask: Ask) -> bool:
        """Place the ask by moving others; not tried again before others have moved.

        Nothing leaves, and what comes only takes room.
        """
        if self._hopeless.get(ask) == self.moves:
            return False
        gain = ask.size * self.migration.horizon_ms // MILLI
        plan = make_room(self.packer, self._pieces(), ask, gain=gain)
        if plan is None:
            self._hopeless[ask] = self.moves
            return False
        self._carry_out(plan)
        self.place(ask, plan.spots[0])
        return True

    def tidy(self) -> None:
        """Make what is free worth more, then look whether what waits fits now, large ones first."""
        by = self.migration
        plan = tidy(self.packer, self._pieces(), horizon_ms=by.horizon_ms, moves_max=by.tidy_moves)
        if plan is not None:
            self._carry_out(plan)
        waiting, self.waiting = sorted(self.waiting, key=lambda ask: -ask.size), []
        for ask in waiting:
            spot = self.packer.choose(ask)
            if spot is None:
                self.waiting.append(ask)
            else:
                self.place(ask, spot)

    def _pieces(self) -> dict[str, list[Piece]]:
        return {node: list(pieces.values()) for node, pieces in self._by_node.items()}

    def _carry_out(self, plan: Moves) -> None:
        for move in plan.moves:
            old, new = move.old[0], move.new[0]
            self.packer.take(move.ask, new)
            self.packer.give_back(move.ask, old)
            piece = self._by_node[old.node].pop(move.id)
            moved = Piece(piece.id, piece.ask, move.new, piece.cost)
            self._by_node.setdefault(new.node, {})[piece.id] = moved
        self.moves += len(plan.moves)
        self.cost += plan.cost
