"""Which nodes are kept as spares, who is placed on them, and what others are told."""

from __future__ import annotations

from dataclasses import replace

from tests.fleets import (
    NOW,
    a_job,
    a_node,
    a_replica,
    a_reservation,
    a_snapshot,
    after,
    placed,
    suspended,
)
from tests.fleets import planned as plan_of

from onefleet.core import lifecycle
from onefleet.core.forecast import forecast
from onefleet.core.index.spares import Spares, infeasible
from onefleet.core.plan import Move, Place, Plan
from onefleet.core.plan_check import check_plan
from onefleet.core.planner import plan
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import Cordon, Device, DeviceKind, Node, NodeState
from onefleet.domain.ids import DeviceId, Instant, NodeId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Demand, Image, Want, Work

CPU, GPU = DeviceKind.CPU, DeviceKind.GPU
ONE, TWO = Policy(spares=((CPU, 1),)), Policy(spares=((CPU, 2),))
LATER = Instant(NOW + 2_000)


def starts(decided: Plan) -> dict[str, set[str]]:
    """Where what was placed is."""
    found = (d for d in decided.decisions if isinstance(d, Place))
    return {d.work_id: {slot.node_id for slot in d.placement} for d in found}


def an_open_node(name: str, devices: int = 4, **changes: object) -> Node:
    return a_node(name, devices, address=f"{name}:1", **changes)


def lost(node: Node) -> Node:
    return replace(node, state=NodeState.LOST, lease_expires_at=Instant(NOW - 10_000))


def a_basic(name: str, **changes: object) -> Work:
    """It needs a whole node, and nothing is promised to it."""
    return a_job(name, 4, Tier.BASIC, **changes)


def stranded(name: str) -> Work:
    """Lost with its node n1; it starts anew."""
    work = placed(a_basic(name), ("n1", "0 1 2 3"))
    return lifecycle.apply(work, lifecycle.Lost("node n1, where it ran, is lost"), NOW)


def test_spares_are_the_first_empty_nodes_and_the_last_node_is_none() -> None:
    busy = placed(a_job("j", 1), ("n1", "0"))
    nodes = [a_node(f"n{i}") for i in range(1, 5)]
    assert plan_of(a_snapshot(nodes, [busy])).spares == ()
    assert plan_of(a_snapshot(nodes, [busy]), ONE).spares == ("n2",)
    assert plan_of(a_snapshot(nodes, [busy]), TWO).spares == ("n2", "n3")
    assert plan_of(a_snapshot(nodes[:2], []), TWO).spares == ("n1",), "the other has to work"
    assert plan_of(a_snapshot(nodes[:1], []), ONE).spares == ()


def test_a_node_that_is_not_in_order_is_no_spare() -> None:
    cordoned = replace(a_node("n1"), cordons=(Cordon(DeviceId("n1/cpu0"), "bad", NOW),))
    drained = a_node("n2", state=NodeState.DRAINING)
    unheard = a_node("n3", lease_expires_at=Instant(NOW - 1))
    nodes = [cordoned, drained, unheard, a_node("n4"), a_node("n5")]
    assert plan_of(a_snapshot(nodes, []), TWO).spares == ("n4", "n5")


def test_spares_are_of_the_most_common_sort_and_count_for_every_kind_they_have() -> None:
    small, large = [a_node("a1", 2)], [a_node(f"b{i}", 4) for i in range(3)]
    assert plan_of(a_snapshot([*small, *large], []), ONE).spares == ("b0",)
    cores = tuple(Device(DeviceId(f"g1/cpu{i}"), CPU, i, "simulated", 0, True) for i in range(4))
    mixed = a_node("g1", 4, kind=GPU)
    mixed = replace(mixed, devices=(*mixed.devices, *cores))
    twin = replace(mixed, id=NodeId("g2"))
    both = Policy(spares=((CPU, 1), (GPU, 1)))
    assert plan_of(a_snapshot([*large, mixed, twin], []), both).spares == ("g1",)
    assert plan_of(a_snapshot([*large, mixed], []), both).spares == ("b0",), (
        "g1 is the last GPU node"
    )


def test_a_share_of_a_device_makes_a_node_no_spare() -> None:
    share = placed(a_job("s", 1, milli=250), ("n1", "0"))
    nodes = [a_node("n1"), a_node("n2"), a_node("n3")]
    assert plan_of(a_snapshot(nodes, [share]), ONE).spares == ("n2",)
    decided = plan_of(a_snapshot(nodes, [share, a_job("t", 1, milli=250)]), ONE)
    assert starts(decided) == {"t": {"n1"}}


def test_others_wait_beside_a_spare_and_are_told_so() -> None:
    nodes = [a_node("n1"), a_node("n2")]
    busy, waiting = placed(a_job("j", 4), ("n1", "0 1 2 3")), a_job("w", 4)
    decided = plan_of(a_snapshot(nodes, [busy, waiting]), ONE)
    assert not starts(decided)
    texts = [blocker.text for blocker in decided.blockers[waiting.id]]
    assert texts[0].startswith("needs 4 cpu devices, 0 free; held by j"), texts
    told = "1 node is kept as a spare (n2) for work that loses its place by a failure"
    assert told in texts, texts
    assert starts(plan_of(a_snapshot(nodes, [busy, waiting]))) == {"w": {"n2"}}


