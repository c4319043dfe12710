"""What owners ask of jobs, and administrators of the fleet, through a real control process."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from tests.integration.control.rig import Control, FakeNode

from onefleet.domain.errors import CallerError, Conflict, Infeasible, NotFound
from onefleet.domain.fleet import CheckpointMode, Device, DeviceKind
from onefleet.domain.ids import DeviceId
from onefleet.wire.api import (
    ArrayAnswer,
    DeviceView,
    JobView,
    LedgerView,
    LogChunk,
    NewArray,
    NewJob,
    NewReservation,
    NewTenant,
    NodeView,
    Page,
    ReceiptView,
    ReservationView,
    TenantView,
    WhyView,
)
from onefleet.wire.client import Client

HOUR_MS = 3_600_000


def now_ms() -> int:
    return int(time.time() * 1000)


def submit(api: Client, name: str, **fields: Any) -> JobView:
    return api.post("/api/v1/jobs", NewJob(command=("x",), name=name, **fields), JobView)


def verb(api: Client, job: JobView, name: str, body: object = None) -> JobView:
    return api.post(f"/api/v1/jobs/{job.id}/{name}", body, JobView)


def test_a_gang_says_how_many_devices_it_can_do_with(control: Control) -> None:
    api = control.admin()
    gang = submit(api, "gang", workers=8, devices_min=2, devices_max=8)
    assert (gang.workers, gang.devices_min, gang.devices_max) == (8, 2, 8)
    assert gang.network == "gang" and submit(api, "one").network == "cell"
    assert verb(api, gang, "scale", {"devices": 4}).width == 4
    assert verb(api, gang, "scale", {"devices": None}).width is None
    for devices in (1, 9):
        with pytest.raises(CallerError, match=f"on {devices} devices"):
            verb(api, gang, "scale", {"devices": devices})
    for fields in (
        {"workers": 3, "devices_max": 8, "devices_min": 8},
        {"workers": 4, "devices_max": 8, "devices_min": 1},
        {"devices_max": 2, "devices_min": 2, "device_milli": 500},
        {"devices_max": 2, "devices_min": 1, "device_kind": "gpu"},
        {"deadline": 1_000},
        {"deadline": now_ms() + HOUR_MS, "estimate_ms": 2 * HOUR_MS},
        {"checkpoint_every_ms": 9_999},
        {"products": {"A100": 0}},
        {"network": "lan"},
        {"workers": 10**9},
    ):
        with pytest.raises(CallerError):
            submit(api, "wrong", **fields)
    with pytest.raises(CallerError, match="1 device cannot be dealt evenly to 2") as refused:
        submit(api, "wrong", workers=2, devices_min=1, devices_max=1)
    assert refused.value.hint.startswith("ask for 1..2: ")
    with pytest.raises(CallerError, match="and it runs for 2h00m"):
        submit(api, "wrong", deadline=now_ms() + HOUR_MS, estimate_ms=2 * HOUR_MS)
    with pytest.raises(NotFound, match="no worker of rank 8") as missing:
        api.get(f"/api/v1/jobs/{gang.id}/logs?rank=8", LogChunk)
    assert missing.value.why == "its ranks are 0..7"


@pytest.mark.parametrize(
    ("command", "stem"),
    [
        (("prog", "--x"), "prog"),
        (("/opt/bin/python3.11", "-u", "exp/train.py", "--lr", "1"), "train"),
        (("sh", "run me.sh"), "run-me"),
        (("sh", "-c", "true"), "sh"),
    ],
)
def test_a_job_without_a_name_is_called_after_its_script(
    control: Control, command: tuple[str, ...], stem: str
) -> None:
    job = control.admin().post("/api/v1/jobs", NewJob(command=command), JobView)
    assert job.name == f"{stem}-{job.id[-5:]}"


def test_jobs_that_share_a_core_say_that_they_take_turns(control: Control) -> None:
    api, node = control.admin(), FakeNode(control, devices=1)
    jobs = [submit(api, name, device_milli=500) for name in ("half", "rest")]
    names = {job.id for job in jobs}
    node.until("both run", lambda: {key[0] for key in node.workers} == names)
    alone = api.get(f"/api/v1/jobs/{jobs[0].id}", JobView)
    assert (alone.turns, alone.reason, alone.devices) == (0, "", ("node-1/cpu0",))
    for key, report in list(node.workers.items()):
        node.workers[key] = msgspec.structs.replace(report, turns=2)
    node.sync()
    for job in jobs:
        seen = api.get(f"/api/v1/jobs/{job.id}", JobView)
        told = "takes turns on its core with 1 other job"
        assert (seen.phase, seen.turns, seen.reason) == ("running", 2, told)
        summary = f"{job.id} runs on node-1/cpu0, and {told}"
        where = f"/api/v1/why/{job.id}"
        node.until("why says so", lambda w=where, s=summary: api.get(w, WhyView).summary == s)
    verb(api, jobs[0], "suspend")
    node.until("it is saved", lambda: control.job(jobs[0].id).phase == "suspended")
    assert control.job(jobs[0].id).turns == 0


def test_a_gang_that_is_packed_onto_a_gpu_says_whether_its_workers_take_turns(
    control: Control,
) -> None:
    api, node = control.admin(), FakeNode(control)
    node.devices = (Device(DeviceId("node-1/gpu0"), DeviceKind.GPU, 0, "a GPU", 1 << 30),)
    job = submit(api, "gang", workers=2, devices_min=1, devices_max=2, device_kind="gpu")
    node.until("both run", lambda: len(node.workers) == 2)

    def told(mode: CheckpointMode, why: str, *turns: int) -> JobView:
        for count, (key, report) in zip(turns, list(node.workers.items()), strict=True):
            node.workers[key] = msgspec.structs.replace(
                report, turns=count, checkpoint_mode=mode, checkpoint_reason=why
            )
        node.sync()
        return api.get(f"/api/v1/jobs/{job.id}", JobView)

    seen = told(CheckpointMode.CRIU, "", 0, 2)
    assert (seen.phase, seen.turns) == ("running", 2)
    assert seen.reason == "its workers take turns on their GPUs, up to 2 on each"
    assert api.get(f"/api/v1/why/{job.id}", WhyView).summary.endswith(f", and {seen.reason}")
    assert told(CheckpointMode.CRIU, "", 0, 0).reason == "", "none uses the GPU so far"
    assert told(CheckpointMode.COOPERATIVE, "its driver is too old", 0, 0).reason == (
        "its workers share GPUs without taking turns, for they cannot be taken off: "
        "its driver is too old"
    )
    key = next(key for key in node.workers if key[1] == 1)
    why = "the worker does not fit on GPU 0: it needs 2 bytes, and 1 are free"
    node.workers[key] = msgspec.structs.replace(node.workers[key], reason=why)
    assert told(CheckpointMode.CRIU, "", 0, 0).reason == f"rank 1: {why}"
    assert api.get(f"/api/v1/why/{job.id}", WhyView).summary.endswith(f", and rank 1: {why}")
    node.workers[key] = msgspec.structs.replace(node.workers[key], reason="")
    assert told(CheckpointMode.CRIU, "", 0, 0).reason == "", "it is there now"


def test_an_array_is_submitted_whole_and_others_wait_for_all_of_it(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    array = NewArray(job=NewJob(command=("x",), name="sweep", tier="basic"), size=3)
    elements = api.post("/api/v1/arrays", array, Page[JobView]).data
    assert [(e.name, e.array) for e in elements] == [(f"sweep-{i}", "sweep") for i in range(3)]
    with pytest.raises(Conflict):
        api.post("/api/v1/arrays", array, Page[JobView])
    assert len(api.get("/api/v1/jobs", Page[JobView]).data) == 3
    then = submit(api, "then", after=("sweep",), tier="basic")
    with pytest.raises(NotFound):
        submit(api, "never", after=("nothing",))
    node.until("it runs", lambda: control.job(elements[0].id).phase == "running")
    assert control.job(then.id).phase == "pending"


def test_a_verb_on_an_array_is_for_all_of_its_jobs_that_have_not_ended(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    array = NewArray(job=NewJob(command=("x",), name="sweep", tier="basic"), size=4)
    jobs = api.post("/api/v1/arrays", array, Page[JobView]).data
    node.until("two run", lambda: [control.job(j.id).phase for j in jobs].count("running") == 2)
    first = next(j for j in jobs if control.job(j.id).phase == "running")
    node.end(first.id, 0)
    node.until("it has ended", lambda: control.job(first.id).phase == "ended")
    saved = api.post("/api/v1/arrays/sweep/checkpoint", None, ArrayAnswer)
    assert saved.ended == 1 and saved.data and saved.refused
    asked = {j.id for j in jobs if j.id != first.id}
    assert {j.id for j in saved.data} | {j.id for j in saved.refused} == asked
    for refusal in saved.refused:
        assert refusal.what.startswith(f'job "{refusal.name}" ({refusal.id}) does not run: it is ')
        assert refusal.why == "an image of it is made while it runs"
    for verb, want in (("suspend", "suspend"), ("resume", "run"), ("cancel", "stop")):
        answer = api.post(f"/api/v1/arrays/sweep/{verb}", None, ArrayAnswer)
        asked = [j.id for j in jobs if j.id != first.id]
        assert ([j.id for j in answer.data], answer.ended, answer.refused) == (asked, 1, ())
        assert {control.job(name).want for name in asked} == {want}
    with pytest.raises(Conflict, match="is being cancelled"):
        api.post("/api/v1/arrays/sweep/resume", None, ArrayAnswer)
    node.until("all have ended", lambda: {control.job(j.id).phase for j in jobs} == {"ended"})
    with pytest.raises(Conflict, match="all 4 jobs"):
        api.post("/api/v1/arrays/sweep/cancel", None, ArrayAnswer)
    for path in ("arrays/nothing/cancel", "arrays/sweep/explode", f"arrays/{first.id}/cancel"):
        with pytest.raises(NotFound):
            api.post(f"/api/v1/{path}", None, ArrayAnswer)


def test_an_array_is_scaled_and_moved_as_a_job_is(control: Control) -> None:
    api, node, other = control.admin(), FakeNode(control), FakeNode(control, "n2")
    node.sync()
    job = NewJob(command=("x",), name="sweep", devices_min=1, devices_max=2)
    first, second = api.post("/api/v1/arrays", NewArray(job=job, size=2), Page[JobView]).data
    node.until("it runs", lambda: control.job(first.id).phase == "running")

    def ask(verb: str, body: object) -> ArrayAnswer:
        return api.post(f"/api/v1/arrays/sweep/{verb}", body, ArrayAnswer)

    assert {view.width for view in ask("scale", {"devices": 1}).data} == {1}
    with pytest.raises(CallerError, match="on 3 devices"):
        ask("scale", {"devices": 3})
    assert {view.width for view in ask("scale", {"devices": None}).data} == {None}

    with pytest.raises(NotFound, match='no node "n2"') as caught:
        ask("migrate", {"node": "n2"})
    assert caught.value.param == "node"
    other.sync()
    moved = ask("migrate", {"node": "n2"}).data
    assert [(view.id, view.moving_to) for view in moved] == [
        (first.id, ("n2",)),
        (second.id, ("n2",)),
    ]


def test_a_name_stands_for_one_job_or_array_that_lives_and_for_the_newest_else(
    control: Control,
) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()

    def sweep(size: int) -> tuple[JobView, ...]:
        new = NewArray(job=NewJob(command=("x",), name="sweep", tier="basic"), size=size)
        return api.post("/api/v1/arrays", new, Page[JobView]).data

    def cancelled() -> list[str]:
        answer = api.post("/api/v1/arrays/sweep/cancel", None, ArrayAnswer)
        asked = [j.id for j in answer.data]
        node.until("ended", lambda: {control.job(name).phase for name in asked} == {"ended"})
        return asked

    old = sweep(3)
    with pytest.raises(Conflict, match='live array "sweep"'):
        submit(api, "sweep")
    for path in ("jobs/sweep", "jobs/sweep/logs", "why/sweep", "jobs/sweep/ledger"):
        with pytest.raises(NotFound) as caught:
            api.get(f"/api/v1/{path}", object)
        assert "an array of 3 jobs" in caught.value.why and "sweep-0" in caught.value.hint
    assert cancelled() == [j.id for j in old]
    new = sweep(2)
    assert cancelled() == [j.id for j in new]
    alone = submit(api, "sweep")
    with pytest.raises(Conflict, match='live job "sweep"'):
        sweep(1)
    assert control.job("sweep").id == alone.id
    with pytest.raises(NotFound):
        cancelled()


def test_a_reservation_in_a_window_leaves_the_rest_of_the_time_to_others(control: Control) -> None:
    api, node = control.admin(), FakeNode(control, devices=4)
    node.sync()
    for name in ("gold", "silver"):
        api.post("/api/v1/tenants", NewTenant(id=name, weight=2_000), TenantView)
    start = now_ms() + HOUR_MS

    def reserve(tenant: str, devices: int, **window: Any) -> ReservationView:
        new = NewReservation(tenant=tenant, devices=devices, **window)
        return api.post("/api/v1/reservations", new, ReservationView)

    first = reserve("gold", 3, starts_at=start, ends_at=start + HOUR_MS)
    assert first.state == "ahead"
    reserve("silver", 4, starts_at=start + HOUR_MS, ends_at=start + 2 * HOUR_MS)
    with pytest.raises(Infeasible, match="2 cpu devices cannot be guaranteed"):
        reserve("silver", 2, ends_at=start + 1)
    with pytest.raises(Infeasible, match="class fast"):
        reserve("silver", 1, product="fast")
    with pytest.raises(CallerError, match=r"closes in .*m.*, and opens in .*m"):
        reserve("silver", 1, starts_at=start, ends_at=start)
    with pytest.raises(CallerError, match=r"closes 2h00m ago$"):
        reserve("silver", 1, ends_at=now_ms() - 2 * HOUR_MS)
    with pytest.raises(NotFound):
        reserve("nobody", 1)
    api.delete(f"/api/v1/reservations/{first.id}", ReservationView)
    assert reserve("silver", 4, ends_at=start + 1).state == "open"
    assert len(api.get("/api/v1/reservations", Page[ReservationView]).data) == 2
    (gold,) = (t for t in api.get("/api/v1/tenants", Page[TenantView]).data if t.id == "gold")
    assert gold.weight == 2_000 and gold.reservations == {}


def test_nodes_and_devices_are_taken_out_of_use_and_back(control: Control) -> None:
    api, node = control.admin(), FakeNode(control, devices=2)
    node.sync()

    def post(path: str, view: type, body: object = None) -> Any:
        return api.post(f"/api/v1/{path}", body, view)

    assert post("nodes/node-1/drain", NodeView).state == "draining"
    assert post("nodes/node-1/drain", NodeView).state == "draining"
    node.sync()  # a report does not take it back
    job = submit(api, "waits")
    assert control.job(job.id).phase == "pending"
    assert post("nodes/node-1/undrain", NodeView).state == "ready"
    node.until("it runs", lambda: control.job(job.id).phase == "running")

    def why() -> str:
        return api.get(f"/api/v1/why/{job.id}", WhyView).summary

    (held,) = control.job(job.id).devices
    post(f"devices/{held.replace('/', '%2F')}/cordon", DeviceView, {"reason": "hot"})
    post("nodes/node-1/drain", NodeView)
    assert why().endswith(
        f"node-1 is drained, {held} is cordoned (hot): it moves once there is room elsewhere"
    )
    post(f"devices/{held.replace('/', '%2F')}/uncordon", DeviceView)
    post("nodes/node-1/undrain", NodeView)
    assert "it moves" not in why()
    path = "devices/node-1%2Fcpu1"
    assert post(f"{path}/cordon", DeviceView, {"reason": "ECC errors"}).cordoned == "ECC errors"
    node.sync()
    assert api.get("/api/v1/nodes", Page[NodeView]).data[0].devices_cordoned == 1
    assert post(f"{path}/uncordon", DeviceView).cordoned == ""
    for missing in ("nodes/node-9/drain", "devices/node-1%2Fcpu9/uncordon"):
        with pytest.raises(NotFound):
            post(missing, object)


def test_verbs_refuse_what_makes_no_sense(control: Control) -> None:
    api, node = control.admin(), FakeNode(control, devices=1)
    node.sync()
    first, second = submit(api, "first"), submit(api, "second")
    node.until("it runs", lambda: control.job(first.id).phase == "running")
    with pytest.raises(Conflict, match="does not run"):
        verb(api, second, "checkpoint")
    with pytest.raises(NotFound, match="no node"):
        verb(api, first, "migrate", {"node": "nowhere"})
    assert verb(api, first, "migrate", {"node": "node-1"}).moving_to == ()  # it is there
    assert verb(api, second, "migrate", {"node": "node-1"}).moving_to == ("node-1",)
    verb(api, first, "cancel")
    with pytest.raises(Conflict, match="cancelled"):
        verb(api, first, "freeze")


def test_who_gave_way_has_a_receipt_and_everybody_a_ledger(control: Control) -> None:
    api, node = control.admin(), FakeNode(control, devices=1)
    node.sync()
    low = submit(api, "low", tier="basic")
    node.until("it runs", lambda: control.job(low.id).phase == "running")
    high = submit(api, "high", tier="premium")
    node.until("it runs instead", lambda: control.job(high.id).phase == "running")
    (receipt,) = api.get(f"/api/v1/jobs/{low.id}/receipts", Page[ReceiptView]).data
    assert (receipt.by, receipt.devices, receipt.lost_ms) == (high.id, 1, 0)
    assert receipt.back_at is None
    verb(api, high, "cancel")
    node.until("it is back", lambda: control.job(low.id).phase == "running")
    (receipt,) = api.get(f"/api/v1/jobs/{low.id}/receipts", Page[ReceiptView]).data
    assert receipt.back_at is not None and receipt.back_at >= receipt.at
    entries = {e.id: e for e in api.get("/api/v1/ledger", Page[LedgerView]).data}
    assert entries[low.id].state == "none" and 0 < entries[low.id].kept_permille < 1_000
    assert api.get(f"/api/v1/jobs/{low.id}/ledger", LedgerView).hours


def test_what_is_promised_nothing_yet_has_not_been_given_all_of_it(control: Control) -> None:
    api, node = control.admin(), FakeNode(control, devices=1)
    node.sync()
    first, second = submit(api, "first"), submit(api, "second")  # 0.7 of one device, each

    def entry(job: JobView) -> LedgerView:
        return api.get(f"/api/v1/jobs/{job.id}/ledger", LedgerView)

    node.until("one is promised its part", lambda: entry(first).state == "kept")
    waits = entry(second)
    assert (waits.promised_permille, waits.kept_permille, waits.state) == (700, None, "waiting")
    assert control.job(second.id).kept_permille is None
    verb(api, second, "cancel")
    node.until("it has ended", lambda: control.job(second.id).phase == "ended")
    assert (entry(second).kept_permille, entry(second).state) == (None, "none")


def test_why_says_when_a_job_will_run_and_what_would_be_sooner(control: Control) -> None:
    api, node = control.admin(), FakeNode(control, devices=2)
    node.sync()
    long = submit(api, "long", estimate_ms=HOUR_MS, tier="standard")
    node.until("it runs", lambda: control.job(long.id).phase == "running")
    terms = {"estimate_ms": HOUR_MS, "deadline": now_ms() + HOUR_MS + 600_000}
    wide = submit(api, "wide", devices_min=2, devices_max=2, tier="basic", **terms)
    why = api.get(f"/api/v1/why/{wide.id}", WhyView)
    found = why.forecast
    assert "it is expected to be late by " in why.deadline and "for 1h00m" in why.deadline
    assert found is not None and found.likely_at is not None
    assert HOUR_MS - 60_000 < found.likely_at - found.at <= HOUR_MS
    now = [a for a in found.alternatives if a.starts_at == found.at]
    assert any(a.devices == 1 and a.pushes_back == () for a in now)
    assert any(a.tier == "premium" and a.pushes_back == (long.id,) for a in now)
    assert api.get(f"/api/v1/why/{long.id}", WhyView).forecast is None


def test_why_says_when_a_job_will_run_that_comes_after_others(control: Control) -> None:
    api, node = control.admin(), FakeNode(control, devices=2)
    node.sync()
    first = submit(api, "first", estimate_ms=HOUR_MS)
    node.until("it runs", lambda: control.job(first.id).phase == "running")
    then = submit(api, "then", after=(first.id,))
    found = api.get(f"/api/v1/why/{then.id}", WhyView).forecast
    assert found is not None and found.likely_at is not None
    assert HOUR_MS - 60_000 < found.likely_at - found.at <= HOUR_MS
