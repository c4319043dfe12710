"""Why a job or a deployment does not run, when it will, and what would change that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from onefleet.control import views
from onefleet.control.api.deployments import find_deployment
from onefleet.control.api.existing import find_job
from onefleet.control.call import Call
from onefleet.core.explain import explain, outlook
from onefleet.core.forecast import Forecast, forecast
from onefleet.core.index import Index
from onefleet.core.plan import Blocker, Plan
from onefleet.core.planner import plan
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.errors import NotFound
from onefleet.domain.events import Event
from onefleet.domain.ids import Instant, WorkId
from onefleet.domain.jobs import Job
from onefleet.domain.serving import Deployment
from onefleet.domain.work import Phase, Want, Work
from onefleet.store.base import State
from onefleet.wire.api import AlternativeView, BlockerView, ForecastView, WhyView

#: Events that are searched for the history of one subject, and how many of it are shown.
HISTORY_SEARCHED = 2_000
HISTORY_SHOWN = 20
#: Live works beyond which nobody is kept waiting for a forecast, and for how long others are; a
#: client waits for a minute for the whole answer.
FORECAST_WORKS_MAX = 1_000
FORECAST_S_MAX = 20.0


class _TooLong(Exception):
    """The forecast is not there in time."""


async def why(call: Call) -> WhyView:
    """Why a job or a deployment does not run: every blocker by name."""
    state = await call.pool.store.read()
    last = call.pool.last_pass.plan
    blockers = last.blockers if last else {}
    name = call.path("name")
    try:
        job = find_job(state, call.caller, name)
    except NotFound as missing:
        found = find_deployment(state, call.caller, name)
        if found is None:
            raise NotFound(
                f'there is no job or deployment "{name[:80]}"',
                why=missing.why,
                hint=f"{missing.hint}, onefleet deployment list",
            ) from None
        return await _why_deployment(call, state, found, blockers)
    return await _why_job(call, state, job, blockers)


async def _why_job(
    call: Call, state: State, job: Job, blockers: Mapping[WorkId, tuple[Blocker, ...]]
) -> WhyView:
    work = state.works[job.id]
    told = explain(work, blockers)
    scene = call.pool.scene(state, call.caller)
    notes = (
        views.hindered_text(work, scene),
        views.turns_text(work, scene),
        views.leaves_text(work, state),
    )
    found = await _forecast(call, state, work, scene)
    return WhyView(
        id=job.id,
        name=job.name,
        phase=work.phase,
        summary=scene.told(", and ".join([told.summary, *filter(None, notes)])),
        blockers=tuple(_blocker_view(b, scene) for b in told.blockers),
        history=await _history(call, state, (job.id,)),
        forecast=None if found is None else _forecast_view(found, scene),
        deadline=outlook(work, scene.now, scene.policy, found.start if found else None),
    )


async def _forecast(call: Call, state: State, work: Work, scene: views.Scene) -> Forecast | None:
    """When the job is expected to run, of one that waits for its turn or for other jobs; else, or
    where that takes too long to find out, None."""
    waits = work.phase in (Phase.PENDING, Phase.SUSPENDED, Phase.FROZEN)
    live = sum(1 for other in state.works.values() if other.phase is not Phase.ENDED)
    if not waits or work.want is not Want.RUN or live > FORECAST_WORKS_MAX:
        return None
    snapshot = Snapshot.of(
        state.generation,
        nodes=[
            replace(node, lease_expires_at=scene.sightings.lease_of(node.id))
            for node in state.nodes.values()
        ],
        works=state.works.values(),
        tenants=state.tenants.values(),
        reservations=state.reservations.values(),
        deployments=state.deployments.values(),
        replicas=state.replicas.values(),
    )
    until = time.monotonic() + FORECAST_S_MAX

    def patient(
        snapshot: Snapshot, policy: Policy, now: Instant, rng: Random, index: Index | None = None
    ) -> Plan:
        if time.monotonic() > until:
            raise _TooLong
        return plan(snapshot, policy, now, rng, index)

    try:
        return await asyncio.to_thread(
            forecast, snapshot, work.id, scene.policy, scene.now, patient
        )
    except _TooLong:
        return None


def _forecast_view(found: Forecast, scene: views.Scene) -> ForecastView:
    return ForecastView(
        at=scene.now,
        likely_at=found.start.likely,
        earliest_at=found.start.earliest,
        latest_at=found.start.latest,
        alternatives=tuple(
            AlternativeView(
                tier=other.change.tier or "",
                devices=(other.change.devices or (0, 0))[0],
                devices_max=(other.change.devices or (0, 0))[1],
                starts_at=other.starts_at or scene.now,
                pushes_back=tuple(scene.told(name) for name in other.pushed_back),
            )
            for other in found.alternatives
        ),
    )


async def _why_deployment(
    call: Call,
    state: State,
    deployment: Deployment,
    blockers: Mapping[WorkId, tuple[Blocker, ...]],
) -> WhyView:
    works = views.replica_works(deployment.id, state)
    scene = call.pool.scene(state, call.caller)
    view = views.deployment_view(deployment, scene)
    ready = f"{view.replicas_ready} of {view.replicas_wanted} replicas ready"
    found = [b for w in works for b in blockers.get(w.id, ())] if view.state != "ready" else []
    return WhyView(
        id=deployment.id,
        name=deployment.name,
        phase=view.state,
        summary=f"{deployment.name} is {view.state}, {ready}"
        + (f": {view.reason}" if view.reason else ""),
        blockers=tuple(_blocker_view(b, scene) for b in dict.fromkeys(found)),
        history=await _history(call, state, (deployment.id, *(w.id for w in works))),
    )


def _blocker_view(blocker: Blocker, scene: views.Scene) -> BlockerView:
    """The holders that the viewer may not see are counted in the text, not named."""
    text, holders = scene.told(blocker.text), blocker.holders
    return BlockerView(
        gate=blocker.gate, text=text, holders=tuple(h for h in holders if scene.told(h) == h)
    )


async def _history(call: Call, state: State, subjects: Sequence[str]) -> tuple[str, ...]:
    after = max(0, state.newest_event - HISTORY_SEARCHED)
    found = await call.pool.store.events(after, HISTORY_SEARCHED)
    own = [event for event in found if event.subject in subjects]
    scene = call.pool.scene(state, call.caller)
    return tuple(scene.told(_line(event)) for event in own[-HISTORY_SHOWN:])


def _line(event: Event) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(event.at / 1000))
    return f"{when} {event.kind}" + (f": {event.text}" if event.text else "")
