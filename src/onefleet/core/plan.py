"""A plan: what shall change, why, and what stands in the way of the rest.

It is complete and immutable and leaves its executor no choice: `apply_plan` turns it into changed
records without deciding anything. `check_plan` (plan_check.py) lints it before it is committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from onefleet.core import lifecycle
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import Node, NodeState
from onefleet.domain.ids import Generation, Instant, NodeId, WorkId
from onefleet.domain.work import WHOLE, Slot, Work


@dataclass(frozen=True, slots=True)
class Fence:
    """The node's lease ran out and the grace passed: it is lost."""

    node_id: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Lose:
    """What ran on a lost node is given up; the work goes back to its image or to the queue."""

    work_id: WorkId
    reason: str


@dataclass(frozen=True, slots=True)
class DropImage:
    """The image of suspended work cannot be had any more."""

    work_id: WorkId
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End its processes. for_work: whom the devices are for; None when its owner wants it."""

    work_id: WorkId
    reason: str
    for_work: WorkId | None = None


@dataclass(frozen=True, slots=True)
class Suspend:
    """Save it and free its devices. for_work: whom they are for; None when its owner wants it."""

    work_id: WorkId
    reason: str
    for_work: WorkId | None = None


@dataclass(frozen=True, slots=True)
class Freeze:
    """Let it stand still: its devices are free at once, its memory stays. for_work: as above."""

    work_id: WorkId
    reason: str
    for_work: WorkId | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Save it and free its devices; then it is placed on these nodes (by rank, or one for all).
    stranded: a device that it holds is out of use."""

    work_id: WorkId
    nodes: tuple[NodeId, ...]
    reason: str
    for_work: WorkId | None = None
    stranded: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Give it these devices. restore: from its image, else a fresh start."""

    work_id: WorkId
    placement: tuple[Slot, ...]
    restore: bool


@dataclass(frozen=True, slots=True)
class Thaw:
    """Let it go on where it stands, with these devices."""

    work_id: WorkId
    placement: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Resize:
    """Let it run on with other devices of the same nodes. for_work: as above, when it shrinks."""

    work_id: WorkId
    placement: tuple[Slot, ...]
    reason: str
    for_work: WorkId | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Make an image of it while it runs on."""

    work_id: WorkId
    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """All that it comes after has succeeded: it may be placed."""

    work_id: WorkId


@dataclass(frozen=True, slots=True)
class GivePromise:
    """What its tier promises fits beside what is promised already, and holds from now on."""

    work_id: WorkId


#: Decisions about one work.
WorkDecision = (
    Lose
    | DropImage
    | Stop
    | Suspend
    | Freeze
    | Move
    | Place
    | Thaw
    | Resize
    | Checkpoint
    | Ready
    | GivePromise
)
Decision = Fence | WorkDecision


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step of the planner did, or why it did nothing."""

    step: str
    text: str


class Gate(StrEnum):
    """Where work can be held up. `why` names every one that does."""

    ADMISSION = "admission"
    QUOTA = "quota"
    FEASIBILITY = "feasibility"
    CONTENTION = "contention"
    DATA = "data"
    START = "start"


@dataclass(frozen=True, slots=True)
class Blocker:
    """One reason that work does not run. holders: works that have what it needs, by id."""

    gate: Gate
    text: str
    holders: tuple[WorkId, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole of one pass. blockers: of each work that does not run, never empty. spares: the
    nodes that are kept as spares after it, by id. works: those that it changes, as they are after
    it (`apply_plan`)."""

    parent: Generation
    planned_at: Instant
    decisions: tuple[Decision, ...]
    steps: tuple[StepReport, ...]
    blockers: Mapping[WorkId, tuple[Blocker, ...]]
    spares: tuple[NodeId, ...] = ()
    works: tuple[Work, ...] = ()


