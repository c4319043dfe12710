"""What a part of a device is worth: prices of shares, learnt from the mix of demand.

Filling devices with shares of a known mix is the cutting stock problem; column generation solves
its linear relaxation (Gilmore and Gomory, 1961), and its dual prices say which part of a device
each share really costs. A share of 810 costs all of it where nothing fits into the 190 beside it;
two shares of 470 cost half each. The worth of what is left of a device is the dearest set of shares
that fits into it, so a hole that the mix cannot fill is worth nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd

from onefleet.core.packing.space import MILLI

#: Shares that get a price of their own; of more than that, near ones count as the largest of them.
SHARES_MAX = 32

#: Steps after which the prices are taken as they are. Openb's 20 shares need 37.
STEPS_MAX = 400

#: One device in prices.
WHOLE = 1_000_000

_EPSILON = 1e-9


def worths(demand: Mapping[int, int]) -> tuple[int, ...]:
    """The worth of 0..1000 free thousandths of a device, in millionths of a device.

    demand: how often each share (1..999 thousandths) is asked. It never falls as more is free.
    """
    counts = _grouped(demand)
    shares = sorted(counts)
    if not shares:
        return (0,) * MILLI + (WHOLE,)
    unit = gcd(MILLI, *shares)
    sizes = [share // unit for share in shares]
    values = _dual_values(sizes, [counts[share] for share in shares], MILLI // unit)
    scale = WHOLE / max(values[-1], _EPSILON)
    worth = [min(round(values[free // unit] * scale), WHOLE) for free in range(MILLI)]
    return (*worth, WHOLE)


def _grouped(demand: Mapping[int, int]) -> dict[int, int]:
    """At most SHARES_MAX shares: a share that is asked little counts as the next larger one."""
    shares = sorted((share for share, count in demand.items() if count > 0), reverse=True)
    few = len(shares) <= SHARES_MAX
    enough = sum(share * demand[share] for share in shares) // SHARES_MAX
    counts: dict[int, int] = {}
    group, filled = 0, enough
    for share in shares:
        if few or filled >= enough:
            group, filled = share, 0
        counts[group] = counts.get(group, 0) + demand[share]
        filled += share * demand[share]
    return counts


def _dual_values(sizes: Sequence[int], counts: Sequence[int], room: int) -> list[float]:
    """The best value under the dual prices for every room from 0 to `room`.

    Revised simplex on: fewest devices such that each share is cut often enough. Columns are ways
    to cut a device; a column with -1 for one share allows to cut more of it than asked.
    """
    many = range(len(sizes))
    inverse = [[0.0] * len(sizes) for _ in many]
    amounts, costs = [0.0] * len(sizes), [1.0] * len(sizes)
    for row in many:
        inverse[row][row] = 1 / (room // sizes[row])
        amounts[row] = counts[row] * inverse[row][row]
    values: list[float] = []
    for _ in range(STEPS_MAX):
        prices = [sum(costs[r] * inverse[r][c] for r in many) for c in many]
        values, cut = _best_cut(sizes, prices, room)
        cost = 1.0
        cheapest = min(many, key=lambda at: prices[at])
        if prices[cheapest] < -_EPSILON:
            cut, cost = [0] * len(sizes), 0.0
            cut[cheapest] = -1
        elif values[room] <= 1 + _EPSILON:
            break
        column = [sum(inverse[r][c] * cut[c] for c in many if cut[c]) for r in many]
        leaving = min(
            (r for r in many if column[r] > _EPSILON),
            key=lambda r: (amounts[r] / column[r], r),
            default=None,
        )
        if leaving is None:
            break
        _pivot(inverse, amounts, column, leaving)
        costs[leaving] = cost
    return values


def _best_cut(
    sizes: Sequence[int], prices: Sequence[float], room: int
) -> tuple[list[float], list[int]]:
    """The best value of cutting each room up to `room`, and how often each size is cut at last."""
    values = [0.0] * (room + 1)
    last = [-1] * (room + 1)
    priced = [(size, prices[at], at) for at, size in enumerate(sizes) if prices[at] > 0]
    for free in range(1, room + 1):
        best, choice = values[free - 1], -1
        for size, price, at in priced:
            if size > free:
                break
            if price + values[free - size] > best + _EPSILON:
                best, choice = price + values[free - size], at
        values[free], last[free] = best, choice
    cut = [0] * len(sizes)
    free = room
    while free > 0:
        if last[free] < 0:
            free -= 1
        else:
            cut[last[free]] += 1
            free -= sizes[last[free]]
    return values, cut


def _pivot(
    inverse: list[list[float]], amounts: list[float], column: Sequence[float], leaving: int
) -> None:
    """The column takes the place of the leaving row in the basis."""
    by = column[leaving]
    row = [value / by for value in inverse[leaving]]
    amount = amounts[leaving] / by
    for at, factor in enumerate(column):
        if at != leaving and factor:
            inverse[at] = [old - factor * new for old, new in zip(inverse[at], row, strict=True)]
            amounts[at] -= factor * amount
    inverse[leaving], amounts[leaving] = row, amount
