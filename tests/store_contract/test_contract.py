"""What every store promises. Each test runs on each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from onefleet.domain.errors import StaleGeneration
from onefleet.domain.events import Held, Usage
from onefleet.domain.ids import Generation, Instant
from onefleet.store.base import Commit, Delete, Note, Put, State, Store
from onefleet.store.changes import MINUTES_KEPT_MS, TABLES
from onefleet.store.memory import MemoryStore
from onefleet.store.sql import SqlStore
from tests.store_contract.records import one_of_each, tenant, work

Body = Callable[[Store], Awaitable[None]]
Check = Callable[[Body], None]


@pytest.fixture(params=["memory", "sql", "sql of a sole writer"])
def check(request: pytest.FixtureRequest, tmp_path: Path) -> Check:
    """Runs a body against a fresh store."""

    async def run(body: Body) -> None:
        sole = request.param == "sql of a sole writer"
        store: Store = (
            MemoryStore()
            if request.param == "memory"
            else await SqlStore.open(tmp_path / "pool.db", sole_writer=sole)
        )
        try:
            await body(store)
        finally:
            await store.close()

    return lambda body: asyncio.run(run(body))


def note(text: str) -> Note:
    return Note(Instant(1), "test.note", "subject", text)


def usage(minute: int, requests: int, key: str = "key-1") -> Usage:
    return Usage(Instant(minute), "default", key, "dep-1", requests, 10, 4, 20)


def test_every_record_comes_back_as_it_was_written(check: Check) -> None:
    async def body(store: Store) -> None:
        records = one_of_each()
        await store.commit(Commit([Put(record) for record in records]))
        state = await store.read()
        assert len(records) == len(TABLES)
        for record in records:
            stored = getattr(state, TABLES[type(record)])[record.id]
            assert stored == replace(record, generation=Generation(1))

    check(body)


def test_a_record_rises_by_one_with_each_write(check: Check) -> None:
    async def body(store: Store) -> None:
        await store.commit(Commit([Put(tenant())]))
        for generation in range(1, 4):
            stored = (await store.read()).tenants[tenant().id]
            assert stored.generation == generation
            await store.commit(Commit([Put(replace(stored, tokens_per_minute=generation))]))
        assert (await store.read()).tenants[tenant().id].tokens_per_minute == 3

    check(body)


def test_an_older_generation_loses_and_writes_nothing(check: Check) -> None:
    async def body(store: Store) -> None:
        await store.commit(Commit([Put(tenant())]))
        old = (await store.read()).tenants[tenant().id]
        await store.commit(Commit([Put(replace(old, tokens_per_minute=1))]))
        before = await store.read()
        losers = [
            Commit([Put(old)], notes=[note("lost")]),
            Commit([Delete(old)]),
            Commit([Put(tenant())]),
            Commit([Put(replace(old, generation=Generation(9)))]),
            Commit([Put(work()), Put(old)], usage=[usage(0, 1)], marks={"m": 1}),
            Commit([Delete(work())]),
            Commit([Put(work())], parent=Generation(0)),
        ]
        for loser in losers:
            with pytest.raises(StaleGeneration):
                await store.commit(loser)
        after = await store.read()
        assert after == before
        assert await store.events(0, 10) == ()
        assert await store.usage(Instant(0)) == ()

    check(body)


def test_of_two_writers_of_one_generation_one_wins(check: Check) -> None:
    async def body(store: Store) -> None:
        await store.commit(Commit([Put(tenant())]))
        base = (await store.read()).tenants[tenant().id]
        commits = [
            store.commit(Commit([Put(replace(base, tokens_per_minute=n))])) for n in range(10)
        ]
        results = await asyncio.gather(*commits, return_exceptions=True)
        assert sum(isinstance(result, StaleGeneration) for result in results) == 9
        assert (await store.read()).tenants[base.id].generation == 2

    check(body)


def test_a_plan_whose_parent_is_gone_loses(check: Check) -> None:
    async def body(store: Store) -> None:
        parent = (await store.read()).generation
        await store.commit(Commit([Put(tenant())], parent=parent))
        with pytest.raises(StaleGeneration):
            await store.commit(Commit([Put(work())], parent=parent))

    check(body)


def test_what_is_deleted_is_gone_and_may_be_made_again(check: Check) -> None:
    async def body(store: Store) -> None:
        await store.commit(Commit([Put(tenant())]))
        stored = (await store.read()).tenants[tenant().id]
        await store.commit(Commit([Delete(stored)]))
        assert (await store.read()).tenants == {}
        await store.commit(Commit([Put(tenant())]))
        assert (await store.read()).tenants[tenant().id].generation == 1

    check(body)


def test_changes_of_one_commit_see_each_other(check: Check) -> None:
    async def body(store: Store) -> None:
        again = replace(tenant(), generation=Generation(1), tokens_per_minute=5)
        await store.commit(Commit([Put(tenant()), Put(again)]))
        stored = (await store.read()).tenants[tenant().id]
        assert (stored.generation, stored.tokens_per_minute) == (2, 5)
        await store.commit(Commit([Delete(stored), Put(tenant("other"))]))
        assert list((await store.read()).tenants) == ["other"]
        await store.commit(
            Commit([Put(tenant()), Delete(replace(tenant(), generation=Generation(1)))])
        )
        assert list((await store.read()).tenants) == ["other"]

    check(body)


def test_records_iterate_by_id(check: Check) -> None:
    async def body(store: Store) -> None:
        names = ["b", "a-10", "é", "Z", "a-2", "a"]
        for name in names:
            await store.commit(Commit([Put(tenant(name))]))
        assert list((await store.read()).tenants) == sorted(names)

    check(body)


def test_a_state_never_changes_after_it_was_read(check: Check) -> None:
    async def body(store: Store) -> None:
        await store.commit(Commit([Put(tenant("a"))], marks={"m": 1}))
        before = await store.read()
        await store.commit(Commit([Put(tenant("b"))], marks={"m": 2}))
        assert list(before.tenants) == ["a"]
        assert before.marks == {"m": 1}
        with pytest.raises(TypeError):
            before.tenants["c"] = tenant("c")  # type: ignore[index]

    check(body)


def test_the_generation_rises_with_every_commit(check: Check) -> None:
    async def body(store: Store) -> None:
        seen = [(await store.read()).generation]
        for number in range(5):
            seen.append(await store.commit(Commit(notes=[note(str(number))])))
            assert (await store.read()).generation == seen[-1]
        assert seen == list(range(6))

    check(body)


def test_reading_an_unchanged_state_gives_the_same_object(check: Check) -> None:
    async def body(store: Store) -> None:
        await store.commit(Commit([Put(tenant())]))
        assert await store.read() is await store.read()

    check(body)


def test_events_have_no_gaps_and_keep_their_order(check: Check) -> None:
    async def body(store: Store) -> None:
        for number in range(0, 20, 2):
            await store.commit(Commit(notes=[note(str(number)), note(str(number + 1))]))
        events = await store.events(0, 100)
        assert [event.sequence for event in events] == list(range(1, 21))
        assert [event.text for event in events] == [str(n) for n in range(20)]
        assert [event.sequence for event in await store.events(18, 1)] == [19]
        assert await store.events(20, 10) == ()
        assert await store.events(0, 0) == ()
        assert await store.events(10**9, 10) == ()
        assert (await store.read()).newest_event == 20

    check(body)


def test_old_events_are_forgotten_and_sequences_go_on(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onefleet.store.memory.EVENTS_KEPT", 5)
    monkeypatch.setattr("onefleet.store.sql.EVENTS_KEPT", 5)

    async def body(store: Store) -> None:
        for number in range(4):
            await store.commit(Commit(notes=[note(f"{number}a"), note(f"{number}b")]))
        assert [event.sequence for event in await store.events(0, 100)] == [4, 5, 6, 7, 8]
        assert [event.sequence for event in await store.events(6, 100)] == [7, 8]

    check(body)


def test_usage_adds_up_by_key_deployment_and_minute(check: Check) -> None:
    async def body(store: Store) -> None:
        await store.commit(Commit(usage=[usage(60_000, 1), usage(60_000, 2), usage(0, 4)]))
        await store.commit(Commit(usage=[usage(60_000, 8), usage(60_000, 16, key="key-0")]))
        found = await store.usage(Instant(0))
        assert [(u.minute, u.key_id, u.requests) for u in found] == [
            (0, "key-1", 4),
            (60_000, "key-0", 16),
            (60_000, "key-1", 11),
        ]
        assert found[2].prompt_tokens == 30
        assert [u.minute for u in await store.usage(Instant(1))] == [60_000, 60_000]

    check(body)


def test_held_device_time_adds_up_by_label_and_minute(check: Check) -> None:
    async def body(store: Store) -> None:
        await store.commit(Commit(held=[Held(Instant(0), "basic.job", 5)]))
        await store.commit(
            Commit(held=[Held(Instant(0), "basic.job", 6), Held(Instant(60_000), "capacity", 7)])
        )
        assert await store.held(Instant(0)) == (
            Held(Instant(0), "basic.job", 11),
            Held(Instant(60_000), "capacity", 7),
        )
        assert [held.amount for held in await store.held(Instant(1))] == [7]

    check(body)


def test_old_minutes_are_forgotten(check: Check) -> None:
    async def body(store: Store) -> None:
        await store.commit(Commit(usage=[usage(0, 1)], held=[Held(Instant(0), "capacity", 1)]))
        late = MINUTES_KEPT_MS + 1
        await store.commit(Commit(usage=[usage(late, 1)], held=[Held(Instant(late), "x", 1)]))
        assert [u.minute for u in await store.usage(Instant(0))] == [late]
        assert [h.minute for h in await store.held(Instant(0))] == [late]

    check(body)


def test_marks_are_replaced_and_removed(check: Check) -> None:
    async def body(store: Store) -> None:
        await store.commit(Commit(marks={"b": 1, "a": 2}))
        await store.commit(Commit(marks={"b": 3}))
        assert list((await store.read()).marks.items()) == [("a", 2), ("b", 3)]
        await store.commit(Commit(marks={"b": 0, "never": 0}))
        assert (await store.read()).marks == {"a": 2}

    check(body)


def test_writers_who_read_again_after_losing_all_get_through(check: Check) -> None:
    async def body(store: Store) -> None:
        await store.commit(Commit([Put(replace(tenant(), tokens_per_minute=0))]))

        async def add_one() -> None:
            while True:
                state: State = await store.read()
                known = state.tenants[tenant().id]
                more = replace(known, tokens_per_minute=(known.tokens_per_minute or 0) + 1)
                try:
                    await store.commit(Commit([Put(more)], notes=[note("one more")]))
                except StaleGeneration:
                    continue
                return

        await asyncio.gather(*(add_one() for _ in range(20)))
        assert (await store.read()).tenants[tenant().id].tokens_per_minute == 20
        assert len(await store.events(0, 100)) == 20

    check(body)