def apply_plan(snapshot: Snapshot, plan: Plan, now: Instant) -> tuple[Work, ...]:
    """The works that the plan changes, as they are after it, in the order of the decisions.

    Raises IllegalTransition when the plan is not of this snapshot.
    """
    changed: dict[WorkId, Work] = {}
    for decision in plan.decisions:
        if isinstance(decision, Fence):
            continue
        work = changed.get(decision.work_id, snapshot.works[decision.work_id])
        changed[work.id] = applied(work, decision, now)
    return tuple(changed.values())


def fenced_nodes(snapshot: Snapshot, plan: Plan) -> tuple[Node, ...]:
    """The nodes that the plan changes, as they are after it."""
    return tuple(
        replace(node, state=NodeState.LOST, lease_expires_at=snapshot.lease_of(node))
        for decision in plan.decisions
        if isinstance(decision, Fence)
        for node in (snapshot.nodes[decision.node_id],)
    )


def events_of(decision: WorkDecision) -> tuple[lifecycle.Event, ...]:
    """What a decision means in the life of its work, in order."""
    match decision:
        case Lose(_, reason):
            return (lifecycle.Lost(reason),)
        case DropImage(_, reason):
            return (lifecycle.ImageLost(reason),)
        case Stop(_, reason, by):
            return (lifecycle.StopOrdered(reason, by),)
        case Suspend(_, reason, by):
            return (lifecycle.SaveOrdered(reason, by),)
        case Freeze(_, reason, by):
            return (lifecycle.Froze(reason, by),)
        case Move(_, nodes, reason, by, stranded):
            moves = lifecycle.MoveWanted(nodes, stranded, driven=True)
            return (moves, lifecycle.SaveOrdered(reason, by))
        case Place(_, placement, restore):
            return (lifecycle.Placed(placement, restore),)
        case Thaw(_, placement):
            return (lifecycle.Thawed(placement),)
        case Resize(_, placement):
            return (lifecycle.Resized(placement),)
        case Checkpoint():
            return (lifecycle.CheckpointOrdered(),)
        case Ready():
            return (lifecycle.Readied(),)
        case GivePromise():
            return (lifecycle.Promised(),)
        case _:  # pragma: no cover - the type checker proves it
            assert_never(decision)


def applied(work: Work, decision: WorkDecision, now: Instant) -> Work:
    """The work after the decision. Raises IllegalTransition."""
    for event in events_of(decision):
        work = lifecycle.apply(work, event, now)
    return work


def describe(decision: Decision) -> str:
    """One line for people and for the decision log; equal decisions have equal lines."""
    match decision:
        case Fence(node_id, reason):
            return f"fence {node_id}: {reason}"
        case Lose(work_id, reason):
            return f"lose {work_id}: {reason}"
        case DropImage(work_id, reason):
            return f"drop image of {work_id}: {reason}"
        case Stop(work_id, reason):
            return f"stop {work_id}: {reason}"
        case Suspend(work_id, reason):
            return f"suspend {work_id}: {reason}"
        case Freeze(work_id, reason):
            return f"freeze {work_id}: {reason}"
        case Move(work_id, nodes, reason):
            return f"move {work_id} to {' '.join(dict.fromkeys(nodes))}: {reason}"
        case Place(work_id, placement, restore):
            return f"{'restore' if restore else 'start'} {work_id} on {_devices(placement)}"
        case Thaw(work_id, placement):
            return f"thaw {work_id} on {_devices(placement)}"
        case Resize(work_id, placement, reason):
            return f"resize {work_id} to {_devices(placement)}: {reason}"
        case Checkpoint(work_id, reason):
            return f"checkpoint {work_id}: {reason}"
        case Ready(work_id):
            return f"ready {work_id}"
        case GivePromise(work_id):
            return f"promise {work_id}"
        case _:  # pragma: no cover - the type checker proves it
            assert_never(decision)


def _devices(placement: tuple[Slot, ...]) -> str:
    """Device by device; one that ranks take turns on once, a share with its thousandths."""
    parts = {device: slot.milli for slot in placement for device in slot.devices}
    return " ".join(
        device if milli == WHOLE else f"{device}:{milli}" for device, milli in parts.items()
    )
