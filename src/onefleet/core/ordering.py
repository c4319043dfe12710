"""Who goes first: ranks, and the order of the queue inside a rank.

Rank 0 is premium work inside its tenant's reservation, then follow premium, standard and basic.
Work may take devices only from a higher rank, so that a reservation can always be called in, also
from premium work that had borrowed it. Inside a rank the tenant that holds the fewest devices goes
first, and of its works the one submitted first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping

from onefleet.core.snapshot import Snapshot, devices_held
from onefleet.domain.ids import TenantId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Phase, Want, Work

#: The rank of work inside its tenant's reservation.
RESERVED = 0
RANK_NAMES = ("premium within its reservation", "premium", "standard", "basic")


def ranks(snapshot: Snapshot) -> dict[WorkId, int]:
    """The rank of every work that has not ended."""
    result = {
        work.id: work.tier.rank + 1
        for work in snapshot.works.values()
        if work.phase is not Phase.ENDED
    }
    for reservation in snapshot.reservations.values():
        left = reservation.devices
        for work in _premium(snapshot, reservation.tenant_id):
            needed = devices_held(work) or work.demand.workers * work.demand.devices_min
            if work.demand.kind is reservation.kind and needed <= left:
                left -= needed
                result[work.id] = RESERVED
    return result


class Queue:
    """The works of one rank, in the order in which they are looked at.

    The order depends on what tenants hold, which changes while the queue is worked off: call
    `granted` for each work that got (or will get) devices.
    """

    def __init__(self, works: Iterable[Work], held: dict[TenantId, int]) -> None:
        self._held = held
        self._lines: dict[TenantId, list[Work]] = {}
        for work in sorted(works, key=lambda w: (w.submitted_at, w.id), reverse=True):
            self._lines.setdefault(work.tenant_id, []).append(work)
        self._heads = [self._head(tenant_id) for tenant_id in self._lines]
        heapq.heapify(self._heads)

    def __iter__(self) -> Iterator[Work]:
        while self._heads:
            held, _, _, tenant_id = heapq.heappop(self._heads)
            if held == self._held.get(tenant_id, 0):
                yield self._lines[tenant_id].pop()
            if self._lines[tenant_id]:
                heapq.heappush(self._heads, self._head(tenant_id))

    def granted(self, work: Work, devices: int) -> None:
        self._held[work.tenant_id] = self._held.get(work.tenant_id, 0) + devices

    def _head(self, tenant_id: TenantId) -> tuple[int, int, WorkId, TenantId]:
        head = self._lines[tenant_id][-1]
        return (self._held.get(tenant_id, 0), head.submitted_at, head.id, tenant_id)


def held_by_tenant(works: Mapping[WorkId, Work]) -> dict[TenantId, int]:
    """Devices that each tenant holds now."""
    held: dict[TenantId, int] = {}
    for work in works.values():
        if work.placement:
            held[work.tenant_id] = held.get(work.tenant_id, 0) + devices_held(work)
    return held


def _premium(snapshot: Snapshot, tenant_id: TenantId) -> list[Work]:
    """The tenant's premium work that holds or wants devices, holders first."""
    works = [
        work
        for work in snapshot.works.values()
        if work.tenant_id == tenant_id
        and work.tier is Tier.PREMIUM
        and (work.phase.holds_devices or (work.want is Want.RUN and work.phase is not Phase.ENDED))
    ]
    return sorted(works, key=lambda w: (not w.phase.holds_devices, w.submitted_at, w.id))
