"""Works that may be moved out of the way, in the order in which they go.

A list is made once, and then what has changed is taken out and put in, so that neither the passes
nor what they try out make it anew.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from typing import NamedTuple

from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import NodeId, WorkId
from onefleet.domain.work import Work

#: Lists and changes that are remembered.
LISTS_MAX, CHANGES_MAX = 4_096, 16_384
#: So many more changes than victims are not put in one by one.
CHANGES_MORE = 16


class Victim(NamedTuple):
    """A work that may be moved out of the way. Sorted: the first goes first."""

    tier_order: int  # minus its rank
    level_order: int  # beside works of its own rank: minus its level
    loss: int  # device-milliseconds
    younger_first: int  # minus the time since when it runs
    id: WorkId
    work: Work


class Scope(NamedTuple):
    """Which works: on these nodes, with devices of this kind, of this rank and behind it. levels:
    those of the rank itself by their levels, if they let others of it go before them."""

    kind: DeviceKind
    nodes: tuple[NodeId, ...]
    rank: int
    levels: bool


class _List:
    """The victims of a scope, as of the first `seen` changes."""

    def __init__(self, victims: Iterable[Victim], seen: int) -> None:
        self.victims = sorted(victims)
        self.by_id = {victim.id: victim for victim in self.victims}
        self.seen = seen

    def change(self, work_id: WorkId, victim: Victim | None) -> None:
        """The work is now this victim, or none."""
        old = self.by_id.pop(work_id, None)
        if old is not None:
            del self.victims[bisect_left(self.victims, old)]
        if victim is not None:
            self.by_id[work_id] = victim
            insort(self.victims, victim)


class Movable:
    """All lists. victim_of: a work as a victim in a scope; works_on: the works on a node."""

    def __init__(
        self,
        victim_of: Callable[[WorkId, Scope], Victim | None],
        works_on: Callable[[NodeId], Iterable[WorkId]],
    ) -> None:
        self._victim_of = victim_of
        self._works_on = works_on
        self._lists: dict[Scope, _List] = {}
        self._changed: list[WorkId] = []

    def touch(self, work_id: WorkId) -> None:
        """The work has changed, or its level has."""
        if not self._lists:
            return
        if len(self._changed) >= CHANGES_MAX:
            self._clear()
        else:
            self._changed.append(work_id)

    def of(self, scope: Scope) -> list[Victim]:
        """The victims of a scope, in order; good until the next change."""
        found = self._lists.get(scope)
        if found is not None:
            count = len(self._changed) - found.seen
            if count > len(found.victims) + CHANGES_MORE:
                found = None
            elif count:
                for work_id in dict.fromkeys(self._changed[found.seen :]):
                    found.change(work_id, self._victim_of(work_id, scope))
                found.seen = len(self._changed)
        if found is None:
            if len(self._lists) >= LISTS_MAX:
                self._clear()
            names = dict.fromkeys(name for node in scope.nodes for name in self._works_on(node))
            victims = (self._victim_of(name, scope) for name in names)
            found = _List((v for v in victims if v is not None), len(self._changed))
            self._lists[scope] = found
        return found.victims

    def _clear(self) -> None:
        self._lists.clear()
        self._changed.clear()
