"""One pass of the control plane: read, scale, plan, check, commit. The simulator runs the same.

It takes no orders from anybody: whatever the state says is brought a step nearer to what is
wanted, and calling it again when nothing changed changes nothing. It touches nothing but the
store, and its outcome depends on its arguments alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from onefleet.control import notes
from onefleet.control.replicas import Scaled, scale
from onefleet.core.autoscale import DemandNow
from onefleet.core.plan import Plan, apply_plan, fenced_nodes
from onefleet.core.planner import check_plan, plan
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.errors import InternalError, StaleGeneration
from onefleet.domain.fleet import Node
from onefleet.domain.ids import DeploymentId, IdSource, Instant, NodeId, WorkId
from onefleet.domain.serving import Deployment, Replica
from onefleet.domain.work import Phase, Work
from onefleet.store.base import Commit, Delete, Note, Put, Record, State, Store

RecordT = TypeVar("RecordT", Work, Deployment, Replica)

#: Ended jobs that are kept, newest first, so that people can look back.
ENDED_JOBS_KEPT = 10_000
#: Old jobs that one pass forgets at most, so that a pass stays short.
FORGOTTEN_A_PASS = 100


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is known besides the store. leases: when each node's lease runs out, for nodes whose
    record does not say; demand: what gateways report, by deployment."""

    leases: Mapping[NodeId, Instant] = field(default_factory=dict)
    demand: Mapping[DeploymentId, DemandNow] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass. committed: whether anything was written; False too when the race was lost."""

    plan: Plan
    committed: bool
    result: str


async def reconcile(
    store: Store,
    policy: Policy,
    now: Instant,
    rng: random.Random,
    *,
    ids: IdSource,
    inputs: Inputs,
) -> Pass:
    """Run one pass. Raises InternalError when the planner made an unsound plan; nothing is
    written then."""
    state = await store.read()
    scaled = scale(state, inputs.demand, policy, now, ids)
    snapshot = _snapshot(state, scaled, inputs)
    decided = plan(snapshot, policy, now, rng)
    unsound = check_plan(snapshot, decided)
    if unsound:
        raise InternalError(f"the plan breaks {len(unsound)} rules", why="; ".join(unsound))
    commit = _commit(state, scaled, snapshot, decided, now)
    if not commit.changes:
        return Pass(decided, False, "nothing to change")
    try:
        await store.commit(commit)
    except StaleGeneration:
        return Pass(decided, False, "somebody wrote first; the next pass decides again")
    return Pass(decided, True, f"{len(decided.decisions)} decisions")


def _snapshot(state: State, scaled: Scaled, inputs: Inputs) -> Snapshot:
    """The planner's view: the state with what scaling changed and the leases as they are."""
    gone = {str(record.id): True for record in scaled.gone}
    return Snapshot.of(
        state.generation,
        nodes=[_leased(node, inputs.leases) for node in state.nodes.values()],
        works=_overlaid(state.works, scaled.works, gone),
        tenants=state.tenants.values(),
        reservations=state.reservations.values(),
        deployments=_overlaid(state.deployments, scaled.deployments, gone),
        replicas=_overlaid(state.replicas, scaled.replicas, gone),
    )


def _leased(node: Node, leases: Mapping[NodeId, Instant]) -> Node:
    lease = leases.get(node.id)
    return node if lease is None else replace(node, lease_expires_at=lease)


def _overlaid(
    stored: Mapping[Any, RecordT], changed: Iterable[RecordT], gone: Mapping[str, bool]
) -> list[RecordT]:
    records = {**stored, **{record.id: record for record in changed}}
    return [record for name, record in records.items() if name not in gone]


def _commit(
    state: State, scaled: Scaled, snapshot: Snapshot, decided: Plan, now: Instant
) -> Commit:
    """Everything that the pass changes, in one commit that names its parent."""
    works: dict[WorkId, Work] = {work.id: work for work in scaled.works}
    works.update((work.id, work) for work in apply_plan(snapshot, decided, now))
    lost = fenced_nodes(snapshot, decided)
    found = list(scaled.notes)
    for node in lost:
        found.append(Note(now, "node.lost", node.id, f"{node.name} was not heard of"))
    for work in works.values():
        before = state.works.get(work.id)
        found.extend(notes.of_work(before, work, now))
    written: tuple[Record, ...] = (*lost, *scaled.deployments, *scaled.replicas, *works.values())
    removed: tuple[Record, ...] = (*scaled.gone, *_forgotten(state))
    changes: list[Put | Delete] = [Put(record) for record in written]
    changes += [Delete(record) for record in removed]
    return Commit(changes=changes, notes=found, parent=state.generation)


def _forgotten(state: State) -> Iterable[Record]:
    """The records of the oldest ended jobs over the limit."""
    surplus = len(state.jobs) - ENDED_JOBS_KEPT
    if surplus <= 0:
        return
    ended = [state.works[job] for job in state.jobs if state.works[job].phase is Phase.ENDED]
    ended.sort(key=lambda work: (work.ended_at or 0, work.id))
    for work in ended[: min(surplus, FORGOTTEN_A_PASS)]:
        yield work
        yield state.jobs[work.id]
