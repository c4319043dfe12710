"""The migrations lead to the schema that the code has, and records fit into it."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import DeviceId, NodeId, ReservationId, TenantId, WorkId
from onefleet.domain.work import Demand, Slot, Terms
from onefleet.store import migrate
from onefleet.store.base import State
from onefleet.store.schema import MAPPERS, metadata
from onefleet.store.sql import SqlStore
from onefleet.store.sqlite import open_engine

OLD_ROWS: dict[str, dict[str, object]] = {
    "tenants": {"id": "a", "created_at": 1, "generation": 1},
    "reservations": {
        "id": "r1", "tenant_id": "a", "kind": "cpu", "devices": 1, "created_at": 1, "generation": 1,
    },
    "nodes": {
        "id": "n1", "name": "n1", "state": "ready", "devices": "[]", "memory_bytes": 1,
        "checkpoint_mode": "criu", "checkpoint_reason": "", "lease_expires_at": 1,
        "joined_at": 1, "generation": 1,
    },
    "works": {
        "id": "job-1", "kind": "job", "tenant_id": "a", "tier": "basic",
        "demand": '{"kind":"cpu","devices_min":1,"devices_max":1,"workers":1,"memory_bytes":0}',
        "want": "run", "phase": "running", "submitted_at": 1, "phase_since": 1,
        "suspendable": True, "epoch": 1,
        "placement": '[{"node_id":"n1","devices":["n1/cpu0"]}]', "image": None, "attempts": 1,
        "suspends": 0, "ran_ms": 0, "lost_ms": 0, "reason": "", "outcome": None,
        "exit_code": None, "why_ended": "", "started_at": 1, "ended_at": None,
        "image_before": None, "failures": 0, "not_before": 0, "generation": 1,
    },
}  # fmt: skip


def made(path: Path) -> Path:
    async def main() -> None:
        await (await SqlStore.open(path)).close()

    asyncio.run(main())
    return path


def test_after_all_migrations_the_tables_are_those_of_the_code(tmp_path: Path) -> None:
    engine = open_engine(made(tmp_path / "pool.db"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        names = inspect(connection).get_table_names()
    engine.dispose()
    assert sorted(names) == sorted([*metadata.tables, "alembic_version"])


def test_every_field_of_a_record_is_a_column() -> None:
    for mapper in MAPPERS.values():
        assert [c.name for c in mapper.table.columns] == [f.name for f in fields(mapper.type)]


def test_the_head_that_the_code_names_is_the_last_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.HEAD]


def test_opening_again_migrates_nothing(tmp_path: Path) -> None:
    path = made(tmp_path / "pool.db")
    before = path.read_bytes()
    assert made(path).read_bytes() == before


def test_a_database_that_was_made_and_not_migrated_is_migrated(tmp_path: Path) -> None:
    (tmp_path / "pool.db").touch()
    test_after_all_migrations_the_tables_are_those_of_the_code(tmp_path)


def test_what_was_written_under_the_first_schema_is_read_under_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "pool.db"
    engine = open_engine(path)
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for table, row in OLD_ROWS.items():
            names = ", ".join(row)
            marks = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), row)
    engine.dispose()

    async def read() -> State:
        store = await SqlStore.open(path)
        state = await store.read()
        await store.close()
        return state

    state = asyncio.run(read())
    work = state.works[WorkId("job-1")]
    assert work.placement == (Slot(NodeId("n1"), (DeviceId("n1/cpu0"),)),)
    assert work.demand == Demand(DeviceKind.CPU, 1, 1) and work.terms == Terms() and work.ready
    assert state.tenants[TenantId("a")].weight == 1_000
    assert state.reservations[ReservationId("r1")].ends_at is None
    assert state.nodes[NodeId("n1")].cordons == ()
