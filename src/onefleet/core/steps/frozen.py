"""Work that stands still: it goes on where it stands, or is saved when that takes too long."""

from __future__ import annotations

from onefleet.core.index import Home
from onefleet.core.plan import Suspend, Thaw
from onefleet.core.scratch import Scratch
from onefleet.domain.fleet import NodeState
from onefleet.domain.ids import NodeId
from onefleet.domain.work import Want, Work


def thaw(this: Scratch) -> None:
    """Let go on what its owner wants to run and has devices there; save what waits for too long.

    After the queue: what stands still has its memory, and waits for no more than devices.
    """
    thawed, saved = 0, 0
    for work_id in sorted(this.index.roster.errands.frozen):
        if work_id in this.touched:
            continue
        work = this.works[work_id]
        if work.want is Want.RUN:
            nodes = tuple(slot.node_id for slot in work.placement)
            fitting = this.capacity.fit(work.demand, Home(nodes)) if _usable(this, nodes) else None
            if fitting is not None:
                this.decide(Thaw(work_id, this.capacity.take(work.demand, fitting)))
                thawed += 1
                continue
        why = _why_saved(this, work)
        if why and work.suspendable and work.not_before <= this.now:
            this.decide(Suspend(work_id, why))
            saved += 1
    text = f"{thawed} works that stood still go on"
    this.report("thaw", text + (f", {saved} are saved" if saved else ""))


def _why_saved(this: Scratch, work: Work) -> str:
    """Why it is better saved than left where it stands; empty when it is not."""
    if work.want is Want.SUSPEND:
        return "its owner wants it suspended"
    if is_drained(this, work):
        return "the node on which it stands still is drained"
    stood_ms = this.now - work.phase_since
    if work.want is Want.RUN and stood_ms >= this.policy.freeze_ms:
        return f"it has stood still for {stood_ms} ms, and could go on elsewhere"
    return ""


def is_drained(this: Scratch, work: Work) -> bool:
    """Whether a node that it is on is to be left."""
    nodes = (this.index.fleet.nodes.get(slot.node_id) for slot in work.placement)
    return any(node is not None and node.state is NodeState.DRAINING for node in nodes)


def _usable(this: Scratch, nodes: tuple[NodeId, ...]) -> bool:
    return all(node_id in this.index.fleet.usable for node_id in nodes)
