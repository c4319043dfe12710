"""The durable store: SQL tables behind the store's contract.

One transaction a commit, which begins by raising the generation in the `meta` row from the one
that the cache holds: whoever loses that race reloads and checks again. All database calls run on
one thread of their own, so that a slow disk never stops the event loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from msgspec import DecodeError
from sqlalchemy import Connection, Engine, Table, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError

from onefleet.domain.errors import StaleGeneration, WorldError
from onefleet.domain.events import Event, Held, Usage
from onefleet.domain.ids import Generation, Instant
from onefleet.store import schema
from onefleet.store.base import Commit, Note, State, Written
from onefleet.store.changes import (
    EVENTS_KEPT,
    MINUTES_KEPT_MS,
    Tables,
    add_up,
    add_up_held,
)
from onefleet.store.migrate import migrate
from onefleet.store.sqlite import explained, open_engine, opening

#: How often a commit reloads and checks again after another process wrote first.
RELOADS = 8

ResultT = TypeVar("ResultT")


class SqlStore:
    """The contract of `Store` on disk. Make one with `SqlStore.open`."""

    def __init__(self, path: Path, sole_writer: bool) -> None:
        self._path = path
        self._sole_writer = sole_writer
        self._engine: Engine = open_engine(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._tables = Tables()
        self._state: State = self._tables.state()

    @classmethod
    async def open(cls, path: Path, *, sole_writer: bool = False) -> SqlStore:
        """Open or make the database at `path`, bring its schema up to date and load it.

        sole_writer: no other process writes to it, so `read` need not ask whether one did, and
        never waits for the disk. Where that is not so, reads may be old; commits still lose the
        race, and read anew then.

        Raises WorldError with what to do when it is damaged, locked or of a newer version, and
        StorageFull.
        """
        store = cls(path, sole_writer)
        ready = False
        try:
            await store._run(store._prepare)
            ready = True
        finally:
            if not ready:
                await store.close()
        return store

    async def read(self) -> State:
        if self._sole_writer:
            return self._state
        return await self._run(self._read)

    async def commit(self, commit: Commit) -> Generation:
        return await self._run(lambda: self._commit(commit))

    def changed(self, since: Generation, until: Generation) -> Sequence[Written] | None:
        return self._tables.changed(since, until)

    async def events(self, after: int, limit: int) -> Sequence[Event]:
        return await self._run(lambda: self._events(after, limit))

    async def usage(self, since: Instant) -> Sequence[Usage]:
        return await self._run(lambda: self._usage(since))

    async def held(self, since: Instant) -> Sequence[Held]:
        return await self._run(lambda: self._held(since))

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown()

    async def _run(self, call: Callable[[], ResultT]) -> ResultT:
        # Shielded: a caller that gives up must not leave a half-known outcome behind.
        job = asyncio.get_running_loop().run_in_executor(self._thread, call)
        return await asyncio.shield(job)

    # Everything below runs on the store's own thread.

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DBAPIError, sqlite3.Error) as error:
            raise explained(error, self._path) from error

    def _prepare(self) -> None:
        with opening(self._path):
            # Its owner's alone: there are job environments in it. SQLite's other files follow suit.
            self._path.touch(mode=0o600)
        with self._transaction() as connection:
            migrate(connection, self._path)
            self._load(connection)

    def _load(self, connection: Connection) -> None:
        meta = connection.execute(select(schema.meta)).mappings().one()
        records = []
        for mapper in schema.MAPPERS.values():
            rows = connection.execute(select(mapper.table).order_by(mapper.table.c.id))
            try:
                records += [mapper.record(row) for row in rows.mappings()]
            except (DecodeError, ValueError) as error:
                raise WorldError(
                    f"the table {mapper.table.name} of {self._path} holds a row without meaning",
                    why=str(error),
                    hint="restore the database from a copy",
                    code="storage_damaged",
                ) from error
        marks = {row.name: row.value for row in connection.execute(select(schema.marks))}
        self._tables = Tables(
            Generation(meta["generation"]), records, marks, newest_event=meta["event_sequence"]
        )
        self._state = self._tables.state()

    def _read(self) -> State:
        with self._transaction() as connection:
            stored = connection.execute(select(schema.meta.c.generation)).scalar_one()
            if stored != self._tables.generation:
                self._load(connection)
        return self._state

    def _commit(self, commit: Commit) -> Generation:
        for _ in range(RELOADS):
            written = self._tables.check(commit)
            with self._transaction() as connection:
                if not self._claim(connection, len(commit.notes)):
                    self._load(connection)
                    continue
                for change in written:
                    _write(connection, change)
                self._append(connection, commit.notes)
                _add_usage(connection, commit.usage)
                _add_held(connection, commit.held)
                for name, value in sorted(commit.marks.items()):
                    _set_mark(connection, name, value)
            generation = self._tables.apply(commit, written)
            self._state = self._tables.state()
            return generation
        raise StaleGeneration(
            f"other processes wrote {RELOADS} times in a row between reading and writing",
            hint="try again",
        )

    def _claim(self, connection: Connection, notes: int) -> bool:
        """Raise the generation from the cached one; False when it is no longer that."""
        generation = self._tables.generation
        done = connection.execute(
            update(schema.meta)
            .where(schema.meta.c.generation == generation)
            .values(generation=generation + 1, event_sequence=self._tables.newest_event + notes)
        )
        return done.rowcount == 1

    def _append(self, connection: Connection, notes: Sequence[Note]) -> None:
        if not notes:
            return
        rows = [
            {
                "sequence": sequence,
                "at": note.at,
                "kind": note.kind,
                "subject": note.subject,
                "text": note.text,
            }
            for sequence, note in enumerate(notes, self._tables.newest_event + 1)
        ]
        connection.execute(insert(schema.events), rows)
        oldest = self._tables.newest_event + len(notes) - EVENTS_KEPT
        if oldest > 0:
            connection.execute(delete(schema.events).where(schema.events.c.sequence <= oldest))

    def _events(self, after: int, limit: int) -> Sequence[Event]:
        table = schema.events
        query = select(table).where(table.c.sequence > after).order_by(table.c.sequence)
        with self._transaction() as connection:
            rows = connection.execute(query.limit(max(0, limit))).mappings().all()
        return tuple(Event(**row) for row in rows)

    def _usage(self, since: Instant) -> Sequence[Usage]:
        with self._transaction() as connection:
            query = select(schema.usage).where(schema.usage.c.minute >= since)
            rows = connection.execute(query).mappings().all()
        return add_up(Usage(**row) for row in rows)

    def _held(self, since: Instant) -> Sequence[Held]:
        with self._transaction() as connection:
            query = select(schema.held).where(schema.held.c.minute >= since)
            rows = connection.execute(query).mappings().all()
        return add_up_held(Held(**row) for row in rows)


def _write(connection: Connection, change: Written) -> None:
    """Write one record by compare-and-swap on its generation."""
    mapper = schema.MAPPERS[change.table]
    table = mapper.table
    if change.old is None:
        if change.new is not None:
            connection.execute(insert(table), mapper.row(change.new))
        return
    same = (table.c.id == change.id) & (table.c.generation == change.old.generation)
    if change.new is None:
        done = connection.execute(delete(table).where(same))
    else:
        done = connection.execute(update(table).where(same), mapper.row(change.new))
    if done.rowcount != 1:
        raise StaleGeneration(f"{change.table} record {change.id} was written by somebody else")


def _add_usage(connection: Connection, usages: Sequence[Usage]) -> None:
    table = schema.usage
    for usage in add_up(usages):
        amounts = {
            "requests": usage.requests,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        place = {
            "minute": usage.minute,
            "tenant_id": usage.tenant_id,
            "key_id": usage.key_id,
            "deployment_id": usage.deployment_id,
        }
        _add(connection, table, place, amounts)
    _forget_old_minutes(connection, table, len(usages))


def _add_held(connection: Connection, helds: Sequence[Held]) -> None:
    for held in add_up_held(helds):
        place = {"minute": held.minute, "label": held.label}
        _add(connection, schema.held, place, {"amount": held.amount})
    _forget_old_minutes(connection, schema.held, len(helds))


def _add(
    connection: Connection,
    table: Table,
    place: Mapping[str, object],
    amounts: dict[str, int],
) -> None:
    """Add amounts to the row at `place`, which is made when it is not there."""
    same = [table.c[name] == value for name, value in place.items()]
    sums = {name: table.c[name] + value for name, value in amounts.items()}
    if connection.execute(update(table).where(*same).values(sums)).rowcount == 0:
        connection.execute(insert(table), {**place, **amounts})


def _forget_old_minutes(connection: Connection, table: Table, added: int) -> None:
    if not added:
        return
    newest = connection.execute(select(func.max(table.c.minute))).scalar_one()
    connection.execute(delete(table).where(table.c.minute < newest - MINUTES_KEPT_MS))


def _set_mark(connection: Connection, name: str, value: int) -> None:
    table = schema.marks
    if value == 0:
        connection.execute(delete(table).where(table.c.name == name))
        return
    done = connection.execute(update(table).where(table.c.name == name).values(value=value))
    if done.rowcount == 0:
        connection.execute(insert(table), {"name": name, "value": value})
