"""What could not be saved in time, for whom a reservation guarantees its devices, is ended."""

from __future__ import annotations

from onefleet.core.ordering import RESERVED
from onefleet.core.plan import Stop
from onefleet.core.scratch import Scratch


def call_in(this: Scratch) -> None:
    """End what has had its time to give back what it was lent."""
    index, ended = this.index, 0
    index.settle()
    for work_id, creditor in sorted(index.roster.debts.owing.items()):
        due = index.roster.debts.back_by(this.works[work_id])
        if index.roster.ranks.get(creditor) != RESERVED or work_id in this.touched:
            continue
        if due is not None and due <= this.now:
            reason = f"could not be saved in time, and {creditor} has its devices now"
            this.decide(Stop(work_id, reason, creditor))
            ended += 1
    this.report("call in", f"{ended} works ended that could not be saved in time")
