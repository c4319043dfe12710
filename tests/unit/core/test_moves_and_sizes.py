"""Running works move to other nodes and devices, and become narrower and wider."""

from __future__ import annotations

from dataclasses import replace

from tests.fleets import NOW, START, a_job, a_node, a_snapshot, after, placed, planned

from onefleet.core import lifecycle
from onefleet.core.plan import Freeze, Move, Place, Resize, Suspend, Thaw
from onefleet.domain.fleet import CheckpointMode, Cordon, DeviceKind, Node, NodeState
from onefleet.domain.ids import DeviceId, Instant, NodeId
from onefleet.domain.work import Image, Terms, Want, Work

NEVER = Terms(checkpoint_every_ms=0)


def node(name: str, devices: int = 4, **changes: object) -> Node:
    return a_node(name, devices, **{"address": f"{name}:1", **changes})


def on_n1(devices: str = "0", **changes: object) -> Work:
    job = a_job("j", len(devices.split()), terms=NEVER, **changes)
    return placed(job, ("n1", devices))


def moves(*nodes: Node, work: Work) -> list[tuple[str, ...]]:
    decided = planned(a_snapshot(nodes, [work])).decisions
    return [d.nodes for d in decided if isinstance(d, Move)]


def resized(*nodes: Node, work: Work, others: tuple[Work, ...] = ()) -> list[list[str]]:
    """The devices of each rank after the pass, where there was a resize."""
    decided = planned(a_snapshot(nodes, [work, *others])).decisions
    return [
        [" ".join(d.rpartition("cpu")[2] for d in slot.devices) for slot in decision.placement]
        for decision in decided
        if isinstance(decision, Resize)
    ]


def test_a_job_moves_where_its_owner_wants_it_and_goes_on_there() -> None:
    work = replace(on_n1(), move_to=(NodeId("n2"),))
    snapshot = a_snapshot([node("n1"), node("n2")], [work])
    first = planned(snapshot)
    assert [d.nodes for d in first.decisions if isinstance(d, Move)] == [("n2",)]
    saving = after(snapshot, first).works["j"]
    image = Image(lifecycle.image_id(saving), (NodeId("n1"),), 7, NOW)
    saved = lifecycle.apply(saving, lifecycle.Saved(image), NOW)
    assert saved.move_to == ("n2",)
    then = planned(a_snapshot(snapshot.nodes.values(), [saved]))  # nothing keeps it waiting
    (place,) = [d for d in then.decisions if isinstance(d, Place)]
    assert place.restore and place.placement[0].node_id == "n2"
    assert lifecycle.apply(saved, lifecycle.Placed(place.placement, True), NOW).move_to == ()


def test_it_runs_on_where_it_is_until_there_is_a_place_that_can_fetch_its_image() -> None:
    wish = replace(on_n1("0 1"), move_to=(NodeId("n2"),))
    assert moves(node("n1"), node("n2", 1), work=wish) == []
    assert moves(node("n1"), node("n2", address=""), work=wish) == []
    assert moves(node("n1"), node("n2", state=NodeState.LOST), work=wish) == []
    assert moves(node("n1"), node("n2"), work=wish) == [("n2",)]


def test_a_drained_node_and_a_cordoned_device_are_left() -> None:
    bad = (Cordon(DeviceId("n1/cpu0"), "2 x uncorrected ECC errors", START),)
    assert moves(node("n1", state=NodeState.DRAINING), node("n2"), work=on_n1()) == [("n2",)]
    assert moves(node("n1", cordons=bad), work=on_n1("0")) == [("n1",)]
    assert moves(node("n1", cordons=bad), work=on_n1("1")) == []
    assert moves(node("n1", 1, cordons=bad), work=on_n1("0")) == []
    stuck = replace(on_n1(), suspendable=False)
    assert moves(node("n1", state=NodeState.DRAINING), node("n2"), work=stuck) == []


def test_one_worker_has_the_cores_that_its_owner_wants() -> None:
    work = replace(on_n1("0 1 2", devices_max=4), demand=replace(on_n1().demand, devices_max=4))
    assert resized(node("n1"), work=replace(work, width=1)) == [["0"]]
    assert resized(node("n1"), work=replace(work, width=4)) == [["0 1 2 3"]]
    assert resized(node("n1"), work=replace(work, width=3)) == []
    assert resized(node("n1", 3), work=replace(work, width=4)) == []


def test_without_a_wish_it_has_what_is_free_and_nobody_waits_for() -> None:
    work = on_n1("0", devices_max=4)
    assert resized(node("n1"), work=work) == [["0 1 2 3"]]
    waiting = (a_job("big", 9, submitted_at=START),)
    assert resized(node("n1"), work=work, others=waiting) == []


