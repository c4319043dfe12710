"""Which premium works are covered by reservations, kept up to date.

A reservation covers premium work of its tenant and of the tenants below it, in its window. Tenants
under one root are looked at together, and only anew when something of theirs has changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from onefleet.core.ordering import covered, is_claimant
from onefleet.core.promise import holds, lineage
from onefleet.domain.ids import Instant, ReservationId, TenantId, WorkId
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.work import Work


class Coverage:
    """works, tenants, reservations: as they are by now."""

    def __init__(
        self,
        works: Mapping[WorkId, Work],
        tenants: Mapping[TenantId, Tenant],
        reservations: Mapping[ReservationId, Reservation],
    ) -> None:
        self._works = works
        self._tenants = tenants
        self._reservations = reservations
        self._now = Instant(0)
        self._roots: dict[WorkId, TenantId] = {}  # of claimants
        self._claimants: dict[TenantId, dict[WorkId, None]] = {}  # by root
        self._covered: dict[TenantId, dict[WorkId, None]] = {}  # by root
        self._stale: dict[TenantId, None] = {}
        self._in_window: dict[ReservationId, bool] = {}  # of those that have one

    def covers(self, work_id: WorkId) -> bool:
        """Whether a reservation covers it, as of the last `settle`."""
        root = self._roots.get(work_id)
        return root is not None and work_id in self._covered.get(root, ())

    def enter(self, work: Work) -> None:
        """The work is now like this."""
        if is_claimant(work):
            root = self._roots[work.id] = self._root(work.tenant_id)
            self._claimants.setdefault(root, {})[work.id] = None
            self._stale[root] = None

    def leave(self, work: Work) -> None:
        """The work is no more like this. What covered it is known until the next `settle`."""
        if is_claimant(work):
            root = self._roots[work.id]
            del self._claimants[root][work.id]
            self._stale[root] = None

    def forget(self, work_id: WorkId) -> None:
        """There is no such work any more."""
        self._roots.pop(work_id, None)

    def look_at(self, reservation: Reservation) -> None:
        """A reservation came, changed or went."""
        self._stale[self._root(reservation.tenant_id)] = None
        self._in_window.pop(reservation.id, None)
        has_window = reservation.starts_at is not None or reservation.ends_at is not None
        if has_window and reservation.id in self._reservations:
            self._in_window[reservation.id] = holds(reservation, self._now)

    def regroup(self) -> None:
        """Tenants are below others than before."""
        for claimants in self._claimants.values():
            claimants.clear()
        for work_id in tuple(self._roots):
            self._stale[self._roots[work_id]] = None
            work = self._works.get(work_id)
            if work is not None:
                self.enter(work)
        for reservation in self._reservations.values():
            self._stale[self._root(reservation.tenant_id)] = None

    def advance(self, now: Instant) -> None:
        """Time has passed: windows open and close."""
        self._now = now
        for name, before in self._in_window.items():
            reservation = self._reservations[name]
            if holds(reservation, now) != before:
                self._in_window[name] = not before
                self._stale[self._root(reservation.tenant_id)] = None

    def settle(self) -> tuple[WorkId, ...]:
        """Cover anew where something has changed; return the works for which it may matter."""
        if not self._stale:
            return ()
        roots, self._stale = self._stale, {}
        own: dict[TenantId, list[Reservation]] = {root: [] for root in roots}
        for name in sorted(self._reservations):
            reservation = self._reservations[name]
            root = self._root(reservation.tenant_id)
            if root in own and holds(reservation, self._now):
                own[root].append(reservation)
        touched: dict[WorkId, None] = {}
        for root, reservations in own.items():
            touched.update(self._covered.pop(root, {}))
            claimants = self._claimants.get(root, {}) if reservations else {}
            works = [self._works[work_id] for work_id in claimants]
            found = dict.fromkeys(covered(reservations, works, self._tenants))
            if found:
                self._covered[root] = found
                touched.update(found)
        return tuple(touched)

    def _root(self, tenant_id: TenantId) -> TenantId:
        return lineage(tenant_id, self._tenants)[-1]
