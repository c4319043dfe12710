"""``onefleet spare``: nodes that are kept empty for work that loses its place by a failure."""

from __future__ import annotations

import click

from onefleet.cli.boundary import say
from onefleet.cli.kinds import SPARES
from onefleet.cli.options import KINDS, Acting, Reading, acting, reading
from onefleet.wire.api import Page, SetSpares, SparesView


@click.group()
def spare() -> None:
    """Hot spares: set, list."""


@spare.command(name="set")
@click.argument("nodes", type=click.IntRange(0, 10_000))
@click.option("--kind", type=KINDS, default="cpu", show_default=True)
@acting
def set_(act: Acting, nodes: int, kind: str) -> None:
    """Keep NODES nodes with devices of a kind empty; 0 keeps none.

    Work whose node or device fails goes on there at once. Which nodes they are follows from what is
    empty: one that is used, fails or is drained is replaced by the next that becomes empty.
    Nothing that runs has to leave for that, and the last node of a kind is never kept.
    """
    wanted = SetSpares(nodes=nodes, device_kind=kind)
    found = act.pool.post("/api/v1/spares", wanted, SparesView)
    act.done(SPARES, found)
    if found.note:
        say(found.note)


@spare.command(name="list")
@reading
def list_(view: Reading) -> None:
    """How many nodes are kept empty, and which they are now."""
    view.many(SPARES, lambda: view.pool.get("/api/v1/spares", Page[SparesView]).data)
