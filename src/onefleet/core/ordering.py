"""Who goes first: the ranks, and what a reservation covers.

Rank 0 is premium work inside its tenant's reservation, then follow premium that was promised its
devices, other premium, standard below its promise, standard and basic. Work may take devices only
from a higher rank, so that a reservation can always be called in, also from premium work that had
borrowed it.

Inside a rank goes first what has had the least device time, on a scale of powers (its level);
so short work ends soon though nobody knows what is short. It may take devices from a job of its
rank that is on more than twice as high a level. On one level the department, and then the team,
goes first that has used the least by its weight, and of its works the one submitted first; who is
far under its part goes before all others of the rank (`shares.py`, `index/lines.py`). After 2D-LAS
(Gu et al., "Tiresias", NSDI 2019), with thresholds that grow fourfold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onefleet.core.ledger import (
    HOUR_MS,
    fraction_permille,
    held_milli,
    served_ms,
    wanted_and_got,
    width_permille,
)
from onefleet.core.policy import Policy
from onefleet.core.promise import lineage
from onefleet.core.snapshot import devices_held
from onefleet.domain.fleet import CheckpointMode, DeviceKind, Node
from onefleet.domain.ids import Instant, NodeId, TenantId, WorkId
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import WHOLE, Phase, Want, Work, WorkKind

RESERVED, PROMISED, PREMIUM, BEHIND, STANDARD, BASIC = range(6)
RANK_NAMES = (
    "premium within its reservation",
    "promised premium",
    "premium",
    "standard below its promise",
    "standard",
    "basic",
)
TIERS = (Tier.PREMIUM,) * 3 + (Tier.STANDARD,) * 2 + (Tier.BASIC,)
#: Levels before all others of a rank, last first: of what lost its place and has spares for that
#: (`index/spares.py`), what would miss its deadline (`deadlines.py`), and what has had next to
#: nothing of its time (`starvation.py`).
STRANDED, URGENT, STARVED = -3, -2, -1
#: What counts as lost of work that has to save itself: a month.
MAY_LOSE_MS = 30 * 24 * HOUR_MS
_BY_TIER = {Tier.PREMIUM: PREMIUM, Tier.STANDARD: STANDARD, Tier.BASIC: BASIC}


def rank_of(work: Work, is_covered: bool, now: Instant, policy: Policy) -> int:
    """The rank of a work. is_covered: by a reservation."""
    if is_covered:
        return RESERVED
    if work.tier is Tier.PREMIUM and work.promised:
        return PROMISED
    return BEHIND if is_behind(work, now, policy) else _BY_TIER[work.tier]


def level_of(work: Work, now: Instant, policy: Policy) -> int:
    """How far the device time that it has had has grown, in steps of the policy's doublings."""
    return level_at(served_ms(work, now), policy)


def next_level_at(work: Work, now: Instant, policy: Policy) -> Instant | None:
    """When running work gets to its next level; None when it never does."""
    return reaches_at(work, level_of(work, now, policy) + 1, now, policy)


def reaches_at(work: Work, level: int, now: Instant, policy: Policy) -> Instant | None:
    """When running work gets to a level that is above its own; None when it never does."""
    return next(iter(rises_of(work, (level,), now, policy)), None)


