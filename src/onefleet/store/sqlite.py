"""How SQLite is opened and what its errors mean. Everything else of the store is neutral SQL."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from onefleet.domain.errors import InternalError, OnefleetError, StorageFull, WorldError

#: How long one writer waits for another before it gives up.
BUSY_TIMEOUT_MS = 5_000
#: The write-ahead log is folded into the database after this many pages (4 KiB each).
CHECKPOINT_PAGES = 1_000

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_CLOSED = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
#: Extended codes of I/O errors that a full disk gives while the log's index grows.
_FULL_IO = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_FSYNC)


def open_engine(path: Path) -> Engine:
    """One connection to a database file, which is made when it is not there.

    WAL with synchronous=FULL: a commit that returned is on disk. Transactions begin IMMEDIATE, so
    that a read-then-write never fails half way for a lock. For use by one thread at a time.
    """
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=StaticPool,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False},
    )
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _on_begin, not by the driver
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"wal_autocheckpoint={CHECKPOINT_PAGES}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal of the file into words that a person can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(error, path) from error
        raise _unavailable(error, path) from error


def explained(error: DBAPIError | sqlite3.Error, path: Path) -> OnefleetError:
    """The same failure in words that a person can act on."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    extended = getattr(cause, "sqlite_errorcode", 0)
    code = extended & 0xFF
    if code == sqlite3.SQLITE_FULL or extended in _FULL_IO:
        return _full(cause, path)
    if code in _DAMAGED:
        return WorldError(
            f"the pool's database {path} is damaged",
            why=str(cause),
            hint=f"keep a copy, then try: sqlite3 {path} .recover",
            code="storage_damaged",
        )
    if code in _LOCKED:
        return WorldError(
            f"the pool's database {path} stayed locked for {BUSY_TIMEOUT_MS} ms",
            why="another process is writing to it",
            hint=f"find it with: fuser {path}",
            code="storage_locked",
        )
    if code in _CLOSED or code == sqlite3.SQLITE_IOERR:
        return _unavailable(cause, path)
    return InternalError(f"the pool's database {path} refused a statement", why=str(cause))


def _full(cause: object, path: Path) -> StorageFull:
    return StorageFull(
        f"the pool's state could not be written to {path}",
        why=f"no space is left on its disk ({cause})",
        hint=f"free some space there: df -h {path.parent}",
    )


def _unavailable(cause: object, path: Path) -> WorldError:
    return WorldError(
        f"the pool's database {path} cannot be read or written",
        why=str(cause),
        hint=f"look at its permissions and its disk: ls -l {path.parent}",
        code="storage_unavailable",
    )
