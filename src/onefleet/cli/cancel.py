"""``onefleet cancel``: one verb on jobs."""

from __future__ import annotations

import click

from onefleet.cli.job_verb import job_verb, waits
from onefleet.cli.options import Acting, acting


@click.command()
@click.argument("jobs", metavar="JOB|ARRAY...", nargs=-1, required=True)
@waits
@acting
def cancel(act: Acting, jobs: tuple[str, ...], wait_s: float | None) -> None:
    """End a job, or all of an array: its processes are asked to leave, then killed."""
    job_verb(act, jobs, "cancel", wait_s)
