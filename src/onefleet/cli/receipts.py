"""``onefleet receipts``: each time that a job had to give way, or was lost, and what it cost."""

from __future__ import annotations

import click

from onefleet.cli.kinds import RECEIPT
from onefleet.cli.options import Reading, reading
from onefleet.wire.api import Page, ReceiptView
from onefleet.wire.client import segment


@click.command()
@click.argument("job")
@reading
def receipts(view: Reading, job: str) -> None:
    """Each time that a job had to give way or was lost: to whom, why, at what cost, till when."""
    path = f"/api/v1/jobs/{segment(job)}/receipts"
    view.many(RECEIPT, lambda: view.pool.get(path, Page[ReceiptView]).data)
