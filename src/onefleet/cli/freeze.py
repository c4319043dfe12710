"""``onefleet freeze``: one verb on jobs."""

from __future__ import annotations

import click

from onefleet.cli.job_verb import job_verb, waits
from onefleet.cli.options import Acting, acting


@click.command()
@click.argument("jobs", metavar="JOB|ARRAY...", nargs=-1, required=True)
@waits
@acting
def freeze(act: Acting, jobs: tuple[str, ...], wait_s: float | None) -> None:
    """Let a job stand still: its devices are free at once, its memory stays where it is."""
    job_verb(act, jobs, "freeze", wait_s)
