"""``onefleet cancel``: one verb on one job."""

from __future__ import annotations

import click

from onefleet.cli.job_verb import job_verb
from onefleet.cli.options import Acting, acting


@click.command()
@click.argument("job")
@click.option("--wait", is_flag=True, help="Return when it has happened.")
@click.option("--timeout", type=float, default=60.0, metavar="S", help="With --wait: how long.")
@acting
def cancel(act: Acting, job: str, wait: bool, timeout: float) -> None:
    """End a job: its processes are asked to leave, then killed."""
    job_verb(act, job, "cancel", timeout if wait else None)
