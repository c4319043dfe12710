"""Tenants, their reservations and their keys."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import (
    EPOCH,
    NO_GENERATION,
    Digest,
    Generation,
    Instant,
    KeyId,
    ReservationId,
    TenantId,
)
from onefleet.domain.tiers import Tier

#: The tenant that `onefleet up` makes. Its deployments are visible to every tenant of the pool.
DEFAULT_TENANT = TenantId("default")

#: The weight of a tenant that has none of its own, in thousandths.
WEIGHT = 1_000


@dataclass(frozen=True, slots=True)
class Used:
    """Device-milliseconds of one kind of device, had in one tier."""

    tier: Tier
    kind: DeviceKind
    ms: int


@dataclass(frozen=True, slots=True)
class Tenant:
    """Isolated and charged. Tenants nest: department > team. The id is the chosen name.

    A rate of None is unlimited. weight: its part among its siblings when they share what nobody
    reserved, in proportion. used: what works of it had of late of which there is no record any
    more, as of used_until.
    """

    id: TenantId
    parent: TenantId | None
    tokens_per_minute: int | None
    requests_per_minute: int | None
    created_at: Instant
    weight: int = WEIGHT
    used: tuple[Used, ...] = ()
    used_until: Instant = EPOCH
    generation: Generation = NO_GENERATION


#: How soon what is lent is back, where nobody has said otherwise; what can be said.
WITHIN_MS = 300_000
WITHIN_MS_LEAST, WITHIN_MS_MOST = 1_000, 86_400_000


@dataclass(frozen=True, slots=True)
class Reservation:
    """Devices that are guaranteed to the premium work of a tenant and of those below it; lent
    while idle.

    product: the class of the devices, as `Device.product`; empty: any of the kind. starts_at,
    ends_at: the window in which it holds; None: since ever, for ever. within_ms: how soon what is
    lent is back; what could not be saved by then is ended without.
    """

    id: ReservationId
    tenant_id: TenantId
    kind: DeviceKind
    devices: int
    created_at: Instant
    product: str = ""
    starts_at: Instant | None = None
    ends_at: Instant | None = None
    within_ms: int = WITHIN_MS
    generation: Generation = NO_GENERATION


class Role(StrEnum):
    """What a key permits. Each role but the last has the permissions of those below it."""

    ADMIN = "admin"  # the pool: tenants, keys, models, nodes
    MEMBER = "member"  # the deployments and jobs of its tenant and of those below it
    CALLER = "caller"  # the /v1 API only
    NODE = "node"  # a node's agent: the node that the key is named after, and nothing else


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key is stored as the SHA-256 of its text; the text is shown once, when it is made."""

    id: KeyId
    tenant_id: TenantId
    name: str
    role: Role
    digest: Digest
    hint: str  # the last four characters, so that a person can tell keys apart
    created_at: Instant
    revoked_at: Instant | None = None
    generation: Generation = NO_GENERATION
