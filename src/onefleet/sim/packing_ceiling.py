"""The most that any scheduler could place of a set of asks, were it to know them all beforehand.

A linear program: which asks lie on which product, and how its devices are cut into shares. A share
lies on one device, so devices are cut in patterns; CPU and memory are taken as one sum a product,
and parts of asks are allowed. All of that only raises the ceiling: no layout is above it. Needs
HiGHS (`pip install onefleet[optimum]`); imported only when asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from onefleet.core.packing import MILLI, Ask, Host
from onefleet.domain.errors import InternalError, InvalidRequest, Unsupported

NONE: Mapping[Ask, int] = {}

#: The largest number of ways to cut a device that is taken on.
CUTS_MAX = 50_000


def ceiling(hosts: Sequence[Host], asks: Iterable[Ask], kept: Mapping[Ask, int] = NONE) -> float:
    """Device thousandths that could be held at most. hosts: empty.

    kept: how many of the asks are among what is held, come what may: what moving alone can reach.
    Raises Unsupported without HiGHS, InvalidRequest for shares too many to enumerate.
    """
    try:
        import highspy
    except ImportError as error:
        raise Unsupported(
            "the ceiling cannot be computed",
            why="HiGHS is not installed",
            hint="pip install 'onefleet[optimum]'",
        ) from error
    highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    highs.silent()
    highs.setOptionValue("threads", 1)
    program = _Program(highs, hosts, Counter(asks), kept)
    program.build()
    if program.columns == 0:
        return 0.0
    highs.maximize()
    if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise InternalError(f"the ceiling ended as {highs.getModelStatus()}")
    return float(highs.getInfo().objective_function_value)


class _Program:
    """Columns: so much of an ask on a product; so many devices of a product cut in one way."""

    def __init__(
        self, highs: Any, hosts: Sequence[Host], counts: Mapping[Ask, int], kept: Mapping[Ask, int]
    ) -> None:
        self._highs = highs
        self._kept = kept
        self._hosts: dict[str, list[Host]] = {}
        for host in hosts:
            self._hosts.setdefault(host.product, []).append(host)
        self._counts = counts
        self.columns = 0

    def build(self) -> None:
        """All columns and rows."""
        shares = sorted({a.milli for a in self._counts if a.devices and a.milli < MILLI})
        cuts = list(_cuts(shares[::-1], MILLI))
        placed: dict[Ask, list[int]] = {ask: [] for ask in self._counts}
        for product, hosts in self._hosts.items():
            on = {
                ask: self._column(float(ask.size), count)
                for ask, count in self._counts.items()
                if ask.accepts(product) and any(len(h.free) >= ask.devices for h in hosts)
            }
            for ask, column in on.items():
                placed[ask].append(column)
            devices = sum(len(host.free) for host in hosts)
            cut = [self._column(0.0, devices) for _ in cuts]
            whole = {c: ask.devices for ask, c in on.items() if ask.milli == MILLI}
            self._row({**whole, **dict.fromkeys(cut, 1)}, devices)
            for at, share in enumerate(shares[::-1]):
                made = {c: -way[at] for c, way in zip(cut, cuts, strict=True) if way[at]}
                held = dict.fromkeys((c for a, c in on.items() if _share(a) == share), 1)
                self._row({**made, **held}, 0)
            self._row({c: a.cpu_milli for a, c in on.items()}, sum(h.cpu_milli for h in hosts))
            self._row({c: a.memory for a, c in on.items()}, sum(h.memory for h in hosts))
        for ask, columns in placed.items():
            self._row(dict.fromkeys(columns, 1), self._counts[ask], self._kept.get(ask, 0))

    def _column(self, value: float, most: float) -> int:
        self._highs.addCol(value, 0.0, float(most), 0, [], [])
        self.columns += 1
        return self.columns - 1

    def _row(self, parts: Mapping[int, int], most: float, least: float | None = None) -> None:
        some = {column: float(part) for column, part in parts.items() if part}
        low = -self._highs.inf if least is None else float(least)
        self._highs.addRow(low, float(most), len(some), list(some), list(some.values()))


def _share(ask: Ask) -> int:
    return ask.milli if ask.devices and ask.milli < MILLI else 0


def _cuts(shares: Sequence[int], room: int) -> Iterator[tuple[int, ...]]:
    """All ways to cut so much room into shares (falling) to which no further share could be added.

    Raises InvalidRequest for more than CUTS_MAX.
    """
    if not shares:
        return
    found = 0

    def rest(at: int, left: int) -> Iterator[tuple[int, ...]]:
        if at == len(shares) - 1:
            yield (left // shares[at],)
            return
        for count in range(left // shares[at], -1, -1):
            for tail in rest(at + 1, left - count * shares[at]):
                yield (count, *tail)

    for way in rest(0, room):
        left = room - sum(count * share for count, share in zip(way, shares, strict=True))
        if left < shares[-1]:
            found += 1
            if found > CUTS_MAX:
                raise InvalidRequest(
                    f"{len(shares)} different shares cut a device in too many ways",
                    why=f"the limit is {CUTS_MAX}",
                )
            yield way
