"""What was to be saved to make room, and has not been: for whom, and by when that has to end."""

from __future__ import annotations

from collections.abc import Mapping

from onefleet.core.ordering import RESERVED
from onefleet.core.overdue import back_by, owes
from onefleet.domain.ids import Instant, ReservationId, TenantId, WorkId
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.work import Phase, Work


class Debts:
    """works, ranks, tenants, reservations: as they are by now.

    owing: what could not be saved, and for whom. doubted: what is being saved, and could not be
    when that was last tried.
    """

    def __init__(
        self,
        works: Mapping[WorkId, Work],
        ranks: Mapping[WorkId, int],
        tenants: Mapping[TenantId, Tenant],
        reservations: Mapping[ReservationId, Reservation],
    ) -> None:
        self._works = works
        self._ranks = ranks
        self._tenants = tenants
        self._reservations = reservations
        self._now = Instant(0)
        self.owing: dict[WorkId, WorkId] = {}
        self.doubted: dict[WorkId, None] = {}

    def advance(self, now: Instant) -> None:
        """Time has passed."""
        self._now = now

    def enter(self, work: Work) -> None:
        """The work is now like this."""
        if not work.saves_failed:
            return
        creditor = owes(work)
        if creditor is not None:
            self.owing[work.id] = creditor
        if work.phase is Phase.SAVING:
            self.doubted[work.id] = None

    def leave(self, work: Work) -> None:
        """The work is no more like this."""
        self.owing.pop(work.id, None)
        self.doubted.pop(work.id, None)

    def of(self, creditor: WorkId) -> list[Work]:
        """What owes to this work."""
        return [self._works[name] for name, to in self.owing.items() if to == creditor]

    def is_tried_for(self, waiting: WorkId) -> bool:
        """Whether something is being saved for it that could not be when that was last tried."""
        doubted = (self._works[name] for name in self.doubted)
        return any(work.receipts and work.receipts[-1].by == waiting for work in doubted)

    def back_by(self, work: Work) -> Instant | None:
        """By when it has to give back what it owes (`overdue.py`)."""
        reservations = self._reservations.values()
        return back_by(work, self._works, reservations, self._tenants, self._now)

    def called_in_at(self, work: Work) -> Instant | None:
        """The same, if a reservation covers what it owes that to."""
        covered = self._ranks.get(self.owing.get(work.id, WorkId(""))) == RESERVED
        return self.back_by(work) if covered else None
