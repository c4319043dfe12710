"""What is only asked of a store on disk: kill -9, full disks, damaged and foreign files."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from onefleet.domain.errors import OnefleetError, StaleGeneration, StorageFull, WorldError
from onefleet.domain.events import Usage
from onefleet.domain.ids import Instant
from onefleet.store.base import Commit, Note, Put, State
from onefleet.store.sql import SqlStore
from tests.small_disk import small_disk
from tests.store_contract.records import one_of_each, tenant

#: Commits for as long as it lives, and says each one that was acknowledged.
_WRITER = """
import asyncio, sys
from dataclasses import replace
from pathlib import Path
from onefleet.domain.events import Usage
from onefleet.domain.ids import Instant
from onefleet.store.base import Commit, Note, Put
from onefleet.store.sql import SqlStore
from tests.store_contract.records import tenant

async def main():
    store = await SqlStore.open(Path(sys.argv[1]))
    number = 0
    while True:
        state = await store.read()
        known = state.tenants.get("default", tenant())
        number = (known.tokens_per_minute if known.generation else 0) + 1
        usage = Usage(Instant(0), "default", "key", "dep", 1, 0, 0, 0)
        await store.commit(Commit(
            [Put(replace(known, tokens_per_minute=number)), Put(tenant(f"t{number:06d}"))],
            notes=[Note(Instant(number), "n", "s", str(number))], usage=[usage],
            marks={"number": number}))
        print(number, flush=True)

