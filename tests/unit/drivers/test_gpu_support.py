"""Which GPUs can be saved, and where what was saved may go."""

from __future__ import annotations

import itertools

import pytest

from onefleet.domain.errors import Unsupported
from onefleet.drivers.gpu_support import device_map, open_limits, why_not

H100, L4 = "NVIDIA H100", "NVIDIA L4"


@pytest.mark.parametrize(
    ("driver", "machine", "gpus", "says"),
    [
        ("", "x86_64", 1, "it is unknown, needed is 570"),
        ("550.54.14", "x86_64", 1, "it is 550.54.14, needed is 570"),
        ("570.86.10", "x86_64", 1, ""),
        ("570.86.10", "x86_64", 2, "more than one GPU cannot be saved"),
        ("590.10", "x86_64", 8, ""),
        ("590.10", "aarch64", 1, "ARM machine: it is 590.10, needed is 595"),
        ("610.0", "aarch64", 2, ""),
    ],
)
def test_the_driver_decides(driver: str, machine: str, gpus: int, says: str) -> None:
    told = why_not(driver, machine, gpus)
    assert (says in told) if says else (told == "")


def test_each_newer_driver_has_fewer_limits() -> None:
    counts = [len(open_limits(f"{n}.1", "aarch64")) for n in (550, 570, 580, 590, 595, 610, 700)]
    assert counts == [6, 5, 4, 3, 2, 1, 1]
    assert len(open_limits("570.1", "x86_64")) == 4


def test_the_same_gpus_need_no_map() -> None:
    node = {"a": H100, "b": H100}
    assert device_map(node, ["b"], node, ["b"]) == {}


def test_the_map_names_every_gpu_of_the_node() -> None:
    node = {"a": H100, "b": H100, "c": L4}
    assert device_map(node, ["a"], node, ["b"]) == {"a": "b", "b": "a", "c": "c"}
    assert device_map({"a": H100}, ["a"], {"x": L4, "y": H100}, ["y"]) == {"a": "y"}


def test_another_order_of_the_same_gpus_is_a_change() -> None:
    assert device_map({"a": H100, "b": H100}, ["a"], {"b": H100, "a": H100}, ["a"]) == {
        "a": "a",
        "b": "b",
    }


@pytest.mark.parametrize(
    ("new", "held", "says"),
    [
        ({"x": L4, "y": L4}, ["x"], "it had 1 x NVIDIA H100, and would get 1 x NVIDIA L4"),
        ({"x": H100, "y": H100}, ["x", "y"], "would get 2 x NVIDIA H100"),
        ({"x": H100}, ["x"], "the node that saved it had 2 x NVIDIA H100, and this one has 1 x"),
    ],
)
def test_what_does_not_fit_is_told(new: dict[str, str], held: list[str], says: str) -> None:
    with pytest.raises(Unsupported) as refused:
        device_map({"a": H100, "b": H100}, ["a"], new, held)
    assert says in refused.value.why


def test_a_map_is_one_to_one_and_keeps_products() -> None:
    old = {"a": H100, "b": L4, "c": H100}
    for order in itertools.permutations([("p", H100), ("q", H100), ("r", L4), ("s", L4)]):
        new = dict(order)
        for held in ("p", "q"):
            found = device_map(old, ["c"], new, [held])
            assert sorted(found) == ["a", "b", "c"] and found["c"] == held
            assert len(set(found.values())) == 3
            assert all(old[a] == new[b] for a, b in found.items())