def test_work_that_lost_its_node_takes_the_spare_before_others_take_it() -> None:
    """The node is given up, its work pauses, and goes on; older work of its rank waits on."""
    nodes = [an_open_node("n1"), an_open_node("n2"), an_open_node("n3")]
    ran = placed(a_basic("ran"), ("n1", "0 1 2 3"), at=Instant(0))
    other = placed(a_basic("other"), ("n2", "0 1 2 3"))
    older = a_basic("older", submitted_at=Instant(-1), phase_since=NOW)
    pool = a_snapshot(nodes, [ran, other, older])
    assert not starts(plan_of(pool, ONE)), "the spare stays empty"
    silent = replace(nodes[0], lease_expires_at=Instant(NOW - 10_000))
    pool = a_snapshot([silent, *nodes[1:]], [ran, other, older])
    decided = plan_of(pool, ONE)
    assert [type(d).__name__ for d in decided.decisions] == ["Fence", "Lose"]
    pool = after(pool, decided)
    assert pool.works[ran.id].stranded
    decided = plan_of(pool, ONE, LATER)
    assert starts(decided) == {"ran": {"n3"}}
    done = after(pool, decided, LATER).works[ran.id]
    assert not lifecycle.apply(done, lifecycle.Started(), LATER).stranded


def test_a_gang_finds_what_its_other_workers_held_and_a_spare() -> None:
    nodes = [an_open_node(f"n{i}") for i in range(1, 5)]
    gang = a_basic("gang", workers=3)
    gang = placed(gang, *((f"n{i}", "0 1 2 3") for i in (1, 2, 3)), at=Instant(0))
    older = a_basic("older", submitted_at=Instant(-1))
    silent = replace(nodes[0], lease_expires_at=Instant(NOW - 10_000))
    pool = a_snapshot([silent, *nodes[1:]], [gang, older])
    without = plan_of(pool)
    assert starts(without) == {"older": {"n2"}}, "nothing is kept for the gang"
    decided = plan_of(pool, ONE)
    assert not starts(decided)
    decided = plan_of(after(pool, decided), ONE, LATER)
    assert starts(decided) == {"gang": {"n2", "n3", "n4"}}


def test_an_image_is_fetched_to_a_spare_at_once_though_its_home_may_come_free() -> None:
    """Others wait as long as the way takes, in case that home comes free (`index/homes.py`)."""
    nodes = [an_open_node("n1"), an_open_node("n2"), an_open_node("n3")]
    full = [placed(a_basic(f"f{i}"), (f"n{i}", "0 1 2 3")) for i in (1, 2)]
    saved = suspended(a_basic("w"), "n1", at=Instant(NOW - 2_000))
    lost_place = replace(saved, stranded=True)
    assert not starts(plan_of(a_snapshot(nodes, [*full, saved]), Policy()))
    assert not starts(plan_of(a_snapshot(nodes, [*full, saved]), ONE))
    assert not starts(plan_of(a_snapshot(nodes, [*full, lost_place]), Policy()))
    assert starts(plan_of(a_snapshot(nodes, [*full, lost_place]), ONE)) == {"w": {"n3"}}


def test_a_spare_is_the_last_choice_of_what_lost_its_place() -> None:
    nodes = [lost(a_node("n1")), a_node("n2"), a_node("n3")]
    assert starts(plan_of(a_snapshot(nodes, [stranded("w")]), ONE, LATER)) == {"w": {"n3"}}


def test_what_gave_way_before_its_node_was_lost_is_not_stranded() -> None:
    work = placed(a_job("w", 4), ("n1", "0 1 2 3"))
    saving = lifecycle.apply(work, lifecycle.SaveOrdered("room", a_job("p").id), NOW)
    assert not lifecycle.apply(saving, lifecycle.Lost("gone"), NOW).stranded
    moving = lifecycle.apply(work, lifecycle.SaveOrdered("its owner moves it"), NOW)
    assert lifecycle.apply(moving, lifecycle.Lost("gone"), NOW).stranded
    replica = placed(a_replica("r", 4), ("n1", "0 1 2 3"))
    assert lifecycle.apply(replica, lifecycle.Lost("gone"), NOW).stranded
    ended = lifecycle.apply(work, lifecycle.ProcessEnded(137, ""), NOW)
    assert not ended.stranded