def rises_of(work: Work, levels: Iterable[int], now: Instant, policy: Policy) -> Sequence[Instant]:
    """When running work gets to levels that are above its own; empty when it never does."""
    milli = held_milli(work)
    if work.phase is not Phase.RUNNING or not milli:
        return ()
    had_ms, since = served_ms(work, now), max(now, work.accounted_until)
    needed = ((policy.level_ms << (level - 1) * policy.level_doublings) for level in levels)
    return [Instant(since + -((had_ms - ms) * WHOLE // milli)) for ms in needed]


def level_at(device_ms: int, policy: Policy) -> int:
    """The level of who has had so much device time."""
    return -(-(device_ms // policy.level_ms).bit_length() // policy.level_doublings)


def loss_device_ms(work: Work, nodes: Iterable[Node | None], policy: Policy) -> int:
    """Device-milliseconds that it costs to move the work away and bring it back. nodes: its own.

    What has to save itself may lose what it did since it last did. Nobody knows how much that is,
    so it goes after all that is saved from outside.
    """
    if work.kind is WorkKind.REPLICA:
        return policy.replica_start_ms * devices_held(work)
    image_bytes = 0 if work.image is None else work.image.size_bytes
    state_bytes = max(image_bytes, work.demand.memory_bytes * work.demand.workers)
    once_ms = policy.save_fixed_ms + state_bytes // max(policy.save_bytes_per_ms, 1)
    may_lose = 0 if is_saved_from_outside(nodes) else MAY_LOSE_MS
    return (2 * once_ms + may_lose) * devices_held(work)


def gives_way_from(level: int) -> int:
    """The level from which on works of a rank give way to one of it that is on this level.

    It is more than twice as high, so that what is short soon has its turn, and what is long does
    not push aside what is hardly longer. What goes before all levels takes its turn from any.
    """
    return 2 * level + 1 if level >= 0 else level + 1


def gives_way(work: Work, nodes: Iterable[Node | None]) -> bool:
    """Whether running work lets go before it what is of its rank and has had less. nodes: its own.

    A replica does not: it never ends. Nor does premium work that was promised its devices, nor what
    has to save itself: if it cannot, it would begin anew each time.
    """
    if work.kind is WorkKind.REPLICA or (work.tier is Tier.PREMIUM and work.promised):
        return False
    return is_saved_from_outside(nodes)


def can_be_resized(work: Work, nodes: Mapping[NodeId, Node]) -> bool:
    """Whether elastic work can be made narrower and wider as it runs. nodes: the fleet's.

    Threads are bound to other cores. On other devices it has memory, which goes with it only where
    that is saved from outside.
    """
    own = (nodes.get(slot.node_id) for slot in work.placement)
    return work.demand.kind is DeviceKind.CPU or is_saved_from_outside(own)


def is_saved_from_outside(nodes: Iterable[Node | None]) -> bool:
    """Whether what runs on these nodes is saved as it is; elsewhere it has to save itself."""
    return all(node and node.checkpoint_mode is CheckpointMode.CRIU for node in nodes)


def is_claimant(work: Work) -> bool:
    """Whether a reservation may cover it: premium work that has or wants devices."""
    if work.tier is not Tier.PREMIUM or work.phase is Phase.ENDED:
        return False
    return work.phase.holds_devices or work.want is Want.RUN


def covered(
    reservations: Iterable[Reservation],
    claimants: Iterable[Work],
    tenants: Mapping[TenantId, Tenant],
) -> list[WorkId]:
    """Which premium works the reservations cover: first what holds devices, then by age.

    A work is covered by one of its tenant, else by one of a tenant above that, nearest first.
    """
    by_tenant: dict[TenantId, list[tuple[Reservation, int]]] = {}
    for reservation in reservations:
        by_tenant.setdefault(reservation.tenant_id, []).append((reservation, reservation.devices))
    found: list[WorkId] = []
    line = sorted(claimants, key=lambda w: (not w.phase.holds_devices, w.submitted_at, w.id))
    for work in line:
        needed = devices_held(work) or work.demand.least
        if _draw(work, needed, by_tenant, tenants):
            found.append(work.id)
    return found


def _draw(
    work: Work,
    needed: int,
    by_tenant: Mapping[TenantId, list[tuple[Reservation, int]]],
    tenants: Mapping[TenantId, Tenant],
) -> bool:
    """Take the devices from the first reservation that has them left for such work."""
    classes = [speed.product for speed in work.demand.speeds]
    for tenant_id in lineage(work.tenant_id, tenants):
        entries = by_tenant.get(tenant_id, [])
        for number, (reservation, left) in enumerate(entries):
            suits = not reservation.product or not classes or reservation.product in classes
            if reservation.kind is work.demand.kind and suits and needed <= left:
                entries[number] = (reservation, left - needed)
                return True
    return False


def is_behind(work: Work, now: Instant, policy: Policy) -> bool:
    """Whether standard work has had less than it was promised, over the policy's window.

    What runs is behind until it has had a margin more, so that it is not taken off at once.
    """
    if work.tier is not Tier.STANDARD or not _is_owed(work):
        return False
    fraction = fraction_permille(work, now, policy.promise_window_ms)
    return fraction is not None and fraction < _owed_permille(work, policy)


def behind_changes_at(work: Work, now: Instant, policy: Policy) -> Instant | None:
    """From when on `is_behind` has to be asked again, if nothing happens; None: never."""
    if work.tier is not Tier.STANDARD or not _is_owed(work):
        return None
    wanted, got = wanted_and_got(work, now, policy.promise_window_ms)
    owed = _owed_permille(work, policy)
    ahead = 1_000 * got - owed * wanted  # thousandths of milliseconds
    gain = (width_permille(work) if work.phase is Phase.RUNNING else 0) - owed
    begins_at = now - policy.promise_window_ms
    times = [now + HOUR_MS - begins_at % HOUR_MS]  # an hour leaves the window
    if ahead < 0 < gain:
        times.append(now - ahead // gain)
    elif gain < 0 <= ahead:
        times.append(now + ahead // -gain + 1)
    return Instant(min(times))


def _is_owed(work: Work) -> bool:
    wants = work.want is Want.RUN and work.ready and work.promised
    return wants and work.kind is WorkKind.JOB and work.phase is not Phase.ENDED


def _owed_permille(work: Work, policy: Policy) -> int:
    margin = policy.promise_margin_permille if work.phase is Phase.RUNNING else 0
    return work.tier.promise_permille + margin