def gang(width: int | None, *devices: str) -> Work:
    job = a_job("g", 1, workers=4, pack=4, terms=NEVER)
    return replace(placed(job, *(("n1", device) for device in devices)), width=width)


def test_a_gang_is_dealt_to_fewer_devices_and_spread_out_again() -> None:
    wide = gang(2, "0", "1", "2", "3")
    assert resized(node("n1"), work=wide) == [["0", "0", "1", "1"]]
    assert resized(node("n1"), work=gang(1, "0", "1", "2", "3")) == [["0", "0", "0", "0"]]
    assert resized(node("n1"), work=gang(3, "0", "0", "0", "0")) == [["0", "0", "1", "2"]]
    assert resized(node("n1"), work=gang(None, "0", "0", "1", "1")) == [["0", "1", "2", "3"]]
    assert resized(node("n1", 2), work=gang(None, "0", "0", "0", "0")) == [["0", "0", "1", "1"]]


def test_on_gpus_a_gang_keeps_its_size_where_its_state_there_is_not_saved_from_outside() -> None:
    def dealt(mode: CheckpointMode) -> int:
        nodes = [a_node("n1", kind=DeviceKind.GPU, checkpoint_mode=mode)]
        job = a_job("g", 1, workers=2, pack=2, kind=DeviceKind.GPU, terms=NEVER)
        work = replace(placed(job, ("n1", "0"), ("n1", "1")), width=1)
        found = planned(a_snapshot(nodes, [work])).decisions
        return sum(isinstance(decision, Resize) for decision in found)

    assert dealt(CheckpointMode.CRIU) == 1
    assert dealt(CheckpointMode.COOPERATIVE) == 0


def test_a_gang_that_cannot_be_resized_later_is_wide_from_the_start() -> None:
    mode = CheckpointMode.COOPERATIVE
    nodes = [a_node("n1", kind=DeviceKind.GPU, checkpoint_mode=mode)]
    job = a_job("g", 1, workers=4, pack=4, kind=DeviceKind.GPU, terms=NEVER)
    for width, count in ((None, 4), (2, 2)):
        (place,) = planned(a_snapshot(nodes, [replace(job, width=width)])).decisions
        assert isinstance(place, Place)
        assert len({device for slot in place.placement for device in slot.devices}) == count


def frozen(want: Want = Want.RUN, since: Instant = NOW) -> Work:
    return replace(lifecycle.apply(on_n1("0"), lifecycle.Froze("asked"), since), want=want)


def kinds(*nodes: Node, works: tuple[Work, ...], now: Instant = NOW) -> list[type]:
    return [type(d) for d in planned(a_snapshot(nodes, works), now=now).decisions]


def test_what_its_owner_freezes_stands_still_and_goes_on_where_it_stands() -> None:
    wish = replace(on_n1("0"), want=Want.FREEZE)
    assert kinds(node("n1"), works=(wish,)) == [Freeze]
    assert kinds(node("n1"), works=(frozen(Want.FREEZE),)) == []
    (thawed,) = planned(a_snapshot([node("n1"), node("n2")], [frozen()])).decisions
    assert isinstance(thawed, Thaw) and thawed.placement[0].node_id == "n1"
    assert kinds(node("n1"), works=(frozen(Want.SUSPEND),)) == [Suspend]


def test_what_shall_stand_still_on_a_drained_node_is_saved_at_once() -> None:
    wish = replace(on_n1("0"), want=Want.FREEZE)
    assert kinds(node("n1", state=NodeState.DRAINING), works=(wish,)) == [Suspend]
    kept = replace(wish, suspendable=False)
    assert kinds(node("n1", state=NodeState.DRAINING), works=(kept,)) == [Freeze]


def test_what_stands_still_and_has_no_device_there_is_saved_after_a_while() -> None:
    other = replace(placed(a_job("x", terms=NEVER), ("n1", "0")), suspendable=False)
    works = (frozen(), other)
    assert kinds(node("n1", 1), works=works) == []
    later = Instant(NOW + 60_000)
    lease = {"lease_expires_at": Instant(NOW + 10**6)}
    assert kinds(node("n1", 1, **lease), works=works, now=later) == [Suspend]
    gone = node("n1", state=NodeState.DRAINING)
    assert kinds(gone, works=(frozen(),)) == [Suspend]


def test_an_elastic_gang_that_goes_on_is_widened_in_the_pass_after() -> None:
    still = lifecycle.apply(gang(None, "0", "1", "2", "3"), lifecycle.Froze("asked"), NOW)
    snapshot = a_snapshot([node("n1")], [still])
    first = planned(snapshot)
    assert [type(d) for d in first.decisions] == [Thaw]
    assert resized(node("n1"), work=after(snapshot, first).works["g"]) == [["0", "1", "2", "3"]]
