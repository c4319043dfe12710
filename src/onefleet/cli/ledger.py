"""``onefleet ledger``: what was promised to jobs, and how it is kept."""

from __future__ import annotations

import click

from onefleet.cli.kinds import LEDGER
from onefleet.cli.options import Reading, reading
from onefleet.wire.api import LedgerView, Page
from onefleet.wire.client import segment


@click.command()
@click.argument("job", required=False)
@reading
def ledger(view: Reading, job: str | None) -> None:
    """The device fraction that each job was promised and what it got, over the last day.

    The fraction is the time that a job ran over the time that it wanted to. With JOB: that one, by
    the hour.
    """
    if job is None:
        view.many(LEDGER, lambda: view.pool.get("/api/v1/ledger", Page[LedgerView]).data)
    else:
        path = f"/api/v1/jobs/{segment(job)}/ledger"
        view.one(LEDGER, lambda: view.pool.get(path, LedgerView))
