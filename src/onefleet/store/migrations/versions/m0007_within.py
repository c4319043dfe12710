"""How soon what a reservation lends is back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    column = sa.Column("within_ms", sa.BigInteger(), nullable=False, server_default="300000")
    op.add_column("reservations", column)
