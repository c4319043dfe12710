"""Orders: one verb a phase, at the right node, with the right image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.fleets import a_job, a_node, a_replica, a_reservation, placed, suspended
from tests.unit.control.states import NOW, a_state, by_id

from onefleet.control.orders import LEASE_MS, Orders
from onefleet.core import lifecycle
from onefleet.domain.fleet import Node, NodeState
from onefleet.domain.ids import ImageId, Instant, NodeId, TenantId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Image, Want, Work
from onefleet.wire.agent import GangSpec, Order, OrderVerb
from onefleet.wire.tickets import door_key, image_name, opens


def orders(work: Work, node: str = "n1") -> list[Order]:
    return list(Orders(a_state(work)).of(NodeId(node)).orders)


STARTING = placed(a_job("job-1"), ("n1", "0"), running=False)
RUNNING = placed(a_job("job-1"), ("n1", "0"))
SAVING = lifecycle.apply(RUNNING, lifecycle.SaveOrdered("room"), NOW)
SUSPENDED = suspended(a_job("job-1"), "n1")
RESTORING = lifecycle.apply(SUSPENDED, lifecycle.Placed(RUNNING.placement, True), NOW)
RESTORED = lifecycle.apply(RESTORING, lifecycle.Restored(), NOW)
SAVING_AGAIN = lifecycle.apply(RESTORED, lifecycle.SaveOrdered("room"), NOW)
STOPPING = lifecycle.apply(RUNNING, lifecycle.StopOrdered("room"), NOW)


@pytest.mark.parametrize(
    ("work", "verb", "image", "keep"),
    [
        (STARTING, OrderVerb.RUN, None, ()),
        (RUNNING, OrderVerb.RUN, None, ()),
        (SAVING, OrderVerb.SAVE, "job-1.1", ()),
        (SUSPENDED, OrderVerb.KEEP, "job-1.1", ()),
        (RESTORING, OrderVerb.RUN, "job-1.1", ()),
        (RESTORED, OrderVerb.RUN, "job-1.1", ()),
        (SAVING_AGAIN, OrderVerb.SAVE, "job-1.2", ("job-1.1",)),
        (STOPPING, OrderVerb.STOP, None, ()),
    ],
)
def test_each_phase_has_its_verb(
    work: Work, verb: OrderVerb, image: str | None, keep: tuple[str, ...]
) -> None:
    (order,) = orders(work)
    assert (order.verb, order.image, order.keep) == (verb, image, keep)
    assert (order.work_id, order.rank, order.epoch) == (work.id, 0, work.epoch)
    assert order.job is not None and order.engine is None
    assert orders(work, "n2") == []


def test_a_save_for_which_a_reservation_calls_has_only_its_time() -> None:
    called = lifecycle.apply(RUNNING, lifecycle.SaveOrdered("room", WorkId("owner")), NOW)
    owner = replace(a_job("owner", 1, Tier.PREMIUM), tenant_id=TenantId("a"))
    reserved = replace(a_reservation("a", 1), within_ms=7_000)

    def limits(*works: Work, **changes: Any) -> list[int]:
        known = replace(reserved, **changes)
        state = replace(a_state(called, *works), reservations={known.id: known})
        return [order.limit_ms for order in Orders(state).of(NodeId("n1")).orders]

    assert limits(owner) == [7_000]
    assert limits() == limits(replace(owner, tier=Tier.BASIC)) == [0]
    assert limits(owner, devices=0) == limits(owner, tenant_id=TenantId("b")) == [0]
    assert limits(owner, ends_at=NOW) == [0]
    assert limits(replace(owner, phase_since=Instant(NOW + 1))) == [0]


@pytest.mark.parametrize(("after_ms", "left_ms"), [(0, 7_000), (5_000, 2_000), (9_000, 1_000)])
def test_a_save_that_is_tried_again_has_what_is_left_of_that_time(
    after_ms: int, left_ms: int
) -> None:
    asked, again = lifecycle.SaveOrdered("room", WorkId("owner")), Instant(NOW + after_ms)
    failed = lifecycle.apply(
        lifecycle.apply(RUNNING, asked, NOW), lifecycle.SaveFailed("disk full"), NOW
    )
    called = lifecycle.apply(failed, asked, again)
    wanted = lifecycle.apply(failed, lifecycle.WantChanged(Want.SUSPEND), again)
    by_owner = lifecycle.apply(wanted, lifecycle.SaveOrdered("asked"), Instant(again + 1))
    owner = replace(a_job("owner", 1, Tier.PREMIUM), tenant_id=TenantId("a"))
    reserved = replace(a_reservation("a", 1), within_ms=7_000)
    for work, limit_ms in ((called, left_ms), (by_owner, 0)):
        state = replace(a_state(work, owner), reservations={reserved.id: reserved})
        (order,) = Orders(state).of(NodeId("n1")).orders
        assert order.limit_ms == limit_ms


def test_an_element_of_an_array_is_told_its_number() -> None:
    state = a_state(RUNNING)
    job = state.jobs[RUNNING.id]

    def told(index: int, array: str) -> int | None:
        changed = replace(state, jobs=by_id(replace(job, array=array, index=index)))
        (order,) = Orders(changed).of(NodeId("n1")).orders
        assert order.job is not None
        return order.job.index

    assert [told(0, "sweep"), told(3, "sweep"), told(0, "")] == [0, 3, None]


def test_who_makes_room_for_a_burst_may_leave_its_image_in_memory() -> None:
    replica = replace(a_replica("rep-1"), demand=replace(a_replica("rep-1").demand, memory_bytes=2))
    other = a_job("job-2")
    node = replace(a_node("n1", 1), memory_bytes=8)

    def asked(by: Work | None, saving: Work | None = None, on: Node = node) -> bool:
        event = lifecycle.SaveOrdered("room", by.id if by else None)
        work = saving or lifecycle.apply(RUNNING, event, NOW)
        state = replace(a_state(work, nodes=by_id(on)), works=by_id(work, replica, other))
        return Orders(state).of(on.id).orders[0].in_memory

    assert asked(replica)
    assert not asked(other), "a job may have the device for days"
    assert not asked(None)
    by_burst = lifecycle.apply(RUNNING, lifecycle.SaveOrdered("room", replica.id), NOW)
    assert not asked(replica, replace(by_burst, want=Want.SUSPEND)), "its owner wants it no sooner"
    assert asked(None, replace(SAVING, move_to=(NodeId("n2"),))), "it is brought back elsewhere"
    assert not asked(replica, on=replace(node, state=NodeState.DRAINING))
    assert not asked(replica, on=replace(node, memory_bytes=7)), "the replica needs the room"


def test_the_image_to_fall_back_to_is_kept() -> None:
    image = SAVING_AGAIN.image
    assert image is not None
    newer = replace(image, id=lifecycle.image_id(SAVING_AGAIN))
    saved = lifecycle.apply(SAVING_AGAIN, lifecycle.Saved(newer), NOW)
    (order,) = orders(saved)
    assert (order.image, order.keep) == ("job-1.2", ("job-1.1",))


def test_pending_and_ended_works_are_named_nowhere() -> None:
    ended = lifecycle.apply(RUNNING, lifecycle.ProcessEnded(0, "done"), NOW)
    for work in (a_job("job-1"), ended):
        assert orders(work) == orders(work, "n2") == []


def test_a_gang_has_each_rank_at_its_node() -> None:
    gang = placed(a_job("job-1", workers=2), ("n1", "0"), ("n2", "1"))
    (one,), (two,) = orders(gang, "n1"), orders(gang, "n2")
    assert (one.rank, one.devices) == (0, ("n1/cpu0",))
    assert (two.rank, two.devices) == (1, ("n2/cpu1",))
    assert one.job is not None and one.job.workers == 2


def test_a_suspended_gang_is_kept_where_its_images_are() -> None:
    gang = suspended(a_job("job-1", workers=2), "n1", "n2")
    assert [o.rank for o in orders(gang, "n1")] == [0]
    assert [o.rank for o in orders(gang, "n2")] == [1]
    both = replace(gang, image=replace(gang.image or _none(), nodes=(NodeId("n1"),) * 2))
    assert [o.rank for o in orders(both, "n1")] == [0, 1]


def _none() -> Image:
    raise AssertionError("it has an image")


def test_a_replica_gets_its_engine() -> None:
    (order,) = orders(placed(a_replica("rep-1"), ("n1", "0")))
    assert order.job is None and order.engine is not None
    assert (order.engine.engine, order.engine.served_name) == ("simulated", "dep-1")
    assert (order.engine.slots, order.engine.context_length) == (4, 1024)


def test_the_same_state_gives_the_same_orders() -> None:
    state = a_state(RUNNING, placed(a_job("job-2"), ("n1", "1")))
    first, again = Orders(state).of(NodeId("n1")), Orders(state).of(NodeId("n1"))
    assert first == again
    assert (first.generation, first.lease_ms) == (9, LEASE_MS)
    assert [o.work_id for o in first.orders] == ["job-1", "job-2"]


# --- gangs, checkpoints and copies ---------------------------------------------------------------

GANG = placed(a_job("job-1", workers=2), ("n1", "0"), ("n2", "1"))


def near(*hosts: str) -> dict[str, object]:
    """Nodes n1, n2, ... at these hosts."""
    nodes = [a_node(f"n{i}", address=f"{host}:1") for i, host in enumerate(hosts, 1)]
    return {"nodes": by_id(*nodes)}


def of(work: Work, node: str, **state: object) -> list[Order]:
    return list(Orders(a_state(work, **state), "secret").of(NodeId(node)).orders)


def test_a_gang_is_saved_and_brought_back_in_two_phases() -> None:
    saving = lifecycle.apply(GANG, lifecycle.SaveOrdered("room"), NOW)
    assert [o.hold for o in orders(saving)] == [True]
    cut = lifecycle.apply(saving, lifecycle.CutMade(), NOW)
    assert [(o.verb, o.hold, o.image) for o in orders(cut)] == [(OrderVerb.SAVE, False, "job-1.1")]
    gang = suspended(a_job("job-1", workers=2), "n1", "n2")
    back = lifecycle.apply(gang, lifecycle.Placed(GANG.placement, True), NOW)
    assert [o.hold for o in orders(back)] == [True]
    assert [o.hold for o in orders(lifecycle.apply(back, lifecycle.Restored(), NOW))] == [False]
    assert [o.hold for o in (*orders(SAVING), *orders(RESTORING))] == [False, False]


def test_frozen_work_and_images_that_are_made() -> None:
    frozen = lifecycle.apply(RUNNING, lifecycle.Froze("room"), NOW)
    assert [(o.verb, o.devices) for o in orders(frozen)] == [(OrderVerb.FREEZE, ())]
    making = lifecycle.apply(RUNNING, lifecycle.CheckpointOrdered(), NOW)
    assert [(o.verb, o.making) for o in orders(making)] == [(OrderVerb.RUN, "job-1.1-1")]


def test_a_gang_is_told_of_the_machines_that_it_lies_on() -> None:
    apart = [o.gang for n in ("n1", "n2") for o in of(GANG, n, **near("a", "b"))]
    assert apart == [
        GangSpec(node="a", nodes=("b",), master="a"),
        GangSpec(node="b", nodes=("a",), master="a"),
    ]
    together = [o.gang for n in ("n1", "n2") for o in of(GANG, n, **near("a", "a"))]
    assert together == [GangSpec(master="a")] * 2
    assert of(RUNNING, "n1")[0].gang is None


def test_an_image_is_fetched_from_where_it_lies() -> None:
    elsewhere = lifecycle.apply(
        SUSPENDED, lifecycle.Placed(placed(a_job("x"), ("n2", "0")).placement, True), NOW
    )
    (order,) = of(elsewhere, "n2", **near("a", "b"))
    key = door_key("secret", NodeId("n1"))
    (source,) = order.sources
    assert (source.node_id, source.address) == ("n1", "a:1")
    assert opens(key, image_name(elsewhere.id, 0, ImageId("job-1.1")), source.ticket)
    assert Orders(a_state(), "secret").of(NodeId("n1")).door == key
    (kept,) = of(elsewhere, "n1", **near("a", "b"))  # it serves it meanwhile
    assert (kept.verb, kept.image, kept.sources) == (OrderVerb.KEEP, "job-1.1", ())


def test_another_node_keeps_a_copy_if_it_can_be_had() -> None:
    assert orders(SUSPENDED, "n2") == []  # no node has an address
    (copy,) = of(SUSPENDED, "n2", **near("a", "b"))
    assert copy.verb is OrderVerb.KEEP and [s.node_id for s in copy.sources] == ["n1"]
    image = SUSPENDED.image or _none()
    copied = replace(SUSPENDED, image=replace(image, copies=((NodeId("n2"),),)))
    (kept,) = of(copied, "n2", **near("a", "b", "c"))
    assert (kept.verb, kept.sources) == (OrderVerb.KEEP, ())
    assert of(copied, "n3", **near("a", "b", "c")) == []
    nodes = near("a", "b", "c")["nodes"]
    assert isinstance(nodes, Mapping)
    lost = by_id(nodes["n1"], replace(nodes["n2"], state=NodeState.LOST), nodes["n3"])
    assert [o.verb for o in of(copied, "n3", nodes=lost)] == [OrderVerb.KEEP]


def test_a_copy_goes_where_it_is_going_to_move_or_to_another_zone() -> None:
    running = replace(RESTORED, move_to=(NodeId("n3"),))
    assert [bool(of(running, n, **near(*"abc"))) for n in ("n2", "n3")] == [False, True]
    zones = [a_node(f"n{i}", address=f"{i}:1", zone=z) for i, z in enumerate("aaab", 1)]
    assert [bool(of(RESTORED, f"n{i}", nodes=by_id(*zones))) for i in (2, 3, 4)] == [0, 0, 1]


def test_who_moves_is_saved_into_memory_and_waited_for_where_it_goes() -> None:
    there = (NodeId("n2"),)
    moving = lifecycle.apply(replace(RUNNING, move_to=there), lifecycle.SaveOrdered("moves"), NOW)
    assert of(moving, "n1")[0].in_memory
    stays = lifecycle.apply(RUNNING, lifecycle.SaveOrdered("waits"), NOW)
    assert not of(stays, "n1")[0].in_memory
    (kept,) = of(replace(SUSPENDED, move_to=there), "n2", **near("a", "b"))
    (copy,) = of(SUSPENDED, "n2", **near("a", "b"))
    assert (kept.verb, kept.soon, copy.soon) == (OrderVerb.KEEP, True, False)
    assert not (kept.coming or copy.coming)


def test_an_image_is_followed_where_its_worker_goes_as_it_is_saved() -> None:
    before = replace(RESTORED, move_to=(NodeId("n2"),))
    (older,) = of(before, "n2", **near("a", "b"))  # a copy of it goes there already
    moving = lifecycle.apply(before, lifecycle.SaveOrdered("moves"), NOW)
    (coming,) = of(moving, "n2", **near("a", "b"))
    assert (coming.verb, coming.soon, coming.coming) == (OrderVerb.KEEP, True, True)
    assert coming.image == lifecycle.image_id(moving) != older.image
    assert coming.images == (coming.image, older.image)
    assert [s.node_id for s in coming.sources] == ["n1"]
    assert [o.verb for o in of(moving, "n1", **near("a", "b"))] == [OrderVerb.SAVE]
    unreachable = {"nodes": by_id(a_node("n1"), a_node("n2", address="b:1"))}
    assert not any(o.coming for o in of(moving, "n2", **unreachable))
    failed = lifecycle.apply(moving, lifecycle.SaveFailed("no"), NOW)
    assert of(failed, "n2", **near("a", "b")) == [older]


def test_an_older_image_is_kept_where_it_lies() -> None:
    image = SUSPENDED.image or _none()
    newer = replace(image, id=ImageId("job-1.2"), nodes=(NodeId("n2"),))
    work = replace(SUSPENDED, image=newer, image_before=image)
    (old,) = of(work, "n1")  # it cannot have the newer one
    assert (old.image, old.keep) == ("job-1.1", ())
    (old,) = of(work, "n1", **near("a", "b"))
    assert (old.image, old.keep, len(old.sources)) == ("job-1.2", ("job-1.1",), 1)
    (new,) = of(work, "n2", **near("a", "b"))
    assert (new.image, new.keep) == ("job-1.2", ())
