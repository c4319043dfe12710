"""From what deployments intend to replica works: made, retired and cleaned away.

Pure: the reconciler calls it before it plans, and commits what it changed with the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from onefleet.core import autoscale, lifecycle
from onefleet.core.autoscale import DemandNow
from onefleet.core.policy import Policy
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import DeploymentId, IdSource, Instant, WorkId
from onefleet.domain.serving import Deployment, Model, Replica
from onefleet.domain.work import Demand, Phase, Want, Work, WorkKind
from onefleet.store.base import Note, State

NO_DEMAND = DemandNow(0, 0, Instant(0))
#: What a replica holds: every engine that there is runs on CPU cores.
SERVING_KIND = DeviceKind.CPU


@dataclass(frozen=True, slots=True)
class Scaled:
    """What scaling changed. works: new and retired ones; new ones have generation 0."""

    deployments: tuple[Deployment, ...] = ()
    replicas: tuple[Replica, ...] = ()
    works: tuple[Work, ...] = ()
    gone: tuple[Deployment | Replica | Work, ...] = ()
    notes: tuple[Note, ...] = ()


def scale(
    state: State,
    demand: Mapping[DeploymentId, DemandNow],
    policy: Policy,
    now: Instant,
    ids: IdSource,
) -> Scaled:
    """Bring every deployment's replicas to what it wants now, and clean away what has ended."""
    members = _members(state)
    deployments: list[Deployment] = []
    replicas: list[Replica] = []
    works: list[Work] = []
    gone: list[Deployment | Replica | Work] = []
    notes: list[Note] = []
    for deployment in state.deployments.values():
        own = members.get(deployment.id, [])
        for work in own:
            if work.phase is Phase.ENDED:
                gone.extend((work, state.replicas[work.id]))
        if deployment.removed_at is not None and all(w.phase is Phase.ENDED for w in own):
            gone.append(deployment)
            notes.append(Note(now, "deployment.removed", deployment.id, deployment.name))
            continue
        asked = demand.get(deployment.id, NO_DEMAND)
        ready = sum(1 for w in own if w.phase is Phase.RUNNING and w.want is Want.RUN)
        wanted = autoscale.wanted(deployment, asked, ready, now, policy)
        if wanted != deployment.replicas_wanted:
            deployments.append(replace(deployment, replicas_wanted=wanted))
            notes.append(_scaled_note(deployment, wanted, asked, now))
        steps = autoscale.scale(wanted, own)
        by_id = {w.id: w for w in own}
        stop = lifecycle.WantChanged(Want.STOP)
        works += [lifecycle.apply(by_id[w], stop, now) for w in steps.stop]
        for _ in range(steps.make):
            work_id = WorkId(ids.new("rep"))
            model = state.models[deployment.model_id]
            replicas.append(Replica(work_id, deployment.id, model.revision, now))
            works.append(_work(work_id, deployment, state, now))
    return Scaled(tuple(deployments), tuple(replicas), tuple(works), tuple(gone), tuple(notes))


def _members(state: State) -> Mapping[DeploymentId, list[Work]]:
    members: dict[DeploymentId, list[Work]] = {}
    for replica in state.replicas.values():
        members.setdefault(replica.deployment_id, []).append(state.works[replica.id])
    return members


def _work(work_id: WorkId, deployment: Deployment, state: State, now: Instant) -> Work:
    return Work(
        id=work_id,
        kind=WorkKind.REPLICA,
        tenant_id=deployment.tenant_id,
        tier=deployment.tier,
        demand=demand_of(deployment),
        want=Want.RUN,
        phase=Phase.PENDING,
        submitted_at=now,
        phase_since=now,
        suspendable=False,
        reason=f"a replica of {deployment.name}",
    )


def demand_of(deployment: Deployment) -> Demand:
    """What one replica of the deployment needs to run."""
    return Demand(
        kind=SERVING_KIND,
        devices_min=deployment.devices_per_replica,
        devices_max=deployment.devices_per_replica,
        memory_bytes=deployment.memory_bytes,
    )


def model_in_use(state: State, model: Model) -> tuple[Deployment, ...]:
    """The deployments that serve this model."""
    return tuple(d for d in state.deployments.values() if d.model_id == model.id)


def _scaled_note(deployment: Deployment, wanted: int, asked: DemandNow, now: Instant) -> Note:
    before = deployment.replicas_wanted
    why = f"{asked.active} requests active, {asked.waiting} held"
    return Note(now, "deployment.scaled", deployment.id, f"{before} -> {wanted} replicas: {why}")
