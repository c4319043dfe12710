"""``onefleet scale``: give jobs more or fewer devices while they run."""

from __future__ import annotations

import click

from onefleet.cli.job_verb import job_verb
from onefleet.cli.options import Acting, acting
from onefleet.wire.api import ScaleJob


@click.command()
@click.argument("jobs", metavar="JOB|ARRAY...", nargs=-1, required=True)
@click.argument("devices", metavar="N|auto")
@acting
def scale(act: Acting, jobs: tuple[str, ...], devices: str) -> None:
    """Run a job on N devices; auto: as many as there are for it.

    The program sees the same number of workers and threads whatever its size: workers move onto
    fewer devices and take turns, or spread out again. For N they are saved and go on on other nodes
    where their own have too few devices or N is fewer than they are.
    """
    if devices != "auto" and not devices.isdigit():
        raise click.BadParameter(f"{devices!r} is neither a number nor auto", param_hint="N|auto")
    wanted = ScaleJob(devices=None if devices == "auto" else int(devices))
    job_verb(act, jobs, "scale", body=wanted)
