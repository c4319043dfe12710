"""``onefleet node``: what the pool is made of."""

from __future__ import annotations

import click

from onefleet.cli.kinds import NODE
from onefleet.cli.options import Reading, reading
from onefleet.wire.api import NodeView, Page


@click.group()
def node() -> None:
    """Machines of the pool: list."""


@node.command(name="list")
@reading
def list_(view: Reading) -> None:
    """Machines of the pool, and how each can save jobs."""
    view.many(NODE, lambda: view.pool.get("/api/v1/nodes", Page[NodeView]).data)
