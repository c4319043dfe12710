"""What the API shows: flat views of the state, the nodes' reports and the last plan. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from onefleet.control.auth import Caller
from onefleet.control.demand import Demands
from onefleet.control.discretion import ANOTHERS, discreet
from onefleet.control.gateway_table import Blockers, wait_reason
from onefleet.control.leases import Sightings
from onefleet.core.checkpointing import interval_ms
from onefleet.core.index.usage import DeviceUse
from onefleet.core.ledger import HOUR_MS, HOURS_KEPT, fraction_permille, wanted_and_got
from onefleet.core.policy import DEFAULT_POLICY, Policy
from onefleet.core.promise import holds
from onefleet.domain.events import Event, Usage
from onefleet.domain.fleet import CheckpointMode, Device, DeviceKind, Node, NodeState
from onefleet.domain.ids import DeploymentId, Instant, NodeId
from onefleet.domain.jobs import Job
from onefleet.domain.serving import Deployment, Model, Replica
from onefleet.domain.tenancy import ApiKey, Reservation, Tenant
from onefleet.domain.work import Phase, Want, Work
from onefleet.store.base import State
from onefleet.wire.agent import Observed
from onefleet.wire.api import (
    DeploymentView,
    DeviceView,
    EventView,
    JobView,
    KeyView,
    ModelView,
    NodeView,
    ReplicaView,
    ReservationView,
    TenantView,
    UsageView,
)


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a view may depend on, as of one moment. viewer None: one who may see all."""

    state: State
    sightings: Sightings
    demands: Demands
    blockers: Blockers
    now: Instant
    viewer: Caller | None = None
    policy: Policy = DEFAULT_POLICY
    spares: tuple[NodeId, ...] = ()

    def told(self, text: str) -> str:
        """The text as the viewer may read it."""
        if self.viewer is None or self.viewer.is_admin:
            return text
        return discreet(text, self.state, self.viewer.sees)


def tenant_view(tenant: Tenant, state: State, usage: DeviceUse, now: Instant) -> TenantView:
    used: dict[str, dict[str, int]] = {}
    for tier, kind in usage.buckets(tenant.id):
        used.setdefault(kind.value, {})[tier.value] = usage.of(tenant.id, (tier, kind), now)
    reserved: dict[str, int] = {}
    for r in state.reservations.values():
        if r.tenant_id == tenant.id and r.starts_at is None and r.ends_at is None:
            reserved[r.kind.value] = reserved.get(r.kind.value, 0) + r.devices
    return TenantView(
        id=tenant.id,
        parent=tenant.parent,
        tokens_per_minute=tenant.tokens_per_minute,
        requests_per_minute=tenant.requests_per_minute,
        reservations=reserved,
        created_at=tenant.created_at,
        weight=tenant.weight,
        used=used,
    )


def reservation_view(reservation: Reservation, now: Instant) -> ReservationView:
    ends_at = reservation.ends_at
    over = ends_at is not None and ends_at <= now
    return ReservationView(
        id=reservation.id,
        tenant=reservation.tenant_id,
        device_kind=reservation.kind,
        product=reservation.product,
        devices=reservation.devices,
        starts_at=reservation.starts_at,
        ends_at=ends_at,
        within_ms=reservation.within_ms,
        state="over" if over else "open" if holds(reservation, now) else "ahead",
        created_at=reservation.created_at,
    )


def key_view(key: ApiKey, text: str | None = None) -> KeyView:
    return KeyView(
        id=key.id,
        tenant=key.tenant_id,
        name=key.name,
        role=key.role,
        hint=key.hint,
        created_at=key.created_at,
        revoked_at=key.revoked_at,
        key=text,
    )


def model_view(model: Model) -> ModelView:
    return ModelView(
        id=model.id,
        family=model.family,
        purpose=model.purpose,
        revision=model.revision,
        format=model.format,
        size_bytes=model.size_bytes,
        parameters=model.shape.parameters,
        context_length=model.shape.context_length,
        source=model.source,
        licence=model.licence,
        created_at=model.created_at,
    )


