"""Where suspended work goes on: at home, on a copy of its image, or elsewhere after a while."""

from __future__ import annotations

from dataclasses import replace

from tests.fleets import GIB, NOW, a_job, a_node, a_replica, a_snapshot, placed, planned, suspended

from onefleet.core import lifecycle
from onefleet.core.plan import DropImage, Gate, Move, Place, Suspend, applied
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import CheckpointMode, Node, NodeState
from onefleet.domain.ids import ImageId, Instant, NodeId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Image, Phase, Slot, Terms, Want, Work

POLICY = Policy()
NEVER = Terms(checkpoint_every_ms=0)
#: How long an image of one GiB takes to another node.
WAY_MS = POLICY.move_fixed_ms + GIB // POLICY.move_bytes_per_ms


def node(name: str, devices: int = 1, **changes: object) -> Node:
    return a_node(name, devices, **{"address": f"{name}:1", **changes})


def of(found: Node, *products: str) -> Node:
    """The node with devices of these products."""
    named = zip(found.devices, products, strict=True)
    return replace(found, devices=tuple(replace(d, product=product) for d, product in named))


def waiting(*nodes: str, waited_ms: int = WAY_MS, **changes: object) -> Work:
    """A job whose image, of one GiB, lies on these nodes, by rank."""
    job = a_job("j", workers=len(nodes), terms=NEVER, **changes)
    return suspended(job, *nodes, at=Instant(NOW - waited_ms))


def holder(node_id: str, tier: Tier = Tier.PREMIUM) -> Work:
    """Something that holds the first device there, for longer than anybody knows."""
    return placed(a_job(f"x-{node_id}", tier=tier, terms=NEVER, suspendable=False), (node_id, "0"))


def goes_on(*nodes: Node, works: tuple[Work, ...]) -> tuple[str, ...]:
    """The node of each rank where the job is placed; empty when it is not."""
    decided = planned(a_snapshot(nodes, works)).decisions
    found = [d for d in decided if isinstance(d, Place) and d.work_id == "j"]
    return tuple(slot.node_id for slot in found[0].placement) if found else ()


def test_it_goes_home_while_home_has_devices() -> None:
    assert goes_on(node("n1"), node("n2"), works=(waiting("n2"),)) == ("n2",)


def test_when_home_is_full_it_waits_as_long_as_the_way_takes_and_goes_elsewhere() -> None:
    nodes = (node("n1"), node("n2"))
    early = waiting("n1", waited_ms=WAY_MS - 1)
    assert goes_on(*nodes, works=(early, holder("n1"))) == ()
    assert goes_on(*nodes, works=(waiting("n1"), holder("n1"))) == ("n2",)
    text = planned(a_snapshot(nodes, [early, holder("n1")])).blockers[early.id][0].text
    assert "on n1, where its image lies (elsewhere in 0.0 s: to move it takes as long)" in text


def test_a_home_that_is_about_to_be_free_is_waited_for() -> None:
    leaving = placed(a_job("x", terms=NEVER), ("n1", "0"))
    leaving = lifecycle.apply(leaving, lifecycle.SaveOrdered("makes room"), NOW)
    assert goes_on(node("n1"), node("n2"), works=(waiting("n1"), leaving)) == ()


def test_where_a_copy_lies_it_goes_on_at_once() -> None:
    job = waiting("n1", waited_ms=POLICY.resume_hold_ms)
    assert job.image is not None
    copied = replace(job, image=replace(job.image, copies=((NodeId("n3"),),)))
    nodes = (node("n1"), node("n2"), node("n3"))
    assert goes_on(*nodes, works=(copied, holder("n1"))) == ("n3",)
    assert goes_on(*nodes, works=(copied, holder("n1"), holder("n3"))) == ()
    away = (node("n1", state=NodeState.LOST), *nodes[1:])
    assert goes_on(*away, works=(copied,)) == ("n3",)


def test_it_goes_only_where_its_image_can_be_fetched_and_brought_back() -> None:
    works = (waiting("n1"), holder("n1"))
    assert goes_on(node("n1", address=""), node("n2"), works=works) == ()
    assert goes_on(node("n1"), node("n2", address=""), works=works) == ()
    asks = node("n2", checkpoint_mode=CheckpointMode.COOPERATIVE)
    assert goes_on(node("n1"), asks, works=works) == ()
    assert goes_on(node("n1"), asks, node("n3"), works=works) == ("n3",)
    assert goes_on(node("n1"), of(node("n2"), "another"), works=works) == ()


def test_what_saved_itself_goes_on_on_any_product() -> None:
    mode = {"checkpoint_mode": CheckpointMode.COOPERATIVE}
    other = of(node("n2", **mode), "another")
    assert goes_on(node("n1", **mode), other, works=(waiting("n1"), holder("n1"))) == ("n2",)


