"""What a node shall do, derived from the state alone: the same state gives the same orders."""

from __future__ import annotations

from typing import assert_never

from onefleet.core import lifecycle
from onefleet.domain.ids import ImageId, NodeId
from onefleet.domain.jobs import Job
from onefleet.domain.serving import Deployment, Model
from onefleet.domain.work import Phase, Work
from onefleet.store.base import State
from onefleet.wire.agent import EngineSpec, JobSpec, NodeOrders, Order, OrderVerb

#: How long a node's work runs on without hearing from the control plane. Long against a restart
#: of the control plane, short against the patience of a job whose node was lost.
LEASE_MS = 30_000
#: Between asking a process to end and killing it.
JOB_GRACE_MS = 10_000
REPLICA_GRACE_MS = 5_000

_VERBS = {
    Phase.STARTING: OrderVerb.RUN,
    Phase.RUNNING: OrderVerb.RUN,
    Phase.RESTORING: OrderVerb.RUN,
    Phase.SAVING: OrderVerb.SAVE,
    Phase.STOPPING: OrderVerb.STOP,
    Phase.SUSPENDED: OrderVerb.KEEP,
}


def orders_for(state: State, node_id: NodeId) -> NodeOrders:
    """Everything that this node shall do; a worker that is not named has no business there."""
    orders = []
    for work in state.works.values():
        verb = _VERBS.get(work.phase)
        if verb is None:
            continue
        for rank, holder in enumerate(_nodes(work)):
            if holder == node_id:
                orders.append(_order(state, work, rank, verb))
    return NodeOrders(
        node_id=node_id, generation=state.generation, lease_ms=LEASE_MS, orders=tuple(orders)
    )


def _nodes(work: Work) -> tuple[NodeId, ...]:
    """Where its workers are, by rank: its placement, or while it is suspended its image."""
    if work.phase is Phase.SUSPENDED:
        return work.image.nodes if work.image else ()
    return tuple(slot.node_id for slot in work.placement)


def _order(state: State, work: Work, rank: int, verb: OrderVerb) -> Order:
    job = state.jobs.get(work.id)
    image = _image(work, verb)
    return Order(
        work_id=work.id,
        rank=rank,
        epoch=work.epoch,
        verb=verb,
        devices=work.placement[rank].devices if work.placement else (),
        image=image,
        keep=tuple(i.id for i in (work.image, work.image_before) if i and i.id != image),
        grace_ms=JOB_GRACE_MS if job else REPLICA_GRACE_MS,
        job=_job_spec(job, work) if job else None,
        engine=None if job else _engine_spec(state, work),
    )


def _image(work: Work, verb: OrderVerb) -> ImageId | None:
    match verb:
        case OrderVerb.SAVE:
            return lifecycle.image_id(work)
        case OrderVerb.RUN | OrderVerb.KEEP | OrderVerb.STOP:
            return work.image.id if work.image else None
        case _:
            assert_never(verb)


def _job_spec(job: Job, work: Work) -> JobSpec:
    return JobSpec(
        name=job.name,
        tenant_id=job.tenant_id,
        command=job.command,
        environment=job.environment,
        code=job.code,
        network=job.network,
        workers=work.demand.workers,
    )


def _engine_spec(state: State, work: Work) -> EngineSpec:
    """The engine of a replica. Its records are removed after its work, so they are there."""
    replica = state.replicas[work.id]
    deployment: Deployment = state.deployments[replica.deployment_id]
    model: Model = state.models[deployment.model_id]
    return EngineSpec(
        engine=deployment.engine,
        model_id=model.id,
        purpose=model.purpose,
        path=model.path,
        revision=model.revision,
        slots=deployment.slots,
        context_length=deployment.context_length,
        served_name=deployment.name,
        options={},
    )
