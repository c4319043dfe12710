"""``onefleet ps``: jobs and what they do."""

from __future__ import annotations

from collections.abc import Sequence

import click

from onefleet.cli.kinds import JOB
from onefleet.cli.options import Reading, reading
from onefleet.wire.api import JobView, Page


@click.command()
@click.option("--running", is_flag=True, help="Leave out jobs that have ended.")
@click.option("--array", metavar="NAME", help="Only the elements of this array.")
@reading
def ps(view: Reading, running: bool, array: str | None) -> None:
    """Jobs, oldest first: where they are, what they hold, how they ended."""

    def fetch() -> Sequence[JobView]:
        jobs = view.pool.get("/api/v1/jobs", Page[JobView]).data
        live = [j for j in jobs if j.outcome is None] if running else jobs
        return live if array is None else [j for j in live if j.array == array]

    view.many(JOB, fetch)
