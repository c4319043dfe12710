"""The planner run forward from a snapshot: what it would do, if run times were as guessed.

The same `plan` decides, on a clock that jumps from one end of a job to the next. Between passes the
world obeys at once: what is placed runs, what is to be saved is saved; so the waits that come out
are those of scheduling, without the seconds that starting and saving take. Replicas stay as they
are. How far it goes is bounded in time and in passes; what has not started by then is not in the
answer.

Run times are guessed from what has ended (`guesses`): of the same owner and shape where there are
enough of these, given how long the job has run already.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

from onefleet.core import lifecycle
from onefleet.core.index import Index
from onefleet.core.ledger import width_permille
from onefleet.core.lifecycle import progress_ms
from onefleet.core.ordering import next_level_at
from onefleet.core.plan import Checkpoint, Decision, Plan, apply_plan, fenced_nodes
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.ids import Instant, NodeId, WorkId
from onefleet.domain.work import Image, Outcome, Phase, Want, Work, WorkKind


class Planner(Protocol):
    """As `planner.plan`, which cannot be imported here."""

    def __call__(
        self,
        snapshot: Snapshot,
        policy: Policy,
        now: Instant,
        rng: random.Random,
        index: Index | None = None,
    ) -> Plan: ...


#: Passes at one moment before it is taken to be settled.
SETTLE_MAX = 12
#: Passes in all; a forward run is an answer to a person who waits.
PASSES_MAX = 400
#: Between looks while nothing is known to happen: doubles from the first to the last.
LOOK_MS, LOOK_MS_MAX = 1_000, 600_000
#: A lease that does not run out.
_FOR_EVER = Instant(2**60)


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a forward run.

    first: what the first pass decided, at the moment of the snapshot. starts: when each work that
    did not run came to run. moved: works that were running and had to give way, with when.
    """

    first: Plan
    starts: Mapping[WorkId, Instant]
    moved: Mapping[WorkId, Instant]


