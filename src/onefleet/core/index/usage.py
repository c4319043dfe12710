"""What tenants hold and have had of late, by tier and kind of device, kept from work to work.

Sums are kept by day, not as of now, so that nothing has to be done as time passes, and what is kept
is to the millisecond what would be added up anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from onefleet.core.ledger import Bucket, Use, bucket_of, use_of, uses_of
from onefleet.core.promise import lineage
from onefleet.domain.ids import Instant, TenantId
from onefleet.domain.tenancy import Tenant
from onefleet.domain.work import Work


class DeviceUse:
    """Of all tenants, that of the tenants below each included."""

    def __init__(self) -> None:
        self._held: dict[Bucket, dict[TenantId, int]] = {}
        self._wanting: dict[Bucket, dict[TenantId, int]] = {}
        self._days: dict[tuple[TenantId, Bucket], dict[int, Use]] = {}
        self._forgotten: dict[TenantId, tuple[Tenant, Sequence[TenantId]]] = {}

    def of(self, tenant_id: TenantId, bucket: Bucket, now: Instant) -> int:
        """Device-milliseconds of late, by now."""
        days = self._days.get((tenant_id, bucket))
        return sum([use.by(now) for use in days.values()]) if days else 0

    def buckets(self, tenant_id: TenantId) -> list[Bucket]:
        """Where it has had anything."""
        return sorted(b for name, b in self._days if name == tenant_id)

    def held(self, tenant_id: TenantId, bucket: Bucket) -> int:
        """Thousandths of devices."""
        return self._held.get(bucket, {}).get(tenant_id, 0)

    def wanting(self, bucket: Bucket) -> Collection[TenantId]:
        """Who has work of its own that runs or shall run."""
        return self._wanting.get(bucket, {}).keys()

    def hold(self, milli: int, bucket: Bucket, line: Iterable[TenantId]) -> None:
        """These hold so much more, or less."""
        if milli:
            for tenant_id in line:
                _add(self._held.setdefault(bucket, {}), tenant_id, milli)

    def want(self, works: int, bucket: Bucket, tenant_id: TenantId) -> None:
        """So many more, or fewer, works of it run or shall run."""
        _add(self._wanting.setdefault(bucket, {}), tenant_id, works)

    def put_tenant(self, tenant: Tenant, line: Sequence[TenantId]) -> None:
        """A tenant came, or is now like this. line: it and those above it."""
        self.remove_tenant(tenant.id)
        self._forgotten[tenant.id] = (tenant, line)
        for bucket, use in uses_of(tenant):
            self.add(use, bucket, line)

    def remove_tenant(self, tenant_id: TenantId) -> None:
        """There is no such tenant any more."""
        if tenant_id in self._forgotten:
            tenant, line = self._forgotten.pop(tenant_id)
            for bucket, use in uses_of(tenant):
                self.take_out(use, bucket, line)

    def add(self, use: Use, bucket: Bucket, line: Sequence[TenantId]) -> None:
        """Count it for these tenants."""
        self._count(use, bucket, line, 1)

    def take_out(self, use: Use, bucket: Bucket, line: Sequence[TenantId]) -> None:
        """Do not count any more what was added."""
        self._count(use, bucket, line, -1)

    def _count(self, use: Use, bucket: Bucket, line: Sequence[TenantId], sign: int) -> None:
        if not use.had_ms and not use.milli:
            return
        for tenant_id in line:
            days = self._days.setdefault((tenant_id, bucket), {})
            day, had_ms, milli, since = days.get(use.day, (use.day, 0, 0, 0))
            had_ms, milli = had_ms + sign * use.had_ms, milli + sign * use.milli
            if had_ms or milli:
                days[day] = Use(day, had_ms, milli, since + sign * use.milli_since)
            else:
                del days[day]


def usage_of(tenants: Mapping[TenantId, Tenant], works: Iterable[Work], now: Instant) -> DeviceUse:
    """What was had of late, of records that nobody keeps an index of."""
    usage = DeviceUse()
    for tenant in tenants.values():
        usage.put_tenant(tenant, lineage(tenant.id, tenants))
    for work in works:
        usage.add(use_of(work, now), bucket_of(work), lineage(work.tenant_id, tenants))
    return usage


def _add(counts: dict[TenantId, int], tenant_id: TenantId, more: int) -> None:
    counts[tenant_id] = counts.get(tenant_id, 0) + more
    if not counts[tenant_id]:
        del counts[tenant_id]
