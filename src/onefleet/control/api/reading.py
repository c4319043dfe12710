"""Status, events, usage, utilisation, the last plan."""

from __future__ import annotations

import msgspec

from onefleet import __version__
from onefleet.control import views
from onefleet.control.auth import Caller
from onefleet.control.call import Call
from onefleet.control.spares import spares_of
from onefleet.core.plan import describe
from onefleet.domain.errors import NotFound, Unreachable
from onefleet.domain.events import Event
from onefleet.domain.fleet import NodeState
from onefleet.domain.ids import DeploymentId, Instant, TenantId, WorkId
from onefleet.domain.work import Phase
from onefleet.store.base import State
from onefleet.wire.api import (
    EventView,
    Page,
    PlanView,
    StatusView,
    StepView,
    UsageView,
    UtilisationView,
)

#: The longest that a reading call is held.
WAIT_MS_MAX = 25_000
EVENTS_A_PAGE = 1_000


async def status(call: Call) -> StatusView:
    pool = call.pool
    state = await pool.store.read()
    now = pool.clock.now()
    jobs = [state.works[name] for name in state.jobs]
    live = [d for d in state.deployments.values() if d.removed_at is None]
    heard = pool.demands.seen_at()
    failures = pool.failures(state)
    ready = [n for n in state.nodes.values() if n.state is NodeState.READY]
    return StatusView(
        version=__version__,
        generation=state.generation,
        started_at=pool.started_at,
        nodes_ready=sum(1 for n in ready if pool.sightings.lease_of(n.id) > now),
        nodes=len(state.nodes),
        devices=sum(len(n.devices) for n in state.nodes.values()),
        devices_used=len(views.holders(state)),
        deployments=len(live),
        deployments_ready=sum(1 for d in live if views.is_ready(d, state)),
        jobs_running=sum(1 for w in jobs if w.phase.holds_devices),
        jobs_waiting=sum(1 for w in jobs if w.phase is Phase.PENDING),
        jobs_suspended=sum(1 for w in jobs if w.phase is Phase.SUSPENDED),
        gateway_seen_s=-1.0 if heard is None else (now - heard) / 1000,
        last_pass_at=pool.last_pass.at,
        last_pass_result=pool.last_pass.result,
        nodes_lost=failures.lost,
        nodes_watched_ms=failures.watched_ms,
        node_mttf_ms=pool.policy_of(state).node_mttf_ms,
        spares_wanted=sum(count for _, count in spares_of(state.marks)),
        spares=len(pool.spares),
        jobs_frozen=sum(1 for w in jobs if w.phase is Phase.FROZEN),
    )


async def events(call: Call) -> Page[EventView]:
    """Events after a sequence; held for `wait_ms` while there are none that the caller sees."""
    after = call.integer("after", 0)
    limit = call.integer("limit", EVENTS_A_PAGE, 1, EVENTS_A_PAGE)
    wait_ms = call.integer("wait_ms", 0, 0, WAIT_MS_MAX)
    pool = call.pool
    until = pool.clock.now() + wait_ms
    async with pool.changed.held():
        while True:
            version = pool.changed.version
            found = await pool.store.events(after, limit)
            state = await pool.store.read()
            seen = [e for e in found if _sees_event(call.caller, state, e)]
            left_ms = until - pool.clock.now()
            if seen or (left_ms <= 0 and not found) or pool.closing:
                scene = pool.scene(state, call.caller)
                return Page(tuple(views.event_view(event, scene) for event in seen))
            if found:
                after = found[-1].sequence  # none of these is the caller's: look further
                continue
            await pool.changed.wait(version, left_ms)


def _sees_event(caller: Caller, state: State, event: Event) -> bool:
    if caller.is_admin:
        return True
    tenant_id = _tenant_of(state, event.subject)
    return tenant_id is not None and caller.sees(tenant_id)


def _tenant_of(state: State, subject: str) -> TenantId | None:
    work = state.works.get(WorkId(subject))
    if work is not None:
        return work.tenant_id
    deployment = state.deployments.get(DeploymentId(subject))
    return deployment.tenant_id if deployment else None


async def usage(call: Call) -> Page[UsageView]:
    since = Instant(call.integer("since", 0))
    found = await call.pool.store.usage(since)
    seen = (u for u in found if call.caller.sees(TenantId(u.tenant_id)))
    return Page(tuple(views.usage_view(one) for one in seen))


async def utilisation(call: Call) -> UtilisationView:
    since = Instant(call.integer("since", 0))
    totals = call.pool.utilisation.totals(since, call.pool.clock.now())
    return UtilisationView(
        since=totals.since,
        until=totals.until,
        capacity_device_ms=totals.capacity_device_ms,
        held_device_ms=dict(totals.held_device_ms),
        suspends=totals.suspends,
        resumes=totals.resumes,
    )


async def last_plan(call: Call) -> PlanView:
    last = call.pool.last_pass
    if last.plan is None:
        raise NotFound("there was no planning pass yet", why=last.result, hint="try again")
    return PlanView(
        parent=last.plan.parent,
        planned_at=last.plan.planned_at,
        took_us=last.took_us,
        decisions=tuple(describe(decision) for decision in last.plan.decisions),
        steps=tuple(StepView(step=step.step, text=step.text) for step in last.plan.steps),
    )


class Health(msgspec.Struct, frozen=True):
    """Whether the process answers, and whether it knows its state and runs its passes."""

    status: str


async def health(call: Call) -> Health:
    """It answers, so it lives."""
    return Health("ok")


async def ready(call: Call) -> Health:
    """Ready once a pass was run on the loaded state. Raises Unreachable before."""
    if call.pool.last_pass.plan is None:
        raise Unreachable(
            "the control plane is starting", why=call.pool.last_pass.result, retry_after_ms=1_000
        )
    return Health("ok")
