"""What holds for every fleet and every queue, found out by trying thousands of small ones."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fleets import (
    GIB,
    NOW,
    a_deployment,
    a_job,
    a_node,
    a_replica,
    a_reservation,
    a_snapshot,
    a_tenant,
    after,
    replica_of,
)

from onefleet.core import lifecycle
from onefleet.core.explain import explain
from onefleet.core.ordering import RESERVED
from onefleet.core.plan import Checkpoint, Place, Plan, Resize, Suspend, Thaw, describe
from onefleet.core.plan_check import check_plan, unexplained
from onefleet.core.planner import Index, feasibility, plan
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import CheckpointMode, DeviceKind, Node, NodeState
from onefleet.domain.ids import DeviceId, Instant, NodeId, TenantId, WorkId
from onefleet.domain.serving import Replica
from onefleet.domain.tenancy import Reservation, Used
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Image, Phase, Slot, Terms, Want, Work, WorkKind

POLICY = Policy()
MODES = [CheckpointMode.CRIU] * 6 + [CheckpointMode.COOPERATIVE, CheckpointMode.NONE]
DEADLINES = (-1_000, 30_000, 120_000)
TIERS = st.sampled_from(list(Tier))
TENANTS = st.sampled_from([TenantId("a"), TenantId("b"), TenantId("c")])


@st.composite
def fleets(draw: st.DrawFn) -> list[Node]:
    count = draw(st.integers(1, 4))
    nodes = []
    for index in range(count):
        state = draw(st.sampled_from([NodeState.READY] * 9 + [NodeState.DRAINING, NodeState.LOST]))
        lease = draw(st.sampled_from([30_000] * 9 + [-1_000, -9_000]))
        nodes.append(
            a_node(
                f"n{index}",
                draw(st.integers(1, 6)),
                state=state,
                lease_expires_at=Instant(NOW + lease),
                memory_bytes=draw(st.sampled_from([4 * GIB, 16 * GIB])),
                address=draw(st.sampled_from([f"n{index}:1"] * 3 + [""])),
                checkpoint_mode=draw(st.sampled_from(MODES)),
            )
        )
    return nodes


@st.composite
def works(draw: st.DrawFn, name: str) -> Work:
    replica = draw(st.integers(0, 4)) == 0
    low = draw(st.sampled_from([1, 1, 2, 3]))
    make = a_replica if replica else a_job
    return make(
        name,
        low,
        draw(TIERS),
        devices_max=low + draw(st.integers(0, 2)),
        workers=1 if replica else draw(st.sampled_from([1, 1, 1, 2, 3])),
        memory_bytes=draw(st.sampled_from([0, 0, GIB, 3 * GIB])),
        tenant_id=draw(TENANTS),
        suspendable=not replica and draw(st.integers(0, 5)) > 0,
        submitted_at=Instant(draw(st.integers(0, 5))),
        phase_since=Instant(NOW - draw(st.sampled_from([0, 500, 5_000, 60_000]))),
        want=draw(st.sampled_from([Want.RUN] * 8 + [Want.SUSPEND, Want.FREEZE, Want.STOP])),
        promised=draw(st.sampled_from([True, True, False])),
        terms=Terms(
            checkpoint_every_ms=draw(st.sampled_from([None, 0, 10_000])),
            deadline=draw(st.sampled_from([None] * 3 + [Instant(NOW + ms) for ms in DEADLINES])),
            estimate_ms=draw(st.sampled_from([None, 20_000, 100_000])),
        ),
    )


def hand_out(work: Work, free: dict[NodeId, list[DeviceId]]) -> tuple[Slot, ...]:
    """Some devices for every worker, or nothing; takes them from `free`."""
    slots = []
    for _ in range(work.demand.workers):
        for node_id, devices in free.items():
            if len(devices) >= work.demand.devices_min:
                taken = [devices.pop() for _ in range(work.demand.devices_min)]
                slots.append(Slot(node_id, tuple(taken)))
                break
    return tuple(slots) if len(slots) == work.demand.workers else ()


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """A fleet with work in every phase, brought there by its own lifecycle."""
    nodes = draw(fleets())
    free = {n.id: [d.id for d in n.devices] for n in nodes if n.state is not NodeState.LOST}
    found: list[Work] = []
    replicas: list[Replica] = []
    deployment = a_deployment("d", replicas_min=draw(st.integers(0, 2)))
    for index in range(draw(st.integers(1, 12))):
        work = draw(works(f"w{index}"))
        goal = draw(st.sampled_from([*Phase, Phase.RUNNING, Phase.RUNNING, Phase.RUNNING]))
        since = work.phase_since
        wanted, work = work.want, replace(work, want=Want.RUN)
        if goal is Phase.SUSPENDED and work.suspendable:
            work = lifecycle.apply(
                replace(work, phase=Phase.SAVING, attempts=1, epoch=1),
                lifecycle.Saved(draw_image(draw, work, nodes)),
                since,
            )
        elif goal.is_placed and (slots := hand_out(work, free)):
            by = draw(st.sampled_from([None, *(WorkId(f"w{n}") for n in range(5))]))
            work = lifecycle.apply(work, lifecycle.Placed(slots, restore=False), since)
            if goal is not Phase.STARTING:
                work = lifecycle.apply(work, lifecycle.Started(), since)
            if goal is Phase.FROZEN and work.kind is WorkKind.JOB:
                work = lifecycle.apply(work, lifecycle.Froze("room", by), since)
            if goal is Phase.SAVING and work.suspendable:
                work = lifecycle.apply(work, lifecycle.SaveOrdered("room", by), since)
            if goal is Phase.STOPPING:
                work = lifecycle.apply(work, lifecycle.StopOrdered("room", by), since)
        if work.phase is Phase.PENDING and index and draw(st.integers(0, 3)) == 0:
            before = draw(st.sampled_from([*found, a_job("unknown")]))
            work = replace(work, ready=False, terms=replace(work.terms, after=(before.id,)))
        if work.phase in (Phase.SUSPENDED, Phase.RUNNING) and draw(st.integers(0, 7)) == 0:
            work = replace(work, move_to=(draw(st.sampled_from(nodes)).id,))
        recent_ms = draw(st.sampled_from([0, 0, 1, 600_001, 1 << 40]))
        found.append(replace(work, want=wanted, recent_ms=recent_ms))
        if work.kind is WorkKind.REPLICA:
            replicas.append(replica_of(work, deployment))
    team = a_tenant("a", draw(st.sampled_from([None, "top"])))
    used = Used(Tier.BASIC, DeviceKind.CPU, 1 << 40)
    team = replace(team, used=draw(st.sampled_from([(), (used,)])))
    return a_snapshot(
        nodes,
        found,
        deployments=[deployment],
        replicas=replicas,
        tenants=[team, a_tenant("top")],
        reservations=draw_reservations(draw),
    )


def draw_reservations(draw: st.DrawFn) -> list[Reservation]:
    """None, or one of a team or of what may be above it, for ever or in a window."""
    if draw(st.booleans()):
        return []
    found = a_reservation(draw(st.sampled_from(["a", "a", "top"])), draw(st.integers(1, 4)))
    edge = st.sampled_from([None, None, Instant(NOW - 9_000), Instant(NOW + 9_000)])
    starts_at, ends_at = draw(edge), draw(edge)
    if starts_at is not None and ends_at is not None and starts_at >= ends_at:
        ends_at = None
    return [replace(found, starts_at=starts_at, ends_at=ends_at)]


def draw_image(draw: st.DrawFn, work: Work, nodes: list[Node]) -> Image:
    names = [node.id for node in nodes]
    where = [draw(st.sampled_from(names))] * work.demand.workers
    if draw(st.integers(0, 3)) == 0:  # scattered, or on a node that is gone
        where = [draw(st.sampled_from([NodeId("n9"), *names])) for _ in where]
    copies = [tuple(n for n in draw(st.sets(st.sampled_from(names))) if n != w) for w in where]
    return Image(
        lifecycle.image_id(work),
        tuple(where),
        draw(st.sampled_from([0, 0, 1, 4])) * GIB,
        Instant(0),
        copies=tuple(tuple(sorted(nodes)) for nodes in copies) if any(copies) else (),
    )


def a_plan(snapshot: Snapshot, now: Instant = NOW, policy: Policy = POLICY) -> Plan:
    return plan(snapshot, policy, now, random.Random(0))


many = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@many
@given(snapshots())
def test_every_plan_passes_the_linter_and_every_work_keeps_its_invariants(s: Snapshot) -> None:
    decided = a_plan(s)
    assert check_plan(s, decided) == [] and unexplained(s, decided) == []
    for work_id, work in after(s, decided).works.items():
        lifecycle.check(work)
        assert work.epoch >= s.works[work_id].epoch


@many
@given(snapshots())
def test_a_second_pass_takes_nothing_back(s: Snapshot) -> None:
    first = a_plan(s)
    touched = {getattr(d, "work_id", "") for d in first.decisions}
    second = a_plan(after(s, first))
    assert check_plan(after(s, first), second) == []
    for decision in second.decisions:
        if isinstance(decision, Resize | Checkpoint) and goes_on(decision.work_id, first):
            continue  # a pass decides about a work once; what else it may have comes then
        assert getattr(decision, "work_id", "") not in touched, describe(decision)
        assert not isinstance(decision, Suspend), describe(decision)


def goes_on(work_id: WorkId, decided: Plan) -> bool:
    """Whether the plan has it run on with other devices than before."""
    return any(d.work_id == work_id for d in decided.decisions if isinstance(d, Thaw | Resize))


@many
@given(snapshots(), st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(s: Snapshot, chance: random.Random) -> None:
    def shuffled(values: object) -> list[object]:
        items = list(values)  # type: ignore[call-overload]
        chance.shuffle(items)
        return items

    other = Snapshot.of(
        s.generation,
        nodes=shuffled(s.nodes.values()),  # type: ignore[arg-type]
        works=shuffled(s.works.values()),  # type: ignore[arg-type]
        tenants=shuffled(s.tenants.values()),  # type: ignore[arg-type]
        reservations=shuffled(s.reservations.values()),  # type: ignore[arg-type]
        deployments=s.deployments.values(),
        replicas=shuffled(s.replicas.values()),  # type: ignore[arg-type]
    )
    assert a_plan(other) == a_plan(s)


@many
@given(snapshots())
def test_whatever_does_not_run_has_a_reason_in_words(s: Snapshot) -> None:
    decided = a_plan(s)
    for work in after(s, decided).works.values():
        why = explain(work, decided.blockers)
        assert why.summary
        if work.phase not in (Phase.RUNNING, Phase.ENDED):
            assert why.blockers and all(blocker.text for blocker in why.blockers)


def ranks(snapshot: Snapshot) -> dict[WorkId, int]:
    index = Index.of(snapshot, POLICY, NOW)
    index.settle()
    return dict(index.roster.ranks)


@many
@given(snapshots())
def test_premium_within_its_reservation_gets_in_where_lower_work_could_leave(s: Snapshot) -> None:
    """For one worker: if on some usable node what is free, leaves, or could be moved suffices and
    no other work of its rank waits, it is placed or devices are on their way to it."""
    decided = a_plan(s)
    done = after(s, decided)
    rank_of = ranks(done)
    waiting = [
        w
        for w in done.works.values()
        if rank_of.get(w.id) == RESERVED
        and w.phase is Phase.PENDING
        and w.want is Want.RUN
        and w.not_before <= NOW
    ]
    if len(waiting) != 1 or waiting[0].demand.workers > 1 or waiting[0].demand.memory_bytes:
        return
    work = waiting[0]
    for node in done.nodes.values():
        if node.state is not NodeState.READY or node.lease_expires_at <= NOW:
            continue
        fixed = 0  # devices that nobody can free
        for other in done.works.values():
            here = [slot for slot in other.placement if slot.node_id == node.id]
            movable = other.phase in (Phase.SAVING, Phase.STOPPING)
            fixed += 0 if movable else sum(len(slot.devices) for slot in here)
            if here and not movable:
                can_be_moved = (
                    other.kind is WorkKind.JOB
                    and other.suspendable
                    and other.phase is Phase.RUNNING
                    and other.not_before <= NOW
                    and rank_of[other.id] > RESERVED
                )
                fixed -= sum(len(s.devices) for s in here) if can_be_moved else 0
        fits = len(node.devices) - fixed >= work.demand.devices_min
        leaving = any(
            o.phase in (Phase.SAVING, Phase.STOPPING) and o.placement for o in done.works.values()
        )
        if fits:
            assert leaving, f"{work.id} would fit on {node.id}, and nobody makes room"


@many
@given(fleets(), works("w"), st.integers(1, 3), st.sampled_from([(), ("a",), ("a", "b")]))
def test_what_is_feasible_runs_on_the_empty_fleet_and_nothing_else_does(
    nodes: list[Node], work: Work, pack: int, zones: tuple[str, ...]
) -> None:
    ready = [
        replace(
            node,
            state=NodeState.READY,
            lease_expires_at=Instant(NOW + 1),
            zone=("a", "b", "")[number % 3],
        )
        for number, node in enumerate(nodes)
    ]
    demand = replace(work.demand, zones=zones)
    if demand.workers > 1:  # its workers may take turns
        demand = replace(demand, devices_max=demand.devices_min, pack=min(pack, demand.workers))
    work = replace(work, demand=demand)
    pending = replace(work, want=Want.RUN)
    decided = a_plan(a_snapshot(ready, [pending]))
    starts = any(isinstance(d, Place) for d in decided.decisions)
    assert starts == (feasibility(work.demand, ready) is None)
