"""Packing: how long one decision takes on a fleet that is nearly full, while work comes and goes.

Nodes of 8 devices of three products are filled with what an imitation of the openb trace asks for
until nothing more fits easily; then, one at a time, something leaves and something new is decided:
learn what is asked, choose a place, take it. Times are CPU milliseconds of one thread, because
other work on the machine would only add waiting. Making room: the search for moves for work that
did not fit. The first decisions, which see every shape of demand for the first time, are in it.

    python -m benchmarks.packing --report
    python -m benchmarks.packing --devices 2048 --decisions 500
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from benchmarks import tables
from onefleet.core.packing import MILLI, Ask, Host, Packer, Spot
from onefleet.core.packing.defragment import Piece, make_room
from onefleet.sim.packing import ask_of
from onefleet.sim.traces import imitate

PRODUCTS = ("A", "A", "A", "B", "C")
NODE_DEVICES, NODE_CPU_MILLI, NODE_MEMORY_MIB = 8, 96_000, 393_216
#: p95 of a decision, by the number of devices.
BUDGET_MS = {2_048: 100, 100_000: 1_000}
ROOM_TRIES = 40

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Measured:
    """CPU milliseconds, ascending."""

    decisions: list[float]
    rooms: list[float]
    refused: int
    spaces: int  # different ones


def filled(devices: int, asks: list[Ask], rng: random.Random) -> tuple[list[Host], list[Piece]]:
    """Nodes on which asks were put at random until eight in a row did not fit, and these asks."""
    hosts, pieces = [], []
    for number in range(devices // NODE_DEVICES):
        node, product = f"node-{number:05d}", PRODUCTS[number % len(PRODUCTS)]
        cpu, memory, free = NODE_CPU_MILLI, NODE_MEMORY_MIB, [MILLI] * NODE_DEVICES
        misses = 0
        while misses < 8:
            ask = rng.choice(asks)
            on = [at for at, part in enumerate(free) if part >= ask.milli][: ask.devices]
            if len(on) < ask.devices or ask.cpu_milli > cpu or ask.memory > memory:
                misses += 1
                continue
            cpu, memory = cpu - ask.cpu_milli, memory - ask.memory
            for at in on:
                free[at] -= ask.milli
            pieces.append(Piece(f"{len(pieces):07d}", ask, (Spot(node, tuple(on)),), 1_000))
        hosts.append(Host(node, product, cpu, memory, tuple(free)))
    return hosts, pieces


def measure(devices: int, decisions: int, seed: int) -> Measured:
    """So many decisions on a nearly full fleet."""
    rng = random.Random(f"{seed}/packing")
    asks = [ask_of(pod) for pod in imitate.openb_pods(seed)]
    hosts, held = filled(devices, asks, rng)
    packer = Packer(hosts)
    found, rooms, refused = [], [], 0
    for _ in range(decisions):
        at = rng.randrange(len(held))
        held[at], held[-1] = held[-1], held[at]
        left = held.pop()
        packer.give_back(left.ask, left.spots[0])
        ask = rng.choice(asks)
        spot, ms = timed(partial(decide, packer, ask))
        found.append(ms)
        if spot is not None:
            held.append(Piece(left.id, ask, (spot,), 1_000))
            continue
        refused += 1
        if len(rooms) < ROOM_TRIES:
            by_node: dict[str, list[Piece]] = {}
            for piece in held:
                by_node.setdefault(piece.spots[0].node, []).append(piece)
            _, ms = timed(partial(make_room, packer, by_node, ask, gain=10**9))
            rooms.append(ms)
    spaces = sum(1 for _ in packer.groups())
    return Measured(sorted(found), sorted(rooms), refused, spaces)


def decide(packer: Packer, ask: Ask) -> Spot | None:
    """What a planner does with one demand."""
    packer.observe(ask)
    spot = packer.choose(ask)
    if spot is not None:
        packer.take(ask, spot)
    return spot


def timed(work: Callable[[], ResultT]) -> tuple[ResultT, float]:
    """The result, and the CPU milliseconds that it took."""
    before = time.thread_time_ns()
    result = work()
    return result, (time.thread_time_ns() - before) / 1e6


def quantile(ascending: list[float], part: float) -> float:
    """The value below which so large a part lies; 0 of nothing."""
    return ascending[min(int(part * len(ascending)), len(ascending) - 1)] if ascending else 0.0


def whole_nodes(text: str) -> int:
    """The value of --devices: whole nodes."""
    value = tables.count(text)
    if value % NODE_DEVICES:
        raise argparse.ArgumentTypeError(f"{value} are no whole nodes of {NODE_DEVICES}")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 where a budget is not kept."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing")
    parser.add_argument("--devices", type=whole_nodes, nargs="+", default=list(BUDGET_MS))
    parser.add_argument("--decisions", type=tables.count, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="write benchmarks/packing.md")
    options = parser.parse_args(arguments)
    rows, over = [], False
    for devices in options.devices:
        one = measure(devices, options.decisions, options.seed)
        budget = BUDGET_MS.get(devices)
        p95 = quantile(one.decisions, 0.95)
        over = over or (budget is not None and p95 >= budget)
        rows.append(
            [
                f"{devices:,}",
                f"{one.spaces:,}",
                *(f"{quantile(one.decisions, part):.2f}" for part in (0.5, 0.95, 0.99, 1.0)),
                f"{budget}" if budget else "",
                f"{one.refused:,}",
                f"{quantile(one.rooms, 0.5):.0f}",
                f"{quantile(one.rooms, 1.0):.0f}",
            ]
        )
    headers = (
        "devices", "different nodes", "p50, ms", "p95, ms", "p99, ms", "longest, ms",
        "budget of p95, ms", "did not fit", "making room, p50, ms", "longest, ms",
    )  # fmt: skip
    text = (
        f"{options.decisions:,} decisions, seed {options.seed}.\n\n{tables.markdown(headers, rows)}"
    )
    told = tables.command("packing", arguments)
    tables.report("packing", __doc__ or "", told, text, write=options.report)
    return 1 if over else 0


if __name__ == "__main__":
    tables.exit_with(main)
