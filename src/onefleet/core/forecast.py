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

from onefleet.core.feasibility import feasibility
from onefleet.core.forward import Planner, Run, guesses, run_forward
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import Node, NodeState
from onefleet.domain.ids import Instant, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Demand, Phase, Work

#: Draws of the unknown run times; their least and most are the error bar. Where there are many
#: works, a draw takes long: fewer are made, for somebody waits for the answer.
DRAWS, DRAWS_MIN = 9, 3
#: Works that are run forward in all draws together, beyond the fewest draws.
WORKS_DRAWN = 1_000
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
    """What the work's owner could ask for instead: a tier, or fewer devices in all, (least, most)
    as `--devices` takes them."""

    tier: Tier | None = None
    devices: tuple[int, int] | None = None


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

    found: list[Instant | None] = [None]
    if _has_a_chance(snapshot, work_id, now):
        rng = random.Random(f"forecast/{work_id}")
        draws = range(_draws(snapshot))
        found = [run(snapshot, guesses(snapshot, now, rng)).starts.get(work_id) for _ in draws]
    usual = guesses(snapshot, now, None)
    base = run(snapshot, usual)
    best = base.starts.get(work_id)
    others: list[Counterfactual] = []
    if best != now:
        for change in _changes(snapshot.works[work_id]):
            world = _changed(snapshot, work_id, change)
            if not _has_a_chance(world, work_id, now):
                continue
            left = {**usual, work_id: _stretched(usual[work_id], snapshot.works[work_id], change)}
            changed = run(world, left, *base.starts)
            starts_at = changed.starts.get(work_id)
            if starts_at is not None and (best is None or starts_at < best):
                pushed = _pushed_back(base, changed, work_id)
                others.append(Counterfactual(change, starts_at, pushed))
    others.sort(key=lambda c: (c.starts_at or until, len(c.pushed_back), c.change.devices or ()))
    return Forecast(_spread(found), tuple(others))


def _spread(found: list[Instant | None]) -> Start:
    known = sorted(at for at in found if at is not None)
    middle = len(found) // 2
    return Start(
        likely=known[middle] if len(known) > middle else None,
        earliest=known[0] if known else None,
        latest=known[-1] if len(known) == len(found) else None,
    )


def _draws(snapshot: Snapshot) -> int:
    live = sum(1 for work in snapshot.works.values() if work.phase is not Phase.ENDED)
    return min(max(WORKS_DRAWN // max(live, 1), DRAWS_MIN), DRAWS)


def _has_a_chance(snapshot: Snapshot, work_id: WorkId, now: Instant) -> bool:
    """Whether the work could run if nothing else did, on the nodes as they are."""
    nodes: list[Node] = []
    for node in snapshot.nodes.values():
        if node.state is NodeState.READY and snapshot.lease_of(node) > now:
            cordoned = [cordon.device_id for cordon in node.cordons]
            devices = tuple(device for device in node.devices if device.id not in cordoned)
            nodes.append(replace(node, devices=devices))
    return feasibility(snapshot.works[work_id].demand, nodes) is None


def _changes(work: Work) -> list[Change]:
    """Higher tiers, and the widths below its least that halving leads to."""
    changes = [Change(tier=tier) for tier in Tier if tier.rank < work.tier.rank]
    demand = work.demand
    each = 1 if demand.workers == 1 else demand.devices_min
    rigid = demand.workers == 1 and not demand.is_elastic
    sets = demand.least // each
    narrower = list[int]()
    while sets % 2 == 0:
        sets //= 2
        narrower.append(sets * each)
    if sets > 1:
        narrower.append(each)
    changes += [Change(devices=(n, n if rigid else demand.most)) for n in narrower]
    return changes


def _changed(snapshot: Snapshot, work_id: WorkId, change: Change) -> Snapshot:
    work = snapshot.works[work_id]
    if change.tier is not None:
        promised = not change.tier.promise_permille  # else it is still to be given
        work = replace(work, tier=change.tier, promised=promised)
    if change.devices is not None:
        work = replace(work, demand=_narrow(work.demand, *change.devices))
    works = {**snapshot.works, work_id: work}
    return replace(snapshot, works=MappingProxyType(works))


def _narrow(demand: Demand, least: int, most: int) -> Demand:
    """The demand on so few devices: its workers take turns, or its one worker has fewer."""
    if demand.workers == 1:
        return replace(demand, devices_min=least, devices_max=most)
    return replace(demand, pack=-(-demand.workers * demand.devices_min // least))


def _stretched(left_ms: int, work: Work, change: Change) -> int:
    """Fewer devices take longer, in proportion; the run itself says so of elastic work."""
    if change.devices is None or change.devices[1] == work.demand.most:
        return left_ms
    return left_ms * work.demand.most // change.devices[1]


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
