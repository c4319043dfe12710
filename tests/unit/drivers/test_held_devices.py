"""How much room a worker needs on its GPUs to come back."""

from __future__ import annotations

from onefleet.drivers.held_devices import Node, needed

GIB = 1 << 30
MINE, OTHER = 7, 8


def a_node(mine: int, other: int, counted: bool = True) -> Node:
    """A GPU of 80 GiB with so many of a worker's and of somebody else's."""
    used = mine + other
    held = [(pid, n * GIB) for pid, n in ((MINE, mine), (OTHER, other)) if n]
    gpu = {"name": "a", "product": "p", "free_bytes": (80 - used) * GIB, "used_bytes": used * GIB}
    return Node({"driver": "590", "gpus": [gpu | ({"holders": held} if counted else {})]})


def test_what_others_take_or_give_meanwhile_does_not_change_what_it_needs() -> None:
    for other in (0, 20, 40):
        found = needed(a_node(30, 20), a_node(0, other), ["a"], [MINE])
        assert found == [30 * GIB]
    assert needed(a_node(30, 0), a_node(10, 0), ["a"], [MINE]) == [20 * GIB]


def test_where_processes_are_not_counted_what_became_free_has_to_do() -> None:
    before, after = a_node(30, 20, counted=False), a_node(0, 25, counted=False)
    assert needed(before, after, ["a"], [MINE]) == [25 * GIB]
    assert needed(a_node(30, 0), a_node(0, 0), ["a"], [99]) == [30 * GIB], "nor known by number"
