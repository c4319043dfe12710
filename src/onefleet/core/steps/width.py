"""How wide elastic work runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onefleet.core.plan import Place
from onefleet.core.scratch import Scratch
from onefleet.core.steps.resize import dealt
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import WorkId


def widen(this: Scratch, contended: Mapping[DeviceKind, Sequence[WorkId]]) -> None:
    """Let elastic work that was placed in this pass have what nobody else waits for."""
    widened = 0
    for work_id, (number, before) in this.placed.items():
        decision, demand = this.decisions[number], before.demand
        assert isinstance(decision, Place)
        if not demand.is_elastic or contended.get(demand.kind):
            continue
        if demand.pack > 1:
            wider = dealt(this, this.works[work_id], before.width or demand.most)
        else:
            wider = this.capacity.widen(decision.placement, demand)
        if wider != decision.placement:
            this.replace(number, Place(work_id, wider, decision.restore), before)
            widened += 1
    this.report("widen", f"{widened} elastic works got more than their minimum")
