"""The planner: a snapshot in, a complete plan out."""

from __future__ import annotations

import random

from onefleet.core.feasibility import feasibility
from onefleet.core.plan import (
    Blocker,
    Decision,
    Fence,
    Gate,
    Place,
    Plan,
    StepReport,
    Stop,
    Suspend,
    apply_plan,
    describe,
    fenced_nodes,
)
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot, free_devices
from onefleet.domain.ids import Instant, WorkId
from onefleet.domain.work import Phase, Slot, Want

__all__ = [
    "Blocker",
    "Decision",
    "Fence",
    "Gate",
    "Place",
    "Plan",
    "StepReport",
    "Stop",
    "Suspend",
    "apply_plan",
    "check_plan",
    "describe",
    "feasibility",
    "fenced_nodes",
    "plan",
]


def plan(snapshot: Snapshot, policy: Policy, now: Instant, rng: random.Random) -> Plan:
    """Decide one pass."""
    decisions: list[Decision] = []
    blockers: dict[WorkId, tuple[Blocker, ...]] = {}
    taken: set[str] = set()
    for work in snapshot.works.values():
        if work.want is Want.STOP and work.phase not in (Phase.STOPPING, Phase.ENDED):
            decisions.append(Stop(work.id, "its owner wants it stopped"))
        elif work.want is Want.SUSPEND and work.phase is Phase.RUNNING and work.suspendable:
            decisions.append(Suspend(work.id, "its owner wants it suspended"))
        elif work.want is Want.RUN and work.phase in (Phase.PENDING, Phase.SUSPENDED):
            free = [
                device
                for device in free_devices(snapshot, work.demand.kind, now)
                if device.id not in taken
            ]
            if work.demand.workers == 1 and len(free) >= work.demand.devices_min:
                chosen = free[: work.demand.devices_min]
                taken.update(device.id for device in chosen)
                slot = Slot(next(iter(snapshot.nodes)), tuple(device.id for device in chosen))
                decisions.append(Place(work.id, (slot,), work.phase is Phase.SUSPENDED))
            else:
                text = f"needs {work.demand.devices_min}, {len(free)} free"
                blockers[work.id] = (Blocker(Gate.CONTENTION, text),)
    return Plan(snapshot.generation, now, tuple(decisions), (), blockers)


def check_plan(snapshot: Snapshot, plan: Plan) -> list[str]:
    """What is wrong with the plan; empty when nothing is."""
    return []
