"""Fleets, works and snapshots for tests of the core and the simulator, in a few words each."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from onefleet.core import lifecycle
from onefleet.core.plan import Place, Plan, apply_plan, describe, fenced_nodes
from onefleet.core.plan_check import check_plan, unexplained
from onefleet.core.planner import plan
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import CheckpointMode, Device, DeviceKind, Node, NodeState
from onefleet.domain.ids import (
    DeploymentId,
    DeviceId,
    Digest,
    Generation,
    Instant,
    ModelId,
    NodeId,
    ReservationId,
    TenantId,
    WorkId,
)
from onefleet.domain.serving import Deployment, DeploymentKind, Replica
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Demand, Image, Phase, Slot, Want, Work, WorkKind

GIB = 1 << 30
DEMANDED = ("workers", "memory_bytes", "milli", "pack", "speeds", "zones")
NOW = Instant(1_000_000)
START = Instant(0)


def a_node(name: str, devices: int = 4, **changes: Any) -> Node:
    """A ready node; kind and memory_bytes of a device may be given."""
    kind = changes.pop("kind", DeviceKind.CPU)
    device_bytes = changes.pop("device_bytes", 2 * GIB)
    node = Node(
        id=NodeId(name),
        name=name,
        state=NodeState.READY,
        devices=tuple(
            Device(DeviceId(f"{name}/{kind}{i}"), kind, i, "simulated", device_bytes, True)
            for i in range(devices)
        ),
        memory_bytes=16 * GIB,
        checkpoint_mode=CheckpointMode.CRIU,
        checkpoint_reason="",
        lease_expires_at=Instant(NOW + 30_000),
        joined_at=Instant(0),
    )
    return replace(node, **changes)


def a_job(name: str, devices: int = 1, tier: Tier = Tier.STANDARD, **changes: Any) -> Work:
    """A pending job. kind (of device) and the names of other fields of a demand go there."""
    demand = Demand(
        kind=changes.pop("kind", DeviceKind.CPU),
        devices_min=devices,
        devices_max=changes.pop("devices_max", devices),
        **{name: changes.pop(name) for name in DEMANDED if name in changes},
    )
    work = Work(
        id=WorkId(name),
        kind=WorkKind.JOB,
        tenant_id=TenantId("a"),
        tier=tier,
        demand=demand,
        want=Want.RUN,
        phase=Phase.PENDING,
        submitted_at=Instant(0),
        phase_since=Instant(0),
        suspendable=True,
    )
    return replace(work, **changes)


def a_replica(name: str, devices: int = 1, tier: Tier = Tier.STANDARD, **changes: Any) -> Work:
    work = a_job(name, devices, tier, **changes)
    return replace(work, kind=WorkKind.REPLICA, suspendable=False)


def a_deployment(name: str, **changes: Any) -> Deployment:
    deployment = Deployment(
        id=DeploymentId(name),
        name=name,
        tenant_id=TenantId("a"),
        model_id=ModelId("demo"),
        kind=DeploymentKind.PAYGO,
        tier=Tier.STANDARD,
        engine="simulated",
        replicas_min=0,
        replicas_max=4,
        replicas_wanted=1,
        devices_per_replica=1,
        slots=4,
        context_length=1024,
        memory_bytes=0,
        created_at=Instant(0),
    )
    return replace(deployment, **changes)


def a_reservation(tenant: str, devices: int, kind: DeviceKind = DeviceKind.CPU) -> Reservation:
    name = ReservationId(f"res-{tenant}-{kind}")
    return Reservation(name, TenantId(tenant), kind, devices, Instant(0))


def a_tenant(name: str, parent: str | None = None, **changes: Any) -> Tenant:
    above = None if parent is None else TenantId(parent)
    return replace(Tenant(TenantId(name), above, None, None, Instant(0)), **changes)


def placed(work: Work, *slots: tuple[str, str], at: Instant = NOW, running: bool = True) -> Work:
    """The work on devices, each slot as ("n1", "0 1"); brought there by its own lifecycle."""
    kind = work.demand.kind
    placement = tuple(
        Slot(NodeId(node), tuple(DeviceId(f"{node}/{kind}{i}") for i in indices.split()))
        for node, indices in slots
    )
    work = lifecycle.apply(work, lifecycle.Placed(placement, restore=False), at)
    return lifecycle.apply(work, lifecycle.Started(), at) if running else work


def suspended(work: Work, *nodes: str, at: Instant = START, size_bytes: int = GIB) -> Work:
    """The work as it is after a run and a save, its image on these nodes, by rank."""
    count = work.demand.devices_min
    devices = " ".join(str(i) for i in range(count))
    run = placed(work, *((node, devices) for node in nodes), at=at)
    run = lifecycle.apply(run, lifecycle.SaveOrdered("made room"), at)
    ids = tuple(NodeId(node) for node in nodes)
    image = Image(lifecycle.image_id(run), ids, size_bytes, at)
    return lifecycle.apply(run, lifecycle.Saved(image), at)


def replica_of(work: Work, deployment: Deployment) -> Replica:
    return Replica(work.id, deployment.id, Digest("sha256:0"), Instant(0))


def a_snapshot(
    nodes: Iterable[Node],
    works: Iterable[Work],
    *,
    tenants: Iterable[Tenant] = (),
    reservations: Iterable[Reservation] = (),
    deployments: Iterable[Deployment] = (),
    replicas: Iterable[Replica] = (),
) -> Snapshot:
    return Snapshot.of(
        Generation(7),
        nodes=nodes,
        works=works,
        tenants=tenants,
        reservations=reservations,
        deployments=deployments,
        replicas=replicas,
    )


def decided(plan: Plan) -> list[str]:
    """The decisions, in words."""
    return [describe(decision) for decision in plan.decisions]


def places(plan: Plan) -> dict[str, list[str]]:
    """The devices of what is placed."""
    return {
        d.work_id: [device for slot in d.placement for device in slot.devices]
        for d in plan.decisions
        if isinstance(d, Place)
    }


def planned(snapshot: Snapshot, policy: Policy | None = None, now: Instant = NOW) -> Plan:
    """A plan that passed the linter."""
    policy = policy or Policy()
    decided = plan(snapshot, policy, now, random.Random(0))
    assert check_plan(snapshot, decided, policy) == []
    assert unexplained(snapshot, decided) == []
    assert decided.works == apply_plan(snapshot, decided, now)
    return decided


def after(snapshot: Snapshot, decided: Plan, now: Instant = NOW) -> Snapshot:
    """The snapshot once the plan is carried out."""
    works = {**snapshot.works, **{w.id: w for w in apply_plan(snapshot, decided, now)}}
    nodes = {**snapshot.nodes, **{n.id: n for n in fenced_nodes(snapshot, decided)}}
    return replace(snapshot, works=works, nodes=nodes)


def settled(snapshot: Snapshot, policy: Policy) -> Snapshot:
    """Pass after pass, in a world that obeys at once, until there is nothing more to decide."""
    for step in range(12):
        now = Instant(NOW + 2_000 * step)
        decided = planned(snapshot, policy, now)
        snapshot = after(snapshot, decided, now)
        works = {name: _obey(work, now) for name, work in snapshot.works.items()}
        snapshot = replace(snapshot, works=works)
    assert decided.decisions == ()
    return snapshot


def _obey(work: Work, now: Instant) -> Work:
    if work.phase is Phase.STARTING:
        return lifecycle.apply(work, lifecycle.Started(), now)
    if work.phase is Phase.RESTORING:
        return lifecycle.apply(work, lifecycle.Restored(), now)
    if work.phase is Phase.SAVING:
        nodes = tuple(slot.node_id for slot in work.placement)
        return lifecycle.apply(
            work, lifecycle.Saved(Image(lifecycle.image_id(work), nodes, 1, now)), now
        )
    return work
