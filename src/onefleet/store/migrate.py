"""Brings a database's schema up to this version's, inside the caller's transaction.

The migrations are alembic's and ship with the package; alembic itself is imported only when
there is something to do, because most starts find the schema current.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from onefleet.domain.errors import WorldError

#: The newest migration that this version knows.
HEAD = "0007"

_FOLDER = Path(__file__).parent / "migrations"


def migrate(connection: Connection, path: Path) -> None:
    """Upgrade to HEAD, all of it or nothing. Raises WorldError when the schema is newer."""
    current = _current(connection, path)
    if current == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    if current is not None:
        try:
            ScriptDirectory.from_config(config).get_revision(current)
        except CommandError as error:
            raise WorldError(
                f"the pool's database {path} has schema {current}; this version knows {HEAD}",
                why="a newer version of onefleet wrote it",
                hint="install that version, or use another --data-dir",
                code="storage_newer",
            ) from error
    command.upgrade(config, "head")


def _current(connection: Connection, path: Path) -> str | None:
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return None if found is None else str(found)
    if tables:
        raise WorldError(
            f"{path} is a database, but not one of this product",
            why=f"it has a table named {tables[0]} and no schema version",
            hint="move it away, or use another --data-dir",
            code="storage_foreign",
        )
    return None
