"""``onefleet tenant``: who is isolated and charged."""

from __future__ import annotations

import click

from onefleet.cli.kinds import TENANT
from onefleet.cli.options import Acting, Reading, acting, reading
from onefleet.cli.times import Number
from onefleet.wire.api import NewTenant, Page, TenantView


@click.group()
def tenant() -> None:
    """Tenants of the pool: create, list."""


def _reservations(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        kind, equals, count = value.partition("=")
        if not equals or not count.isdigit() or not kind:
            raise click.BadParameter(f"{value!r} is not KIND=N", ctx, param)
        found[kind] = int(count)
    return found


@tenant.command()
@click.argument("id_", metavar="ID")
@click.option("--parent", help="The tenant that it belongs to.")
@click.option("--tokens-per-minute", type=click.IntRange(0), help="Default: unlimited.")
@click.option("--requests-per-minute", type=click.IntRange(0), help="Default: unlimited.")
@click.option(
    "--reserve",
    multiple=True,
    metavar="KIND=N",
    callback=_reservations,
    help="Devices that are guaranteed to its premium work, lent while idle: cpu=1.",
)
@click.option(
    "--weight",
    type=Number(0.001, 1_000),
    default=1.0,
    show_default=True,
    help="Its part, among its siblings, of what nobody reserved.",
)
@acting
def create(
    act: Acting,
    id_: str,
    parent: str | None,
    weight: float,
    tokens_per_minute: int | None,
    requests_per_minute: int | None,
    reserve: dict[str, int],
) -> None:
    """Make a tenant and print its id."""
    new = NewTenant(
        id=id_,
        parent=parent,
        weight=round(weight * 1_000),
        tokens_per_minute=tokens_per_minute,
        requests_per_minute=requests_per_minute,
        reservations=reserve,
    )
    act.done(TENANT, act.pool.post("/api/v1/tenants", new, TenantView))


@tenant.command(name="list")
@reading
def list_(view: Reading) -> None:
    """Tenants with their limits and reservations."""
    view.many(TENANT, lambda: view.pool.get("/api/v1/tenants", Page[TenantView]).data)
