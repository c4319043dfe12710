"""How many saves of each work failed in a row."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    column = sa.Column("saves_failed", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("works", column)