def test_work_on_a_device_out_of_use_moves_to_a_spare_and_work_of_a_drained_node_does_not() -> None:
    work = placed(a_basic("w"), ("n1", "0 1 2 3"), at=Instant(0))
    full = placed(a_basic("f"), ("n2", "0 1 2 3"))
    ok = [an_open_node("n2"), an_open_node("n3")]
    bad = replace(an_open_node("n1"), cordons=(Cordon(DeviceId("n1/cpu0"), "bad", NOW),))
    pool = a_snapshot([bad, *ok], [work, full])
    decided = plan_of(pool, ONE)
    moves = [d for d in decided.decisions if isinstance(d, Move)]
    assert [d.nodes for d in moves] == [("n3",)] and decided.spares == ()
    saving = after(pool, decided).works[work.id]
    image = Image(lifecycle.image_id(saving), (NodeId("n1"),), 1, NOW)
    saved = lifecycle.apply(saving, lifecycle.Saved(image), NOW)
    older = a_basic("older", submitted_at=Instant(-1), phase_since=NOW)
    decided = plan_of(a_snapshot([bad, *ok], [saved, full, older]), ONE)
    assert starts(decided) == {"w": {"n3"}}, "it was on its way there"
    drained = an_open_node("n1", state=NodeState.DRAINING)
    spare = an_open_node("n4")
    decided = plan_of(a_snapshot([drained, *ok, spare], [work, full]), TWO)
    assert not decided.decisions and decided.spares == ("n3", "n4")


def test_an_image_that_can_be_brought_back_nowhere_else_frees_its_node() -> None:
    """Nodes without an address give no image to others: what waits to go back there may."""
    nodes = [a_node("n1"), a_node("n2")]
    work = placed(a_job("w", 4), ("n1", "0 1 2 3"), at=Instant(0))
    work = lifecycle.apply(work, lifecycle.SaveOrdered("its owner wants it"), Instant(0))
    image = Image(lifecycle.image_id(work), (NodeId("n1"),), 1, Instant(0))
    work = lifecycle.apply(work, lifecycle.Saved(image), Instant(0))
    decided = plan_of(a_snapshot(nodes, [work]), ONE)
    assert starts(decided) == {"w": {"n1"}} and decided.spares == ("n2",)
    paused = replace(work, want=Want.SUSPEND)
    assert plan_of(a_snapshot(nodes, [paused]), ONE).spares == ("n1",), "nobody waits for it"


def test_the_linter_refuses_others_on_spares() -> None:
    nodes = [a_node("n1"), a_node("n2"), a_node("n3")]
    pool = a_snapshot(nodes, [a_job("w", 4)])
    free = plan_of(pool)
    assert starts(free) == {"w": {"n1"}}
    found = check_plan(pool, free, ONE)
    assert found == ["w gets n1, which is a spare, but lost nothing by a failure"]
    moving = replace(placed(a_job("m", 1), ("n2", "0"), at=Instant(0)), move_to=(NodeId("n1"),))
    owned = a_snapshot([an_open_node(f"n{i}") for i in (1, 2, 3)], [moving])
    found = check_plan(owned, plan_of(owned), ONE)
    assert found == ["m gets n1, which is a spare, but lost nothing by a failure"]
    assert not plan_of(owned, ONE).decisions


def test_what_does_not_fit_beside_spares_can_never_run() -> None:
    nodes = [a_node(f"n{i}") for i in (1, 2, 3)]
    gang = Demand(CPU, 4, 4, workers=3)
    assert infeasible(gang, nodes, ()) is None
    assert infeasible(gang, nodes, ONE.spares) == (
        "needs 3 x 4 cpu devices; the fleet has 8, at most 4 on one node; "
        "1 node is kept as a spare (n1)"
    )
    assert infeasible(Demand(CPU, 4, 4, workers=4), nodes, ONE.spares) == (
        "needs 4 x 4 cpu devices; the fleet has 8, at most 4 on one node"
    )
    assert infeasible(Demand(CPU, 4, 4, workers=2), nodes, ONE.spares) is None


def test_nothing_is_promised_on_spares() -> None:
    nodes = [a_node(f"n{i}") for i in (1, 2, 3)]
    jobs = [replace(a_job(f"p{i}", 4, Tier.PREMIUM), promised=False) for i in (1, 2, 3)]
    for policy, promised in ((Policy(), 3), (ONE, 2)):
        pool = a_snapshot(nodes, jobs)
        done = after(pool, plan_of(pool, policy))
        assert sum(work.promised for work in done.works.values()) == promised
    assert Spares.of(nodes, TWO.spares).stock() == {(CPU, "simulated"): 8_000}


def test_what_cannot_be_suspended_leaves_alone_what_is_reserved_beside_spares() -> None:
    nodes = [a_node(f"n{i}") for i in (1, 2, 3)]
    fixed = a_job("x", 4, Tier.BASIC, suspendable=False)
    pool = a_snapshot(nodes, [replace(fixed, tenant_id=fixed.tenant_id + "b")],
                      reservations=[a_reservation("a", 8)])  # fmt: skip
    assert starts(plan_of(pool)) and not starts(plan_of(pool, ONE))


def test_the_forecast_does_not_count_on_spares() -> None:
    nodes = [a_node("n1"), a_node("n2")]
    busy = placed(a_basic("j"), ("n1", "0 1 2 3"), at=Instant(NOW - 10_000))
    waiting = a_basic("w", phase_since=NOW)

    def likely(policy: Policy) -> int:
        found = forecast(pool, waiting.id, policy, NOW, plan)
        assert found.start.likely is not None
        return found.start.likely

    pool: Snapshot = a_snapshot(nodes, [busy, waiting])
    assert likely(Policy()) == NOW < likely(ONE)
