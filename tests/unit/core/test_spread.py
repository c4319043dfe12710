"""A gang moves to other nodes to have the width that its owner wants."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fleets import GIB, NOW, START, a_job, a_node, a_snapshot, after, placed, planned

from onefleet.core import lifecycle
from onefleet.core.plan import Move, Place, Resize
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import CheckpointMode, DeviceKind, Node
from onefleet.domain.ids import NodeId
from onefleet.domain.work import Image, Terms, Work

NEVER = Terms(checkpoint_every_ms=0)


def node(name: str, devices: int = 1, **changes: object) -> Node:
    return a_node(name, devices, **{"address": f"{name}:1", **changes})


def gang(width: int | None, *slots: tuple[str, str], **changes: object) -> Work:
    job = a_job("g", 1, workers=len(slots), pack=len(slots), terms=NEVER, **changes)
    return replace(placed(job, *slots), width=width)


def moved(snapshot: Snapshot) -> list[tuple[str, ...]]:
    return [d.nodes for d in planned(snapshot).decisions if isinstance(d, Move)]


def goes(work: Work, *nodes: Node, others: tuple[Work, ...] = ()) -> list[tuple[str, ...]]:
    return moved(a_snapshot(nodes, [work, *others]))


PACKED = (("n1", "0"), ("n1", "0"))
APART = (("n1", "0"), ("n2", "0"))


def arrived(snapshot: Snapshot) -> list[str]:
    """The devices of each rank once it was saved, and placed where it goes."""
    saving = after(snapshot, planned(snapshot)).works["g"]
    homes = tuple(slot.node_id for slot in saving.placement)
    image = Image(lifecycle.image_id(saving), homes, 7, NOW)
    saved = lifecycle.apply(saving, lifecycle.Saved(image), NOW)
    (place,) = planned(a_snapshot(snapshot.nodes.values(), [saved])).decisions
    assert isinstance(place, Place) and place.restore
    ran = lifecycle.apply(saved, lifecycle.Placed(place.placement, True), NOW)
    running = lifecycle.apply(ran, lifecycle.Restored(), NOW)
    assert not planned(a_snapshot(snapshot.nodes.values(), [running])).decisions
    return [" ".join(slot.devices) for slot in place.placement]


def test_it_spreads_over_nodes_that_have_too_few_devices_each() -> None:
    snapshot = a_snapshot([node("n1"), node("n2")], [gang(2, *PACKED)])
    assert moved(snapshot) == [("n1", "n2")]
    assert arrived(snapshot) == ["n1/cpu0", "n2/cpu0"]


def test_it_gathers_where_it_has_fewer_devices_than_nodes() -> None:
    snapshot = a_snapshot([node("n1"), node("n2")], [gang(1, *APART)])
    assert moved(snapshot) == [("n1", "n1")]
    assert arrived(snapshot) == ["n1/cpu0", "n1/cpu0"]


def test_its_own_nodes_go_first_and_as_many_workers_as_can_be_stay() -> None:
    four = gang(3, *(("n1", "0"),) * 3, ("n2", "0"))
    nodes = [node("n1", 2), node("n2"), node("n3", 4)]
    assert [type(d) for d in planned(a_snapshot(nodes, [four])).decisions] == [Resize]
    alone = gang(3, *(("n1", "0"),) * 4)
    assert goes(alone, node("n1"), node("n2"), node("n3", 4)) == [("n1", "n3", "n3", "n3")]


def test_without_its_owner_s_wish_it_stays_where_it_is() -> None:
    assert goes(gang(None, *PACKED), node("n1"), node("n2")) == []
    assert goes(gang(None, *APART), node("n1"), node("n2")) == []


def test_it_stays_until_there_are_all_that_it_shall_have() -> None:
    assert goes(gang(3, *(("n1", "0"),) * 3), node("n1"), node("n2")) == []
    holder = placed(a_job("x", terms=NEVER), ("n2", "0"))
    assert goes(gang(2, *PACKED), node("n1"), node("n2"), others=(holder,)) == []


def test_nothing_moves_while_others_wait_for_such_devices() -> None:
    waiting = a_job("big", 9, submitted_at=START)
    assert goes(gang(2, *PACKED), node("n1"), node("n2"), others=(waiting,)) == []


@pytest.mark.parametrize(
    "other",
    [
        node("n2", address=""),
        node("n2", checkpoint_mode=CheckpointMode.COOPERATIVE),
        node("n2", kind=DeviceKind.GPU),
        node("n2", memory_bytes=GIB),
    ],
    ids=["no address", "saves otherwise", "other devices", "too little memory"],
)
def test_only_where_its_workers_can_be_brought_back(other: Node) -> None:
    work = gang(2, *PACKED, memory_bytes=2 * GIB)
    assert goes(work, node("n1"), other) == []
    assert goes(work, node("n1"), node("n2")) == [("n1", "n2")]


def test_what_has_to_save_itself_or_could_not_be_saved_stays() -> None:
    itself = {"checkpoint_mode": CheckpointMode.COOPERATIVE}
    assert goes(gang(2, *PACKED), node("n1", **itself), node("n2", **itself)) == []
    assert goes(replace(gang(2, *PACKED), saves_failed=1), node("n1"), node("n2")) == []
    assert goes(gang(2, *PACKED, suspendable=False), node("n1"), node("n2")) == []


def test_where_its_owner_wants_it_goes_before_how_wide() -> None:
    wish = replace(gang(2, *PACKED), move_to=(NodeId("n3"),))
    assert goes(wish, node("n1"), node("n2"), node("n3")) == [("n3", "n3")]
