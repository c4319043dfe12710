"""What the shared pool needs: elastic and movable work, its ledger, windows, cordons, arrays."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

#: Table, column, and the value that rows have that were written before.
_ADDED: tuple[tuple[str, str, str | int | bool | None], ...] = (
    ("tenants", "weight", 1_000),
    ("reservations", "product", ""),
    ("reservations", "starts_at", None),
    ("reservations", "ends_at", None),
    ("nodes", "region", ""),
    ("nodes", "zone", ""),
    ("nodes", "address", ""),
    ("nodes", "cordons", "[]"),
    ("jobs", "array", ""),
    ("jobs", "index", 0),
    ("works", "terms", "{}"),
    ("works", "made", 0),
    ("works", "cut", False),
    ("works", "width", None),
    ("works", "move_to", "[]"),
    ("works", "ready", True),
    ("works", "promised", True),
    ("works", "ran_on", "[]"),
    ("works", "accounted_until", 0),
    ("works", "served_ms", 0),
    ("works", "hours", "[]"),
    ("works", "receipts", "[]"),
)


def upgrade() -> None:
    for table, name, value in _ADDED:
        op.add_column(table, _column(name, value))
    op.add_column("works", sa.Column("making", sa.Text(), nullable=True))


def _column(name: str, value: str | int | bool | None) -> sa.Column[object]:
    if value is None:
        return sa.Column(name, sa.BigInteger(), nullable=True)
    if isinstance(value, bool):
        default = sa.true() if value else sa.false()
        return sa.Column(name, sa.Boolean(), nullable=False, server_default=default)
    kind = sa.Text() if isinstance(value, str) else sa.BigInteger()
    return sa.Column(name, kind, nullable=False, server_default=str(value))