@dataclass(slots=True)
class _World:
    """A snapshot that obeys. left: run time that each job still needs, at full width. index: of
    the snapshot, kept up to date by what changes."""

    snapshot: Snapshot
    left: dict[WorkId, int]
    index: Index
    starts: dict[WorkId, Instant] = field(default_factory=dict)
    moved: dict[WorkId, Instant] = field(default_factory=dict)

    def commit(self, plan: Plan, now: Instant) -> None:
        """Apply a plan, and let the world obey it."""
        works = dict(self.snapshot.works)
        for work in apply_plan(self.snapshot, plan, now):
            before = self.snapshot.works[work.id]
            if before.phase is Phase.RUNNING and lifecycle.has_given_way(work):
                self.moved.setdefault(work.id, now)
            works[work.id] = _obey(work, now)
            self.index.put(works[work.id])
            if works[work.id].phase is Phase.RUNNING and before.phase is not Phase.RUNNING:
                self.starts.setdefault(work.id, now)
        lost = {node.id: node for node in fenced_nodes(self.snapshot, plan)}
        for node in lost.values():
            self.index.put(node)
        nodes = {node.id: lost.get(node.id, node) for node in self.snapshot.nodes.values()}
        self.snapshot = replace(
            self.snapshot, works=MappingProxyType(works), nodes=MappingProxyType(nodes)
        )

    def advance(self, before: Instant, now: Instant) -> None:
        """Let jobs run until now; those that have no run time left succeed."""
        works = dict(self.snapshot.works)
        for work in self.snapshot.works.values():
            if _runs(work):
                done = (now - before) * width_permille(work) // 1_000
                self.left[work.id] = max(self.left[work.id] - done, 0)
                if not self.left[work.id]:
                    works[work.id] = lifecycle.apply(work, lifecycle.ProcessEnded(0, ""), now)
                    self.index.put(works[work.id])
        self.snapshot = replace(self.snapshot, works=MappingProxyType(works))
        self.index.advance(now, self.snapshot.leases)

    def next_level(self, now: Instant, policy: Policy) -> Instant | None:
        """When the first of the running jobs gets to where others may go before it."""
        works = self.snapshot.works.values()
        if not any(work.phase in (Phase.PENDING, Phase.SUSPENDED) for work in works):
            return None
        times = (next_level_at(work, now, policy) for work in works if _runs(work))
        return min((at for at in times if at is not None), default=None)

    def next_window(self, now: Instant) -> Instant | None:
        """When the next window of a reservation opens or closes."""
        windows = ((r.starts_at, r.ends_at) for r in self.snapshot.reservations.values())
        edges = (at for window in windows for at in window if at is not None and at > now)
        return min(edges, default=None)

    def next_end(self, now: Instant) -> Instant | None:
        """When the first of the running jobs has no run time left."""
        ends = [
            now + -(-self.left[work.id] * 1_000 // max(width_permille(work), 1))
            for work in self.snapshot.works.values()
            if _runs(work)
        ]
        return Instant(max(min(ends), now + 1)) if ends else None


def run_forward(
    snapshot: Snapshot,
    policy: Policy,
    now: Instant,
    left: Mapping[WorkId, int],
    planner: Planner,
    *,
    until: Instant,
    watched: Iterable[WorkId] = (),
) -> Run:
    """Run the planner forward until `until`, or until all watched works have started.

    left: run time that each job still needs on its full width, in milliseconds; a job that is
    not in it runs for ever.
    """
    waiting = dict.fromkeys(watched)
    nodes = {
        node.id: replace(node, lease_expires_at=_FOR_EVER) if node.lease_expires_at > now else node
        for node in snapshot.nodes.values()
    }
    jobs = (work.id for work in snapshot.works.values() if work.kind is WorkKind.JOB)
    snapshot = replace(snapshot, nodes=MappingProxyType(nodes))
    world = _World(
        snapshot,
        {work_id: left.get(work_id, _FOR_EVER) for work_id in jobs},
        Index.of(snapshot, policy, now),
    )
    rng = random.Random(0)
    first: Plan | None = None
    passes, look_ms, at = 0, LOOK_MS, now
    while at <= until and passes < PASSES_MAX:
        for _ in range(SETTLE_MAX):
            plan = planner(world.snapshot, policy, at, rng, world.index)
            first = first or plan
            passes += 1
            plan = replace(plan, decisions=_that_matter(plan.decisions))
            if not plan.decisions:
                break
            world.commit(plan, at)
            look_ms = LOOK_MS
        if waiting and all(work_id in world.starts for work_id in waiting):
            break
        known = (world.next_end(at), world.next_level(at, policy), world.next_window(at))
        upcoming = [event for event in known if event is not None]
        if not upcoming and look_ms == LOOK_MS_MAX:
            break  # nothing happens any more
        later = min([*upcoming, Instant(at + look_ms)])
        look_ms = min(2 * look_ms, LOOK_MS_MAX)
        world.advance(at, later)
        at = later
    assert first is not None, "the horizon is before now"
    return Run(first, MappingProxyType(world.starts), MappingProxyType(world.moved))


def guesses(snapshot: Snapshot, now: Instant, rng: random.Random | None) -> dict[WorkId, int]:
    """Run time that each job still needs at full width: a draw, or without rng the median.

    What its owner says goes first, while the job has not run for longer than that.
    """
    ended: dict[tuple[object, ...], list[int]] = {}
    for work in snapshot.works.values():
        if work.kind is WorkKind.JOB and work.outcome is Outcome.SUCCEEDED:
            for key in _classes(work):
                ended.setdefault(key, []).append(max(progress_ms(work), 1))
    for lengths in ended.values():
        lengths.sort()
    return {
        work.id: _left(work, ended, now, rng)
        for work in snapshot.works.values()
        if work.kind is WorkKind.JOB and work.phase is not Phase.ENDED
    }


#: So many that ended make a class of their own; fewer say little.
_ENOUGH = 5
#: What is guessed when nothing is known: half of all jobs run for longer.
_UNKNOWN_MS = 3_600_000


def _classes(work: Work) -> Sequence[tuple[object, ...]]:
    """What a job is like, the closest likeness first."""
    demand, tenant = work.demand, work.tenant_id
    return ((tenant, demand.kind, demand.most), (tenant,), ())


def _left(
    work: Work,
    ended: Mapping[tuple[object, ...], Sequence[int]],
    now: Instant,
    rng: random.Random | None,
) -> int:
    current = now - work.phase_since if work.phase is Phase.RUNNING else 0
    ran = max(progress_ms(work) + current, 0)
    estimate = work.terms.estimate_ms
    if estimate is not None and ran < estimate:
        return estimate - ran
    for key in _classes(work):
        longer = [length for length in ended.get(key, ()) if length > ran]
        if len(longer) >= _ENOUGH:
            chosen = longer[len(longer) // 2] if rng is None else rng.choice(longer)
            return chosen - ran
    # Run times spread over orders of magnitude: what has run for long will run for as long again.
    scale = max(ran, _UNKNOWN_MS)
    return scale if rng is None else round(scale * rng.choice((0.25, 0.5, 1, 2, 4)))


def _that_matter(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """Without images of what runs on: they change nobody's turn, and are many."""
    return tuple(d for d in decisions if not isinstance(d, Checkpoint))


def _runs(work: Work) -> bool:
    return work.kind is WorkKind.JOB and work.phase is Phase.RUNNING


def _obey(work: Work, now: Instant) -> Work:
    """What becomes at once of what was ordered."""
    match work.phase:
        case Phase.STARTING:
            return lifecycle.apply(work, lifecycle.Started(), now)
        case Phase.RESTORING:
            return lifecycle.apply(work, lifecycle.Restored(), now)
        case Phase.SAVING:
            nodes = tuple(slot.node_id for slot in work.placement)
            return lifecycle.apply(work, lifecycle.Saved(_image(work, nodes, now)), now)
        case Phase.STOPPING if work.kind is WorkKind.REPLICA or work.want is Want.STOP:
            return lifecycle.apply(work, lifecycle.ProcessEnded(143, ""), now)
        case Phase.STOPPING:
            return lifecycle.apply(work, lifecycle.Lost("it was stopped"), now)
        case _:
            return work


def _image(work: Work, nodes: tuple[NodeId, ...], now: Instant) -> Image:
    size = work.image.size_bytes if work.image else work.demand.memory_bytes * len(nodes)
    return Image(lifecycle.image_id(work), nodes, size, now)