def deployment_view(deployment: Deployment, scene: Scene) -> DeploymentView:
    demand = scene.demands.of(deployment.id)
    ready = _ready(deployment.id, scene.state)
    state, reason = _deployment_state(deployment, ready, scene)
    return DeploymentView(
        id=deployment.id,
        name=deployment.name,
        tenant=deployment.tenant_id,
        model=deployment.model_id,
        kind=deployment.kind,
        tier=deployment.tier,
        engine=deployment.engine,
        replicas_min=deployment.replicas_min,
        replicas_max=deployment.replicas_max,
        replicas_wanted=deployment.replicas_wanted,
        replicas_ready=ready,
        devices_per_replica=deployment.devices_per_replica,
        slots=deployment.slots,
        context_length=deployment.context_length,
        memory_bytes=deployment.memory_bytes,
        active=demand.active,
        waiting=demand.waiting,
        state=state,
        reason=scene.told(reason),
        created_at=deployment.created_at,
    )


def is_ready(deployment: Deployment, state: State) -> bool:
    """Whether a replica of it answers."""
    return _ready(deployment.id, state) > 0


def replica_works(deployment_id: DeploymentId, state: State) -> list[Work]:
    """The works of a deployment's replicas, by id."""
    return [
        state.works[replica.id]
        for replica in state.replicas.values()
        if replica.deployment_id == deployment_id
    ]


def _ready(deployment_id: DeploymentId, state: State) -> int:
    works = replica_works(deployment_id, state)
    return sum(1 for w in works if w.phase is Phase.RUNNING and w.want is Want.RUN)


def _deployment_state(deployment: Deployment, ready: int, scene: Scene) -> tuple[str, str]:
    if deployment.removed_at is not None:
        return "removing", "its replicas are being stopped"
    if ready:
        return "ready", ""
    if deployment.replicas_wanted == 0:
        return "idle", "scaled to zero; the next request starts a replica"
    reason = wait_reason(scene.state, deployment, scene.blockers)
    works = replica_works(deployment.id, scene.state)
    waiting = works and all(w.phase is Phase.PENDING for w in works)
    blocked = waiting and any(scene.blockers.get(w.id) or w.failures for w in works)
    return ("blocked" if blocked else "starting"), reason


def replica_view(replica: Replica, scene: Scene) -> ReplicaView:
    work = scene.state.works[replica.id]
    report = scene.sightings.worker(work, 0)
    return ReplicaView(
        id=replica.id,
        deployment=scene.state.deployments[replica.deployment_id].name,
        phase=work.phase,
        node=_node_of(work),
        devices=_devices_of(work),
        reason=scene.told(work.reason),
        memory_bytes=report.memory_bytes if report else 0,
        created_at=replica.created_at,
    )


def job_view(job: Job, scene: Scene) -> JobView:
    work = scene.state.works[job.id]
    mode, why_not = _checkpoint(work, scene)
    ran_ms = ran_until(work, scene.now)
    until = work.ended_at or scene.now
    wanted_ms, got_ms = wanted_and_got(work, until, HOURS_KEPT * HOUR_MS)
    if not wanted_ms:  # it was promised nothing yet, and so has no ledger
        wanted_ms, got_ms = until - work.submitted_at, ran_ms
    return JobView(
        id=job.id,
        name=job.name,
        tenant=job.tenant_id,
        tier=work.tier,
        command=job.command,
        want=work.want,
        phase=work.phase,
        reason=scene.told(
            work.reason
            or _blocked(work, scene)
            or hindered_text(work, scene)
            or turns_text(work, scene)
        ),
        node=_node_of(work),
        devices=_devices_of(work),
        devices_min=work.demand.least,
        devices_max=work.demand.most,
        attempts=work.attempts,
        suspends=work.suspends,
        lost_ms=work.lost_ms,
        ran_ms=ran_ms,
        fraction=round(min(got_ms / wanted_ms, 1.0), 4) if wanted_ms > 0 else 0.0,
        # The node drops the image of a work that ended.
        image_bytes=work.image.size_bytes if work.image and work.phase is not Phase.ENDED else 0,
        memory_bytes=_memory_of(work, scene),
        checkpoint=mode,
        checkpoint_reason=why_not,
        outcome=work.outcome,
        exit_code=work.exit_code,
        why_ended=scene.told(work.why_ended),
        submitted_at=work.submitted_at,
        started_at=work.started_at,
        ended_at=work.ended_at,
        workers=work.demand.workers,
        width=work.width,
        moving_to=work.move_to,
        network=job.network,
        array=job.array,
        promised_permille=work.tier.promise_permille if work.promised else 0,
        kept_permille=fraction_permille(work, scene.now, HOURS_KEPT * HOUR_MS),
        unsaved_ms=_unsaved_ms(work, scene.now),
        saved_at=work.image.saved_at if work.image else None,
        turns=_turns_of(work, scene),
        checkpoint_every_ms=interval_ms(work, scene.policy.node_mttf_ms, scene.policy.save_cost),
    )