def test_devices_of_several_products_keep_it_at_home() -> None:
    held = placed(a_job("x", 2, Tier.PREMIUM, suspendable=False), ("n1", "0 1"))
    home = of(node("n1", 2), "one", "two")
    assert goes_on(home, node("n2"), works=(waiting("n1"), held)) == ()


def test_a_drained_home_is_left() -> None:
    job = waiting("n1", waited_ms=POLICY.resume_hold_ms)
    drained = node("n1", state=NodeState.DRAINING)
    assert goes_on(drained, node("n2"), works=(job,)) == ("n2",)
    assert goes_on(replace(drained, address=""), node("n2"), works=(job,)) == ()


def test_a_gang_goes_whole() -> None:
    gang = waiting("n1", "n2")
    nodes = (node("n1"), node("n2"), node("n3", 2))
    assert goes_on(*nodes, works=(gang, holder("n2"))) == ("n3", "n3")
    assert goes_on(*nodes[:2], node("n3"), works=(gang, holder("n2"))) == ("n1", "n3")


def test_it_makes_room_elsewhere_where_its_rank_permits_it() -> None:
    low = placed(a_job("low", tier=Tier.BASIC, terms=NEVER), ("n2", "0"))
    job = waiting("n1", tier=Tier.PREMIUM)
    decided = planned(a_snapshot([node("n1"), node("n2")], [job, holder("n1"), low])).decisions
    assert [d.work_id for d in decided if isinstance(d, Suspend)] == ["low"]


def test_a_replica_does_not_make_it_wait_for_ever() -> None:
    replica = placed(a_replica("r"), ("n1", "0"))
    assert goes_on(node("n1"), node("n2"), works=(waiting("n1"), replica)) == ("n2",)


def test_a_wish_is_kept_while_the_node_is_there() -> None:
    wish = replace(waiting("n1"), move_to=(NodeId("n2"),))
    nodes = (node("n1"), node("n2"), node("n3"))
    assert goes_on(*nodes, works=(wish,)) == ("n2",)
    assert goes_on(*nodes, works=(wish, holder("n2"))) == ()
    away = (nodes[0], node("n2", state=NodeState.LOST), nodes[2])
    assert goes_on(*away, works=(wish,)) == ("n1",)


def test_a_wish_waits_until_the_image_can_be_had_there() -> None:
    lost, wish = node("n1", state=NodeState.LOST), (NodeId("n2"),)
    job = replace(waiting("n1"), move_to=wish)
    assert goes_on(lost, node("n2"), works=(job,)) == ()
    assert goes_on(node("n1"), node("n2"), works=(job,)) == ("n2",)
    alone = replace(waiting("n2"), move_to=wish)  # it is there already
    assert goes_on(lost, node("n2", address=""), works=(alone,)) == ("n2",)
    gang = replace(waiting("n1", "n3"), move_to=wish)
    assert goes_on(lost, node("n2", 2), node("n3"), works=(gang,)) == ()


def dropped(snapshot: Snapshot, now: Instant) -> bool:
    return any(isinstance(d, DropImage) for d in planned(snapshot, now=now).decisions)


def test_where_the_pool_wanted_it_is_not_waited_for() -> None:
    """Its place there may have gone to somebody who ranks before it."""
    running = placed(a_job("j", terms=NEVER), ("n1", "0"), at=Instant(NOW - WAY_MS))
    for owner, goes in ((False, ("n3",)), (True, ())):
        work = running
        if owner:
            work = lifecycle.apply(work, lifecycle.MoveWanted((NodeId("n2"),)), NOW)
        work = applied(work, Move(work.id, (NodeId("n2"),), "x"), Instant(NOW - WAY_MS))
        image = Image(lifecycle.image_id(work), (NodeId("n1"),), GIB, NOW)
        saved = lifecycle.apply(work, lifecycle.Saved(image), Instant(NOW - WAY_MS))
        assert saved.move_to == ("n2",) and saved.driven is not owner
        nodes = (node("n1"), node("n2"), node("n3"))
        assert goes_on(*nodes, works=(saved,)) == ("n2",)
        assert goes_on(*nodes, works=(saved, holder("n1"), holder("n2"))) == goes


