"""Who goes first: the ranks, and what a reservation covers.

Rank 0 is premium work inside its tenant's reservation, then follow premium, standard below its
promise, standard and basic. Work may take devices only from a higher rank, so that a reservation
can always be called in, also from premium work that had borrowed it. Inside a rank the tenant that
holds the fewest devices goes first, and of its works the one submitted first (`index/lines.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from onefleet.core.snapshot import Snapshot, devices_held
from onefleet.domain.ids import TenantId, WorkId
from onefleet.domain.tenancy import Reservation
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Phase, Want, Work

RESERVED, PREMIUM, BEHIND, STANDARD, BASIC = range(5)
RANK_NAMES = (
    "premium within its reservation",
    "premium",
    "standard below its promise",
    "standard",
    "basic",
)
_BY_TIER = {Tier.PREMIUM: PREMIUM, Tier.STANDARD: STANDARD, Tier.BASIC: BASIC}


def rank_of(work: Work) -> int:
    """The rank of a work by its tier alone."""
    return _BY_TIER[work.tier]


def is_claimant(work: Work) -> bool:
    """Whether a reservation may cover it: premium work that has or wants devices."""
    if work.tier is not Tier.PREMIUM or work.phase is Phase.ENDED:
        return False
    return work.phase.holds_devices or work.want is Want.RUN


def covered(reservations: Iterable[Reservation], claimants: Iterable[Work]) -> list[WorkId]:
    """Which of a tenant's premium works its reservations cover: first what holds devices."""
    found: dict[WorkId, None] = {}
    line = sorted(claimants, key=lambda w: (not w.phase.holds_devices, w.submitted_at, w.id))
    for reservation in reservations:
        left = reservation.devices
        for work in line:
            if left <= 0:
                break
            needed = devices_held(work) or work.demand.least
            if work.demand.kind is reservation.kind and needed <= left and work.id not in found:
                left -= needed
                found[work.id] = None
    return list(found)


def ranks(snapshot: Snapshot) -> dict[WorkId, int]:
    """The rank of every work that has not ended."""
    result = {w.id: rank_of(w) for w in snapshot.works.values() if w.phase is not Phase.ENDED}
    claimants: dict[TenantId, list[Work]] = {}
    for work in snapshot.works.values():
        if is_claimant(work):
            claimants.setdefault(work.tenant_id, []).append(work)
    reservations: dict[TenantId, list[Reservation]] = {}
    for reservation in snapshot.reservations.values():
        reservations.setdefault(reservation.tenant_id, []).append(reservation)
    for tenant_id, own in reservations.items():
        for work_id in covered(own, claimants.get(tenant_id, ())):
            result[work_id] = RESERVED
    return result
