"""``onefleet reservation``: devices that are guaranteed to a tenant."""

from __future__ import annotations

import click

from onefleet.cli.kinds import RESERVATION
from onefleet.cli.options import KINDS, Acting, Reading, acting, confirm, reading
from onefleet.cli.times import Length, Moment
from onefleet.domain.errors import NotFound
from onefleet.domain.quantities import counted
from onefleet.domain.tenancy import WITHIN_MS, WITHIN_MS_LEAST, WITHIN_MS_MOST
from onefleet.wire.api import NewReservation, Page, ReservationView
from onefleet.wire.client import segment


@click.group()
def reservation() -> None:
    """Reservations: create, list, remove."""


@reservation.command()
@click.argument("tenant")
@click.argument("devices", type=click.IntRange(1))
@click.option("--kind", type=KINDS, default="cpu", show_default=True)
@click.option("--product", default="", help="Class of the devices. Default: any of the kind.")
@click.option("--from", "from_", type=Moment(), help="When its window opens. Default: now.")
@click.option("--until", type=Moment(), help="When its window closes. Default: never.")
@click.option(
    "--within",
    type=Length(WITHIN_MS_LEAST, WITHIN_MS_MOST),
    default=f"{WITHIN_MS // 60_000}m",
    show_default=True,
    help="How soon what is lent is back. What cannot be saved by then is ended, and goes on from "
    "its last image.",
)
@acting
def create(
    act: Acting,
    tenant: str,
    devices: int,
    kind: str,
    product: str,
    from_: int | None,
    until: int | None,
    within: int,
) -> None:
    """Guarantee DEVICES to TENANT's premium work, and to that of the tenants below it.

    What it leaves idle is lent to others and taken back by suspending them.
    """
    new = NewReservation(
        tenant=tenant,
        devices=devices,
        device_kind=kind,
        product=product,
        starts_at=from_,
        ends_at=until,
        within_ms=within,
    )
    act.done(RESERVATION, act.pool.post("/api/v1/reservations", new, ReservationView))


@reservation.command(name="list")
@reading
def list_(view: Reading) -> None:
    """Reservations and their windows."""
    path = "/api/v1/reservations"
    view.many(RESERVATION, lambda: view.pool.get(path, Page[ReservationView]).data)


@reservation.command()
@click.argument("id_", metavar="ID")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@acting
def remove(act: Acting, id_: str, yes: bool) -> None:
    """End a reservation; its tenant's work stays, without the guarantee."""
    known = act.pool.get("/api/v1/reservations", Page[ReservationView]).data
    found = next((r for r in known if r.id == id_), None)
    if found is None:
        raise NotFound(f'there is no reservation "{id_}"', hint="onefleet reservation list")
    devices = counted(found.devices, f"{found.device_kind} device")
    confirm(
        f"ends the reservation of {devices} for {found.tenant}; all share them from now on", yes
    )
    path = f"/api/v1/reservations/{segment(id_)}"
    act.done(RESERVATION, act.pool.delete(path, ReservationView))
