"""What shares over time need: device time of late, and that of works without a record."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_NUMBERS = (("works", "recent_ms"), ("tenants", "used_until"))


def upgrade() -> None:
    for table, name in _NUMBERS:
        op.add_column(table, sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("tenants", sa.Column("used", sa.Text(), nullable=False, server_default="[]"))
