"""What is lost: nodes that nobody hears of any more, what ran there, images that lay there."""

from __future__ import annotations

from dataclasses import replace

from onefleet.core.feasibility import feasibility
from onefleet.core.index import missing_image
from onefleet.core.plan import DropImage, Fence, Lose
from onefleet.core.scratch import Scratch
from onefleet.domain.fleet import NodeState
from onefleet.domain.ids import NodeId
from onefleet.domain.work import Want, Work, WorkKind


def fence(this: Scratch) -> None:
    """Give up nodes whose lease ran out longer ago than the grace, and what ran there."""
    fleet = this.index.fleet
    fenced = 0
    for node_id in sorted(fleet.late):
        node = fleet.nodes[node_id]
        over_ms = this.now - fleet.lease_of(node)
        if over_ms >= this.policy.lease_grace_ms:
            reason = f"no word from its agent for {over_ms} ms after its lease ran out"
            this.decisions.append(Fence(node.id, reason))
            this.index.put(replace(node, state=NodeState.LOST))
            fenced += 1
    lost = 0
    for work, missing in _on_absent(this):
        if _waits_for(this, work, missing):
            this.absent[work.id] = missing
        else:
            this.decide(Lose(work.id, f"node {missing}, where it ran, is lost"))
            lost += 1
    text = f"{fenced} nodes given up, {lost} works lost with them"
    if this.absent:
        text += f", {len(this.absent)} jobs wait for their node, as no other could run them"
    this.report("fence", text)


def drop_images(this: Scratch) -> None:
    """Give up images on nodes that have been away for too long (`homes.missing_image`)."""
    fleet = this.index.fleet
    waiting = {name: None for node in fleet.absent for name in fleet.images.get(node, ())}
    dropped = 0
    if waiting:
        this.index.settle_rooms()
    for work_id in sorted(waiting):
        work = this.works[work_id]
        if work.want is not Want.RUN:
            continue
        missing = missing_image(work, fleet, this.policy)
        if missing is not None and missing.until <= this.now:
            there = " and ".join(missing.nodes)
            reason = f"its image lay on node {there}, which did not come back"
            this.decide(DropImage(work.id, reason))
            dropped += 1
    this.report("images", f"{dropped} images given up")


def _on_absent(this: Scratch) -> list[tuple[Work, NodeId]]:
    """Works on nodes that are lost, each with the first such node of it."""
    fleet = this.index.fleet
    there = {hold.work.id: None for node in fleet.absent for hold in fleet.works_on(node)}
    found = []
    for work_id in sorted(there):
        work = this.works[work_id]
        missing = next(s.node_id for s in work.placement if fleet.is_absent(s.node_id))
        found.append((work, missing))
    return found


def _waits_for(this: Scratch, work: Work, node_id: NodeId) -> bool:
    """Whether its lost node is waited for, so that nothing of its run is thrown away.

    A job that no other node could run gains nothing from being given up; its agent saved it
    when its lease ran out, or both sleep together.
    """
    fleet = this.index.fleet
    node = fleet.nodes.get(node_id)
    if node is None or work.kind is WorkKind.REPLICA or work.want is Want.STOP:
        return False
    if this.now - fleet.lease_of(node) >= this.policy.image_wait_ms:
        return False
    others = [fleet.nodes[node_id] for node_id in fleet.usable]
    return feasibility(work.demand, others) is not None
