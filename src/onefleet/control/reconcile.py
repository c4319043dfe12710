"""One pass of the control plane: read, scale, plan, check, commit. The simulator runs the same.

It takes no orders from anybody: whatever the state says is brought a step nearer to what is
wanted, and calling it again when nothing changed changes nothing. It touches nothing but the
store, and its outcome depends on its arguments alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

from onefleet.control import notes
from onefleet.control.failures import LOST, learnt, lost_now
from onefleet.control.mirror import Mirror
from onefleet.control.replicas import Scaled, scale
from onefleet.control.spares import sparing
from onefleet.core.autoscale import DemandNow
from onefleet.core.checkpointing import Failures
from onefleet.core.index import Index
from onefleet.core.ledger import forgetting
from onefleet.core.plan import Plan, fenced_nodes
from onefleet.core.planner import check_plan, plan
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.errors import InternalError, StaleGeneration
from onefleet.domain.ids import DeploymentId, IdSource, Instant, NodeId, TenantId, WorkId
from onefleet.domain.serving import Deployment, Replica
from onefleet.domain.tenancy import Tenant
from onefleet.domain.work import Work
from onefleet.store.base import Commit, Delete, Note, Put, Record, State, Store

RecordT = TypeVar("RecordT", Work, Deployment, Replica)

#: Ended jobs that are kept, newest first, so that people can look back.
ENDED_JOBS_KEPT = 10_000
#: Old jobs that one pass forgets at most, so that a pass stays short.
FORGOTTEN_A_PASS = 100


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is known besides the store. leases: when each node's lease runs out, for nodes whose
    record does not say; demand: what gateways report, by deployment. failures: what was seen of
    the fleet's so far; None: nothing is learnt of them."""

    leases: Mapping[NodeId, Instant] = field(default_factory=dict)
    demand: Mapping[DeploymentId, DemandNow] = field(default_factory=dict)
    failures: Failures | None = None


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
    mirror: Mirror,
) -> Pass:
    """Run one pass. mirror: of this store; the same one in each pass.

    Raises InternalError when the planner made an unsound plan; nothing is written then.
    """
    state = await store.read()
    policy = policy if inputs.failures is None else learnt(policy, inputs.failures)
    policy = sparing(policy, state)
    scaled = scale(state, inputs.demand, policy, now, ids)
    stored = _stored(state, inputs)
    index = mirror.follow(store, stored, policy, now)
    forgotten = _forgotten(state, index)
    mark = index.mark()
    try:
        snapshot = _overlaid(stored, scaled, index)
        decided = plan(snapshot, policy, now, rng, index)
        unsound = check_plan(snapshot, decided, policy, index)
    finally:
        index.rollback(mark)
    if unsound:
        raise InternalError(f"the plan breaks {len(unsound)} rules", why="; ".join(unsound))
    commit = _commit(state, scaled, snapshot, decided, forgotten)
    if inputs.failures is not None and (lost := lost_now(state, fenced_nodes(snapshot, decided))):
        commit = replace(commit, marks={LOST: inputs.failures.lost + lost})
    if not commit.changes:
        return Pass(decided, False, "nothing to change")
    try:
        await store.commit(commit)
    except StaleGeneration:
        return Pass(decided, False, "somebody wrote first; the next pass decides again")
    return Pass(decided, True, f"{len(decided.decisions)} decisions")


def _stored(state: State, inputs: Inputs) -> Snapshot:
    """The planner's view of what is stored, with the leases as they are."""
    return Snapshot(
        state.generation,
        nodes=state.nodes,
        works=state.works,
        tenants=state.tenants,
        reservations=state.reservations,
        deployments=state.deployments,
        replicas=state.replicas,
        leases=inputs.leases,
    )


def _overlaid(stored: Snapshot, scaled: Scaled, index: Index) -> Snapshot:
    """The view with what scaling changed, in the index as well."""
    changed: tuple[Deployment | Replica | Work, ...]
    changed = (*scaled.deployments, *scaled.replicas, *scaled.works)
    for record in changed:
        index.put(record)
    for gone in scaled.gone:
        index.remove(type(gone), gone.id)
    return replace(
        stored,
        works=_changed(stored.works, scaled.works, scaled.gone),
        deployments=_changed(stored.deployments, scaled.deployments, scaled.gone),
        replicas=_changed(stored.replicas, scaled.replicas, scaled.gone),
    )


def _changed(
    stored: Mapping[Any, RecordT], changed: Sequence[RecordT], gone: Sequence[Record]
) -> Mapping[Any, RecordT]:
    """What is stored with what changed, by id."""
    if not changed and not gone:
        return stored
    records = {**stored, **{record.id: record for record in changed}}
    for record in gone:
        if isinstance(records.get(record.id), type(record)):
            del records[record.id]
    return MappingProxyType(dict(sorted(records.items())))


def _commit(
    state: State,
    scaled: Scaled,
    snapshot: Snapshot,
    decided: Plan,
    forgotten: Sequence[Record],
) -> Commit:
    """Everything that the pass changes, in one commit that names its parent."""
    now = decided.planned_at
    works: dict[WorkId, Work] = {work.id: work for work in scaled.works}
    works.update((work.id, work) for work in decided.works)
    lost = fenced_nodes(snapshot, decided)
    found = list(scaled.notes)
    for node in lost:
        found.append(Note(now, "node.lost", node.id, f"{node.name} was not heard of"))
    for work in works.values():
        before = state.works.get(work.id)
        found.extend(notes.of_work(before, work, now))
    gone = (*scaled.gone, *forgotten)
    written: tuple[Record, ...] = (
        *lost, *scaled.deployments, *scaled.replicas, *works.values(), *_debited(state, gone, now),
    )  # fmt: skip
    changes: list[Put | Delete] = [Put(record) for record in written]
    changes += [Delete(record) for record in gone]
    return Commit(changes=changes, notes=found, parent=state.generation)


def _debited(state: State, gone: Iterable[Record], now: Instant) -> Iterator[Tenant]:
    """The tenants of works whose records go away, with what these have had."""
    works: dict[TenantId, list[Work]] = {}
    for record in gone:
        if isinstance(record, Work) and record.tenant_id in state.tenants:
            works.setdefault(record.tenant_id, []).append(record)
    for tenant_id, its_works in works.items():
        yield forgetting(state.tenants[tenant_id], its_works, now)


def _forgotten(state: State, index: Index) -> Sequence[Record]:
    """The records of the oldest ended jobs over the limit."""
    ended = index.roster.ended
    surplus = min(len(ended) - ENDED_JOBS_KEPT, FORGOTTEN_A_PASS)
    found: list[Record] = []
    for _, work_id in ended[: max(surplus, 0)]:
        found += [state.works[work_id], state.jobs[work_id]]
    return found
