"""The usable nodes in an order in which a fit is found without looking at all of them.

A shelf has the nodes of one class (`room.py`). For each measure it lists them by the number of
whole devices that they have left, equal ones by id.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import chain
from typing import TypeVar

from onefleet.core.feasibility import suits
from onefleet.core.index.room import MEASURES, NOW, SOON, Bay, Class, Shelved
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import NodeId
from onefleet.domain.work import Demand

KeyT = TypeVar("KeyT")

#: Demands whose shelves are remembered.
DEMANDS_MAX = 4_096


class Shelf:
    """Nodes of one class. stirring: those where something is leaving, by what they have left now
    and then. shared: those with a device that is held in part."""

    def __init__(self, bay: Bay) -> None:
        self.bay = bay  # one of them, as an example
        self.zone = bay.key[3]
        self.size = 0
        self.by: list[dict[int, list[NodeId]]] = [{} for _ in range(MEASURES)]
        self.stirring: dict[tuple[int, int], list[NodeId]] = {}
        self.shared: list[NodeId] = []

    def change(self, node_id: NodeId, old: Shelved | None, new: Shelved | None) -> None:
        """A node came (old None), changed, or left (new None)."""
        for measure, rows in enumerate(self.by):
            before = None if old is None else old.counts[measure]
            after = None if new is None else new.counts[measure]
            _move(rows, node_id, before, after)
        self.size += (new is not None) - (old is not None)
        _move(self.stirring, node_id, _stirs(old), _stirs(new))
        was, now = bool(old and old.shared), bool(new and new.shared)
        if was and not now:
            del self.shared[bisect_left(self.shared, node_id)]
        elif now and not was:
            insort(self.shared, node_id)


class Shelves:
    """All shelves, and which of them a demand may be served from."""

    def __init__(self) -> None:
        self._shelves: dict[Class, Shelf] = {}
        self._suiting: dict[Demand, tuple[Shelf, ...]] = {}
        self.free: dict[DeviceKind, int] = {}  # whole devices, now

    def change(self, node_id: NodeId, old: Sequence[Shelved], new: Sequence[Shelved]) -> None:
        """A usable node came (nothing old), changed, or is not usable any more (nothing new)."""
        if old == new:
            return
        sides: dict[Class, list[Shelved | None]] = {}
        for side, bays in enumerate((old, new)):
            for shelved in bays:
                sides.setdefault(shelved.bay.key, [None, None])[side] = shelved
        for key, (before, after) in sides.items():
            shelf = self._shelves.get(key)
            if shelf is None:
                assert after is not None, "a node leaves a shelf that it was not on"
                shelf = self._shelves[key] = Shelf(after.bay)
                self._suiting.clear()
            shelf.change(node_id, before, after)
            kind = shelf.bay.kind
            self.free[kind] = self.free.get(kind, 0) + _free(after) - _free(before)
            if not shelf.size:
                del self._shelves[key]
                self._suiting.clear()

    def suiting(self, demand: Demand) -> tuple[Shelf, ...]:
        """The shelves with nodes that may have something for the demand."""
        found = self._suiting.get(demand)
        if found is None:
            if len(self._suiting) >= DEMANDS_MAX:
                self._suiting.clear()
            found = tuple(s for _, s in sorted(self._shelves.items()) if _serves(s, demand))
            self._suiting[demand] = found
        return found

    def everything(self) -> Mapping[Class, Shelf]:
        """All shelves."""
        return self._shelves


def rising(
    shelves: Sequence[Shelf], measure: int, least: int
) -> Iterator[tuple[int, Iterator[NodeId]]]:
    """The numbers of devices left from the least on, each with its nodes by id."""
    for count in _counts(shelves, measure):
        if count >= least:
            yield count, _nodes(shelves, measure, count)


def falling(
    shelves: Sequence[Shelf], measure: int, least: int
) -> Iterator[tuple[int, Iterator[NodeId]]]:
    """The numbers of devices left down to the least, each with its nodes by id."""
    for count in reversed(_counts(shelves, measure)):
        if count >= least:
            yield count, _nodes(shelves, measure, count)


def stirring(shelves: Sequence[Shelf], least: int) -> Iterator[NodeId]:
    """Nodes where something is leaving that have so many devices left then. First those that have
    them now, or lack the fewest; of these, those that have the fewest left then; by id."""
    rows: dict[tuple[int, int], list[list[NodeId]]] = {}
    for shelf in shelves:
        for (now, soon), nodes in shelf.stirring.items():
            if soon >= least:
                rows.setdefault((max(least - now, 0), soon), []).append(nodes)
    return chain.from_iterable(merge(*nodes) for _, nodes in sorted(rows.items()))


def _counts(shelves: Sequence[Shelf], measure: int) -> list[int]:
    """The numbers of devices that some node has left, rising."""
    return sorted({count for shelf in shelves for count in shelf.by[measure]})


def _nodes(shelves: Sequence[Shelf], measure: int, count: int) -> Iterator[NodeId]:
    lists = [rows[count] for shelf in shelves if count in (rows := shelf.by[measure])]
    return iter(lists[0]) if len(lists) == 1 else merge(*lists)


def _serves(shelf: Shelf, demand: Demand) -> bool:
    if shelf.bay.kind is not demand.kind or (demand.zones and shelf.zone not in demand.zones):
        return False
    return shelf.bay.mixed or suits(shelf.bay.devices[0], demand)


def _free(shelved: Shelved | None) -> int:
    return 0 if shelved is None else shelved.counts[NOW]


def _stirs(shelved: Shelved | None) -> tuple[int, int] | None:
    if shelved is None or not shelved.stirs:
        return None
    return shelved.counts[NOW], shelved.counts[SOON]


def _move(
    rows: dict[KeyT, list[NodeId]], node_id: NodeId, before: KeyT | None, after: KeyT | None
) -> None:
    """From one row to another; None: it is in none."""
    if before == after:
        return
    if before is not None:
        row = rows[before]
        del row[bisect_left(row, node_id)]
        if not row:
            del rows[before]
    if after is not None:
        insort(rows.setdefault(after, []), node_id)
