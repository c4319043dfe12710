"""``onefleet deployment``: what is served; `deploy` and `undeploy` change it."""

from __future__ import annotations

import click

from onefleet.cli.kinds import DEPLOYMENT
from onefleet.cli.options import Reading, reading
from onefleet.wire.api import DeploymentView, Page
from onefleet.wire.client import segment


@click.group()
def deployment() -> None:
    """What is served: list, show."""


@deployment.command(name="list")
@reading
def list_(view: Reading) -> None:
    """Deployments with their replicas and load."""
    view.many(DEPLOYMENT, lambda: view.pool.get("/api/v1/deployments", Page[DeploymentView]).data)


@deployment.command()
@click.argument("name", metavar="DEPLOYMENT")
@reading
def show(view: Reading, name: str) -> None:
    """One deployment."""
    path = f"/api/v1/deployments/{segment(name)}"
    view.one(DEPLOYMENT, lambda: view.pool.get(path, DeploymentView))
