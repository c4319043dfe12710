"""Victims that stand still instead of being saved, where their memory is not in the way.

That takes no time, and if room is needed for a short while only, neither does going on again. What
stands still for long is saved after all (`frozen.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from onefleet.core.index import Home
from onefleet.core.plan import Freeze, applied
from onefleet.core.scratch import Scratch
from onefleet.domain.fleet import CheckpointMode, DeviceKind
from onefleet.domain.work import Work, WorkKind


def freeze_for(
    this: Scratch,
    work: Work,
    home: Home | None,
    victims: Sequence[Work],
    reasons: Sequence[str],
) -> list[Freeze]:
    """What lets them stand still, so that the work fits now; nothing when it would not.

    home: where the work may go on; None: anywhere. reasons: why each victim stands still.
    """
    if not work.demand.memory_bytes or not all(_may_stand_still(this, v) for v in victims):
        return []
    found = [Freeze(v.id, why, work.id) for v, why in zip(victims, reasons, strict=True)]
    mark = this.index.mark()
    for victim, freeze in zip(victims, found, strict=True):
        this.index.put(applied(victim, freeze, this.now))
    spares = this.index.fleet.spares.are_for(work)
    fits = this.capacity.fit(work.demand, home, spares=spares) is not None
    this.index.rollback(mark)
    return found if fits else []


def _may_stand_still(this: Scratch, victim: Work) -> bool:
    """Whether its memory is known, and stays in the node's and not on a device."""
    if victim.kind is not WorkKind.JOB or victim.demand.kind is not DeviceKind.CPU:
        return False
    on = (this.index.fleet.nodes.get(slot.node_id) for slot in victim.placement)
    saves = all(node and node.checkpoint_mode is CheckpointMode.CRIU for node in on)
    return saves and victim.demand.memory_bytes > 0
