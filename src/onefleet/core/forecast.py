"""When a waiting job will start, how sure that is, and what would change it.

The answer is the planner's own: it is run forward (`forward.py`) over several draws of the unknown
run times, and the spread of the starts is the error bar. What would change it is found by planning
again with the job changed: fewer devices, another tier. Whoever would be pushed back by that is
named, so that nobody is sold a place in the queue without its price.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from onefleet.core.forward import Planner, Run, guesses, run_forward
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.ids import Instant, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Demand, Work

#: Draws of the unknown run times; their least and most are the error bar.
DRAWS = 9
#: How far ahead is looked.
HORIZON_MS = 14 * 24 * 3_600_000
#: A later start than without the change by more than this is a push back.
PUSHED_MS = 60_000
#: Works that were pushed back and are named.
NAMED_MAX = 5
#: The start of what does not start within the horizon.
_NEVER = Instant(2**60)


@dataclass(frozen=True, slots=True)
class Start:
    """When a work is expected to run: the median of the draws, the earliest and the latest.

    likely None: in fewer than half of the draws it started within the horizon. latest None: in
    some of them it did not.
    """

    likely: Instant | None
    earliest: Instant | None
    latest: Instant | None


@dataclass(frozen=True, slots=True)
class Change:
    """What the work's owner could ask for instead: a tier, or fewer devices in all."""

    tier: Tier | None = None
    devices: int | None = None


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """What a change would bring. starts_at None: not within the horizon either.

    pushed_back: works that would start later or have to give way, the most affected first.
    """

    change: Change
    starts_at: Instant | None
    pushed_back: tuple[WorkId, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """start: as things are. alternatives: only those that start it earlier, the earliest first."""

    start: Start
    alternatives: tuple[Counterfactual, ...]


def forecast(
    snapshot: Snapshot, work_id: WorkId, policy: Policy, now: Instant, planner: Planner
) -> Forecast:
    """Forecast the start of a work that waits. Deterministic: the draws are seeded by its id."""
    until = Instant(now + HORIZON_MS)

    def run(world: Snapshot, left: Mapping[WorkId, int], *others: WorkId) -> Run:
        watched = (work_id, *others)
        return run_forward(world, policy, now, left, planner, until=until, watched=watched)

    rng = random.Random(f"forecast/{work_id}")
    found = [run(snapshot, guesses(snapshot, now, rng)).starts.get(work_id) for _ in range(DRAWS)]
    usual = guesses(snapshot, now, None)
    base = run(snapshot, usual)
    best = base.starts.get(work_id)
    others: list[Counterfactual] = []
    if best != now:
        for change in _changes(snapshot.works[work_id]):
            world = _changed(snapshot, work_id, change)
            left = {**usual, work_id: _stretched(usual[work_id], snapshot.works[work_id], change)}
            changed = run(world, left, *base.starts)
            starts_at = changed.starts.get(work_id)
            if starts_at is not None and (best is None or starts_at < best):
                pushed = _pushed_back(base, changed, work_id)
                others.append(Counterfactual(change, starts_at, pushed))
    others.sort(key=lambda c: (c.starts_at or until, len(c.pushed_back), c.change.devices or 0))
    return Forecast(_spread(found), tuple(others))


def _spread(found: list[Instant | None]) -> Start:
    known = sorted(at for at in found if at is not None)
    middle = len(found) // 2
    return Start(
        likely=known[middle] if len(known) > middle else None,
        earliest=known[0] if known else None,
        latest=known[-1] if len(known) == len(found) else None,
    )


def _changes(work: Work) -> list[Change]:
    """Higher tiers, and the widths below its least that halving leads to."""
    changes = [Change(tier=tier) for tier in Tier if tier.rank < work.tier.rank]
    devices = work.demand.least
    while devices % 2 == 0 and devices > 1:
        devices //= 2
        changes.append(Change(devices=devices))
    if work.demand.least > 1 and devices != 1:
        changes.append(Change(devices=1))
    return changes


def _changed(snapshot: Snapshot, work_id: WorkId, change: Change) -> Snapshot:
    work = snapshot.works[work_id]
    if change.tier is not None:
        work = replace(work, tier=change.tier, promised=True)
    if change.devices is not None:
        work = replace(work, demand=_narrow(work.demand, change.devices))
    works = {**snapshot.works, work_id: work}
    return replace(snapshot, works=MappingProxyType(works))


def _narrow(demand: Demand, devices: int) -> Demand:
    """The demand on so few devices: its workers take turns, or its one worker has fewer."""
    if demand.workers == 1:
        return replace(demand, devices_min=devices, devices_max=devices)
    each = demand.devices_min
    if devices < each:
        return replace(demand, devices_min=1, devices_max=1, pack=-(-demand.workers // devices))
    return replace(demand, pack=-(-demand.workers * each // devices))


def _stretched(left_ms: int, work: Work, change: Change) -> int:
    """Fewer devices take longer, in proportion; the run itself says so only for elastic work."""
    if change.devices is None or work.demand.workers > 1:
        return left_ms
    return left_ms * work.demand.most // change.devices


def _pushed_back(base: Run, changed: Run, work_id: WorkId) -> tuple[WorkId, ...]:
    """Works that have to give way now and would not have, or start later than they would have."""
    late: dict[WorkId, int] = {}
    for other, at in changed.moved.items():
        if other not in base.moved:
            late[other] = changed.starts.get(other, _NEVER) - at
    for other, at in base.starts.items():
        if other == work_id or other in late:
            continue
        then = changed.starts.get(other, _NEVER)
        if then - at > PUSHED_MS:
            late[other] = then - at
    ordered = sorted(late, key=lambda other: (-late[other], other))
    return tuple(ordered[:NAMED_MAX])
