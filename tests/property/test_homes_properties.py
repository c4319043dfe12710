"""Suspended work goes on where it may, and never elsewhere: against trying every node by hand."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fleets import GIB, NOW, a_job, a_node, a_snapshot, placed, planned, suspended

from onefleet.core.plan import Place
from onefleet.core.policy import Policy
from onefleet.domain.fleet import CheckpointMode, Node, NodeState
from onefleet.domain.ids import Instant, NodeId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Terms, Work

POLICY = Policy()


@st.composite
def a_node_of(draw: st.DrawFn, name: str) -> Node:
    node = a_node(
        name,
        draw(st.integers(1, 3)),
        address=draw(st.sampled_from([f"{name}:1"] * 3 + [""])),
        state=draw(st.sampled_from([NodeState.READY] * 5 + [NodeState.DRAINING, NodeState.LOST])),
        checkpoint_mode=draw(st.sampled_from([*[CheckpointMode.CRIU] * 3, *CheckpointMode])),
    )
    product = draw(st.sampled_from(["p", "p", "q"]))
    return replace(node, devices=tuple(replace(d, product=product) for d in node.devices))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_one_job_goes_on_exactly_where_it_may(data: st.DataObject) -> None:
    nodes = [data.draw(a_node_of(f"n{i}")) for i in range(data.draw(st.integers(1, 4)))]
    names = [node.id for node in nodes]
    home, copy = data.draw(st.sampled_from(nodes)), data.draw(st.none() | st.sampled_from(names))
    waited_ms = data.draw(st.sampled_from([500, 1_000, 3_000, 10_000]))
    size = data.draw(st.sampled_from([0, GIB // 4, GIB]))
    job = a_job("j", data.draw(st.integers(1, 2)), terms=Terms(checkpoint_every_ms=0))
    work = suspended(job, home.id, at=Instant(NOW - waited_ms), size_bytes=size)
    assert work.image is not None
    if copy not in (None, home.id):
        work = replace(work, image=replace(work.image, copies=((NodeId(str(copy)),),)))
    free, others = {}, list[Work]()
    for node in nodes:
        free[node.id] = data.draw(st.integers(0, len(node.devices)))
        for i in range(
            len(node.devices) - free[node.id] if node.state is not NodeState.LOST else 0
        ):
            held = a_job(f"x-{node.id}-{i}", 1, Tier.PREMIUM, suspendable=False)
            others.append(placed(held, (node.id, str(i))))
    decided = planned(a_snapshot(nodes, [work, *others])).decisions
    went = [d.placement[0].node_id for d in decided if isinstance(d, Place) and d.work_id == "j"]
    allowed = may_go(work, nodes, home, free, waited_ms)
    assert all(node_id in allowed for node_id in went) and bool(went) == bool(allowed)


def may_go(
    work: Work, nodes: list[Node], home: Node, free: dict[NodeId, int], waited_ms: int
) -> list[NodeId]:
    """The nodes where it may be placed, of the first sort that there is."""
    if waited_ms < POLICY.resume_hold_ms:
        return []
    assert work.image is not None
    by_id = {node.id: node for node in nodes}
    takes = [
        n.id for n in nodes if n.state is NodeState.READY and free[n.id] >= work.demand.devices_min
    ]
    if home.id in takes:
        return [home.id]
    if home.checkpoint_mode is CheckpointMode.NONE:
        return []
    alike = [
        n.id
        for n in nodes
        if n.checkpoint_mode is home.checkpoint_mode
        and (
            home.checkpoint_mode is CheckpointMode.COOPERATIVE
            or n.devices[0].product == home.devices[0].product
        )
    ]
    copies = [n for n in work.image.holders(0)[1:] if n in alike and n in takes]
    if copies:
        return copies
    way_ms = POLICY.move_fixed_ms + work.image.size_bytes // POLICY.move_bytes_per_ms
    if waited_ms < way_ms and home.state is NodeState.READY:
        return []
    holders = [by_id[n] for n in work.image.holders(0)]
    if not any(n.address and n.state is not NodeState.LOST for n in holders):
        return []
    return [n for n in takes if n in alike and by_id[n].address]
