"""``onefleet top``: devices and what holds them, live on a terminal, once in a pipe."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from onefleet.cli.kinds import DEPLOYMENT, DEVICE, JOB, STATUS, jobs_told
from onefleet.cli.options import Reading, reading
from onefleet.cli.output import API_VERSION, Kind, Terminal, table
from onefleet.cli.plain_yaml import dump
from onefleet.cli.watch import redraw, watch_one
from onefleet.domain.quantities import percent, size
from onefleet.wire.api import (
    DeploymentView,
    DeviceView,
    JobView,
    NodeView,
    Page,
    StatusView,
    UtilisationView,
)

if TYPE_CHECKING:
    from onefleet.wire.client import Client

#: Over how long utilisation is shown.
WINDOW_MS = 60_000
BAR = 20


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """One look at everything that `top` shows."""

    status: StatusView
    utilisation: UtilisationView
    nodes: tuple[NodeView, ...]
    devices: tuple[DeviceView, ...]
    deployments: tuple[DeploymentView, ...]
    jobs: tuple[JobView, ...]


def look(pool: Client) -> Picture:
    """Ask the pool; ended jobs are left out."""
    since = int(time.time() * 1000) - WINDOW_MS
    jobs = pool.get("/api/v1/jobs", Page[JobView]).data
    return Picture(
        status=pool.get("/api/v1/status", StatusView),
        utilisation=pool.get(f"/api/v1/utilisation?since={since}", UtilisationView),
        nodes=pool.get("/api/v1/nodes", Page[NodeView]).data,
        devices=pool.get("/api/v1/devices", Page[DeviceView]).data,
        deployments=pool.get("/api/v1/deployments", Page[DeploymentView]).data,
        jobs=tuple(j for j in jobs if j.outcome is None),
    )


def draw(picture: Picture, screen: Terminal) -> str:
    """The picture as text."""
    status, used = picture.status, picture.utilisation
    held = sum(used.held_device_ms.values())
    parts = [
        f"onefleet {status.version}   devices {status.devices_used}/{status.devices}   "
        f"held {percent(held, used.capacity_device_ms)} of the last minute\n"
        f"jobs {jobs_told(status)}\n"
    ]
    for node in picture.nodes:
        busy = round(node.cpu_busy_permille * BAR / 1000)
        parts.append(
            f"{node.name}  cpu [{'|' * busy}{' ' * (BAR - busy)}] "
            f"{node.cpu_busy_permille / 10:.0f} %   memory free "
            f"{size(node.memory_free_bytes)} of {size(node.memory_bytes)}   {node.state}\n"
        )
    for kind, views in (
        (DEVICE, picture.devices),
        (DEPLOYMENT, picture.deployments),
        (JOB, picture.jobs),
    ):
        shown: Kind[Any] = kind
        text = table(shown.columns, views, wide=False, screen=screen)
        parts.append(f"\n{text}" if text else "")
    return "".join(parts)


@click.command()
@reading
def top(view: Reading) -> None:
    """Devices, deployments and jobs, live; in a pipe or with -o json one look."""
    if view.format in ("json", "jsonl", "yaml"):
        if view.watch:
            kind: Kind[Picture] = Kind("Top", lambda p: "pool")
            watch_one(kind, lambda: look(view.pool), view.format, view.screen)
        body = {"apiVersion": API_VERSION, "object": "Top"}
        body |= msgspec.to_builtins(look(view.pool))
        indent = 2 if view.format == "json" else None
        click.echo(dump(body) if view.format == "yaml" else json.dumps(body, indent=indent))
    elif view.format == "name":
        click.echo(STATUS.id(look(view.pool).status))
    elif view.screen.live:
        redraw(lambda: draw(look(view.pool), view.screen))
    else:
        click.echo(draw(look(view.pool), view.screen), nl=False, color=True)
