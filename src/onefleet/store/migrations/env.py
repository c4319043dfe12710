"""Alembic's entry: runs migrations on the connection that `store/migrate.py` hands over."""

from __future__ import annotations

from alembic import context

from onefleet.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
