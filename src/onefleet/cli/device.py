"""``onefleet device``: what the pool is made of."""

from __future__ import annotations

import click

from onefleet.cli.kinds import DEVICE
from onefleet.cli.options import Acting, Reading, acting, reading
from onefleet.wire.api import CordonDevice, DeviceView, Page
from onefleet.wire.client import segment


@click.group()
def device() -> None:
    """Devices of the pool: list, cordon, uncordon."""


@device.command(name="list")
@reading
def list_(view: Reading) -> None:
    """Devices and which work holds each."""
    view.many(DEVICE, lambda: view.pool.get("/api/v1/devices", Page[DeviceView]).data)


@device.command()
@click.argument("id_", metavar="DEVICE")
@click.option("--reason", default="", help="Why; it is shown to whoever asks.")
@acting
def cordon(act: Acting, id_: str, reason: str) -> None:
    """Give a device no more work, and move away what is on it."""
    path = f"/api/v1/devices/{segment(id_)}/cordon"
    act.done(DEVICE, act.pool.post(path, CordonDevice(reason=reason), DeviceView))


@device.command()
@click.argument("id_", metavar="DEVICE")
@acting
def uncordon(act: Acting, id_: str) -> None:
    """Use a device again."""
    path = f"/api/v1/devices/{segment(id_)}/uncordon"
    act.done(DEVICE, act.pool.post(path, None, DeviceView))
