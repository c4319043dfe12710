"""The first schema: one table a record type, and events, usage, held device time and counters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _tenancy()
    _fleet()
    _serving()
    _work()
    _history()
    op.execute("INSERT INTO meta (id, generation, event_sequence) VALUES (1, 0, 0)")


def _tenancy() -> None:
    op.create_table(
        "tenants",
        _text("id", key=True),
        _text("parent", nullable=True),
        _number("tokens_per_minute", nullable=True),
        _number("requests_per_minute", nullable=True),
        _number("created_at"),
        _number("generation"),
    )
    op.create_table(
        "reservations",
        _text("id", key=True),
        _text("tenant_id"),
        _text("kind"),
        _number("devices"),
        _number("created_at"),
        _number("generation"),
    )
    op.create_table(
        "keys",
        _text("id", key=True),
        _text("tenant_id"),
        _text("name"),
        _text("role"),
        _text("digest"),
        _text("hint"),
        _number("created_at"),
        _number("revoked_at", nullable=True),
        _number("generation"),
    )


def _fleet() -> None:
    op.create_table(
        "nodes",
        _text("id", key=True),
        _text("name"),
        _text("state"),
        _text("devices"),
        _number("memory_bytes"),
        _text("checkpoint_mode"),
        _text("checkpoint_reason"),
        _number("lease_expires_at"),
        _number("joined_at"),
        _number("generation"),
    )


def _serving() -> None:
    op.create_table(
        "models",
        _text("id", key=True),
        _text("family"),
        _text("purpose"),
        _text("revision"),
        _text("format"),
        _text("path"),
        _number("size_bytes"),
        _text("shape"),
        _text("source"),
        _text("licence"),
        _number("created_at"),
        _number("generation"),
    )
    op.create_table(
        "deployments",
        _text("id", key=True),
        _text("name"),
        _text("tenant_id"),
        _text("model_id"),
        _text("kind"),
        _text("tier"),
        _text("engine"),
        _number("replicas_min"),
        _number("replicas_max"),
        _number("replicas_wanted"),
        _number("devices_per_replica"),
        _number("slots"),
        _number("context_length"),
        _number("memory_bytes"),
        _number("created_at"),
        _number("removed_at", nullable=True),
        _number("generation"),
    )
    op.create_table(
        "replicas",
        _text("id", key=True),
        _text("deployment_id"),
        _text("revision"),
        _number("created_at"),
        _text("host"),
        _number("port"),
        _number("generation"),
    )


def _work() -> None:
    op.create_table(
        "jobs",
        _text("id", key=True),
        _text("name"),
        _text("tenant_id"),
        _text("command"),
        _text("environment"),
        _text("code", nullable=True),
        _text("network"),
        _number("submitted_at"),
        _number("generation"),
    )
    op.create_table(
        "works",
        _text("id", key=True),
        _text("kind"),
        _text("tenant_id"),
        _text("tier"),
        _text("demand"),
        _text("want"),
        _text("phase"),
        _number("submitted_at"),
        _number("phase_since"),
        _flag("suspendable"),
        _number("epoch"),
        _text("placement"),
        _text("image", nullable=True),
        _number("attempts"),
        _number("suspends"),
        _number("ran_ms"),
        _number("lost_ms"),
        _text("reason"),
        _text("outcome", nullable=True),
        _number("exit_code", nullable=True),
        _text("why_ended"),
        _number("started_at", nullable=True),
        _number("ended_at", nullable=True),
        _text("image_before", nullable=True),
        _number("failures"),
        _number("not_before"),
        _number("generation"),
    )


def _history() -> None:
    op.create_table(
        "meta",
        _number("id", key=True),
        _number("generation"),
        _number("event_sequence"),
    )
    op.create_table(
        "marks",
        _text("name", key=True),
        _number("value"),
    )
    op.create_table(
        "events",
        _number("sequence", key=True),
        _number("at"),
        _text("kind"),
        _text("subject"),
        _text("text"),
    )
    op.create_table(
        "usage",
        _number("minute", key=True),
        _text("tenant_id", key=True),
        _text("key_id", key=True),
        _text("deployment_id", key=True),
        _number("requests"),
        _number("prompt_tokens"),
        _number("cached_tokens"),
        _number("completion_tokens"),
    )
    op.create_table(
        "held",
        _number("minute", key=True),
        _text("label", key=True),
        _number("amount"),
    )


def _text(name: str, *, nullable: bool = False, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable, primary_key=key)


def _number(name: str, *, nullable: bool = False, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable, primary_key=key, autoincrement=False)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=False)
