"""Which works move to where the pool chose, and not their owners."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    no = sa.false()
    op.add_column("works", sa.Column("driven", sa.Boolean(), nullable=False, server_default=no))
