"""Of several classes of devices a job gets the one on which it is fastest."""

from __future__ import annotations

from dataclasses import replace

from tests.fleets import NOW, a_job, a_node, a_snapshot, placed, planned

from onefleet.core.plan import Place
from onefleet.domain.fleet import DeviceKind, Node
from onefleet.domain.work import Speed, Work

GPU = DeviceKind.GPU


def of(product: str, name: str, devices: int = 2) -> Node:
    """A node with devices of a class."""
    node = a_node(name, devices, kind=GPU)
    return replace(node, devices=tuple(replace(d, product=product) for d in node.devices))


def wanting(name: str, devices: int = 1, workers: int = 1, **speeds: int) -> Work:
    """A job with its speed on each class that it can use."""
    found = tuple(Speed(product, permille) for product, permille in speeds.items())
    return a_job(name, devices, kind=GPU, speeds=found, workers=workers)


def placements(nodes: list[Node], *works: Work) -> dict[str, list[str]]:
    """The node of each rank of what is placed now."""
    decided = planned(a_snapshot(nodes, works), now=NOW).decisions
    found = [d for d in decided if isinstance(d, Place)]
    return {d.work_id: [slot.node_id for slot in d.placement] for d in found}


def test_it_gets_the_class_on_which_it_is_fastest() -> None:
    nodes = [of("slow", "a"), of("fast", "b")]
    assert placements(nodes, wanting("j", slow=300, fast=1_000)) == {"j": ["b"]}
    assert placements(nodes, wanting("j", slow=1_000, fast=300)) == {"j": ["a"]}


def test_it_does_not_wait_for_that_class() -> None:
    nodes = [of("slow", "a"), of("fast", "b", 1)]
    taken = placed(wanting("x", fast=1_000), ("b", "0"))
    assert placements(nodes, taken, wanting("j", slow=300, fast=1_000)) == {"j": ["a"]}


def test_a_gang_does_not_mix_classes_where_one_has_room_for_it() -> None:
    nodes = [of("fast", "a", 1), of("slow", "b"), of("slow", "c"), of("fast", "d", 1)]
    speeds = {"slow": 300, "fast": 1_000}
    assert placements(nodes, wanting("j", workers=2, **speeds)) == {"j": ["a", "d"]}
    assert placements(nodes, wanting("j", workers=4, **speeds)) == {"j": ["b", "b", "c", "c"]}
    assert placements(nodes, wanting("j", workers=6, **speeds)) == {
        "j": ["b", "b", "c", "c", "a", "d"]
    }


def test_what_is_nearly_as_fast_elsewhere_leaves_the_sought_after_class_alone() -> None:
    nodes = [of("rare", "a", 4), of("common", "b", 4)]
    only = [placed(wanting(f"x{i}", rare=1_000), ("a", str(i))) for i in range(2)]
    assert placements(nodes, *only, wanting("j", rare=1_000, common=900)) == {"j": ["b"]}
    assert placements(nodes, *only, wanting("j", rare=1_000, common=300)) == {"j": ["a"]}
    assert placements(nodes, *only, a_job("j", kind=GPU)) == {"j": ["b"]}
