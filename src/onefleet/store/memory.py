"""A store that forgets: for the simulator and for tests.

Its methods never suspend, so that the simulator can run them without an event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from onefleet.domain.events import Event, Held, Usage
from onefleet.domain.ids import Generation, Instant
from onefleet.store.base import Commit, State, Written
from onefleet.store.changes import EVENTS_KEPT, MINUTES_KEPT_MS, Tables, add_up, add_up_held


class MemoryStore:
    """The contract of `Store` without durability."""

    def __init__(self) -> None:
        self._tables = Tables()
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._usage: Sequence[Usage] = ()
        self._held: Sequence[Held] = ()

    async def read(self) -> State:
        return self._tables.state()

    async def commit(self, commit: Commit) -> Generation:
        written = self._tables.check(commit)
        for sequence, note in enumerate(commit.notes, self._tables.newest_event + 1):
            self._events.append(Event(sequence, note.at, note.kind, note.subject, note.text))
        if commit.usage:
            usage = add_up((*self._usage, *commit.usage))
            oldest = usage[-1].minute - MINUTES_KEPT_MS
            self._usage = tuple(one for one in usage if one.minute >= oldest)
        if commit.held:
            held = add_up_held((*self._held, *commit.held))
            oldest = held[-1].minute - MINUTES_KEPT_MS
            self._held = tuple(one for one in held if one.minute >= oldest)
        return self._tables.apply(commit, written)

    def changed(self, since: Generation, until: Generation) -> Sequence[Written] | None:
        return self._tables.changed(since, until)

    async def events(self, after: int, limit: int) -> Sequence[Event]:
        oldest = self._events[0].sequence if self._events else 1
        start = max(0, after + 1 - oldest)
        return tuple(islice(self._events, start, start + max(0, limit)))

    async def usage(self, since: Instant) -> Sequence[Usage]:
        return tuple(usage for usage in self._usage if usage.minute >= since)

    async def held(self, since: Instant) -> Sequence[Held]:
        return tuple(held for held in self._held if held.minute >= since)

    async def close(self) -> None:
        return None
