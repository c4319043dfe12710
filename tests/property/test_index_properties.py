"""An index that was kept up to date is one that was built anew, whatever happened in between."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fleets import NOW, a_job, a_node, a_snapshot, after, placed
from tests.property.test_planner_properties import POLICY, snapshots
from tests.property.test_spares_properties import spared

from onefleet.core.index import Index, Record
from onefleet.core.plan_check import check_plan
from onefleet.core.planner import plan
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import DeviceKind, Node
from onefleet.domain.ids import Instant, TenantId
from onefleet.domain.tiers import Tier

NAMES = [TenantId(name) for name in ("a", "b", "c", "top")]
BUCKETS = [(tier, kind) for tier in Tier for kind in DeviceKind]
POLICIES = st.sampled_from([POLICY, spared(1), spared(2)])
TABLES = ("tenants", "reservations", "deployments", "replicas", "nodes", "works")

many = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def facts(index: Index) -> dict[str, Any]:
    """Everything that an index says, in a form that can be compared."""
    index.settle()
    fleet, roster = index.fleet, index.roster
    usage = roster.usage
    shelves = fleet.shelves.everything()
    rooms = {
        node_id: (
            [(left.now, left.soon, left.counts, left.lasting) for left in room.kinds.values()],
            room.memory,
            room.stirs,
        )
        for node_id, room in fleet.rooms.items()
    }
    return {
        "rooms": rooms,
        "shelves": {
            key: (shelf.by, shelf.stirring, shelf.shared) for key, shelf in shelves.items()
        },
        "free": {kind: count for kind, count in fleet.shelves.free.items() if count},
        "usable": fleet.usable,
        "open": fleet.open,
        "late": fleet.late,
        "absent": fleet.absent,
        "images": fleet.images,
        "ranks": roster.ranks,
        "levels": {work_id: roster.level_of(work_id) for work_id in roster.works},
        "held": {(name, b): usage.held(name, b) for name in NAMES for b in BUCKETS},
        "used": {(name, b): usage.of(name, b, index.now) for name in NAMES for b in BUCKETS},
        "wanting": {bucket: set(usage.wanting(bucket)) for bucket in BUCKETS},
        "lines": sorted(roster.lines, key=repr),
        "stop": roster.to_stop,
        "pause": roster.to_pause,
        "ended": roster.ended,
        "stock": index.stock,
        "spares": fleet.spares.now,
        "kept in the long run": fleet.spares.stock(),
        "aside": {key: (shelf.by, shelf.shared) for key, shelf in fleet.aside.everything().items()},
        "awaited": fleet.awaited,
        "stranded": roster.stranded,
        "nominees": roster.nominees.waiting,
        "ready": roster.errands.to_ready,
        "promise": roster.errands.to_promise,
        "checkpoint": roster.errands.to_checkpoint,
        "move": roster.errands.to_move,
        "resize": roster.errands.to_resize,
        "lenders": roster.errands.lenders,
        "frozen": roster.errands.frozen,
        "on their way": roster.errands.on_their_way,
        "moving": roster.errands.moving,
        "promised": roster.errands.promised,
        "fixed": roster.errands.fixed,
    }


def records(snapshot: Snapshot) -> dict[tuple[type, str], Record]:
    return {
        (type(record), record.id): record
        for table in TABLES
        for record in cast(Mapping[str, Record], getattr(snapshot, table)).values()
    }


def bring(index: Index, before: Snapshot, then: Snapshot, chance: random.Random) -> None:
    """Give the index what changed between the two, in any order."""
    old, new = records(before), records(then)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    chance.shuffle(changed)
    for kind, name in changed:
        record = new.get((kind, name))
        if record is None:
            index.remove(kind, name)
        else:
            index.put(record)


def partly(first: Snapshot, second: Snapshot, chance: random.Random) -> Snapshot:
    """The first with some records as they are in the second."""
    old, new = records(first), records(second)
    part = chance.choice([0.05, 0.2, 0.5, 1.0])
    mixed = {key: (new if chance.random() < part else old).get(key) for key in {**old, **new}}
    found: dict[str, list[Any]] = {table: [] for table in TABLES}
    for (kind, _), record in mixed.items():
        if record is not None:
            found[f"{kind.__name__.lower()}s"].append(record)
    return Snapshot.of(first.generation, **found)


@many
@given(
    snapshots(), snapshots(), st.randoms(use_true_random=False), st.integers(0, 40_000), POLICIES
)
def test_kept_up_to_date_is_built_anew(
    first: Snapshot, second: Snapshot, chance: random.Random, passed_ms: int, policy: Policy
) -> None:
    index, now = Index.of(first, policy, NOW), NOW
    for _ in range(3):
        if chance.random() < 0.7:
            index.settle()
        then = partly(first, second, chance)
        bring(index, first, then, chance)
        first, now = then, Instant(now + chance.choice([0, passed_ms]))
        index.advance(now, {})
    assert facts(index) == facts(Index.of(first, policy, now))


def test_what_is_on_a_node_that_is_removed_is_seen_anew() -> None:
    held = placed(a_job("j", suspendable=False), ("n1", "0"))
    index = Index.of(a_snapshot([a_node("n1"), a_node("n2")], [held]), POLICY, NOW)
    index.remove(Node, "n1")
    assert facts(index) == facts(Index.of(a_snapshot([a_node("n2")], [held]), POLICY, NOW))


@many
@given(snapshots(), st.randoms(use_true_random=False), st.integers(1, 4), POLICIES)
def test_plans_follow_from_the_snapshot_alone(
    snapshot: Snapshot, chance: random.Random, passes: int, policy: Policy
) -> None:
    """Pass after pass on one index is pass after pass on new ones, and leaves no trace."""
    index, now = Index.of(snapshot, policy, NOW), NOW
    for _ in range(passes):
        before = facts(index)
        decided = plan(snapshot, policy, now, random.Random(0), index)
        assert check_plan(snapshot, decided, policy, index) == [], decided.decisions
        anew = plan(snapshot, policy, now, random.Random(0))
        assert (decided.decisions, decided.spares) == (anew.decisions, anew.spares)
        assert facts(index) == before
        then = after(snapshot, decided, now)
        bring(index, snapshot, then, chance)
        snapshot, now = then, Instant(now + chance.choice([0, 500, 5_000, 60_000]))
        index.advance(now, {})
