"""What could not be saved in time, for whom a reservation guarantees its devices, is ended."""

from __future__ import annotations

from collections.abc import Sequence

from onefleet.core.ordering import RESERVED
from onefleet.core.plan import Stop, applied
from onefleet.core.preemption import NONE
from onefleet.core.scratch import Scratch
from onefleet.domain.ids import Instant, WorkId
from onefleet.domain.work import Work


def call_in(this: Scratch) -> None:
    """End what has had its time to give back what it was lent, if that is needed, and helps."""
    index, chosen = this.index, list[Stop]()
    index.settle()
    mark = index.mark()
    for creditor, overdue in _overdue(this).items():
        chosen += _enough(this, this.works[creditor], [work for _, work in overdue])
    index.rollback(mark)
    for stop in chosen:
        this.decide(stop)
    this.report("call in", f"{len(chosen)} works ended that could not be saved in time")


def _overdue(this: Scratch) -> dict[WorkId, list[tuple[Instant, WorkId]]]:
    """What may be ended by now, for whom: the longest overdue first."""
    debts = this.index.roster.debts
    found: dict[WorkId, list[tuple[Instant, WorkId]]] = {}
    for work_id, creditor in sorted(debts.owing.items()):
        due = debts.called_in_at(this.works[work_id])
        if due is not None and due <= this.now and work_id not in this.touched:
            found.setdefault(creditor, []).append((due, work_id))
    return {creditor: sorted(found[creditor]) for creditor in sorted(found)}


def _enough(this: Scratch, waiting: Work, overdue: Sequence[WorkId]) -> list[Stop]:
    """The first of them, without which the work finds its place; none when they do not suffice.

    They are gone from the index then, and what the work needs of what is free or leaving is kept
    there: until the caller rolls back.
    """
    index, capacity, stops = this.index, this.capacity, list[Stop]()
    home, spares = index.roster.home_of(waiting), index.fleet.spares.are_for(waiting)
    before = [this.works[work_id] for work_id in overdue]
    for work in (*before, None):
        fitting = capacity.fit(waiting.demand, home, spares=spares)
        fitting = fitting or capacity.fit_soon(waiting.demand, home, spares=spares)
        if fitting:
            capacity.keep(waiting.demand, fitting)
            return stops
        if work is not None:
            reason = f"could not be saved in time, and {waiting.id} has its devices now"
            stops.append(Stop(work.id, reason, waiting.id))
            index.put(applied(work, stops[-1], this.now))
    if this.victims.choose(waiting, RESERVED, home, NONE):
        return stops
    for work in before:
        index.put(work)
    return []
