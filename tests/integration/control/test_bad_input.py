"""Whatever is sent, the answer is a clear refusal and never a defect of ours."""

from __future__ import annotations

import http.client
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.control.rig import TOKEN, Control

from onefleet.control.call import JSON_BYTES_MAX
from onefleet.control.routes import ROUTES, ApiRoute
from onefleet.domain.errors import CallerError, NotFound, TooLarge
from onefleet.registry.code import PACKAGE_BYTES_MAX
from onefleet.wire.api import (
    CodeView,
    ErrorBody,
    JobView,
    NewDeployment,
    NewJob,
    NewKey,
    NewModel,
    NewTenant,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=40)
    | st.sampled_from(["default", "standard", "premium", "cpu", "gpu", "m", "simulated:m", "-1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
BODIES: Mapping[str, type[msgspec.Struct]] = {
    "/api/v1/tenants": NewTenant,
    "/api/v1/keys": NewKey,
    "/api/v1/models": NewModel,
    "/api/v1/deployments": NewDeployment,
    "/api/v1/jobs": NewJob,
}
POSTS = [route for route in ROUTES if route.method == "POST"]
GETS = [route for route in ROUTES if route.method == "GET"]
SLOWLY = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Wire:
    """One kept-alive connection, as raw as the tests need it."""

    def __init__(self, control: Control) -> None:
        parts = urlsplit(control.url)
        assert parts.hostname is not None
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        key = control.layout.credentials.read_text().strip()
        self.headers = {"authorization": f"Bearer {key}", "x-onefleet-internal": TOKEN}

    def send(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        self.connection.request(method, path, body, self.headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read()


@pytest.fixture(scope="module")
def wire(shared: Control) -> Iterator[Wire]:
    made = Wire(shared)
    yield made
    made.connection.close()


def good(status: int, raw: bytes) -> None:
    """It was answered, or refused in the form that all errors have."""
    assert status < 500 or status == 503, raw
    if status >= 400:
        error = msgspec.json.decode(raw, type=ErrorBody).error
        assert error.message and error.type and error.code


def body_for(route: ApiRoute) -> st.SearchStrategy[Any]:
    """Bodies that are nearly right: the fields of the schema with any values."""
    schema = BODIES.get(route.path)
    if schema is None:
        return JSON
    fields = {field.name: JSON for field in msgspec.structs.fields(schema)}
    return JSON | st.fixed_dictionaries({}, optional=fields)


@pytest.mark.parametrize("route", POSTS, ids=lambda r: r.path)
@given(data=st.data())
@SLOWLY
def test_no_json_body_is_a_defect(wire: Wire, route: ApiRoute, data: st.DataObject) -> None:
    body = json.dumps(data.draw(body_for(route))).encode("utf-8", "surrogatepass")
    path = route.path.replace("{id}", quote(data.draw(st.text(max_size=20)) or "x", safe=""))
    good(*wire.send("POST", path, body))


@pytest.mark.parametrize("route", POSTS, ids=lambda r: r.path)
@given(body=st.binary(max_size=200))
@SLOWLY
def test_no_bytes_are_a_defect(wire: Wire, route: ApiRoute, body: bytes) -> None:
    good(*wire.send("POST", route.path.replace("{id}", "x"), body))


@pytest.mark.parametrize("route", GETS, ids=lambda r: r.path)
@given(name=st.text(min_size=1, max_size=20), value=st.text(max_size=12) | st.integers().map(str))
@SLOWLY
def test_no_query_is_a_defect(wire: Wire, route: ApiRoute, name: str, value: str) -> None:
    path = route.path
    for part in ("{id:path}", "{id}", "{name}"):
        path = path.replace(part, quote(name, safe=""))
    for query in ("since", "after", "limit", "offset", "stream", name):
        good(*wire.send("GET", f"{path}?{quote(query, safe='')}={quote(value, safe='')}"))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"command": "ls"}, "command"),
        ({"command": []}, "command"),
        ({"command": [""]}, "command"),
        ({"command": ["a\0b"]}, "command"),
        ({"command": ["a", 3]}, "command[1]"),
        ({"command": ["x"] * 2_000}, "command"),
        ({"command": ["x" * 200_000]}, "command"),
        ({"command": ["x"], "tier": "gold"}, "tier"),
        ({"command": ["x"], "device_kind": "abacus"}, "device_kind"),
        ({"command": ["x"], "devices_min": 0}, "devices_min"),
        ({"command": ["x"], "devices_min": 2, "devices_max": 1}, "devices_max"),
        ({"command": ["x"], "devices_min": 2**80}, "devices_min"),
        ({"command": ["x"], "memory_bytes": -1}, "memory_bytes"),
        ({"command": ["x"], "environment": {"1A": "x"}}, "environment"),
        ({"command": ["x"], "environment": {"A": 1}}, "environment[...]"),
        ({"command": ["x"], "network": "moon"}, "network"),
        ({"command": ["x"], "name": "../etc"}, "name"),
        ({"command": ["x"], "name": ""}, "name"),
        ({"command": ["x"], "code": "md5:00"}, "code"),
        ({"command": ["x"], "colour": "red"}, None),
        ({}, None),
        ([], None),
    ],
)
def test_a_wrong_job_is_refused_by_its_field(shared: Control, body: Any, field: str | None) -> None:
    with pytest.raises(CallerError) as caught:
        shared.admin().post("/api/v1/jobs", body, JobView)
    assert caught.value.param == field, caught.value.what
    if field:
        assert field.split("[")[0] in caught.value.what or "command" in caught.value.what


