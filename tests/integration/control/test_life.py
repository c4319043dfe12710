"""Jobs and deployments from request to end, through a real control process."""

from __future__ import annotations

import pytest
from tests.integration.control.rig import Control, FakeNode

from onefleet.domain.errors import Conflict, Infeasible, NotFound
from onefleet.domain.ids import Generation
from onefleet.wire.agent import OrderVerb
from onefleet.wire.api import (
    DeploymentView,
    DeviceView,
    EventView,
    JobView,
    KeyView,
    ModelView,
    NewDeployment,
    NewJob,
    NewKey,
    NewModel,
    NewTenant,
    Page,
    PlanView,
    ReplicaView,
    StatusView,
    TenantView,
    UtilisationView,
    WhyView,
)
from onefleet.wire.client import Client
from onefleet.wire.gateway import DemandReport, GatewayReport, RouteTable


def table(control: Control, *demand: DemandReport, seen: int = 0) -> RouteTable:
    report = GatewayReport(gateway_id="gw", seen=Generation(seen), wait_ms=0, demand=demand)
    return control.internal().post("/internal/gateway/sync", report, RouteTable)


def asked(deployment: DeploymentView, active: int, waiting: int) -> DemandReport:
    return DemandReport(
        deployment_id=deployment.id, active=active, waiting=waiting, last_request_at=0
    )


def deploy(api: Client, **fields: object) -> DeploymentView:
    return api.post("/api/v1/deployments", {"model": "tiny", **fields}, DeploymentView)


def test_a_job_runs_is_preempted_saved_restored_and_ends(control: Control) -> None:
    api, node = control.admin(), FakeNode(control, devices=2)
    node.sync()
    api.post("/api/v1/models", NewModel(source="simulated:tiny", name="tiny"), ModelView)
    base = deploy(api, name="base")
    job = api.post("/api/v1/jobs", NewJob(command=("train",), name="train"), JobView)
    assert (job.phase, job.outcome) == ("pending", None)
    node.until("the job runs", lambda: control.job(job.id).phase == "running")
    node.until("the replica serves", lambda: table(control).deployments[0].endpoints)

    api.post("/api/v1/tenants", NewTenant(id="gold"), TenantView)
    burst = api.post(
        "/api/v1/deployments",
        NewDeployment(model="tiny", name="burst", tenant="gold", tier="premium", replicas_min=0),
        DeploymentView,
    )
    assert (burst.state, burst.replicas_wanted) == ("idle", 0)
    held = asked(burst, 0, 3)
    table(control, held)

    def bursting() -> bool:
        found = {d.name: d for d in table(control, held).deployments}
        return bool(found["burst"].endpoints)

    node.until("the burst is served", bursting)
    suspended = control.job(job.id)
    assert (suspended.phase, suspended.suspends, suspended.devices) == ("suspended", 1, ())
    assert suspended.image_bytes == 4_096
    why = api.get("/api/v1/why/train", WhyView)
    assert why.blockers and any(
        burst_id in b.holders
        for b in why.blockers
        for burst_id in (
            replica.id
            for replica in api.get("/api/v1/replicas", Page[ReplicaView]).data
            if replica.deployment == "burst"
        )
    )

    table(control, asked(burst, 0, 0))
    node.until("the job is back", lambda: control.job(job.id).phase == "running")
    verbs = [verb for work_id, verb, _ in node.verbs if work_id == job.id]
    assert verbs == [OrderVerb.RUN, OrderVerb.SAVE, OrderVerb.KEEP, OrderVerb.RUN]
    epochs = [epoch for work_id, _, epoch in node.verbs if work_id == job.id]
    assert epochs == [1, 1, 1, 2]
    assert base.state in ("starting", "ready")

    node.end(job.id, 0)
    node.until("the job ended", lambda: control.job(job.id).phase == "ended")
    ended = control.job(job.id)
    assert (ended.outcome, ended.exit_code, ended.attempts) == ("succeeded", 0, 1)
    used = api.get("/api/v1/utilisation?since=0", UtilisationView)
    assert (used.suspends, used.resumes) == (1, 1)
    assert used.held_device_ms["standard.job"] > 0 < used.held_device_ms["premium.replica"]
    assert sum(used.held_device_ms.values()) <= used.capacity_device_ms
    kinds = [e.kind for e in events(api) if e.subject == job.id]
    assert kinds == [
        "job.submitted",
        "job.starting",
        "job.running",
        "job.saving",
        "job.suspended",
        "job.restoring",
        "job.running",
        "job.ended",
    ]


