"""``onefleet checkpoint``: one verb on jobs."""

from __future__ import annotations

import click

from onefleet.cli.job_verb import job_verb, waits
from onefleet.cli.options import Acting, acting


@click.command()
@click.argument("jobs", metavar="JOB|ARRAY...", nargs=-1, required=True)
@waits
@acting
def checkpoint(act: Acting, jobs: tuple[str, ...], wait_s: float | None) -> None:
    """Save a job's state while it runs on, so that a failure loses nothing before now."""
    job_verb(act, jobs, "checkpoint", wait_s)
