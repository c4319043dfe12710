"""Who goes first: the ranks, and what a reservation covers.

Rank 0 is premium work inside its tenant's reservation, then follow premium, standard below its
promise, standard and basic. Work may take devices only from a higher rank, so that a reservation
can always be called in, also from premium work that had borrowed it.

Inside a rank goes first what has had the least device time, on a scale of doublings (its level);
so short work ends soon though nobody knows what is short. It may take devices from a job of its
rank that has had at least twice as much. On one level the tenant that holds the fewest devices goes
first, and of its works the one submitted first (`index/lines.py`). After 2D-LAS with queues of
doubling thresholds (Gu et al., "Tiresias", NSDI 2019).
"""

from __future__ import annotations

from collections.abc import Iterable

from onefleet.core.ledger import held_milli, served_ms
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot, devices_held
from onefleet.domain.ids import Instant, TenantId, WorkId
from onefleet.domain.tenancy import Reservation
from onefleet.domain.tiers import Tier
from onefleet.domain.work import WHOLE, Phase, Want, Work, WorkKind

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


def level_of(work: Work, now: Instant, policy: Policy) -> int:
    """How often the device time that it has had has doubled, from the policy's least on."""
    return level_at(served_ms(work, now), policy)


def next_level_at(work: Work, now: Instant, policy: Policy, above: int = 0) -> Instant | None:
    """When running work gets to its next level, and to one above this; None when it never does."""
    milli = held_milli(work)
    if work.phase is not Phase.RUNNING or not milli:
        return None
    had = served_ms(work, now)
    level = max(level_at(had, policy), above)
    left = (policy.level_ms << level) - had
    return Instant(max(now, work.accounted_until) + -(-left * WHOLE // milli))


def level_at(device_ms: int, policy: Policy) -> int:
    """The level of who has had so much device time."""
    return (device_ms // policy.level_ms).bit_length()


def loss_device_ms(work: Work, policy: Policy) -> int:
    """Device-milliseconds that it costs to move the work away and bring it back."""
    if work.kind is WorkKind.REPLICA:
        return policy.replica_start_ms * devices_held(work)
    image_bytes = 0 if work.image is None else work.image.size_bytes
    state_bytes = max(image_bytes, work.demand.memory_bytes * work.demand.workers)
    once_ms = policy.save_fixed_ms + state_bytes // max(policy.save_bytes_per_ms, 1)
    return 2 * once_ms * devices_held(work)


def gives_way(work: Work) -> bool:
    """Whether running work lets go before it what is of its rank and has had less.

    A replica does not: it never ends. Nor does premium work that was promised its devices.
    """
    return work.kind is WorkKind.JOB and not (work.tier is Tier.PREMIUM and work.promised)


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
