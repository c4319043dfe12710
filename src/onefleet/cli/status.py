"""``onefleet status``: one look at the whole pool."""

from __future__ import annotations

import click

from onefleet.cli.kinds import STATUS
from onefleet.cli.options import Reading, reading
from onefleet.wire.api import StatusView


@click.command()
@reading
def status(view: Reading) -> None:
    """One look at the whole pool: nodes, devices, deployments, jobs, the last planning pass."""
    view.one(STATUS, lambda: view.pool.get("/api/v1/status", StatusView))
