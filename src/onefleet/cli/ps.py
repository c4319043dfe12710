"""``onefleet ps``: jobs and what they do."""

from __future__ import annotations

from collections.abc import Sequence

import click

from onefleet.cli.kinds import JOB
from onefleet.cli.options import Reading, reading
from onefleet.wire.api import JobView, Page


@click.command()
@click.option("--running", is_flag=True, help="Leave out jobs that have ended.")
@reading
def ps(view: Reading, running: bool) -> None:
    """Jobs, oldest first: where they are, what they hold, how they ended."""

    def fetch() -> Sequence[JobView]:
        jobs = view.pool.get("/api/v1/jobs", Page[JobView]).data
        return [j for j in jobs if j.outcome is None] if running else jobs

    view.many(JOB, fetch)
