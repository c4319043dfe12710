"""Hot spares, on thousands of small fleets: who gets them, and how much they take from others."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.fleets import NOW, a_snapshot, after
from tests.property.test_planner_properties import a_plan, fleets, many, snapshots, works

from onefleet.core.feasibility import workers_at_most
from onefleet.core.index import Index
from onefleet.core.index.spares import Spares
from onefleet.core.plan import Fence, Move, Place, Suspend, applied, describe
from onefleet.core.plan_check import check_plan, unexplained
from onefleet.core.planner import feasibility
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import Cordon, DeviceKind, Node, NodeState
from onefleet.domain.ids import Instant
from onefleet.domain.work import Phase, Want, Work

COUNTS = st.integers(0, 3)


def spared(count: int) -> Policy:
    return Policy(spares=((DeviceKind.CPU, count),))


@st.composite
def troubled(draw: st.DrawFn) -> Snapshot:
    """A fleet where some devices are out of use, and some works have lost their place."""
    found = draw(snapshots())
    nodes = [
        replace(node, cordons=(Cordon(node.devices[0].id, "bad", NOW),))
        if draw(st.integers(0, 4)) == 0
        else node
        for node in found.nodes.values()
    ]
    works = [
        replace(work, stranded=work.phase in (Phase.PENDING, Phase.SUSPENDED, Phase.RESTORING))
        if draw(st.booleans())
        else work
        for work in found.works.values()
    ]
    return replace(
        found, nodes={node.id: node for node in nodes}, works={work.id: work for work in works}
    )


@many
@given(troubled(), COUNTS)
def test_plans_with_spares_pass_the_linter_and_say_why(s: Snapshot, count: int) -> None:
    decided = a_plan(s, policy=spared(count))
    assert check_plan(s, decided, spared(count)) == [] and unexplained(s, decided) == []


@many
@given(troubled(), st.integers(1, 3))
def test_spares_are_used_by_nothing_but_what_failed(s: Snapshot, count: int) -> None:
    """Decision by decision, with the spares of an index that is built anew before each."""
    decided = a_plan(s, policy=spared(count))
    works, nodes = dict(s.works), dict(s.nodes)
    for decision in decided.decisions:
        index = Index.of(replace(s, works=works, nodes=nodes), spared(count), NOW)
        index.settle()
        if isinstance(decision, Fence):
            nodes[decision.node_id] = replace(nodes[decision.node_id], state=NodeState.LOST)
            continue
        work = works[decision.work_id]
        given_nodes = decision.nodes if isinstance(decision, Move) else ()
        if isinstance(decision, Place):
            given_nodes = tuple(slot.node_id for slot in decision.placement)
        if set(given_nodes) & set(index.fleet.spares.now):
            assert work.stranded or is_on_bad_device(work, s), describe(decision)
        works[work.id] = applied(work, decision, NOW)


def is_on_bad_device(work: Work, s: Snapshot) -> bool:
    out = {cordon.device_id for node in s.nodes.values() for cordon in node.cordons}
    return any(out & set(slot.devices) for slot in work.placement)


@many
@given(troubled(), COUNTS)
def test_no_more_nodes_are_withheld_than_asked_for_and_never_the_last(
    s: Snapshot, count: int
) -> None:
    decided = a_plan(s, policy=spared(count))
    done = after(s, decided)
    serving = [node for node in done.nodes.values() if node.state is NodeState.READY]
    assert len(decided.spares) <= min(count, max(len(serving) - 1, 0))
    held = {slot.node_id for work in done.works.values() for slot in work.placement}
    for node_id in decided.spares:
        assert node_id not in held
        assert done.nodes[node_id].state is NodeState.READY and not done.nodes[node_id].cordons


@many
@given(troubled(), st.integers(1, 3))
def test_what_failed_is_placed_at_once_where_a_spare_takes_it(s: Snapshot, count: int) -> None:
    """Unless another that failed keeps that spare, or it may be placed but where its image is."""
    decided = a_plan(s, policy=spared(count))
    done = after(s, decided)
    failed = [
        w
        for w in done.works.values()
        if w.stranded and w.want is Want.RUN and w.phase in (Phase.PENDING, Phase.SUSPENDED)
    ]
    if any(w.phase is Phase.SUSPENDED or w.not_before > NOW or not w.suspendable for w in failed):
        return
    for work in failed:
        for node_id in decided.spares:
            takes = workers_at_most(done.nodes[node_id], work.demand)
            assert takes < work.demand.workers or not work.ready, f"{work.id} on {node_id}"


@many
@given(troubled(), COUNTS)
def test_a_second_pass_moves_nobody_because_of_spares(s: Snapshot, count: int) -> None:
    done = after(s, a_plan(s, policy=spared(count)))
    second = a_plan(done, policy=spared(count))
    assert check_plan(done, second, spared(count)) == []
    for decision in second.decisions:
        assert not isinstance(decision, Suspend), describe(decision)


@many
@given(fleets(), works("w"), COUNTS)
def test_what_is_feasible_beside_spares_runs_on_the_empty_fleet_and_nothing_else_does(
    nodes: list[Node], work: Work, count: int
) -> None:
    ready = [
        replace(node, state=NodeState.READY, lease_expires_at=Instant(NOW + 1)) for node in nodes
    ]
    policy = spared(count)
    decided = a_plan(a_snapshot(ready, [replace(work, want=Want.RUN)]), policy=policy)
    kept = Spares.of(ready, policy.spares).of_empty_fleet()
    starts = any(isinstance(d, Place) for d in decided.decisions)
    assert starts == (feasibility(work.demand, [n for n in ready if n not in kept]) is None)
