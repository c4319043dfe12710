"""Elastic work that runs gives back what it has above its least, before anything is suspended.

That was free when it got it, and is lent: also to work of its own rank, but for ranks with a
promise, in which a narrow stretch counts as a part of the time only. It takes no save, so that the
devices are free at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice

from onefleet.core.index import Home
from onefleet.core.ordering import STANDARD
from onefleet.core.plan import Resize, applied
from onefleet.core.scratch import Scratch
from onefleet.core.steps.resize import dealt, devices_of
from onefleet.domain.ids import NodeId
from onefleet.domain.work import Slot, Work

#: Nodes that are tried, those with the fewest such works first.
NODES_TRIED = 16


def narrow_for(this: Scratch, work: Work, rank: int, home: Home | None) -> list[Resize]:
    """What makes elastic works narrower so that it fits now; nothing when that does not suffice.

    rank: of the waiting work. home: where it may go on; None: anywhere.
    """
    for lenders in islice(_groups(this, work, rank, home), NODES_TRIED):
        mark = this.index.mark()
        found = _enough(this, work, home, lenders)
        this.index.rollback(mark)
        if found:
            return found
    return []


def _groups(this: Scratch, work: Work, rank: int, home: Home | None) -> Iterator[list[Work]]:
    """Works that could together make room: those on one node, or all for a gang."""
    roster, least_rank = this.index.roster, rank if rank >= STANDARD else rank + 1
    lenders = [this.works[name] for name in roster.errands.lenders if name not in this.touched]
    able = [
        lender
        for lender in lenders
        if roster.ranks[lender.id] >= least_rank and lender.demand.kind is work.demand.kind
    ]
    able.sort(key=lambda lender: (-roster.ranks[lender.id], -lender.phase_since, lender.id))
    if home is None or home.kin is not None:
        on: dict[NodeId, list[Work]] = {}
        for lender in able:
            for node_id in dict.fromkeys(slot.node_id for slot in lender.placement):
                on.setdefault(node_id, []).append(lender)
        yield from (on[node_id] for node_id in sorted(on, key=lambda name: (len(on[name]), name)))
    if able and (home is not None or work.demand.workers > 1):
        yield able


def _enough(this: Scratch, work: Work, home: Home | None, lenders: Sequence[Work]) -> list[Resize]:
    """The first of them at their least, but the last no narrower than needed. Leaves traces."""

    def fits(lender: Work, placement: tuple[Slot, ...]) -> bool:
        change = Resize(lender.id, placement, reason, work.id)
        this.index.put(applied(lender, change, this.now))
        return this.capacity.fit(work.demand, home, spares=spares) is not None

    found, spares = list[Resize](), this.index.fleet.spares.are_for(work)
    reason = f"lends {work.id} ({work.tier}) what it has above its least"
    for lender in lenders:
        held = len(devices_of(lender))
        fewer = range(held - 1, lender.demand.least - 1, -1)
        widths = [dealt(this, lender, width) for width in fewer]
        narrowest = widths[-1]
        if _width(narrowest) >= held:
            continue
        if not fits(lender, narrowest):
            found.append(Resize(lender.id, narrowest, reason, work.id))
            continue
        at = bisect_left(widths, True, key=lambda placement: fits(lender, placement))
        return [*found, Resize(lender.id, widths[at], reason, work.id)]
    return []


def _width(placement: tuple[Slot, ...]) -> int:
    return len({device for slot in placement for device in slot.devices})
