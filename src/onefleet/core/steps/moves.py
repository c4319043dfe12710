"""What runs and shall be elsewhere: at its owner's wish, or because its node or device goes."""

from __future__ import annotations

from onefleet.core.capacity import Nodes
from onefleet.core.index import Home
from onefleet.core.index.fleet import Fleet
from onefleet.core.index.homes import kin_of, wish_of
from onefleet.core.plan import Move
from onefleet.core.scratch import Scratch
from onefleet.domain.fleet import Cordon, NodeState
from onefleet.domain.work import Work


def move(this: Scratch) -> None:
    """Save what shall be elsewhere, if it has a place there now; until then it runs where it is.

    What is on its way has its place kept.
    """
    this.index.settle()
    for work_id in sorted(this.index.roster.errands.on_their_way):
        keep_place(this, this.works[work_id])
    moved, waiting = 0, 0
    for work_id in sorted(this.index.roster.errands.to_move):
        work = this.works[work_id]
        if work_id in this.touched or work.not_before > this.now:
            continue
        target = _target(this, work)
        if target is None:
            waiting += 1
        else:
            is_out = cordon_of(work, this.index.fleet) is not None
            this.decide(Move(work_id, target, _why(this, work), stranded=is_out))
            keep_place(this, this.works[work_id])
            moved += 1
    text = f"{moved} works move to other nodes or devices"
    this.report("move", text + (f", {waiting} have no place to move to" if waiting else ""))


def keep_place(this: Scratch, work: Work) -> None:
    """Keep devices where it is going, so that nothing takes them while it is saved."""
    wish = Home(wish_of(work))
    fitting = this.capacity.fit(work.demand, wish) or this.capacity.fit_soon(work.demand, wish)
    if fitting is not None:
        this.capacity.keep(work.demand, fitting)


def _target(this: Scratch, work: Work) -> Nodes | None:
    """The node of each rank where it fits now, and where its image can be had; else None."""
    wish, fleet, demand = wish_of(work), this.index.fleet, work.demand
    homes = tuple(slot.node_id for slot in work.placement)
    if wish:
        ways = zip(homes, wish, strict=True)
        reached = all(a == b or (a in fleet.open and b in fleet.open) for a, b in ways)
        return this.capacity.fit(demand, Home(wish)) if reached else None
    kin, spares = kin_of(homes, fleet, demand.kind), cordon_of(work, fleet) is not None
    if kin is None or not all(node_id in fleet.open for node_id in homes):
        return this.capacity.fit(demand, Home(homes))
    return this.capacity.fit(demand, Home(homes, (), kin), spares=spares)


def cordon_of(work: Work, fleet: Fleet) -> Cordon | None:
    """Why a device that it holds gets no work any more; None: none of them is out of use."""
    for slot in work.placement:
        node = fleet.nodes.get(slot.node_id)
        for cordon in () if node is None else node.cordons:
            if cordon.device_id in slot.devices:
                return cordon
    return None


def _why(this: Scratch, work: Work) -> str:
    if work.move_to:
        return f"its owner wants it on {', '.join(dict.fromkeys(work.move_to))}"
    cordon = cordon_of(work, this.index.fleet)
    if cordon is not None:
        return f"its device {cordon.device_id} is out of use: {cordon.reason}"
    nodes = (this.index.fleet.nodes.get(slot.node_id) for slot in work.placement)
    drained = (node.id for node in nodes if node and node.state is NodeState.DRAINING)
    return next((f"node {node_id} is drained" for node_id in drained), "it shall be elsewhere")
