"""What can be asked of a new job, as options of a command; they become one `NewJob`."""

from __future__ import annotations

import functools
from typing import Any

import click

from onefleet.cli.options import KINDS, TIERS, Command, Span
from onefleet.cli.times import Length, Moment, Share, Size
from onefleet.domain.work import WHOLE
from onefleet.wire.api import NewJob


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", ctx, param)
        found[name] = text
    return found


def _speeds(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        product, equals, speed = value.partition("=")
        try:
            found[product] = round(float(speed) * 1_000) if equals else 1_000
        except (ValueError, OverflowError):
            raise click.BadParameter(f"{value!r} is not PRODUCT=SPEED", ctx, param) from None
    return found


_OPTIONS = (
    click.argument(
        "command_", nargs=-1, required=True, metavar="-- CMD...", type=click.UNPROCESSED
    ),
    click.option("--tier", type=TIERS, default="standard", show_default=True),
    click.option(
        "--devices",
        type=Span(1),
        help="How many for the whole job, or from MIN to MAX. Default: one a worker.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Processes of a gang, each with its RANK; on fewer devices they take turns.",
    ),
    click.option("--share", type=Share(), help="Of one device, for a job that needs less: 0.25."),
    click.option(
        "--on",
        multiple=True,
        metavar="PRODUCT[=SPEED]",
        callback=_speeds,
        help="Class of devices that it can use, with its speed there (1 is full).",
    ),
    click.option("--zone", multiple=True, help="Where it may run. Default: anywhere."),
    click.option(
        "--kind", type=KINDS, default="cpu", show_default=True, help="Of device that it runs on."
    ),
    click.option("--name", help="Default: after the command."),
    click.option("--tenant", help="Default: the key's."),
    click.option("--memory", type=Size(), default=0, metavar="SIZE", help="Of one worker: 2GB."),
    click.option("--env", multiple=True, metavar="NAME=VALUE", callback=_pairs),
    click.option(
        "--network",
        type=click.Choice(("cell", "gang", "host")),
        help="cell: a loopback of its own. gang: its workers reach each other, and nobody else. "
        "host: the machine's network. Default: gang for several workers, else cell.",
    ),
    click.option(
        "--after", multiple=True, metavar="JOB", help="It starts once this has succeeded."
    ),
    click.option(
        "--deadline", type=Moment(), metavar="TIME", help="When it shall have ended: +2h."
    ),
    click.option("--estimate", type=Length(), metavar="TIME", help="How long it runs: 40m."),
    click.option(
        "--checkpoint-every",
        type=Length(),
        metavar="TIME",
        help="Between saves while it runs, 10s or more; 0: none. Default: from cost and failures.",
    ),
)


def job_options(command: Command) -> Command:
    """The command's words and the options of a job; passes them as `asked`, a `NewJob`."""

    @functools.wraps(command)
    def wrapped(
        *,
        command_: tuple[str, ...],
        devices: tuple[int, int] | None,
        workers: int,
        share: int | None,
        **rest: Any,
    ) -> object:
        low, high = devices or (workers, workers)
        named = {field: rest.pop(option) for option, field in _FIELDS.items()}
        asked = NewJob(
            command=command_,
            workers=workers,
            devices_min=low,
            devices_max=high,
            device_milli=WHOLE if share is None else share,
            **named,
        )
        return command(asked=asked, **rest)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


#: Option -> field of `NewJob` that it is as it is.
_FIELDS = {
    "tier": "tier",
    "kind": "device_kind",
    "name": "name",
    "tenant": "tenant",
    "on": "products",
    "zone": "zones",
    "memory": "memory_bytes",
    "env": "environment",
    "network": "network",
    "after": "after",
    "deadline": "deadline",
    "estimate": "estimate_ms",
    "checkpoint_every": "checkpoint_every_ms",
}
