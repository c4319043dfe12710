"""``onefleet resume``: one verb on jobs."""

from __future__ import annotations

import click

from onefleet.cli.job_verb import job_verb, waits
from onefleet.cli.options import Acting, acting


@click.command()
@click.argument("jobs", metavar="JOB|ARRAY...", nargs=-1, required=True)
@waits
@acting
def resume(act: Acting, jobs: tuple[str, ...], wait_s: float | None) -> None:
    """Let a suspended or frozen job go on exactly where it was, once there is a device for it."""
    job_verb(act, jobs, "resume", wait_s)
