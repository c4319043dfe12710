"""The works that wait, by rank, in the order in which they are looked at.

In a line stand the works of one rank, one tenant and one shape: what a work of a shape needs, and
where, is the same for all of it, so that when one does not fit, the whole line is passed over. A
queue goes over the lines of one rank: what is starved first, then the works of tenants that are
under their part, then the lowest level, on one level the tenant with the least share, and of its
works the first of all its lines. Shares change while it is worked off.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import NamedTuple, Protocol

from onefleet.core.index.homes import Home
from onefleet.core.ordering import RANK_NAMES, STARVED
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import TenantId, WorkId
from onefleet.domain.work import Demand, WorkKind

#: Where a work stands in its line: its level, when it was submitted, its id.
Turn = tuple[int, int, WorkId]
#: What a tenant has of the fleet; the smaller goes first.
Share = tuple[int, ...]


class Shape(NamedTuple):
    """What decides whether a work fits. home: where it may go on; None: it may start anywhere.
    suspendable: it gives back what it is lent. spares: spare nodes are there for it, too."""

    demand: Demand
    home: Home | None
    kind: WorkKind
    suspendable: bool
    spares: bool


class Place(NamedTuple):
    """A work's place among those that wait."""

    rank: int
    tenant_id: TenantId
    shape: Shape
    turn: Turn


class Lines:
    """All lines."""

    def __init__(self) -> None:
        self._ranks: list[dict[tuple[TenantId, int], list[Turn]]] = [{} for _ in RANK_NAMES]
        self._numbers: dict[Shape, list[int]] = {}  # its number, and how many works have it
        self._shapes: dict[int, Shape] = {}
        self._next = 0
        self.sizes = [0 for _ in RANK_NAMES]

    def add(self, place: Place) -> None:
        line = self._ranks[place.rank].setdefault((place.tenant_id, self._number(place.shape)), [])
        insort(line, place.turn)
        self.sizes[place.rank] += 1

    def remove(self, place: Place) -> None:
        number = self._numbers[place.shape]
        key = (place.tenant_id, number[0])
        line = self._ranks[place.rank][key]
        del line[bisect_left(line, place.turn)]
        if not line:
            del self._ranks[place.rank][key]
        self.sizes[place.rank] -= 1
        number[1] -= 1
        if not number[1]:
            del self._numbers[place.shape], self._shapes[number[0]]

    def queue(self, rank: int, shares: Shares) -> Queue:
        """Everything of a rank that waits now."""
        return Queue(self._ranks[rank], self._shapes, shares)

    def lowest_level(self) -> int | None:
        """The lowest level at which anything waits, of all ranks; None: nothing waits."""
        heads = (line[0][0] for lines in self._ranks for line in lines.values())
        return min(heads, default=None)

    def __iter__(self) -> Iterator[tuple[int, TenantId, Shape, tuple[Turn, ...]]]:
        """All lines, in no order."""
        for rank, lines in enumerate(self._ranks):
            for (tenant_id, number), line in lines.items():
                yield rank, tenant_id, self._shapes[number], tuple(line)

    def _number(self, shape: Shape) -> int:
        number = self._numbers.get(shape)
        if number is None:
            self._next += 1
            number = self._numbers[shape] = [self._next, 0]
            self._shapes[self._next] = shape
        number[1] += 1
        return number[0]


class Under(NamedTuple):
    """Tenants that are under their part of what was had: those that go before others of their rank,
    and those from which no others take their turn."""

    claiming: Collection[TenantId]
    sheltered: Collection[TenantId]


class Shares(Protocol):
    """See `core/shares.py`."""

    def of(self, tenant_id: TenantId, kind: DeviceKind, /) -> Share: ...

    def under(self, kind: DeviceKind, /) -> Under: ...


#: What goes first, whatever its level: what lost its place where spares are kept, and the starved;
#: then those whose tenants are under their part.
FIRST, CLAIMING, OTHERS = range(3)
#: Which of these it is, the level, the share as it was, turn, line of a work.
_Head = tuple[int, int, Share, Turn, TenantId, int]


class Queue:
    """The works of one rank that wait as it begins, one after another; the lines may change
    meanwhile. Say `pass_over` where a line is hopeless."""

    def __init__(
        self,
        lines: Mapping[tuple[TenantId, int], list[Turn]],
        shapes: Mapping[int, Shape],
        shares: Shares,
    ) -> None:
        self._lines = dict(lines)
        self._shapes = dict(shapes)
        self._shares = shares
        self._kinds = {number: shapes[number].demand.kind for _, number in lines}
        self._under = {kind: shares.under(kind) for kind in dict.fromkeys(self._kinds.values())}
        self._heads = [self._head(name, number, line[0]) for (name, number), line in lines.items()]
        heapq.heapify(self._heads)
        self._hopeless: dict[tuple[int, int], list[_Head]] = {}  # by shape
        self._skipped: list[_Head] = []
        self._skips = False
        self._now = (FIRST, 0)

    @property
    def under(self) -> Under:
        """The tenants that are under their part of the kind that the work just given wants."""
        return self._under[self._kinds[self._now[1]]]

    @property
    def claims(self) -> bool:
        """Whether the work just given goes first because its tenant is under its part."""
        return self._now[0] == CLAIMING

    @property
    def late(self) -> bool:
        """Whether others go before the work just given: their tenants are under their part."""
        return self._now[0] == OTHERS and bool(self.under.claiming)

    def __iter__(self) -> Iterator[WorkId]:
        while self._heads:
            head = heapq.heappop(self._heads)
            first, _, share, turn, tenant_id, number = head
            if (first, number) in self._hopeless:
                self._hopeless[first, number].append(head)
                continue
            if share != self._share(tenant_id, number):
                heapq.heappush(self._heads, self._head(tenant_id, number, turn))
                continue
            self._now, self._skips = (first, number), False
            yield turn[2]
            line = self._lines[tenant_id, number]
            at = bisect_right(line, turn)
            if at < len(line):
                head = self._head(tenant_id, number, line[at])
                if self._skips:
                    self._skipped.append(head)
                elif (head[0], number) in self._hopeless:
                    self._hopeless[head[0], number].append(head)
                else:
                    heapq.heappush(self._heads, head)

    def _head(self, tenant_id: TenantId, number: int, turn: Turn) -> _Head:
        level, first = turn[0], OTHERS
        if level == STARVED or self._shapes[number].spares:
            first = FIRST
        elif tenant_id in self._under[self._kinds[number]].claiming:
            first = CLAIMING
        return (first, level, self._share(tenant_id, number), turn, tenant_id, number)

    def _share(self, tenant_id: TenantId, number: int) -> Share:
        return self._shares.of(tenant_id, self._kinds[number])

    def pass_over(self) -> None:
        """What is true of the work just given is true of all of its shape whose tenants are, or are
        not, under their part as well: look at none of them."""
        self._hopeless.setdefault(self._now, [])

    def skip(self) -> None:
        """What is true of the work just given is true of all of its line: look at no more of it."""
        self._skips = True

    def hope(self) -> None:
        """Devices came free: look at all that was passed over."""
        for head in chain(self._skipped, *self._hopeless.values()):
            heapq.heappush(self._heads, head)
        self._hopeless.clear()
        self._skipped.clear()
