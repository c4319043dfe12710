"""What `why` says, and what can never run."""

from __future__ import annotations

import pytest
from tests.fleets import GIB, NOW, a_job, a_node, a_snapshot, placed, planned

from onefleet.core import lifecycle
from onefleet.core.explain import explain
from onefleet.core.feasibility import feasibility
from onefleet.core.plan import Blocker, Gate
from onefleet.domain.fleet import DeviceKind, Node, NodeState
from onefleet.domain.work import Demand

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
            "needs 1 cpu devices on one node and 17408 MiB of memory for each worker; "
            "the fleet has 6, at most 4 on one node, with at most 16384 MiB for a worker",
        ),
        (
            Demand(GPU, 1, 1, memory_bytes=9 * GIB),
            FLEET,
            "needs 1 gpu devices on one node and 9216 MiB of memory for each worker; "
            "the fleet has 2, at most 2 on one node, with at most 8192 MiB for a worker",
        ),
        (Demand(GPU, 1, 2, memory_bytes=9 * GIB), FLEET, None),
    ],
)
def test_feasibility(demand: Demand, fleet: list[Node], text: str | None) -> None:
    assert feasibility(demand, fleet) == text
    assert feasibility(demand, list(reversed(fleet))) == text
