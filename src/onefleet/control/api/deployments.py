"""Deployments: deploy, look, undeploy."""

from __future__ import annotations

from dataclasses import replace

from onefleet.control import views
from onefleet.control.api.existing import must_exist
from onefleet.control.api.model import find_model
from onefleet.control.auth import Caller
from onefleet.control.call import Call, good_name, one_of, within
from onefleet.control.fitting import fitted
from onefleet.control.spares import spares_of
from onefleet.domain.errors import Conflict, InvalidRequest, NotFound, QuotaExceeded
from onefleet.domain.ids import DeploymentId, Instant, TenantId
from onefleet.domain.serving import Deployment, DeploymentKind
from onefleet.domain.tenancy import DEFAULT_TENANT
from onefleet.domain.tiers import Tier
from onefleet.store.base import Commit, Note, Put, State
from onefleet.wire.api import DeploymentView, NewDeployment, Page

DEPLOYMENTS_MAX = 10_000
REPLICAS_MAX = 10_000
SLOTS_MAX = 4_096
CONTEXT_MAX = 2**24
DEVICES_MAX = 4_096


async def create_deployment(call: Call) -> DeploymentView:
    new = await call.body(NewDeployment)
    tenant_id = TenantId(new.tenant) if new.tenant is not None else call.caller.tenant_id
    call.caller.must_act_for(tenant_id)
    _check_numbers(new)
    name = good_name(new.name if new.name is not None else default_name(new.model), "name")
    deployment_id = DeploymentId(call.pool.ids.new("dep"))

    def decide(state: State, now: Instant) -> tuple[Commit, None]:
        must_exist(state, tenant_id)
        live = [d for d in state.deployments.values() if d.removed_at is None]
        _must_be_new(live, name)
        model = find_model(state, new.model)
        asked = Deployment(
            id=deployment_id,
            name=name,
            tenant_id=tenant_id,
            model_id=model.id,
            kind=one_of(DeploymentKind, new.kind, "kind"),
            tier=one_of(Tier, new.tier, "tier"),
            engine=new.engine,
            replicas_min=new.replicas_min,
            replicas_max=new.replicas_max,
            replicas_wanted=new.replicas_min,
            devices_per_replica=new.devices_per_replica,
            slots=new.slots,
            context_length=new.context_length,
            memory_bytes=0,
            created_at=now,
        )
        deployment = fitted(asked, model, state.nodes.values(), spares_of(state.marks))
        note = Note(now, "deployment.created", deployment.id, f"{name}: {model.id}")
        return Commit([Put(deployment)], [note]), None

    await call.pool.change(decide)
    state = await call.pool.store.read()
    return views.deployment_view(
        state.deployments[deployment_id], call.pool.scene(state, call.caller)
    )


def default_name(model: str) -> str:
    """What a deployment of a model is called: "demo:smollm2" -> "smollm2"."""
    return model.rstrip("/").replace(":", "/").rsplit("/", 1)[-1]


def _check_numbers(new: NewDeployment) -> None:
    low = within(new.replicas_min, 0, REPLICAS_MAX, "replicas_min")
    high = within(new.replicas_max, 1, REPLICAS_MAX, "replicas_max")
    if high < low:
        raise InvalidRequest(
            f'"replicas_max" is {high}, less than "replicas_min" ({low})', param="replicas_max"
        )
    within(new.devices_per_replica, 1, DEVICES_MAX, "devices_per_replica")
    within(new.slots, 0, SLOTS_MAX, "slots")
    within(new.context_length, 0, CONTEXT_MAX, "context_length")


def _must_be_new(live: list[Deployment], name: str) -> None:
    if len(live) >= DEPLOYMENTS_MAX:
        raise QuotaExceeded(f"there are {DEPLOYMENTS_MAX} deployments already, which is the limit")
    for deployment in live:
        if deployment.name == name:
            raise Conflict(
                f'there is a deployment "{name}" already',
                why="a name is what clients put into their requests, so it is used once",
                hint=f"choose another --name, or: onefleet undeploy {name}",
                param="name",
            )


def find_deployment(state: State, caller: Caller, text: str) -> Deployment | None:
    """The deployment of that name or id that the caller sees: a live one, of its own tenant,
    first."""
    named = [
        d
        for d in state.deployments.values()
        if text in (d.name, d.id) and (caller.sees(d.tenant_id) or d.tenant_id == DEFAULT_TENANT)
    ]

    def order(found: Deployment) -> tuple[bool, bool, Instant, str]:
        own = found.tenant_id == caller.tenant_id
        return found.removed_at is None, own, found.created_at, found.id

    return max(named, key=order, default=None)


def _must_find(state: State, caller: Caller, text: str) -> Deployment:
    found = find_deployment(state, caller, text)
    if found is None:
        raise NotFound(f'there is no deployment "{text[:80]}"', hint="onefleet deployment list")
    return found


async def list_deployments(call: Call) -> Page[DeploymentView]:
    """The deployments that the caller may call: its tenant's, and the default tenant's."""
    state = await call.pool.store.read()
    scene = call.pool.scene(state, call.caller)
    seen = (
        d
        for d in state.deployments.values()
        if call.caller.sees(d.tenant_id) or d.tenant_id == DEFAULT_TENANT
    )
    ordered = sorted(seen, key=lambda d: (d.created_at, d.id))
    return Page(tuple(views.deployment_view(d, scene) for d in ordered))


async def show_deployment(call: Call) -> DeploymentView:
    state = await call.pool.store.read()
    found = _must_find(state, call.caller, call.path("name"))
    return views.deployment_view(found, call.pool.scene(state, call.caller))


async def remove_deployment(call: Call) -> DeploymentView:
    """Undeploy: its replicas are stopped, then it is gone. Saying it twice changes nothing."""

    def decide(state: State, now: Instant) -> tuple[Commit, Deployment]:
        found = _must_find(state, call.caller, call.path("name"))
        call.caller.must_act_for(found.tenant_id)
        if found.removed_at is not None:
            return Commit(), found
        removed = replace(found, removed_at=now)
        note = Note(now, "deployment.undeployed", found.id, found.name)
        return Commit([Put(removed)], [note]), removed

    removed = await call.pool.change(decide)
    return views.deployment_view(
        removed, call.pool.scene(await call.pool.store.read(), call.caller)
    )
