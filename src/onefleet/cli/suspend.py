"""``onefleet suspend``: one verb on jobs."""

from __future__ import annotations

import click

from onefleet.cli.job_verb import job_verb, waits
from onefleet.cli.options import Acting, acting


@click.command()
@click.argument("jobs", metavar="JOB|ARRAY...", nargs=-1, required=True)
@waits
@acting
def suspend(act: Acting, jobs: tuple[str, ...], wait_s: float | None) -> None:
    """Save a job's state and free its memory and devices; it stays so until you resume it."""
    job_verb(act, jobs, "suspend", wait_s)
