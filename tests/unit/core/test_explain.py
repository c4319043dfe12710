"""What `why` says, and what can never run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.fleets import GIB, NOW, a_job, a_node, a_snapshot, placed, planned

from onefleet.core import lifecycle
from onefleet.core.explain import explain
from onefleet.core.feasibility import feasibility
from onefleet.core.plan import Blocker, Gate
from onefleet.domain.fleet import DeviceKind, Node, NodeState
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Demand, Speed, Want

CPU, GPU = DeviceKind.CPU, DeviceKind.GPU


def test_each_state_is_explained_in_one_line() -> None:
    running = placed(a_job("j", 2), ("n1", "0 1"))
    assert explain(running, {}).summary == "j runs on n1/cpu0 n1/cpu1"
    ended = lifecycle.apply(running, lifecycle.ProcessEnded(1, ""), NOW)
    assert explain(ended, {}).summary == "j failed: exited with code 1"
    assert explain(a_job("j"), {}).summary == "j is pending; the next pass will look at it"
    holder = placed(a_job("h", 4), ("n1", "0 1 2 3"))
    waiting = a_job("j", 2)
    plan = planned(a_snapshot([a_node("n1")], [holder, waiting, a_job("i", 2)]))
    why = explain(waiting, plan.blockers)
    assert why.summary == (
        "j is pending: needs 2 cpu devices, 0 free; held by h (standard job, tenant a) (and 1 more)"
    )
    assert why.blockers == plan.blockers[waiting.id]
    lost = {running.id: (Blocker(Gate.START, "its node is lost"),)}
    assert explain(running, lost).summary == "j is running: its node is lost"


FLEET = [
    a_node("n1", 4),
    a_node("n2", 2, state=NodeState.LOST),
    a_node("n3", 2, kind=GPU, device_bytes=8 * GIB),
]

ZONED = [a_node("n1", 4, zone="a"), a_node("n2", 2, zone="b")]


@pytest.mark.parametrize(
    ("demand", "fleet", "text"),
    [
        (Demand(CPU, 4, 4), FLEET, None),
        (Demand(CPU, 2, 2, workers=3), FLEET, None),
        (
            Demand(CPU, 5, 5),
            FLEET,
            "needs 5 cpu devices on one node; the fleet has 6, at most 4 on one node",
        ),
        (
            Demand(CPU, 2, 2, workers=4),
            FLEET,
            "needs 4 x 2 cpu devices; the fleet has 6, at most 4 on one node",
        ),
        (
            Demand(DeviceKind.FPGA, 1, 1),
            FLEET,
            "needs fpga devices, and the fleet has none (it has 6 cpu, 2 gpu)",
        ),
        (Demand(CPU, 1, 1), [], "needs cpu devices, and the fleet has none"),
        (
            Demand(CPU, 1, 1, memory_bytes=17 * GIB),
            FLEET,
            "needs 1 cpu device on one node and 18.3 GB of memory for each worker; "
            "the fleet has 6, at most 4 on one node, with at most 17.2 GB for a worker",
        ),
        (
            Demand(GPU, 1, 1, memory_bytes=9 * GIB),
            FLEET,
            "needs 1 gpu device on one node and 9.7 GB of memory for each worker; "
            "the fleet has 2, at most 2 on one node, with at most 8.6 GB for a worker",
        ),
        (Demand(GPU, 1, 2, memory_bytes=9 * GIB), FLEET, None),
        (Demand(CPU, 1, 1, workers=12, pack=2), FLEET, None),
        (
            Demand(CPU, 1, 1, workers=13, pack=2),
            FLEET,
            "needs 7 cpu devices for 13 workers; the fleet has 6, at most 4 on one node",
        ),
        (
            Demand(CPU, 1, 1, speeds=(Speed("L4"), Speed("T4"))),
            FLEET,
            "needs cpu devices of class L4 or T4, and the fleet has 6 of class simulated",
        ),
        (Demand(CPU, 4, 4, speeds=(Speed("simulated"),)), FLEET, None),
        (
            Demand(CPU, 1, 1, zones=("mars",)),
            FLEET,
            "needs a node in zone mars, and the fleet has no zones",
        ),
        (
            Demand(CPU, 1, 1, zones=("mars",)),
            ZONED,
            "needs a node in zone mars, and the fleet has zone a, b",
        ),
        (Demand(CPU, 2, 2, zones=("b",)), ZONED, None),
        (
            Demand(CPU, 3, 3, zones=("b",)),
            ZONED,
            "needs 3 cpu devices in zone b on one node; the fleet has 2 there, "
            "at most 2 on one node",
        ),
    ],
)
def test_feasibility(demand: Demand, fleet: list[Node], text: str | None) -> None:
    assert feasibility(demand, fleet) == text
    assert feasibility(demand, list(reversed(fleet))) == text


def test_what_is_free_and_who_holds_it_is_told_of_what_a_work_could_use() -> None:
    old = replace(a_node("n2", 2, zone="b").devices[0], product="old")
    other = a_node("n2", 2, zone="b")
    fleet = [a_node("n1", 2, zone="a"), replace(other, devices=(old, *other.devices[1:]))]
    holders = [placed(a_job("h", tier=Tier.PREMIUM), ("n1", "0")), placed(a_job("i"), ("n2", "0"))]

    def told(devices: int = 1, **demand: Any) -> str:
        waiting = a_job("j", devices, **demand)
        plan = planned(a_snapshot(fleet, [*holders, waiting]))
        return plan.blockers[waiting.id][0].text

    in_b = told(devices=2, zones=("b",))
    assert in_b == "needs 2 cpu devices in zone b, 1 free; held by i (standard job, tenant a)"
    of_old = told(speeds=(Speed("old"),))
    assert of_old == ("needs 1 cpu device of class old, 0 free; held by i (standard job, tenant a)")
    packed = told(workers=8, pack=2)
    assert packed.startswith(
        "needs 4 cpu devices (8 workers of 1, all at once, 2 at most taking turns), 2 free"
    )
    assert packed.index("h (premium") < packed.index("i (standard")


def test_what_stands_still_holds_no_device_and_is_named_where_memory_is_short() -> None:
    froze = placed(a_job("f", memory_bytes=2 * GIB), ("n1", "0"))
    froze = replace(lifecycle.apply(froze, lifecycle.Froze("room"), NOW), want=Want.FREEZE)
    holder = placed(a_job("h"), ("n1", "0"))
    node = a_node("n1", 1, memory_bytes=5 * GIB)
    for memory, told in ((GIB, False), (4 * GIB, True)):
        waiting = a_job("j", memory_bytes=memory)
        plan = planned(a_snapshot([node], [froze, holder, waiting]))
        (blocker,) = plan.blockers[waiting.id]
        assert blocker.holders == (("f", "h") if told else ("h",))
        assert (", frozen)" in blocker.text) == told
