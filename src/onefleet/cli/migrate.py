"""``onefleet migrate``: move jobs, running or not, to another node."""

from __future__ import annotations

import click

from onefleet.cli.job_verb import job_verb, waits
from onefleet.cli.options import Acting, acting
from onefleet.wire.api import MigrateJob


@click.command()
@click.argument("jobs", metavar="JOB|ARRAY...", nargs=-1, required=True)
@click.option("--to", metavar="NODE", required=True, help="Id or name of the node.")
@waits
@acting
def migrate(act: Acting, jobs: tuple[str, ...], to: str, wait_s: float | None) -> None:
    """Move a job to another node: it is saved here and goes on there, where it stood.

    One that you suspended or froze goes on there when you resume it.
    """
    job_verb(act, jobs, "migrate", wait_s, MigrateJob(node=to))