asyncio.run(main())
"""


def reopened(path: Path) -> tuple[State, list[int], int]:
    """The state, the texts of all events and the requests of all usage, as found on disk."""

    async def main() -> tuple[State, list[int], int]:
        store = await SqlStore.open(path)
        try:
            events = await store.events(0, 100_000)
            usage = await store.usage(Instant(0))
            texts = [int(event.text) for event in events]
            return await store.read(), texts, sum(u.requests for u in usage)
        finally:
            await store.close()

    return asyncio.run(main())


def test_what_was_acknowledged_survives_kill_9_and_nothing_is_half_there(tmp_path: Path) -> None:
    path = tmp_path / "pool.db"
    acknowledged = 0
    for lines in (1, 7, 40):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(lines):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        acknowledged = int((rest.split() or [str(acknowledged)])[-1])

        state, events, requests = reopened(path)
        number = state.tenants[tenant().id].tokens_per_minute
        assert number is not None and acknowledged <= number <= acknowledged + 1
        assert events == list(range(1, number + 1))
        assert requests == number == state.marks["number"] == state.generation
        assert len(state.tenants) == number + 1


def test_a_store_opened_again_goes_on_where_it_was(tmp_path: Path) -> None:
    async def write() -> State:
        store = await SqlStore.open(tmp_path / "pool.db")
        await store.commit(Commit([Put(record) for record in one_of_each()], marks={"m": 3}))
        state = await store.read()
        await store.close()
        return state

    before = asyncio.run(write())
    after, _, _ = reopened(tmp_path / "pool.db")
    assert after == before


def test_two_stores_on_one_file_see_each_others_commits(tmp_path: Path) -> None:
    async def main() -> None:
        first = await SqlStore.open(tmp_path / "pool.db")
        second = await SqlStore.open(tmp_path / "pool.db")
        try:
            await first.commit(Commit([Put(tenant("a"))], notes=[Note(Instant(1), "k", "s", "1")]))
            assert list((await second.read()).tenants) == ["a"]
            await first.commit(Commit([Put(tenant("b"))], notes=[Note(Instant(1), "k", "s", "2")]))
            await second.commit(Commit([Put(tenant("c"))], notes=[Note(Instant(1), "k", "s", "3")]))
            with pytest.raises(StaleGeneration):
                await first.commit(Commit([Put(tenant("c"))]))
            assert list((await first.read()).tenants) == ["a", "b", "c"]
            assert [e.text for e in await first.events(0, 9)] == ["1", "2", "3"]
            assert [e.sequence for e in await first.events(0, 9)] == [1, 2, 3]
        finally:
            await first.close()
            await second.close()

    asyncio.run(main())


def opening(path: Path) -> OnefleetError:
    """The error that opening this file ends with."""

    async def main() -> OnefleetError:
        with pytest.raises(OnefleetError) as caught:
            await SqlStore.open(path)
        return caught.value

    return asyncio.run(main())


def test_a_file_that_is_no_database_is_named_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "pool.db"
    path.write_bytes(b"this is not a database, it is text. " * 200)
    error = opening(path)
    assert (type(error), error.error_code) == (WorldError, "storage_damaged")
    assert str(path) in error.what and error.hint
    assert path.read_bytes().startswith(b"this is not")


def test_a_torn_page_is_named_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "pool.db"

    async def fill() -> None:
        store = await SqlStore.open(path)
        for number in range(30):
            record = replace(tenant(f"t{number}"), tokens_per_minute=number)
            await store.commit(Commit([Put(record)]))
        await store.close()

    asyncio.run(fill())
    raw = bytearray(path.read_bytes())
    for page in range(1, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 2048] = os.urandom(2048)
    path.write_bytes(raw)
    assert opening(path).error_code == "storage_damaged"


def test_a_row_without_meaning_is_named_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "pool.db"

    async def fill() -> None:
        store = await SqlStore.open(path)
        await store.commit(Commit([Put(record) for record in one_of_each()]))
        await store.close()

    asyncio.run(fill())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE works SET phase = 'dreaming'")
    connection.close()
    error = opening(path)
    assert error.error_code == "storage_damaged" and "works" in error.what


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pool.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (id INTEGER)")
    connection.close()
    assert opening(path).error_code == "storage_foreign"


def test_a_newer_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pool.db"

    async def make() -> None:
        await (await SqlStore.open(path)).close()

    asyncio.run(make())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    error = opening(path)
    assert error.error_code == "storage_newer" and "9999" in error.what and error.hint


def test_a_locked_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onefleet.store.sqlite.BUSY_TIMEOUT_MS", 50)

    async def main() -> None:
        store = await SqlStore.open(tmp_path / "pool.db")
        other = sqlite3.connect(tmp_path / "pool.db", isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(WorldError) as caught:
                await store.commit(Commit([Put(tenant())]))
            assert caught.value.error_code == "storage_locked"
            other.execute("ROLLBACK")
            await store.commit(Commit([Put(tenant())]))
        finally:
            other.close()
            await store.close()

    asyncio.run(main())


def test_its_files_are_its_owners_alone(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqlStore.open(tmp_path / "pool.db")
        await store.commit(Commit([Put(tenant())]))
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        await store.close()
        assert modes == {"pool.db": 0o600, "pool.db-wal": 0o600, "pool.db-shm": 0o600}

    asyncio.run(main())


def test_a_sole_writer_that_is_not_one_loses_and_reads_anew(tmp_path: Path) -> None:
    async def main() -> None:
        sole = await SqlStore.open(tmp_path / "pool.db", sole_writer=True)
        other = await SqlStore.open(tmp_path / "pool.db")
        try:
            await other.commit(Commit([Put(tenant("a"))]))
            with pytest.raises(StaleGeneration):
                await sole.commit(Commit([Put(tenant("a"))]))
            assert list((await sole.read()).tenants) == ["a"]
        finally:
            await sole.close()
            await other.close()

    asyncio.run(main())


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    assert opening(tmp_path / "nowhere" / "pool.db").error_code == "storage_unavailable"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    with small_disk(tmp_path, "512k") as disk:
        yield disk


def test_a_full_disk_is_named_and_loses_nothing(tiny_disk: Path) -> None:
    async def main() -> None:
        store = await SqlStore.open(tiny_disk / "pool.db")
        try:
            written = 0
            with pytest.raises(StorageFull) as caught:
                for number in range(10_000):
                    text = "x" * 2_000
                    note = Note(Instant(number), "k", "s", text)
                    await store.commit(Commit([Put(tenant(f"t{number:05d}"))], notes=[note]))
                    written += 1
            assert "no space" in caught.value.why and written > 5
            for _ in range(3):  # it stays full, and says so again
                with pytest.raises(StorageFull):
                    await store.commit(Commit(notes=[Note(Instant(0), "k", "s", "y" * 90_000)]))
            state = await store.read()
            assert len(state.tenants) == written == len(await store.events(0, 10**6))
        finally:
            await store.close()
        subprocess.run(["mount", "-o", "remount,size=16m", str(tiny_disk)], check=True)
        again = await SqlStore.open(tiny_disk / "pool.db")
        try:
            assert await again.read() == state
            await again.commit(Commit([Put(tenant("more"))]))
        finally:
            await again.close()

    asyncio.run(main())


def test_usage_of_a_cancelled_caller_is_written_once(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqlStore.open(tmp_path / "pool.db")
        try:
            usage = Usage(Instant(0), "default", "key", "dep", 1, 0, 0, 0)
            task = asyncio.ensure_future(store.commit(Commit(usage=[usage])))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert sum(u.requests for u in await store.usage(Instant(0))) in (0, 1)
            await store.commit(Commit([Put(tenant())]))
            assert (await store.read()).tenants
        finally:
            await store.close()

    asyncio.run(main())
