"""By when what was lent of a reservation has to be back.

Work that borrows is asked to leave by suspending it. The reservation says how soon its devices are
back. A save that is under way has no more time than that (its node breaks it off); what no save
could be made of by then is ended, and goes on from its last image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onefleet.core.lifecycle import RECEIPTS_KEPT
from onefleet.core.promise import holds, lineage
from onefleet.domain.ids import Instant, TenantId, WorkId
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.work import Phase, Want, Work


def owes(work: Work) -> WorkId | None:
    """The work for which it was last to be saved, and could not be."""
    if work.phase is not Phase.RUNNING or not work.saves_failed or not work.receipts:
        return None
    last = work.receipts[-1]
    was_saved = work.image is not None and work.image.saved_at >= last.at
    return None if was_saved else last.by


def within_ms(
    work: Work,
    reservations: Iterable[Reservation],
    tenants: Mapping[TenantId, Tenant],
    now: Instant,
) -> int | None:
    """How soon what was lent is back for this work, if a reservation covers it; None: none can."""
    line, kind = lineage(work.tenant_id, tenants), work.demand.kind
    open_ = (r for r in reservations if r.kind is kind and r.tenant_id in line and holds(r, now))
    return min((r.within_ms for r in open_), default=None)


def back_by(
    work: Work,
    works: Mapping[WorkId, Work],
    reservations: Iterable[Reservation],
    tenants: Mapping[TenantId, Tenant],
    now: Instant,
) -> Instant | None:
    """By when it has to give back what it owes to work that waits; None: to none that may call it
    in.

    The time runs from when it was first asked for this work, since that waits.
    """
    creditor = owes(work)
    waiting = None if creditor is None else works.get(creditor)
    if waiting is None or waiting.phase not in (Phase.PENDING, Phase.SUSPENDED):
        return None
    if waiting.want is not Want.RUN or not waiting.ready:
        return None
    left_ms = within_ms(waiting, reservations, tenants, now)
    if left_ms is None or work.receipts[-1].at < waiting.phase_since:
        return None  # it was asked before this, and not again
    return Instant(asked_at(work, waiting) + left_ms)


def asked_at(work: Work, waiting: Work) -> Instant:
    """When it was first asked to leave for the work that waits, as long as that has.

    Others may have asked in between. Where more was asked than is remembered: since that waits.
    """
    receipts = [receipt for receipt in work.receipts if receipt.at >= waiting.phase_since]
    if len(receipts) == RECEIPTS_KEPT:
        return waiting.phase_since
    return min(receipt.at for receipt in receipts if receipt.by == waiting.id)
