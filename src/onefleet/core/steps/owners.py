"""What owners want of their works, whoever waits."""

from __future__ import annotations

from onefleet.core.plan import Freeze, Stop, Suspend
from onefleet.core.scratch import Scratch
from onefleet.core.steps.frozen import is_drained
from onefleet.domain.work import Want, WorkKind


def stop(this: Scratch) -> None:
    """Stop what its owner wants stopped."""
    stopped = sorted(this.index.roster.to_stop)
    for work_id in stopped:
        this.decide(Stop(work_id, "its owner wants it stopped"))
    this.report("stop", f"{len(stopped)} works stopped for their owners")


def suspend(this: Scratch) -> None:
    """Suspend or freeze what its owner wants so."""
    suspended, frozen, cannot = 0, 0, 0
    for work_id in sorted(this.index.roster.to_pause):
        work = this.works[work_id]
        can_save = work.suspendable and work.not_before <= this.now
        if work.want is Want.SUSPEND and can_save:
            this.decide(Suspend(work.id, "its owner wants it suspended"))
            suspended += 1
        elif work.want is Want.FREEZE and can_save and is_drained(this, work):
            this.decide(Suspend(work.id, "its owner wants it to stand still, its node is drained"))
            suspended += 1
        elif work.want is Want.FREEZE and work.kind is WorkKind.JOB:
            this.decide(Freeze(work.id, "its owner wants it to stand still"))
            frozen += 1
        else:
            cannot += 1
    text = f"{suspended} works suspended for their owners"
    text += f", {frozen} frozen" if frozen else ""
    this.report("suspend", text + (f", {cannot} cannot be saved now" if cannot else ""))
