"""The planner: a snapshot in, a complete plan out.

`plan` reads as a recipe of fixed steps (`steps/`); each leaves a step report that says what it did
or why it did nothing. Every decision is tried out at once on the index of the pass, so that each
step sees what the earlier ones did; in the end the index is as it was.

Elastic work is placed as wide as the free devices allow when nothing else waits for them, and made
wider or narrower while it runs.
"""

from __future__ import annotations

import random

from onefleet.core.feasibility import feasibility
from onefleet.core.index import Index
from onefleet.core.plan import Plan, apply_plan, describe, fenced_nodes
from onefleet.core.plan_check import check_plan
from onefleet.core.policy import Policy
from onefleet.core.reasons import Reasons
from onefleet.core.recipe import work_off
from onefleet.core.scratch import Scratch
from onefleet.core.snapshot import Snapshot
from onefleet.domain.ids import Instant

__all__ = [
    "Index",
    "apply_plan",
    "check_plan",
    "describe",
    "feasibility",
    "fenced_nodes",
    "plan",
]


def plan(
    snapshot: Snapshot,
    policy: Policy,
    now: Instant,
    rng: random.Random,
    index: Index | None = None,
) -> Plan:
    """Decide one pass. rng: for policies that break ties by chance; this one does by id.

    index: of this very snapshot, policy and time; None: it is built. It comes back as it was.
    """
    index = Index.of(snapshot, policy, now) if index is None else index
    mark = index.mark()
    try:
        this = Scratch(index, policy, now)
        work_off(this)
        index.settle_rooms()
        spares = tuple(index.fleet.spares.now)
        changed = tuple(this.works[work_id] for work_id in this.changed())
    finally:
        index.rollback(mark)
    return Plan(
        snapshot.generation,
        now,
        tuple(this.decisions),
        tuple(this.steps),
        Reasons(snapshot, policy, now),
        spares,
        changed,
    )
