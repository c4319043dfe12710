"""What a commit does to records, the same for every store.

`Tables` is the working copy that the memory store keeps and that the SQL store caches: it checks
a commit as a whole, applies it, and gives out immutable states that share what did not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

from onefleet.domain.errors import StaleGeneration
from onefleet.domain.events import Held, Usage
from onefleet.domain.fleet import Node
from onefleet.domain.ids import NO_GENERATION, Generation
from onefleet.domain.jobs import Job
from onefleet.domain.serving import Deployment, Model, Replica
from onefleet.domain.tenancy import ApiKey, Reservation, Tenant
from onefleet.domain.work import Work
from onefleet.store.base import Commit, Put, Record, State, Written

#: Events that a store keeps; older ones are forgotten, sequences go on.
EVENTS_KEPT = 100_000
#: Commits whose changes are remembered, for whoever follows the records.
COMMITS_KEPT = 256
#: Usage and held device time are kept by the minute for this long: thirteen months, so that a
#: year can be billed.
MINUTES_KEPT_MS = 400 * 24 * 3_600_000

#: Record type -> field of `State`, in the order in which stores list them.
TABLES: Mapping[type[Record], str] = MappingProxyType(
    {
        Tenant: "tenants",
        Reservation: "reservations",
        ApiKey: "keys",
        Node: "nodes",
        Model: "models",
        Deployment: "deployments",
        Replica: "replicas",
        Job: "jobs",
        Work: "works",
    }
)


class Tables:
    """All records by table and id, and the states that were read from them."""

    def __init__(
        self,
        generation: Generation = NO_GENERATION,
        records: Iterable[Record] = (),
        marks: Mapping[str, int] | None = None,
        newest_event: int = 0,
    ) -> None:
        self.generation = generation
        self.newest_event = newest_event
        self._marks = dict(sorted((marks or {}).items()))
        self._live: dict[str, dict[str, Record]] = {name: {} for name in TABLES.values()}
        for record in records:
            self._live[TABLES[type(record)]][record.id] = record
        self._views: dict[str, Mapping[str, Record]] = {}
        self._state: State | None = None
        #: The newest commits, oldest first; replaced as a whole, as other threads read it.
        self._recent: tuple[tuple[Generation, Sequence[Written]], ...] = ()

    def check(self, commit: Commit) -> Sequence[Written]:
        """The net effect of a commit, by table and id.

        Raises StaleGeneration when any generation does not match; nothing has changed then.
        """
        if commit.parent is not None and commit.parent != self.generation:
            raise StaleGeneration(
                f"the state is at generation {self.generation}, not {commit.parent}",
                why="somebody else wrote first",
                hint="read again and decide again",
            )
        staged: dict[tuple[str, str], Written] = {}
        for change in commit.changes:
            record = change.record
            place = (TABLES[type(record)], str(record.id))
            before = staged.get(place)
            old = before.old if before else self._live[place[0]].get(place[1])
            current = before.new if before else old
            _match(place, record.generation, current, isinstance(change, Put))
            new = _risen(record) if isinstance(change, Put) else None
            staged[place] = Written(*place, old, new)
        return tuple(staged.values())

    def apply(self, commit: Commit, written: Sequence[Written]) -> Generation:
        """Make a checked commit true; return the new generation."""
        for change in written:
            table = self._live[change.table]
            if change.new is None:
                table.pop(change.id, None)
            else:
                table[change.id] = change.new
            self._views.pop(change.table, None)
        if commit.marks:
            marks = {**self._marks, **commit.marks}
            self._marks = {name: value for name, value in sorted(marks.items()) if value}
        self.newest_event += len(commit.notes)
        self._state = None
        self.generation = Generation(self.generation + 1)
        newest = (self.generation, tuple(written))
        self._recent = (*self._recent[1 - COMMITS_KEPT :], newest)
        return self.generation

    def changed(self, since: Generation, until: Generation) -> Sequence[Written] | None:
        """What the commits after `since`, up to `until`, wrote; None when not all are known."""
        found = [written for generation, written in self._recent if since < generation <= until]
        if len(found) != until - since:
            return None
        return tuple(change for written in found for change in written)

    def state(self) -> State:
        """The records as of now; later commits do not change it."""
        if self._state is None:
            views = {name: self._view(name) for name in TABLES.values()}
            self._state = State(
                generation=self.generation,
                marks=MappingProxyType(self._marks),
                newest_event=self.newest_event,
                **cast(Any, views),
            )
        return self._state

    def _view(self, name: str) -> Mapping[str, Record]:
        view = self._views.get(name)
        if view is None:
            view = MappingProxyType(dict(sorted(self._live[name].items())))
            self._views[name] = view
        return view


def _match(place: tuple[str, str], given: Generation, current: Record | None, put: bool) -> None:
    stored = current.generation if current else NO_GENERATION
    if given == stored and (put or current is not None):
        return
    table, identity = place
    found = f"at generation {stored}" if current else "absent"
    raise StaleGeneration(
        f"{table} record {identity} is {found}, not at generation {given}",
        why="somebody else wrote first",
        hint="read again and decide again",
    )


def _risen(record: Record) -> Record:
    return replace(record, generation=Generation(record.generation + 1))


def add_up(usages: Iterable[Usage]) -> Sequence[Usage]:
    """Usage added up by minute, tenant, key and deployment, in that order."""
    sums: dict[tuple[int, str, str, str], Usage] = {}
    for usage in usages:
        place = (usage.minute, usage.tenant_id, usage.key_id, usage.deployment_id)
        known = sums.get(place)
        sums[place] = usage if known is None else _plus(known, usage)
    return tuple(sums[place] for place in sorted(sums))


def _plus(left: Usage, right: Usage) -> Usage:
    return replace(
        left,
        requests=left.requests + right.requests,
        prompt_tokens=left.prompt_tokens + right.prompt_tokens,
        cached_tokens=left.cached_tokens + right.cached_tokens,
        completion_tokens=left.completion_tokens + right.completion_tokens,
    )


def add_up_held(helds: Iterable[Held]) -> Sequence[Held]:
    """Held device time added up by minute and label, in that order."""
    sums: dict[tuple[int, str], Held] = {}
    for held in helds:
        known = sums.get((held.minute, held.label))
        amount = held.amount + (known.amount if known else 0)
        sums[held.minute, held.label] = replace(held, amount=amount)
    return tuple(sums[place] for place in sorted(sums))
