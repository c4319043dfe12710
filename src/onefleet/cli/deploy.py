"""``onefleet deploy``: serve a model under a name."""

from __future__ import annotations

import click

from onefleet.cli.kinds import DEPLOYMENT
from onefleet.cli.options import TIERS, Acting, Span, acting
from onefleet.cli.times import Number
from onefleet.cli.waiting import wait_until
from onefleet.wire.api import DeploymentView, NewDeployment
from onefleet.wire.client import segment


@click.command()
@click.argument("model")
@click.option("--name", help='What clients put into "model" (default: the model\'s name).')
@click.option("--tier", type=TIERS, default="standard", show_default=True)
@click.option("--replicas", type=Span(), default="1", show_default=True, help="0..N scales to 0.")
@click.option("--tenant", help="Default: the key's.")
@click.option("--engine", default="", help="Default: by the model's format.")
@click.option("--devices", type=click.IntRange(1), default=1, help="Devices of one replica.")
@click.option("--slots", type=click.IntRange(0), default=0, help="Requests at once; 0: planned.")
@click.option("--context", type=click.IntRange(0), default=0, help="Tokens a slot; 0: planned.")
@click.option("--wait", is_flag=True, help="Return when it answers.")
@click.option(
    "--timeout", type=Number(0), default=300.0, metavar="S", help="With --wait: how long."
)
@acting
def deploy(
    act: Acting,
    model: str,
    name: str | None,
    tier: str,
    replicas: tuple[int, int],
    tenant: str | None,
    engine: str,
    devices: int,
    slots: int,
    context: int,
    wait: bool,
    timeout: float,
) -> None:
    """Serve MODEL and print the deployment's id.

    A deployment that can never fit is refused at once (exit 6), with what would fit.
    """
    made = act.pool.post(
        "/api/v1/deployments",
        NewDeployment(
            model=model,
            name=name,
            tenant=tenant,
            tier=tier,
            replicas_min=replicas[0],
            replicas_max=replicas[1],
            engine=engine,
            devices_per_replica=devices,
            slots=slots,
            context_length=context,
        ),
        DeploymentView,
    )
    if wait:
        made = wait_until(
            lambda: act.pool.get(f"/api/v1/deployments/{segment(made.name)}", DeploymentView),
            lambda now: now.state in ("ready", "idle"),
            lambda now: f"{now.name} to answer; it is {now.state}: {now.reason}",
            timeout,
            hint=f"onefleet why {made.name}",
        )
    act.done(DEPLOYMENT, made)
