"""Fair shares of the tenants inside a tier, over time, by kind of device.

A tenant's share is what it has had of late (`ledger.Use`) and what it will have if it keeps for a
day what it holds now, by its weight. Tenants of one department are compared with each other, and so
are departments: of two on one level, who has the smaller share goes first.

Whoever has work now has a part, by its weight, of what all together have had who have work now. Who
has had less than a third of its part is *under* it: it goes before all others of its rank, and may
take its turn from any of them, until it has had that and a quarter more. Otherwise a tenant with
enough short work would leave nothing to one with long work, since short work goes first.
"""

from __future__ import annotations

from collections.abc import Collection

from onefleet.core.index import Index
from onefleet.core.index.lines import Share, Under
from onefleet.core.ledger import HALVING_MS
from onefleet.core.promise import lineage
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import Instant, TenantId
from onefleet.domain.tenancy import WEIGHT
from onefleet.domain.tiers import Tier
from onefleet.domain.work import WHOLE, Work

#: Who has had less than so many thousandths of its part goes first, and takes turns from others.
CLAIM_PERMILLE = 333
#: Who has had less than so many gives turns to those alone who go first.
SHELTER_PERMILLE = 417


class Shares:
    """Of one tier, within one pass; what the pass gives away counts at once."""

    def __init__(self, index: Index, tier: Tier, now: Instant) -> None:
        self._index, self._tier, self._now = index, tier, now
        self._lines: dict[TenantId, list[TenantId]] = {}
        self._had: dict[tuple[TenantId, DeviceKind], int] = {}  # device-milliseconds of late
        self._uses: dict[tuple[TenantId, DeviceKind], int] = {}
        self._shares: dict[tuple[TenantId, DeviceKind], Share] = {}

    def of(self, tenant_id: TenantId, kind: DeviceKind) -> Share:
        """Of those above it and of the tenant itself, from the top; the smaller goes first."""
        found = self._shares.get((tenant_id, kind))
        if found is None:
            line = reversed(self._line(tenant_id))
            found = tuple([self._use(name, kind) * WEIGHT // self._weight(name) for name in line])
            self._shares[tenant_id, kind] = found
        return found

    def grant(self, work: Work) -> None:
        """Devices were found for it, or are kept for it."""
        kind = work.demand.kind
        used = work.demand.least * work.demand.milli * HALVING_MS // WHOLE
        for name in self._line(work.tenant_id):
            self._uses[name, kind] = self._use(name, kind) + used
        self._shares.clear()

    def under(self, kind: DeviceKind) -> Under:
        """Which tenants are under their part, or belong to a department that is.

        By what was had alone: what is given and taken away at one moment does not change it, or two
        tenants would take the same devices from each other in turn.
        """
        wanting = self._index.roster.usage.wanting((self._tier, kind))
        if len(wanting) < 2:
            return Under((), ())
        if any(tenant.parent for tenant in self._index.tenants.values()):
            parts = self._parts_in_departments(wanting, kind)
        else:
            parts = self._parts(wanting, kind)
        return Under(
            frozenset([name for name, permille in parts.items() if permille < CLAIM_PERMILLE]),
            frozenset([name for name, permille in parts.items() if permille < SHELTER_PERMILLE]),
        )

    def _parts(self, group: Collection[TenantId], kind: DeviceKind) -> dict[TenantId, int]:
        """What each has had, in thousandths of its part of what all of them have had."""
        had = [self._had_by(name, kind) for name in group]
        weights = [self._weight(name) for name in group]
        all_had, weight = sum(had), sum(weights)
        if not all_had:
            return dict.fromkeys(group, WHOLE)
        each = zip(group, had, weights, strict=True)
        return {name: ms * weight * WHOLE // (all_had * own) for name, ms, own in each}

    def _parts_in_departments(
        self, wanting: Collection[TenantId], kind: DeviceKind
    ) -> dict[TenantId, int]:
        """The same among siblings; that of a tenant's department, if that is less."""
        siblings: dict[TenantId | None, dict[TenantId, None]] = {}
        for tenant_id in wanting:
            line = self._line(tenant_id)
            for name, parent in zip(line, [*line[1:], None], strict=True):
                siblings.setdefault(parent, {})[name] = None
        parts: dict[TenantId, int] = {}
        for group in siblings.values():
            parts.update(self._parts(group, kind))
        return {name: min(parts[above] for above in self._line(name)) for name in wanting}

    def _use(self, tenant_id: TenantId, kind: DeviceKind) -> int:
        """Device-milliseconds."""
        use = self._uses.get((tenant_id, kind))
        if use is None:
            held = self._index.roster.usage.held(tenant_id, (self._tier, kind))
            use = self._had_by(tenant_id, kind) + held * HALVING_MS // WHOLE
            self._uses[tenant_id, kind] = use
        return use

    def _had_by(self, tenant_id: TenantId, kind: DeviceKind) -> int:
        had = self._had.get((tenant_id, kind))
        if had is None:
            had = self._index.roster.usage.of(tenant_id, (self._tier, kind), self._now)
            self._had[tenant_id, kind] = had
        return had

    def _line(self, tenant_id: TenantId) -> list[TenantId]:
        line = self._lines.get(tenant_id)
        if line is None:
            line = self._lines[tenant_id] = lineage(tenant_id, self._index.tenants)
        return line

    def _weight(self, tenant_id: TenantId) -> int:
        tenant = self._index.tenants.get(tenant_id)
        return WEIGHT if tenant is None else max(tenant.weight, 1)
