"""Who may do what: every route of the table with every role, and tenants apart from each other."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec
import pytest
from tests.integration.control.rig import TOKEN, Control, FakeNode

from onefleet.control.auth import Permission
from onefleet.control.routes import ROUTES, ApiRoute
from onefleet.domain.errors import Forbidden, NotFound
from onefleet.wire.api import (
    DeploymentView,
    ErrorBody,
    EventView,
    JobView,
    KeyView,
    LedgerView,
    ModelView,
    NewDeployment,
    NewJob,
    NewKey,
    NewModel,
    NewTenant,
    NodeView,
    Page,
    TenantView,
    WhyView,
)

ROLES = ("admin", "member", "caller", "node", "nobody", "revoked", "internal")

#: What each kind of caller is answered, before anything of the call itself is looked at.
REFUSED = {
    Permission.OPEN: {},
    Permission.MEMBER: {"caller": 403, "node": 403, "nobody": 401, "revoked": 401, "internal": 401},
    Permission.ADMIN: {
        "member": 403,
        "caller": 403,
        "node": 403,
        "nobody": 401,
        "revoked": 401,
        "internal": 401,
    },
    Permission.INTERNAL: {
        "admin": 401,
        "member": 401,
        "caller": 401,
        "node": 401,
        "nobody": 401,
        "revoked": 401,
    },
    Permission.NODE: {
        "admin": 403,
        "member": 403,
        "caller": 403,
        "nobody": 401,
        "revoked": 401,
        "internal": 401,
    },
}


class Callers:
    """A key for each role, and two tenants with something of their own."""

    def __init__(self, control: Control) -> None:
        self.control = control
        api = control.admin()
        FakeNode(control).sync()
        api.post("/api/v1/tenants", NewTenant(id="red"), TenantView)
        api.post("/api/v1/tenants", NewTenant(id="blue"), TenantView)
        api.post("/api/v1/models", NewModel(source="simulated:m", name="m"), ModelView)

        def key(role: str, tenant: str = "red") -> KeyView:
            new = NewKey(tenant=tenant, role=role, name="n7" if role == "node" else "")
            return api.post("/api/v1/keys", new, KeyView)

        revoked = key("admin")
        api.delete(f"/api/v1/keys/{revoked.id}", KeyView)
        self.keys = {
            "admin": key("admin").key,
            "member": key("member").key,
            "blue": key("member", "blue").key,
            "caller": key("caller").key,
            "node": key("node").key,
            "revoked": revoked.key,
            "nobody": None,
        }

    def headers(self, role: str) -> dict[str, str]:
        if role == "internal":
            return {"x-onefleet-internal": TOKEN}
        text = self.keys[role]
        return {"authorization": f"Bearer {text}"} if text else {}

    def call(self, route: ApiRoute, role: str) -> tuple[int, dict[str, str], bytes]:
        path = route.path.replace("{id:path}", "x").replace("{id}", "x").replace("{name}", "x")
        parts = urlsplit(self.control.url)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        try:
            body = b"[]" if route.method == "POST" else None
            connection.request(route.method, path, body, self.headers(role))
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, headers, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def callers(shared: Control) -> Iterator[Callers]:
    yield Callers(shared)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.method} {r.path}")
def test_each_role_may_use_what_the_table_says(
    callers: Callers, route: ApiRoute, role: str
) -> None:
    status, headers, raw = callers.call(route, role)
    refused = REFUSED[route.permission].get(role)
    assert len(headers["x-request-id"]) > 8
    if refused is not None:
        body = msgspec.json.decode(raw, type=ErrorBody)
        assert status == refused
        assert body.error.message and body.error.code and body.error.type
        return
    assert status not in (401, 403) and status < 500
    if status >= 400:
        assert msgspec.json.decode(raw, type=ErrorBody).error.message


def test_every_route_names_a_permission_and_stands_once() -> None:
    places = [(route.method, route.path) for route in ROUTES]
    assert len(set(places)) == len(places)
    for route in ROUTES:
        internal = route.path.startswith("/internal/")
        assert internal == (route.permission is Permission.INTERNAL)
        is_open = route.permission is Permission.OPEN
        assert is_open == (route.path in ("/health", "/ready"))


def test_a_member_sees_and_touches_only_its_tenants_things(callers: Callers) -> None:
    control = callers.control
    red, blue = control.client(callers.keys["member"]), control.client(callers.keys["blue"])
    job = red.post("/api/v1/jobs", NewJob(command=("secret",), name="hidden"), JobView)
    assert job.tenant == "red"
    for tenant in ("blue", "default"):
        with pytest.raises(Forbidden):
            red.post("/api/v1/jobs", NewJob(command=("x",), tenant=tenant), JobView)
        with pytest.raises(Forbidden):
            red.post("/api/v1/deployments", NewDeployment(model="m", tenant=tenant), DeploymentView)
    for name in (job.id, "hidden"):
        for verb in ("suspend", "resume", "cancel"):
            with pytest.raises(NotFound):
                blue.post(f"/api/v1/jobs/{name}/{verb}", None, JobView)
        with pytest.raises(NotFound):
            blue.get(f"/api/v1/jobs/{name}", JobView)
        with pytest.raises(NotFound):
            blue.get(f"/api/v1/jobs/{name}/logs", object)
        with pytest.raises(NotFound):
            blue.get(f"/api/v1/why/{name}", WhyView)
    assert job.id not in [j.id for j in blue.get("/api/v1/jobs", Page[JobView]).data]
    assert job.id in [j.id for j in red.get("/api/v1/jobs", Page[JobView]).data]
    assert [t.id for t in blue.get("/api/v1/tenants", Page[TenantView]).data] == ["blue"]
    subjects = [e.subject for e in blue.get("/api/v1/events?after=0", Page[EventView]).data]
    assert job.id not in subjects
    seen = [e.subject for e in red.get("/api/v1/events?after=0", Page[EventView]).data]
    assert job.id in seen and not any(s.startswith("key-") for s in seen)


def test_a_department_sees_and_steers_what_its_teams_do_and_never_the_reverse(
    control: Control,
) -> None:
    admin, node = control.admin(), FakeNode(control, devices=1)
    node.sync()
    api = {}
    for name, parent in (("dept", None), ("team", "dept"), ("sub", "team"), ("other", "dept")):
        admin.post("/api/v1/tenants", NewTenant(id=name, parent=parent), TenantView)
        api[name] = control.client(admin.post("/api/v1/keys", NewKey(tenant=name), KeyView).key)
    jobs = {
        name: api[name].post("/api/v1/jobs", NewJob(command=("x",), name="same"), JobView)
        for name in api
    }
    assert {name: job.tenant for name, job in jobs.items()} == {name: name for name in api}
    sees = {
        "dept": {"dept", "team", "sub", "other"},
        "team": {"team", "sub"},
        "sub": {"sub"},
        "other": {"other"},
    }
    for name, client in api.items():
        listed = {j.tenant for j in client.get("/api/v1/jobs", Page[JobView]).data}
        assert listed == sees[name]
        assert {t.id for t in client.get("/api/v1/tenants", Page[TenantView]).data} == sees[name]
        ledgers = {e.tenant for e in client.get("/api/v1/ledger", Page[LedgerView]).data}
        assert ledgers == sees[name]
        subjects = {e.subject for e in client.get("/api/v1/events?after=0", Page[EventView]).data}
        told = {owner for owner, job in jobs.items() if job.id in subjects}
        assert told == sees[name]
        assert client.get("/api/v1/jobs/same", JobView).id == jobs[name].id, "its own comes first"
        for owner, job in jobs.items():
            reads = (f"jobs/{job.id}", f"jobs/{job.id}/logs", f"why/{job.id}")
            verbs = ("suspend", "resume", "checkpoint", "cancel") if owner != name else ()
            if owner in sees[name]:
                for path in reads[:2]:
                    client.get(f"/api/v1/{path}", object)
                continue
            for path in reads:
                with pytest.raises(NotFound):
                    client.get(f"/api/v1/{path}", object)
            for verb in verbs:
                with pytest.raises(NotFound):
                    client.post(f"/api/v1/jobs/{job.id}/{verb}", None, JobView)
            with pytest.raises(Forbidden):
                client.post("/api/v1/jobs", NewJob(command=("x",), tenant=owner), JobView)
    for verb, want in (("suspend", "suspend"), ("resume", "run"), ("cancel", "stop")):
        client = api["dept"]
        assert client.post(f"/api/v1/jobs/{jobs['sub'].id}/{verb}", None, JobView).want == want
    given = NewJob(command=("x",), name="given", tenant="sub")
    assert api["team"].post("/api/v1/jobs", given, JobView).tenant == "sub"

    def blocked() -> list[str]:
        why = api["dept"].get(f"/api/v1/why/{jobs['dept'].id}", WhyView)
        return [b.text for b in why.blockers if "another tenant" in b.text]

    node.sync()
    assert blocked() == [], "what is below is named"


def test_the_default_tenants_deployments_are_seen_by_all_and_touched_by_none(
    callers: Callers,
) -> None:
    control = callers.control
    admin, red = control.admin(), control.client(callers.keys["member"])
    blue = control.client(callers.keys["blue"])
    admin.post("/api/v1/deployments", NewDeployment(model="m", name="open"), DeploymentView)
    own = NewDeployment(model="m", name="closed", replicas_min=0)  # its key's tenant
    red.post("/api/v1/deployments", own, DeploymentView)
    assert blue.get("/api/v1/deployments/open", DeploymentView).tenant == "default"
    with pytest.raises(Forbidden):
        blue.delete("/api/v1/deployments/open", DeploymentView)
    with pytest.raises(NotFound):
        blue.delete("/api/v1/deployments/closed", DeploymentView)
    names = [d.name for d in blue.get("/api/v1/deployments", Page[DeploymentView]).data]
    assert "open" in names and "closed" not in names
    assert red.delete("/api/v1/deployments/closed", DeploymentView).state == "removing"


def test_a_member_is_not_told_whose_work_it_waits_for(control: Control) -> None:
    admin, node = control.admin(), FakeNode(control, devices=1)
    node.sync()
    keys = {}
    for tenant in ("red", "blue"):
        admin.post("/api/v1/tenants", NewTenant(id=tenant), TenantView)
        keys[tenant] = admin.post("/api/v1/keys", NewKey(tenant=tenant), KeyView).key
    red, blue = control.client(keys["red"]), control.client(keys["blue"])
    mine = red.post("/api/v1/jobs", NewJob(command=("x",), name="mine", tier="basic"), JobView)
    node.until("it runs", lambda: control.job(mine.id).phase == "running")
    theirs = blue.post("/api/v1/jobs", NewJob(command=("y",), tier="premium"), JobView)
    node.until("it makes room", lambda: control.job(mine.id).phase == "suspended")
    node.until("the other runs", lambda: control.job(theirs.id).phase == "running")

    def blocked() -> bool:
        why = admin.get("/api/v1/why/mine", WhyView)
        return any(theirs.id in b.holders and "tenant blue" in b.text for b in why.blockers)

    node.until("it is blocked by the other", blocked)
    for path in ("why/mine", "jobs/mine", "jobs", "events?after=0", "devices", "replicas"):
        told = msgspec.json.encode(red.get(f"/api/v1/{path}", object)).decode()
        assert theirs.id not in told and "blue" not in told, path
    folders = {"/data/node-1": admin, "": red}  # where things lie on machines is not theirs
    for folder, client in folders.items():
        assert [n.data_dir for n in client.get("/api/v1/nodes", Page[NodeView]).data] == [folder]
    why = red.get("/api/v1/why/mine", WhyView)
    assert any("another tenant's work" in b.text for b in why.blockers)
