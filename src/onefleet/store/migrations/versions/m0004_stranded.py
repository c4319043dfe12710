"""What hot spares need: which works have lost their place by a failure."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    no = sa.false()
    op.add_column("works", sa.Column("stranded", sa.Boolean(), nullable=False, server_default=no))
