"""What owners want of their works, whoever waits."""

from __future__ import annotations

from onefleet.core.plan import Stop, Suspend
from onefleet.core.scratch import Scratch


def stop(this: Scratch) -> None:
    """Stop what its owner wants stopped."""
    stopped = sorted(this.index.roster.to_stop)
    for work_id in stopped:
        this.decide(Stop(work_id, "its owner wants it stopped"))
    this.report("stop", f"{len(stopped)} works stopped for their owners")


def suspend(this: Scratch) -> None:
    """Suspend what its owner wants suspended."""
    suspended, cannot = 0, 0
    for work_id in sorted(this.index.roster.to_pause):
        work = this.works[work_id]
        if work.suspendable and work.not_before <= this.now:
            this.decide(Suspend(work.id, "its owner wants it suspended"))
            suspended += 1
        else:
            cannot += 1
    text = f"{suspended} works suspended for their owners"
    this.report("suspend", text + (f", {cannot} cannot be saved now" if cannot else ""))
