"""``onefleet device``: what the pool is made of."""

from __future__ import annotations

import click

from onefleet.cli.kinds import DEVICE
from onefleet.cli.options import Reading, reading
from onefleet.wire.api import DeviceView, Page


@click.group()
def device() -> None:
    """Devices of the pool: list."""


@device.command(name="list")
@reading
def list_(view: Reading) -> None:
    """Devices and which work holds each."""
    view.many(DEVICE, lambda: view.pool.get("/api/v1/devices", Page[DeviceView]).data)
