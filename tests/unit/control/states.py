"""States of the store for tests of the control plane's pure parts, in a few words each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tests.fleets import a_deployment, a_node, replica_of

from onefleet.domain.fleet import CheckpointMode
from onefleet.domain.ids import Digest, Generation, ImageId, Instant, ModelId, NodeId
from onefleet.domain.jobs import Job
from onefleet.domain.serving import Model, ModelShape, Purpose
from onefleet.domain.work import Work, WorkKind
from onefleet.store.base import State
from onefleet.wire.agent import NodeReport, Observed, WorkerReport

NOW = Instant(1_000_000)
DEPLOYMENT = a_deployment("dep-1")


def a_model(name: str = "demo") -> Model:
    return Model(
        id=ModelId(name),
        family="tiny",
        purpose=Purpose.CHAT,
        revision=Digest("sha256:0"),
        format="simulated",
        path="",
        size_bytes=0,
        shape=ModelShape("simulated", 1, 1, 4096, 1, 1, 1),
        source=f"simulated:{name}",
        licence="Apache-2.0",
        created_at=Instant(0),
    )


def a_job_record(work: Work) -> Job:
    return Job(
        work.id, work.id, work.tenant_id, ("train",), (("A", "1"),), None, "cell", Instant(0)
    )


def a_state(*works: Work, **changes: Any) -> State:
    """A state with these works, their jobs or replicas of one deployment, and two nodes."""
    jobs = [w for w in works if w.kind is WorkKind.JOB]
    replicas = [w for w in works if w.kind is WorkKind.REPLICA]
    fields: dict[str, Any] = {
        "generation": Generation(9),
        "tenants": {},
        "reservations": {},
        "keys": {},
        "nodes": by_id(a_node("n1"), a_node("n2")),
        "models": by_id(a_model()),
        "deployments": by_id(DEPLOYMENT),
        "replicas": by_id(*(replica_of(w, DEPLOYMENT) for w in replicas)),
        "jobs": by_id(*(a_job_record(w) for w in jobs)),
        "works": by_id(*works),
    }
    return State(**{**fields, **changes})


def by_id(*records: Any) -> Mapping[Any, Any]:
    return {record.id: record for record in sorted(records, key=lambda record: record.id)}


def a_worker(work: Work, observed: Observed, rank: int = 0, **changes: Any) -> WorkerReport:
    """What an agent says of a worker of this placement."""
    fields: dict[str, Any] = {
        "work_id": work.id,
        "rank": rank,
        "epoch": work.epoch,
        "observed": observed,
    }
    if observed is Observed.SAVED:
        fields["image"] = ImageId(f"{work.id}.{work.epoch}")
        fields["image_bytes"] = 100
    return WorkerReport(**{**fields, **changes})


def a_report(node: str = "n1", workers: Iterable[WorkerReport] = (), **changes: Any) -> NodeReport:
    """A report of a node that its record agrees with."""
    record = a_node(node)
    fields: dict[str, Any] = {
        "node_id": NodeId(node),
        "name": node,
        "devices": record.devices,
        "memory_bytes": record.memory_bytes,
        "memory_free_bytes": 1,
        "cpu_busy_permille": 0,
        "checkpoint_mode": CheckpointMode.CRIU,
        "checkpoint_reason": "",
        "seen": Generation(9),
        "wait_ms": 0,
        "workers": tuple(workers),
        "sent_at": Instant(0),
    }
    return NodeReport(**{**fields, **changes})
