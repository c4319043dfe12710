"""``onefleet undeploy``: stop serving."""

from __future__ import annotations

import click

from onefleet.cli.kinds import DEPLOYMENT
from onefleet.cli.options import Acting, acting, confirm
from onefleet.domain.quantities import counted
from onefleet.wire.api import DeploymentView
from onefleet.wire.client import segment


@click.command()
@click.argument("name", metavar="DEPLOYMENT")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@acting
def undeploy(act: Acting, name: str, yes: bool) -> None:
    """Stop serving a deployment. Its replicas answer what they began, then end."""
    path = f"/api/v1/deployments/{segment(name)}"
    found = act.pool.get(path, DeploymentView)
    confirm(
        f"ends {found.name}: {counted(found.replicas_ready, 'replica')}, "
        f"{counted(found.active, 'request')} under way, {found.waiting} waiting",
        yes,
    )
    act.pool.delete(path, object)
    act.done(DEPLOYMENT, found)
