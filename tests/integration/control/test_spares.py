"""Hot spares through a real control process: set, kept, used, shown, and remembered."""

from __future__ import annotations

from typing import Any

import pytest
from tests.integration.control.rig import Control, FakeNode

from onefleet.domain.errors import CallerError, Conflict, Infeasible
from onefleet.wire.agent import OrderVerb
from onefleet.wire.api import (
    DeviceView,
    EventView,
    JobView,
    NewJob,
    NewReservation,
    NodeView,
    Page,
    ReservationView,
    SetSpares,
    SparesView,
    WhyView,
)
from onefleet.wire.client import Client


def submit(api: Client, name: str, **fields: Any) -> JobView:
    return api.post("/api/v1/jobs", NewJob(command=("x",), name=name, **fields), JobView)


def set_spares(api: Client, nodes: int, kind: str = "cpu") -> SparesView:
    return api.post("/api/v1/spares", SetSpares(nodes=nodes, device_kind=kind), SparesView)


def spares(api: Client) -> list[tuple[str, int, tuple[str, ...]]]:
    found = api.get("/api/v1/spares", Page[SparesView]).data
    return [(s.id, s.wanted, s.nodes) for s in found]


def test_a_spare_is_kept_over_a_restart_and_used_by_what_fails(control: Control) -> None:
    api = control.admin()
    first, second = FakeNode(control, "n1"), FakeNode(control, "n2")

    def sync() -> None:
        first.sync()
        second.sync()

    def until(what: str, probe: Any) -> None:
        control.until(what, lambda: (sync(), probe())[1])

    sync()
    job = submit(api, "job", devices_min=2, devices_max=2)
    until("it runs", lambda: control.job(job.id).phase == "running")
    assert control.job(job.id).node == "n1"
    assert set_spares(api, 1).note == ""
    until("the other node is kept", lambda: spares(api) == [("cpu", 1, ("n2",))])
    control.kill()
    control.start()
    sync()
    waiting = submit(api, "waiting", devices_min=2, devices_max=2)
    told = "1 node is kept as a spare (n2) for work that loses its place by a failure"

    def says() -> bool:
        blockers = api.get(f"/api/v1/why/{waiting.id}", WhyView).blockers
        return told in [blocker.text for blocker in blockers]

    until("it says why it waits", says)
    assert spares(api) == [("cpu", 1, ("n2",))]
    nodes = {node.id: node.spare for node in api.get("/api/v1/nodes", Page[NodeView]).data}
    assert nodes == {"n1": False, "n2": True}
    status = control.status()
    assert (status.spares, status.spares_wanted) == (1, 1)
    with pytest.raises(Conflict, match="cannot move to n2"):
        api.post(f"/api/v1/jobs/{job.id}/migrate", {"node": "n2"}, JobView)

    api.post("/api/v1/devices/n1/cpu0/cordon", {"reason": "bad"}, DeviceView)
    first.slow = [OrderVerb.RUN]
    first.workers.clear()  # it knows nothing of the job any more
    until("it goes on", lambda: (j := control.job(job.id)).phase == "running" and j.node == "n2")
    assert control.job(waiting.id).phase == "pending" and spares(api) == [("cpu", 1, ())]
    set_spares(api, 0)
    assert spares(api) == []
    events = api.get("/api/v1/events", Page[EventView]).data
    set_events = [(e.subject, e.text) for e in events if e.kind == "spares.set"]
    assert set_events == [
        ("cpu", "0 -> 1 nodes with cpu devices are kept empty"),
        ("cpu", "1 -> 0 nodes with cpu devices are kept empty"),
    ]


def test_a_pool_keeps_no_more_spares_than_leave_what_is_guaranteed(control: Control) -> None:
    api = control.admin()
    FakeNode(control, "n1").sync()
    alone = "the pool has one node in service with cpu devices, and keeps no spare: "
    assert set_spares(api, 1).note == f"{alone}the last node has to work"
    assert set_spares(api, 1, "gpu").note.startswith("the pool has no gpu devices")
    assert set_spares(api, 0, "gpu").note == ""
    FakeNode(control, "n2").sync()
    assert set_spares(api, 3).note == (
        "2 nodes with cpu devices are in service: 1 are kept at most"
    )
    with pytest.raises(Infeasible, match="can never run") as refused:
        submit(api, "gang", workers=2, devices_min=4, devices_max=4)
    assert "1 node is kept as a spare (n1)" in refused.value.why
    with pytest.raises(Infeasible, match="4 cpu devices cannot be guaranteed") as refused:
        api.post(
            "/api/v1/reservations", NewReservation(tenant="default", devices=4), ReservationView
        )
    assert refused.value.why.startswith("the fleet has 2 beside its spares")
    set_spares(api, 0)
    api.post("/api/v1/reservations", NewReservation(tenant="default", devices=4), ReservationView)
    with pytest.raises(
        Infeasible, match="1 node with cpu devices cannot be kept as spares"
    ) as refused:
        set_spares(api, 1)
    assert refused.value.why == "that leaves 2 cpu devices, and 4 are reserved"
    for body in ({"nodes": -1}, {"nodes": 1, "device_kind": "abacus"}):
        with pytest.raises(CallerError):
            api.post("/api/v1/spares", body, SparesView)