def _turns_of(work: Work, scene: Scene) -> int:
    if work.phase is not Phase.RUNNING:
        return 0
    reports = [scene.sightings.worker(work, rank) for rank in range(work.demand.workers)]
    return max((r.turns for r in reports if r is not None and r.epoch == work.epoch), default=0)


def hindered_text(work: Work, scene: Scene) -> str:
    """What keeps a job that runs from what its node was told to do with it, and tries again: a move
    to other devices, or onto its own after it stood still. Empty: nothing."""
    if work.phase is not Phase.RUNNING:
        return ""
    for rank in range(work.demand.workers):
        report = scene.sightings.worker(work, rank)
        if report is None or report.epoch != work.epoch or not report.reason:
            continue
        if report.observed in (Observed.RUNNING, Observed.FROZEN):
            return f"rank {rank}: {report.reason}" if work.demand.workers > 1 else report.reason
    return ""


def leaves_text(work: Work, state: State) -> str:
    """Why a work that holds devices is to leave them, in a person's words; empty: it is not."""
    devices = _devices_of(work)
    nodes = [state.nodes[slot.node_id] for slot in work.placement if slot.node_id in state.nodes]
    nodes = list(dict.fromkeys(nodes))
    why = [f"{node.id} is drained" for node in nodes if node.state is NodeState.DRAINING]
    cordons = (cordon for node in nodes for cordon in node.cordons)
    why += [f"{c.device_id} is cordoned ({c.reason})" for c in cordons if c.device_id in devices]
    return f"{', '.join(why)}: it moves once there is room elsewhere" if why else ""


def turns_text(work: Work, scene: Scene) -> str:
    """That a job takes turns, in a person's words, or why its workers do not; empty for one that
    shares nothing."""
    turns = _turns_of(work, scene)
    if work.demand.workers == 1:
        others = "1 other job" if turns == 2 else f"{turns - 1} other jobs"
        return f"takes turns on its core with {others}" if turns else ""
    if turns:
        return f"its workers take turns on their GPUs, up to {turns} on each"
    devices = _devices_of(work)
    packed = work.phase is Phase.RUNNING and len(dict.fromkeys(devices)) < len(devices)
    mode, why_not = _checkpoint(work, scene)
    if work.demand.kind is not DeviceKind.GPU or not packed or mode is CheckpointMode.CRIU:
        return ""
    return f"its workers share GPUs without taking turns, for they cannot be taken off: {why_not}"


def _unsaved_ms(work: Work, now: Instant) -> int:
    """Run time that is in no image: what a failure now would lose."""
    if work.phase is Phase.ENDED:
        return 0
    saved_ms = work.image.ran_ms if work.image else 0
    return max(ran_until(work, now) - work.lost_ms - saved_ms, 0)


def ran_until(work: Work, now: Instant) -> int:
    """Milliseconds in RUNNING, the current stretch included."""
    current = max(now - work.phase_since, 0) if work.phase is Phase.RUNNING else 0
    return work.ran_ms + current


