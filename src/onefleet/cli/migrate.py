"""``onefleet migrate``: move a job, running or not, to another node."""

from __future__ import annotations

import click

from onefleet.cli.job_verb import get_job
from onefleet.cli.kinds import JOB
from onefleet.cli.options import Acting, acting
from onefleet.cli.times import Number
from onefleet.cli.waiting import wait_until
from onefleet.wire.api import JobView, MigrateJob
from onefleet.wire.client import segment


@click.command()
@click.argument("job")
@click.option("--to", metavar="NODE", required=True, help="Id or name of the node.")
@click.option("--wait", is_flag=True, help="Return when it runs there.")
@click.option("--timeout", type=Number(0), default=60.0, metavar="S", help="With --wait: how long.")
@acting
def migrate(act: Acting, job: str, to: str, wait: bool, timeout: float) -> None:
    """Move a job to another node: it is saved here and goes on there, where it stood."""
    moved = act.pool.post(f"/api/v1/jobs/{segment(job)}/migrate", MigrateJob(node=to), JobView)
    if wait:
        moved = wait_until(
            lambda: get_job(act.pool, moved.id),
            lambda now: now.phase == "ended" or (now.phase == "running" and not now.moving_to),
            lambda now: f"{now.name} to run on {to}; it is {now.phase}: {now.reason}",
            timeout,
            hint=f"onefleet why {moved.id}",
        )
    act.done(JOB, moved)
