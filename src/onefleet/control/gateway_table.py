"""What the gateway needs to serve, derived from the state alone."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from onefleet.control.discretion import discreet
from onefleet.core.plan import Blocker
from onefleet.domain.ids import Generation, WorkId
from onefleet.domain.serving import Deployment
from onefleet.domain.tenancy import DEFAULT_TENANT
from onefleet.domain.work import Phase, Want
from onefleet.store.base import State
from onefleet.wire.gateway import DeploymentRoute, Endpoint, KeyRoute, RouteTable, TenantRoute

Blockers = Mapping[WorkId, tuple[Blocker, ...]]


def table_for(state: State, blockers: Blockers) -> RouteTable:
    """The whole table. blockers: of the last plan, to say why a deployment has no replica."""
    keys = tuple(
        KeyRoute(
            digest=key.digest.removeprefix("sha256:"),
            key_id=key.id,
            tenant_id=key.tenant_id,
            role=key.role,
        )
        for key in state.keys.values()
        if key.revoked_at is None
    )
    tenants = tuple(
        TenantRoute(
            tenant_id=tenant.id,
            tokens_per_minute=tenant.tokens_per_minute,
            requests_per_minute=tenant.requests_per_minute,
        )
        for tenant in state.tenants.values()
    )
    deployments = tuple(
        _route(state, deployment, blockers)
        for deployment in state.deployments.values()
        if deployment.removed_at is None
    )
    return RouteTable(
        generation=state.generation, keys=keys, tenants=tenants, deployments=deployments
    )


def _route(state: State, deployment: Deployment, blockers: Blockers) -> DeploymentRoute:
    model = state.models[deployment.model_id]
    endpoints = _endpoints(state, deployment)
    return DeploymentRoute(
        deployment_id=deployment.id,
        name=deployment.name,
        tenant_id=deployment.tenant_id,
        public=deployment.tenant_id == DEFAULT_TENANT,
        model_id=model.id,
        purpose=model.purpose,
        tier=deployment.tier,
        engine=deployment.engine,
        slots=deployment.slots,
        context_length=deployment.context_length,
        replicas_max=deployment.replicas_max,
        created_at=deployment.created_at,
        endpoints=endpoints,
        wait_reason="" if endpoints else _told(state, deployment, blockers),
    )


def _told(state: State, deployment: Deployment, blockers: Blockers) -> str:
    """Why it waits, as its own tenant's clients may read it."""
    reason, owner = wait_reason(state, deployment, blockers), deployment.tenant_id
    return discreet(reason, state, lambda tenant_id: tenant_id == owner)


def _endpoints(state: State, deployment: Deployment) -> tuple[Endpoint, ...]:
    """Replicas that answer and are to go on answering."""
    found = []
    for replica in state.replicas.values():
        work = state.works[replica.id]
        serves = work.phase is Phase.RUNNING and work.want is Want.RUN and replica.port
        if replica.deployment_id == deployment.id and serves:
            found.append(Endpoint(replica_id=replica.id, host=replica.host, port=replica.port))
    return tuple(found)


def wait_reason(state: State, deployment: Deployment, blockers: Blockers) -> str:
    """Why no replica of it answers, in a person's words."""
    if deployment.replicas_max == 0:
        return "the deployment may have no replica"
    for replica in state.replicas.values():
        if replica.deployment_id != deployment.id:
            continue
        work = state.works[replica.id]
        found = blockers.get(replica.id, ())
        if work.phase is Phase.PENDING and found:
            return found[0].text
        if work.phase is Phase.STARTING:
            return "a replica is starting"
        if work.reason:
            return work.reason
    return "no replica is there yet"


def same_content(known: RouteTable, fresh: RouteTable, generation: Generation) -> bool:
    """Whether a gateway that has the known table needs the fresh one, made at `generation`.

    Words that changed while the state did not are no reason: a table of the same generation
    would not be looked at.
    """
    if known.generation == generation:
        return True
    return with_generation(known, generation) == with_generation(fresh, generation)


def with_generation(table: RouteTable, generation: Generation) -> RouteTable:
    """The table under another generation."""
    return msgspec.structs.replace(table, generation=generation)
