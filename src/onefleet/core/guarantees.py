"""What work that cannot be suspended must leave alone: devices that are guaranteed to others.

Reservations are lent while they are idle, because what borrows from them can be suspended. A job
that cannot be would keep its devices until it ends. So it gets none that a reservation has now, or
will have, when its window opens, before the job ends; nobody knows when a job without an estimate
ends. The premium work of whoever holds the reservation is exempt: it is what the devices are for.

Devices are counted by product. Such a job starts only where enough are left for all reservations,
beside those that other such jobs hold.
"""

from __future__ import annotations

from onefleet.core.capacity import Shy
from onefleet.core.index import Index
from onefleet.core.index.errands import Fixed
from onefleet.core.lifecycle import progress_ms
from onefleet.core.promise import Load, capacity, holds, lineage, moments, unmet
from onefleet.domain.ids import Instant, TenantId
from onefleet.domain.tenancy import Reservation
from onefleet.domain.tiers import Tier
from onefleet.domain.work import WHOLE, Work, WorkKind


class Guarantees:
    """Of one pass. What was found out holds until another such job is placed."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._known: dict[object, tuple[str, ...]] = {}
        self._fixed: dict[Fixed, int] = {}

    def shy(self, work: Work) -> Shy | None:
        """The nodes that the work has to leave alone; None: it need not."""
        products = self.products(work)
        if not products:
            return None
        kind = work.demand.kind
        return lambda room: kind in room.kinds and room.kinds[kind].bay.product in products

    def products(self, work: Work) -> tuple[str, ...]:
        """The products that it has to leave alone; with them nodes of several, which are ""."""
        if work.suspendable or work.kind is WorkKind.REPLICA or not self._index.reservations:
            return ()
        fixed = self._index.roster.errands.fixed
        if fixed != self._fixed:
            self._known.clear()
            self._fixed = dict(fixed)
        left_ms = _left_ms(work)
        tenant = work.tenant_id if work.tier is Tier.PREMIUM else None
        key = (work.demand, tenant, left_ms)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._products(work, left_ms)
        return found

    def _products(self, work: Work, left_ms: int | None) -> tuple[str, ...]:
        index, kind = self._index, work.demand.kind
        room = capacity(index.stock, kind)
        for (of, product, _), milli in index.roster.errands.fixed.items():
            if of is kind and product in room:
                room[product] = max(room[product] - milli, 0)
        size = work.demand.least * work.demand.milli
        barred: dict[str, None] = {}
        for at in moments(index.reservations.values(), index.now):
            if left_ms is not None and at >= index.now + left_ms:
                break
            loads = [load for r in self._needed(work, at) if (load := self._load(r)).milli]
            short = unmet(loads, room)
            for product, milli in room.items():
                less = {**room, product: max(milli - size, 0)}
                if unmet(loads, less) > short:
                    barred[product] = None
        return (*barred, "") if barred else ()

    def _needed(self, work: Work, at: Instant) -> list[Reservation]:
        """The reservations of others that are open at a time."""
        own: list[TenantId] = []
        if work.tier is Tier.PREMIUM:
            own = lineage(work.tenant_id, self._index.tenants)
        kind = work.demand.kind
        return [
            r
            for _, r in sorted(self._index.reservations.items())
            if r.kind is kind and r.tenant_id not in own and holds(r, at)
        ]

    def _load(self, reservation: Reservation) -> Load:
        """What it needs besides what its own premium work of this sort holds already."""
        held = 0
        for (kind, product, tenant_id), milli in self._index.roster.errands.fixed.items():
            own = tenant_id and reservation.tenant_id in lineage(tenant_id, self._index.tenants)
            if own and kind is reservation.kind and reservation.product in ("", product):
                held += milli
        classes = (reservation.product,) if reservation.product else ()
        return Load(reservation.kind, classes, max(reservation.devices * WHOLE - held, 0))


def _left_ms(work: Work) -> int | None:
    """For how long it will run yet, as its owner believes; None: nobody knows."""
    estimate_ms = work.terms.estimate_ms
    return None if estimate_ms is None else max(estimate_ms - progress_ms(work), 1)
