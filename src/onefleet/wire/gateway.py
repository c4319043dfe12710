"""Between the control plane and the gateway: one call, both ways, level-triggered.

The gateway posts its demand and usage (`GatewayReport`) to ``/internal/gateway/sync`` and gets
everything that it needs to serve without asking again (`RouteTable`): keys, quotas, endpoints.
It keeps the last table on disk, so that it serves while the control plane is away.
"""

from __future__ import annotations

import msgspec

from onefleet.domain.ids import Generation, Instant
from onefleet.domain.serving import Purpose
from onefleet.domain.tenancy import Role
from onefleet.domain.tiers import Tier


class KeyRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A key that is good now; revoked keys are absent. digest: SHA-256 of the key's text, hex."""

    digest: str
    key_id: str
    tenant_id: str
    role: Role


class TenantRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's limits; None is unlimited."""

    tenant_id: str
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that answers now."""

    replica_id: str
    host: str
    port: int


class DeploymentRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment as the data plane sees it.

    public: visible to every tenant. replicas_max > 0 with no endpoint: a request is held while
    a replica starts. wait_reason: why there is none yet, for the error if it takes too long.
    """

    deployment_id: str
    name: str
    tenant_id: str
    public: bool
    model_id: str
    purpose: Purpose
    tier: Tier
    engine: str
    slots: int
    context_length: int
    replicas_max: int
    created_at: Instant
    endpoints: tuple[Endpoint, ...] = ()
    wait_reason: str = ""


class RouteTable(msgspec.Struct, frozen=True, kw_only=True):
    """All that the gateway needs. generation never falls."""

    generation: Generation
    keys: tuple[KeyRoute, ...] = ()
    tenants: tuple[TenantRoute, ...] = ()
    deployments: tuple[DeploymentRoute, ...] = ()


class DemandReport(msgspec.Struct, frozen=True, kw_only=True):
    """How much is asked of one deployment now."""

    deployment_id: str
    active: int  # requests that an engine is answering
    waiting: int  # requests that are held
    last_request_at: Instant  # 0: none since the gateway started


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Usage of one key on one deployment in one minute, since the last acknowledged report."""

    minute: Instant
    tenant_id: str
    key_id: str
    deployment_id: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class GatewayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of one gateway now. sequence: of the usage batch; a repeated one is ignored."""

    gateway_id: str
    seen: Generation  # of the last route table, 0 at first
    wait_ms: int
    demand: tuple[DemandReport, ...] = ()
    sequence: int = 0
    usage: tuple[UsageReport, ...] = ()
