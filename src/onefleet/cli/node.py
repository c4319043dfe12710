"""``onefleet node``: what the pool is made of."""

from __future__ import annotations

import click

from onefleet.cli.kinds import NODE
from onefleet.cli.options import Acting, Reading, acting, reading
from onefleet.wire.api import NodeView, Page
from onefleet.wire.client import segment


@click.group()
def node() -> None:
    """Machines of the pool: list, drain, undrain."""


@node.command(name="list")
@reading
def list_(view: Reading) -> None:
    """Machines of the pool, and how each can save jobs."""
    view.many(NODE, lambda: view.pool.get("/api/v1/nodes", Page[NodeView]).data)


@node.command()
@click.argument("name", metavar="NODE")
@acting
def drain(act: Acting, name: str) -> None:
    """Give a node nothing new, and move away from it what can move."""
    act.done(NODE, act.pool.post(f"/api/v1/nodes/{segment(name)}/drain", None, NodeView))


@node.command()
@click.argument("name", metavar="NODE")
@acting
def undrain(act: Acting, name: str) -> None:
    """Use a drained node again."""
    act.done(NODE, act.pool.post(f"/api/v1/nodes/{segment(name)}/undrain", None, NodeView))