def test_a_move_of_the_pool_that_failed_is_forgotten() -> None:
    running = placed(a_job("j", terms=NEVER), ("n1", "0"), at=NOW)
    moving = applied(running, Move(running.id, (NodeId("n2"),), "x"), NOW)
    failed = lifecycle.apply(moving, lifecycle.SaveFailed("disk full"), NOW)
    assert (failed.phase, failed.move_to, failed.driven) == (Phase.RUNNING, (), False)
    wanted = lifecycle.apply(running, lifecycle.MoveWanted((NodeId("n2"),)), NOW)
    moving = applied(wanted, Move(running.id, (NodeId("n2"),), "x"), NOW)
    failed = lifecycle.apply(moving, lifecycle.SaveFailed("disk full"), NOW)
    assert (failed.move_to, failed.driven) == (("n2",), False)


def test_an_image_is_given_up_only_when_all_who_have_it_are_away_for_long() -> None:
    late = Instant(NOW + 30_000 + POLICY.image_wait_ms)
    lease = {"lease_expires_at": Instant(late + 1)}
    away = node("n1", state=NodeState.LOST)
    job = waiting("n1")
    assert job.image is not None
    copied = replace(job, image=replace(job.image, copies=((NodeId("n2"),),)))
    assert dropped(a_snapshot([away, node("n2", **lease)], [job]), late)
    assert not dropped(a_snapshot([away, node("n2", **lease)], [copied, holder("n2")]), late)
    gone = node("n2", state=NodeState.LOST)
    assert dropped(a_snapshot([away, gone, node("n3", **lease)], [copied]), late)
    wish = replace(job, move_to=(NodeId("n1"),), image=replace(job.image, nodes=(NodeId("n3"),)))
    assert not dropped(a_snapshot([away, node("n3", **lease)], [wish]), late)


def test_an_older_image_takes_its_place_when_going_back_costs_no_more_than_waiting() -> None:
    away = node("n1", state=NodeState.LOST, lease_expires_at=Instant(NOW - 60_000))
    image = waiting("n1").image
    assert image is not None
    newest = replace(image, ran_ms=30_000)
    older = replace(image, id=ImageId("older"), ran_ms=10_000, copies=((NodeId("n2"),),))

    def given_up(waited_ms: int, before: Image | None, other: Node) -> bool:
        job = replace(waiting("n1", waited_ms=waited_ms), image=newest, image_before=before)
        return dropped(a_snapshot([away, other], [job]), NOW)

    assert given_up(20_000, older, node("n2"))
    assert not given_up(19_999, older, node("n2"))
    assert not given_up(20_000, None, node("n2"))
    assert not given_up(20_000, replace(older, copies=()), node("n2"))
    assert not given_up(20_000, older, of(node("n2"), "another product"))
    job = replace(waiting("n1"), image=newest, image_before=older, ran_ms=30_000)
    back = lifecycle.apply(job, lifecycle.ImageLost("its node did not come back"), NOW)
    assert back.image == older and back.lost_ms == 20_000

    def told(**changes: object) -> list[str]:
        works = [replace(job, phase_since=Instant(NOW - 5_000), **changes)]
        found = planned(a_snapshot([away, node("n2")], works), now=NOW).blockers[job.id]
        return [b.text for b in found if b.gate is Gate.DATA]

    lies = "its image lies on node n1, which is lost"
    late, then = "if n1 does not come back within", "20.0s of its run are lost"
    assert told() == [lies, f"{late} 15.0s, it goes back to the image before, and {then}"]
    nowhere = replace(older, copies=())
    assert told(image_before=nowhere) == [
        lies,
        f"{late} 9m55s, it goes back to the image before, and {then}",
    ]
    afresh = [lies, f"{late} 9m55s, it begins afresh, and 30.0s of its run are lost"]
    assert told(image_before=None) == afresh
    (_, ends) = told(image_before=None, attempts=lifecycle.ATTEMPTS_MAX)
    assert f"9m55s, it has failed after {lifecycle.ATTEMPTS_MAX} starts, and 30.0s" in ends
    assert told(want=Want.SUSPEND) == [lies]
    then = planned(a_snapshot([away, node("n2")], [back]), now=back.not_before).decisions
    (place,) = [d for d in then if isinstance(d, Place)]
    assert place.restore and place.placement[0].node_id == "n2"


def test_what_could_not_be_brought_back_elsewhere_is_tried_again_at_home() -> None:
    job = waiting("n1")
    there = (Slot(NodeId("n2"), (node("n2").devices[0].id,)),)
    away = lifecycle.apply(job, lifecycle.Placed(there, restore=True), NOW)
    back = lifecycle.apply(away, lifecycle.RestoreFailed("the network is down"), NOW)
    assert back.move_to == ("n1",) and back.image == job.image
    here = (Slot(NodeId("n1"), (node("n1").devices[0].id,)),)
    home = lifecycle.apply(job, lifecycle.Placed(here, restore=True), NOW)
    assert lifecycle.apply(home, lifecycle.RestoreFailed("torn"), NOW).move_to == ()
