"""Nothing that was acknowledged is lost, whenever the control plane is killed."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.control.rig import Control, FakeNode
from tests.small_disk import small_disk

from onefleet.domain.errors import OnefleetError, StorageFull, Unauthenticated, WorldError
from onefleet.domain.ids import Generation, Instant
from onefleet.wire.api import (
    EventView,
    JobView,
    KeyView,
    ModelView,
    NewJob,
    NewKey,
    NewModel,
    NewTenant,
    Page,
    TenantView,
    UsageView,
    UtilisationView,
)
from onefleet.wire.gateway import GatewayReport, RouteTable, UsageReport


def test_what_was_acknowledged_is_there_after_kill_9(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    api.post("/api/v1/tenants", NewTenant(id="team", reservations={"cpu": 1}), TenantView)
    key = api.post("/api/v1/keys", NewKey(tenant="team"), KeyView)
    api.post("/api/v1/models", NewModel(source="simulated:tiny", name="tiny"), ModelView)
    jobs = []
    for number in range(5):
        jobs.append(api.post("/api/v1/jobs", NewJob(command=(f"j{number}",)), JobView))
    control.kill()
    control.start()
    assert [j.id for j in api.get("/api/v1/jobs", Page[JobView]).data] == [j.id for j in jobs]
    teams = {t.id: t for t in api.get("/api/v1/tenants", Page[TenantView]).data}
    assert teams["team"].reservations == {"cpu": 1}
    assert [k.id for k in api.get("/api/v1/keys", Page[KeyView]).data][-1] == key.id
    assert api.get("/api/v1/models/tiny", ModelView).id == "tiny"
    mine = control.client(key.key).get("/api/v1/jobs", Page[JobView])
    assert mine.data == ()


def test_running_jobs_run_on_over_a_kill_and_node_keeps_its_orders(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    job = api.post("/api/v1/jobs", NewJob(command=("train",)), JobView)
    node.until("it runs", lambda: control.job(job.id).phase == "running")
    before = node.orders
    generation = node.seen
    for _ in range(3):
        control.kill()
        control.start()
        assert control.job(job.id).phase == "running"
        answer = node.sync()
        assert (answer.orders, answer.generation >= generation) == (before, True)
    # An agent that restarted reports what it adopted before it has seen any orders.
    node.seen = Generation(0)
    assert node.sync().orders == before
    assert control.job(job.id).attempts == 1


def test_an_end_that_was_reported_while_control_was_away_is_taken(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    job = api.post("/api/v1/jobs", NewJob(command=("train",)), JobView)
    node.until("it runs", lambda: control.job(job.id).phase == "running")
    control.kill()
    node.end(job.id, 3)
    control.start()
    node.until("it ended", lambda: control.job(job.id).phase == "ended")
    assert (control.job(job.id).outcome, control.job(job.id).exit_code) == ("failed", 3)


def test_sigterm_ends_it_in_good_order_and_answers_held_calls(control: Control) -> None:
    node = FakeNode(control)
    node.sync()
    assert control.stop() == 0
    assert "Traceback" not in control.log.read_text()
    control.start()
    assert control.status().nodes == 1
    used = control.admin().get("/api/v1/utilisation?since=0", UtilisationView)
    assert used.capacity_device_ms > 0


def test_the_administrators_key_is_private_and_stays(control: Control) -> None:
    path = control.layout.credentials
    text = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    raw = control.layout.database.read_bytes()
    for suffix in ("-wal", "-shm"):
        raw += Path(f"{control.layout.database}{suffix}").read_bytes()
    assert text.encode() not in raw and b"sha256:" in raw
    assert text not in control.log.read_text()
    control.kill()
    control.start()
    assert path.read_text().strip() == text
    control.kill()
    path.unlink()
    control.start()
    assert path.read_text().strip() != text
    assert len(control.admin().get("/api/v1/keys", Page[KeyView]).data) == 2


def test_a_revoked_administrators_key_does_not_come_back(control: Control) -> None:
    api = control.admin()
    other = api.post("/api/v1/keys", NewKey(role="admin"), KeyView)
    first = api.get("/api/v1/keys", Page[KeyView]).data[0]
    api.delete(f"/api/v1/keys/{first.id}", KeyView)
    control.kill()
    control.start()
    with pytest.raises(Unauthenticated, match="not good"):
        api.get("/api/v1/keys", Page[KeyView])
    keys = control.client(other.key).get("/api/v1/keys", Page[KeyView]).data
    assert [k.revoked_at is None for k in keys] == [False, True]


def usage_report(sequence: int, requests: int, gateway: str = "gw") -> GatewayReport:
    one = UsageReport(
        minute=Instant(60_000),
        tenant_id="default",
        key_id="key-1",
        deployment_id="dep-1",
        requests=requests,
        prompt_tokens=10,
        cached_tokens=4,
        completion_tokens=7,
    )
    return GatewayReport(
        gateway_id=gateway, seen=Generation(0), wait_ms=0, sequence=sequence, usage=(one,)
    )


def test_a_usage_batch_counts_once_however_often_it_comes(control: Control) -> None:
    def send(report: GatewayReport) -> None:
        control.internal().post("/internal/gateway/sync", report, RouteTable)

    for _ in range(3):
        send(usage_report(1, 5))
    send(usage_report(2, 7))
    control.kill()
    control.start()
    send(usage_report(2, 7))
    send(usage_report(1, 100, gateway="other"))
    (used,) = control.admin().get("/api/v1/usage?since=0", Page[UsageView]).data
    assert (used.requests, used.completion_tokens) == (112, 21)


def test_a_damaged_database_is_said_and_nothing_is_overwritten(control: Control) -> None:
    control.stop()
    control.layout.database.write_bytes(b"not a database at all" * 400)
    control.process = None
    with pytest.raises(AssertionError, match="is damaged"):
        control.start()
    assert control.layout.database.read_bytes().startswith(b"not a database")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        yield disk


def test_a_full_disk_is_said_and_nothing_acknowledged_is_lost(tiny_disk: Path) -> None:
    control = Control(tiny_disk / "pool")
    control.log = tiny_disk.parent / "control.log"
    try:
        api = control.start().admin()
        node = FakeNode(control)
        node.sync()
        made: list[str] = []
        big = {f"V{n}": "x" * 900 for n in range(60)}
        with pytest.raises(StorageFull) as caught:
            for number in range(200):
                new = NewJob(command=(f"job{number}",), environment=big)
                made.append(api.post("/api/v1/jobs", new, JobView).id)
        assert "no space" in caught.value.why and "df" in caught.value.hint
        assert len(made) > 3
        assert [j.id for j in api.get("/api/v1/jobs", Page[JobView]).data] == made
        with pytest.raises(OnefleetError):
            api.post("/api/v1/jobs", NewJob(command=("more",), environment=big), JobView)
        subprocess.run(["mount", "-o", "remount,size=16m", str(tiny_disk)], check=True)
        api.post("/api/v1/jobs", NewJob(command=("after",), name="after"), JobView)
        control.kill()
        control.start()
        found = [j.id for j in api.get("/api/v1/jobs", Page[JobView]).data]
        assert found[:-1] == made
        events = api.get("/api/v1/events?after=0", Page[EventView]).data
        assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    finally:
        control.close()


def test_a_control_plane_that_is_away_is_said(tmp_path: Path) -> None:
    control = Control(tmp_path / "pool")
    control.listener.close()
    with pytest.raises(WorldError):
        control.client("of-x").get("/api/v1/status", object)
