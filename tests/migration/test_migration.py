"""The migrations lead to the schema that the code has, and records fit into it."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from onefleet.store import migrate
from onefleet.store.schema import MAPPERS, metadata
from onefleet.store.sql import SqlStore
from onefleet.store.sqlite import open_engine


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