def _blocked(work: Work, scene: Scene) -> str:
    found = scene.blockers.get(work.id, ())
    waits = work.phase in (Phase.PENDING, Phase.SUSPENDED)  # the newest plan may be older than that
    return found[0].text if found and waits else ""


def _node_of(work: Work) -> str:
    return ",".join(dict.fromkeys(slot.node_id for slot in work.placement))


def _devices_of(work: Work) -> tuple[str, ...]:
    return tuple(device for slot in work.placement for device in slot.devices)


def _memory_of(work: Work, scene: Scene) -> int:
    if not work.phase.holds_devices:
        return 0
    reports = (scene.sightings.worker(work, rank) for rank in range(work.demand.workers))
    return sum(r.memory_bytes for r in reports if r is not None and r.epoch == work.epoch)


def _checkpoint(work: Work, scene: Scene) -> tuple[CheckpointMode, str]:
    """How it is saved: as its node said, or before it has one as the best node could."""
    report = scene.sightings.worker(work, 0)
    nodes = scene.state.nodes
    placed = [nodes[slot.node_id] for slot in work.placement if slot.node_id in nodes]
    if report is not None and report.checkpoint_mode is not CheckpointMode.NONE:
        if report.checkpoint_mode is CheckpointMode.CRIU:
            return CheckpointMode.CRIU, ""
        reasons = [report.checkpoint_reason]
        reasons += [node.checkpoint_reason for node in placed or nodes.values()]
        return report.checkpoint_mode, next((r for r in reasons if r), "")
    order = list(CheckpointMode)
    best = min(placed or nodes.values(), key=lambda n: order.index(n.checkpoint_mode), default=None)
    if best is None:
        return CheckpointMode.NONE, "no node has joined yet"
    return best.checkpoint_mode, best.checkpoint_reason


def node_view(node: Node, scene: Scene) -> NodeView:
    report = scene.sightings.report_of(node.id)
    held = holders(scene.state)
    all_seen = scene.viewer is None or scene.viewer.is_admin
    return NodeView(
        id=node.id,
        name=node.name,
        state=node.state,
        devices=len(node.devices),
        devices_used=sum(1 for device in node.devices if device.id in held),
        memory_bytes=node.memory_bytes,
        memory_free_bytes=report.memory_free_bytes if report else 0,
        cpu_busy_permille=report.cpu_busy_permille if report else 0,
        checkpoint=node.checkpoint_mode,
        checkpoint_reason=node.checkpoint_reason,
        lease_expires_at=scene.sightings.lease_of(node.id),
        region=node.region,
        zone=node.zone,
        devices_cordoned=len(node.cordons),
        spare=node.id in scene.spares,
        data_dir=report.data_dir if report and all_seen else "",
    )


def holders(state: State) -> dict[str, Work]:
    """The work that holds each held device."""
    return {
        device: work
        for work in state.works.values()
        for slot in work.placement
        for device in slot.devices
    }


def device_view(device: Device, node: Node, holder: Work | None, named: bool) -> DeviceView:
    """named: whether the caller may know what holds it."""
    return DeviceView(
        id=device.id,
        node=node.id,
        kind=device.kind,
        product=device.product,
        memory_bytes=device.memory_bytes,
        simulated=device.simulated,
        holder="" if holder is None else holder.id if named else ANOTHERS,
        tier=holder.tier if holder else "",
        cordoned=next((c.reason for c in node.cordons if c.device_id == device.id), ""),
    )


def event_view(event: Event, scene: Scene) -> EventView:
    return EventView(
        sequence=event.sequence,
        at=event.at,
        kind=event.kind,
        subject=event.subject,
        text=scene.told(event.text),
    )


def usage_view(usage: Usage) -> UsageView:
    return UsageView(
        minute=usage.minute,
        tenant=usage.tenant_id,
        key=usage.key_id,
        deployment=usage.deployment_id,
        requests=usage.requests,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
    )
