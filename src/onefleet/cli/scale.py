"""``onefleet scale``: give a job more or fewer devices while it runs."""

from __future__ import annotations

import click

from onefleet.cli.kinds import JOB
from onefleet.cli.options import Acting, acting
from onefleet.wire.api import JobView, ScaleJob
from onefleet.wire.client import segment


@click.command()
@click.argument("job")
@click.argument("devices", metavar="N|auto")
@acting
def scale(act: Acting, job: str, devices: str) -> None:
    """Run a job on N devices; auto: as many as there are for it.

    The program sees the same number of workers and threads whatever its size: workers move onto
    fewer devices and take turns, or spread out again.
    """
    if devices != "auto" and not devices.isdigit():
        raise click.BadParameter(f"{devices!r} is neither a number nor auto", param_hint="N|auto")
    wanted = ScaleJob(devices=None if devices == "auto" else int(devices))
    act.done(JOB, act.pool.post(f"/api/v1/jobs/{segment(job)}/scale", wanted, JobView))
