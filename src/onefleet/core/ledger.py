"""The ledger of the promise: how much of the time that a work wanted to run it did run.

The device fraction of a work is its ideal run time over its real one, waits, suspends and narrow
stretches included; a tier promises a least value of it (`domain/tiers.py`) from the moment on that
the promise was given (`promise.py`). It is kept by the hour
in the work itself, so that it is as durable as the work, and read over a sliding window of hours.
After Singularity (Shukla et al., arXiv 2202.07848), section 2: the GPU fraction of a job.

It also says what a tenant has had of late, which is what shares are made of (`shares.py`):
device time, halved at the end of each day, so that what was long ago counts for little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import Instant
from onefleet.domain.records import changed
from onefleet.domain.tenancy import Tenant, Used
from onefleet.domain.tiers import Tier
from onefleet.domain.work import WHOLE, Hour, Phase, Want, Work

HOUR_MS = 3_600_000
#: Hours that a work remembers; a window cannot be longer.
HOURS_KEPT = 24
#: Device time had before a multiple of this counts half as much after it.
HALVING_MS = 24 * HOUR_MS


#: Device time of one kind in one tier is compared with the same alone.
Bucket = tuple[Tier, DeviceKind]


class Use(NamedTuple):
    """Device time of works whose entries end on one day. Two of one day can be added up.

    had_ms: device-milliseconds of late, by then. milli: thousandths of devices held on, since then;
    milli_since: that, times the moment at which the entry ends.
    """

    day: int
    had_ms: int
    milli: int
    milli_since: int

    def by(self, now: Instant) -> int:
        """Device-milliseconds of late by now, the days that ended since then halved."""
        days = now // HALVING_MS - self.day
        if days <= 0:
            return self.had_ms + (self.milli * now - self.milli_since) // WHOLE
        first = (self.milli * (self.day + 1) * HALVING_MS - self.milli_since) >> days
        daily = self.milli * HALVING_MS
        between = daily - (daily >> days - 1)
        today = self.milli * (now % HALVING_MS)
        return (self.had_ms >> days) + (first + between + today) // WHOLE


def use_of(work: Work, now: Instant) -> Use:
    """What a work has had of late, and has on; what it holds counts once its time has come."""
    since = max(work.accounted_until, work.submitted_at)
    milli = held_milli(work) if work.phase is Phase.RUNNING and since <= now else 0
    return Use(since // HALVING_MS, work.recent_ms, milli, milli * since)


def forgetting(tenant: Tenant, works: Iterable[Work], now: Instant) -> Tenant:
    """The tenant, with what works of it have had whose records go away."""
    had = {bucket: use.by(now) for bucket, use in uses_of(tenant)}
    for work in works:
        bucket = bucket_of(work)
        had[bucket] = had.get(bucket, 0) + use_of(work, now).by(now)
    used = tuple(Used(tier, kind, ms) for (tier, kind), ms in sorted(had.items()) if ms)
    return replace(tenant, used=used, used_until=now)


def uses_of(tenant: Tenant) -> Iterator[tuple[Bucket, Use]]:
    """What works have had of which there is no record any more."""
    day = tenant.used_until // HALVING_MS
    for used in tenant.used:
        yield (used.tier, used.kind), Use(day, used.ms, 0, 0)


def bucket_of(work: Work) -> Bucket:
    """Where its device time counts."""
    return work.tier, work.demand.kind


def account(work: Work, now: Instant) -> Work:
    """Enter the time since the last entry, in which nothing of the work has changed."""
    since = max(work.accounted_until, work.submitted_at)
    if now <= since or work.phase is Phase.ENDED:
        return work
    wanted = work.want is Want.RUN and work.ready and work.promised
    permille = width_permille(work) if work.phase is Phase.RUNNING else 0
    hours = _entered(work.hours, since, now, permille) if wanted else work.hours
    return changed(
        work,
        accounted_until=now,
        hours=hours,
        served_ms=served_ms(work, now),
        recent_ms=use_of(work, now).by(now),
    )


def served_ms(work: Work, now: Instant) -> int:
    """Device-milliseconds that it has had by now."""
    since = max(work.accounted_until, work.submitted_at)
    if work.phase is not Phase.RUNNING or now <= since:
        return work.served_ms
    return work.served_ms + (now - since) * held_milli(work) // WHOLE


def width_permille(work: Work) -> int:
    """What part of its full width a placed work has: of what its owner last asked for."""
    full = work.demand.most if work.width is None else work.width
    return min(1_000 * len(_devices(work)) // max(full, 1), 1_000)


def held_milli(work: Work) -> int:
    """Thousandths of devices that it holds; a device that its ranks take turns on counts once."""
    return sum(_devices(work).values())


def fraction_permille(work: Work, now: Instant, window_ms: int) -> int | None:
    """Its device fraction over the hours that reach into the window that ends now.

    None for a work that has not wanted to run in it, or was promised nothing yet.
    """
    wanted, got = wanted_and_got(work, now, window_ms)
    return 1_000 * got // wanted if wanted else None


def wanted_and_got(work: Work, now: Instant, window_ms: int) -> tuple[int, int]:
    """The time that it wanted to run, and that it ran at full width, in these hours."""
    wanted = got = 0
    for hour in account(work, now).hours:
        if hour.begins_at + HOUR_MS > now - window_ms:
            wanted += hour.wanted_ms
            got += hour.got_ms
    return wanted, got


def _devices(work: Work) -> dict[str, int]:
    return {device: slot.milli for slot in work.placement for device in slot.devices}


def _entered(
    hours: tuple[Hour, ...], since: Instant, until: Instant, permille: int
) -> tuple[Hour, ...]:
    found = list(hours)
    newest = until - 1
    oldest = newest - newest % HOUR_MS - (HOURS_KEPT - 1) * HOUR_MS
    at = max(since, oldest)
    while at < until:
        begins_at = Instant(at - at % HOUR_MS)
        end = min(begins_at + HOUR_MS, until)
        if not found or found[-1].begins_at != begins_at:
            found.append(Hour(begins_at, 0, 0))
        hour = found[-1]
        wanted = hour.wanted_ms + end - at
        got = hour.got_ms + (end - at) * permille // 1_000
        found[-1] = Hour(begins_at, wanted, got)
        at = end
    return tuple(hour for hour in found if hour.begins_at >= oldest)