def test_absent_things_are_named(shared: Control) -> None:
    api = shared.admin()
    digest = "sha256:" + "0" * 64
    with pytest.raises(NotFound, match="no packaged code"):
        api.post("/api/v1/jobs", NewJob(command=("x",), code=digest), JobView)
    with pytest.raises(NotFound, match='no tenant "absent"'):
        api.post("/api/v1/jobs", NewJob(command=("x",), tenant="absent"), JobView)
    for path in ("/api/v1/jobs/absent", "/api/v1/deployments/absent", "/api/v1/models/a/b"):
        with pytest.raises(NotFound, match="there is no"):
            api.get(path, object)
    with pytest.raises(NotFound, match="no job or deployment"):
        api.get("/api/v1/why/absent", object)
    with pytest.raises(NotFound, match="nothing at"):
        api.get("/api/v1/nonsense", object)


def test_a_body_over_the_limit_is_refused_with_the_limit(shared: Control) -> None:
    body = NewJob(command=("x",), environment={"A": "x" * JSON_BYTES_MAX})
    with pytest.raises(TooLarge, match=str(JSON_BYTES_MAX)):
        shared.admin().post("/api/v1/jobs", body, JobView)


def test_a_method_that_a_path_does_not_take_is_refused(wire: Wire) -> None:
    status, raw = wire.send("PUT", "/api/v1/jobs")
    assert status == 405
    assert msgspec.json.decode(raw, type=ErrorBody).error.code == "method_not_allowed"


def test_a_long_or_odd_key_is_refused(shared: Control) -> None:
    for text in ("x" * 10_000, "of-", "é" * 10):
        parts = urlsplit(shared.url)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        headers = {"authorization": f"Bearer {text}".encode()}
        connection.request("GET", "/api/v1/jobs", None, headers)  # type: ignore[arg-type]
        answer = connection.getresponse()
        assert answer.status == 401, answer.read()
        connection.close()


def test_a_request_id_is_kept_when_it_is_a_good_one(shared: Control) -> None:
    parts = urlsplit(shared.url)
    assert parts.hostname is not None
    for given_id, kept in (("my-id-1", True), ("x" * 500, False), ("a b", False)):
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        connection.request("GET", "/health", None, {"x-request-id": given_id})
        answer = connection.getresponse()
        found = [v for k, v in answer.getheaders() if k.lower() == "x-request-id"]
        assert len(found) == 1
        assert (found[0] == given_id) == kept
        connection.close()


def tar(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "/etc/passwd"
        archive.addfile(member)
    return buffer.getvalue()


def test_code_is_kept_by_its_content_and_odd_tars_are_refused(shared: Control) -> None:
    api = shared.admin()
    made = api.upload("/api/v1/code", io.BytesIO(tar("main.py")), CodeView)
    assert made.files == 1
    assert (shared.layout.blobs / made.digest.removeprefix("sha256:")).is_file()
    assert api.upload("/api/v1/code", io.BytesIO(tar("main.py")), CodeView) == made
    job = api.post("/api/v1/jobs", NewJob(command=("x",), code=made.digest), JobView)
    assert job.phase == "pending"
    for bad in (b"", b"not a tar", tar("../up"), tar("/abs"), tar("dev", tarfile.CHRTYPE)):
        with pytest.raises(CallerError):
            api.upload("/api/v1/code", io.BytesIO(bad), CodeView)
    with pytest.raises(TooLarge, match=str(PACKAGE_BYTES_MAX)):
        api.upload("/api/v1/code", io.BytesIO(b"\0" * (PACKAGE_BYTES_MAX + 1)), CodeView)
    assert list(shared.layout.downloads.iterdir()) == []
