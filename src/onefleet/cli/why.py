"""``onefleet why``: the planner's own report on one job or deployment."""

from __future__ import annotations

import click

from onefleet.cli.kinds import WHY
from onefleet.cli.options import Reading, reading
from onefleet.wire.api import WhyView
from onefleet.wire.client import segment


@click.command()
@click.argument("name", metavar="JOB|DEPLOYMENT")
@reading
def why(view: Reading, name: str) -> None:
    """Why a job or deployment is where it is: every blocker by name, and its history."""
    view.one(WHY, lambda: view.pool.get(f"/api/v1/why/{segment(name)}", WhyView))