def events(api: Client) -> tuple[EventView, ...]:
    return api.get("/api/v1/events?after=0", Page[EventView]).data


def test_an_owner_suspends_resumes_and_cancels(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    job = api.post("/api/v1/jobs", NewJob(command=("train",), name="mine"), JobView)
    path = "/api/v1/jobs/mine"
    node.until("it runs", lambda: control.job("mine").phase == "running")
    assert api.post(f"{path}/suspend", None, JobView).want == "suspend"
    assert api.post(f"{path}/suspend", None, JobView).want == "suspend"
    node.until("it is suspended", lambda: control.job("mine").phase == "suspended")
    for _ in range(3):
        node.sync()
    assert control.job("mine").phase == "suspended"
    api.post(f"{path}/resume", None, JobView)
    node.until("it runs again", lambda: control.job("mine").phase == "running")
    with pytest.raises(Conflict, match="live job"):
        api.post("/api/v1/jobs", NewJob(command=("train",), name="mine"), JobView)
    api.post(f"{path}/cancel", None, JobView)
    with pytest.raises(Conflict, match="being cancelled"):
        api.post(f"{path}/resume", None, JobView)
    node.until("it ended", lambda: control.job("mine").phase == "ended")
    assert control.job("mine").outcome == "cancelled"
    with pytest.raises(Conflict, match="ended already"):
        api.post(f"{path}/cancel", None, JobView)
    again = api.post("/api/v1/jobs", NewJob(command=("train",), name="mine"), JobView)
    assert control.job("mine").id == again.id != job.id


def test_a_pending_job_is_cancelled_at_once(control: Control) -> None:
    api = control.admin()
    job = api.post("/api/v1/jobs", NewJob(command=("train",)), JobView)
    api.post(f"/api/v1/jobs/{job.id}/cancel", None, JobView)
    control.until("it ended", lambda: control.job(job.id).phase == "ended")


def test_what_can_never_run_is_refused_with_what_would_fit(control: Control) -> None:
    api, node = control.admin(), FakeNode(control, devices=2)
    node.sync()
    with pytest.raises(Infeasible) as caught:
        api.post("/api/v1/jobs", {"command": ["x"], "devices_min": 3, "devices_max": 3}, JobView)
    assert "3 cpu devices" in caught.value.why and "2" in caught.value.why
    with pytest.raises(Infeasible):
        api.post("/api/v1/jobs", {"command": ["x"], "device_kind": "gpu"}, JobView)
    with pytest.raises(Infeasible):
        api.post("/api/v1/jobs", {"command": ["x"], "memory_bytes": 1 << 40}, JobView)
    with pytest.raises(Infeasible):
        api.post("/api/v1/tenants", {"id": "greedy", "reservations": {"cpu": 3}}, TenantView)
    api.post("/api/v1/models", NewModel(source="simulated:tiny", name="tiny"), ModelView)
    with pytest.raises(Infeasible):
        deploy(api, context_length=1 << 20, slots=4_096)
    with pytest.raises(Infeasible):
        deploy(api, devices_per_replica=3)
    assert api.get("/api/v1/jobs", Page[JobView]).data == ()
    assert api.get("/api/v1/deployments", Page[DeploymentView]).data == ()


def test_deployments_have_a_model_a_name_of_their_own_and_an_end(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    with pytest.raises(NotFound, match="no model"):
        deploy(api)
    model = api.post("/api/v1/models", NewModel(source="simulated:tiny", name="tiny"), ModelView)
    assert (
        api.post("/api/v1/models", NewModel(source="simulated:tiny", name="tiny"), ModelView)
        == model
    )
    with pytest.raises(Conflict, match="another model"):
        api.post("/api/v1/models", NewModel(source="simulated:other", name="tiny"), ModelView)
    made = deploy(api)
    assert (made.name, made.engine, made.tenant) == ("tiny", "simulated", "default")
    assert made.slots > 0 < made.context_length
    with pytest.raises(Conflict, match="already"):
        deploy(api)
    with pytest.raises(Conflict, match="is served"):
        api.delete("/api/v1/models/tiny", ModelView)
    node.until("it serves", lambda: table(control).deployments[0].endpoints)
    shown = api.get("/api/v1/deployments/tiny", DeploymentView)
    assert (shown.state, shown.replicas_ready) == ("ready", 1)
    assert api.delete("/api/v1/deployments/tiny", DeploymentView).state == "removing"
    node.until("it is gone", lambda: not api.get("/api/v1/deployments", Page[DeploymentView]).data)
    assert api.get("/api/v1/replicas", Page[ReplicaView]).data == ()
    assert table(control).deployments == ()
    node.sync()
    assert node.orders == () and node.workers == {}
    api.delete("/api/v1/models/tiny", ModelView)
    assert api.get("/api/v1/models", Page[ModelView]).data == ()


def test_a_model_is_added_with_progress_lines(control: Control) -> None:
    api = control.admin()
    new = NewModel(source="simulated:tiny", name="org/tiny")
    lines = list(api.lines("POST", "/api/v1/models?progress=true", new))
    assert b'"model"' in lines[-1]
    assert api.get("/api/v1/models/org%2Ftiny", ModelView).id == "org/tiny"
    bad = NewModel(source="/no/such/file.gguf")
    (line,) = api.lines("POST", "/api/v1/models?progress=true", bad)
    assert b'"error"' in line and b"/no/such/file.gguf" in line


def test_a_worker_that_its_node_forgot_is_started_again(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    job = api.post("/api/v1/jobs", NewJob(command=("train",)), JobView)
    node.until("it runs", lambda: control.job(job.id).phase == "running")
    node.slow = [OrderVerb.RUN]
    node.workers.clear()
    node.until("the loss is noticed", lambda: control.job(job.id).lost_ms > 0)
    node.slow = []
    node.until("it runs again", lambda: control.job(job.id).phase == "running")
    assert control.job(job.id).attempts == 2


def test_keys_and_tenants_reach_the_gateway(control: Control) -> None:
    api = control.admin()
    before = table(control)
    api.post("/api/v1/tenants", NewTenant(id="team", tokens_per_minute=5), TenantView)
    key = api.post("/api/v1/keys", NewKey(tenant="team", role="caller", name="app"), KeyView)
    assert key.key is not None and key.key.startswith("of-") and key.key.endswith(key.hint)
    after = table(control)
    assert after.generation > before.generation
    assert [t.tokens_per_minute for t in after.tenants if t.tenant_id == "team"] == [5]
    assert key.id in [k.key_id for k in after.keys]
    listed = api.get("/api/v1/keys", Page[KeyView]).data
    assert all(k.key is None for k in listed) and len(listed) == 2
    api.delete(f"/api/v1/keys/{key.id}", KeyView)
    assert key.id not in [k.key_id for k in table(control).keys]
    last = next(k for k in listed if k.role == "admin")
    with pytest.raises(Conflict, match="last administrator"):
        api.delete(f"/api/v1/keys/{last.id}", KeyView)


def test_the_console_can_read_everything(control: Control) -> None:
    api, node = control.admin(), FakeNode(control)
    node.sync()
    job = api.post("/api/v1/jobs", NewJob(command=("a",)), JobView)
    node.until("it runs", lambda: control.job(job.id).phase == "running")
    devices = api.get("/api/v1/devices", Page[DeviceView]).data
    assert [d.holder for d in devices].count(job.id) == 1
    status = api.get("/api/v1/status", StatusView)
    assert (status.nodes_ready, status.devices_used, status.jobs_running) == (1, 1, 1)
    assert api.get("/api/v1/plan", PlanView).parent > 0
