"""The console as a browser without JavaScript sees it, over a canned API in the same process."""

from __future__ import annotations

import asyncio
import html
import re
from html.parser import HTMLParser
from typing import Any

import httpx2
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from onefleet.console.drawing import WIDTH, utilisation_parts
from onefleet.console.routes import FILES, STATIC, routes
from onefleet.wire import api

KEY = "ok-good-key"
NOW = 1_790_000_000_000
EVIL = "<script>alert(1)</script>"

JOB = api.JobView(
    id="job-1", name=EVIL, tenant="default", tier="standard", command=("python", EVIL),
    want="run", phase="suspended", reason="premium work needs its device", node="n", devices=(),
    devices_min=1, devices_max=2, attempts=1, suspends=1, lost_ms=0, ran_ms=61_000, fraction=0.83,
    image_bytes=66_000_000, memory_bytes=0, checkpoint="criu", checkpoint_reason="", outcome=None,
    exit_code=None, why_ended="", submitted_at=NOW, started_at=NOW, ended_at=None,
)  # fmt: skip
VIEWS: dict[str, Any] = {
    "/api/v1/status": api.StatusView(
        version="0.1.0", generation=42, started_at=NOW, nodes_ready=1, nodes=1, devices=2,
        devices_used=1, deployments=1, deployments_ready=1, jobs_running=0, jobs_waiting=0,
        jobs_suspended=1, gateway_seen_s=0.1, last_pass_at=NOW, last_pass_result="nothing to do",
    ),
    "/api/v1/nodes": api.Page(
        (
            api.NodeView(
                id="n", name="box", state="ready", devices=2, devices_used=1, memory_bytes=24 << 30,
                memory_free_bytes=20 << 30, cpu_busy_permille=512, checkpoint="criu",
                checkpoint_reason="", lease_expires_at=NOW,
            ),
        )
    ),
    "/api/v1/devices": api.Page(
        (
            api.DeviceView(
                id="n/cpu0", node="n", kind="cpu", product="EPYC", memory_bytes=12 << 30,
                simulated=False, holder="rep-1", tier="premium", cordoned="ECC errors",
            ),
            api.DeviceView(
                id="n/cpu1", node="n", kind="cpu", product="EPYC", memory_bytes=12 << 30,
                simulated=True, holder="", tier="",
            ),
        )
    ),
    "/api/v1/deployments": api.Page(()),
    "/api/v1/models": api.Page(()),
    "/api/v1/keys": api.Page(
        (
            api.KeyView(
                id="key-1", tenant="default", name="first", role="admin", hint="-key",
                created_at=NOW, revoked_at=None,
            ),
        )
    ),
    "/api/v1/replicas": api.Page(
        (
            api.ReplicaView(
                id="rep-1", deployment="smollm2", phase="running", node="n", devices=("n/cpu0",),
                reason="", memory_bytes=400_000_000, created_at=NOW,
            ),
        )
    ),
    "/api/v1/jobs": api.Page((JOB,)),
    "/api/v1/jobs/job-1": JOB,
    "/api/v1/why/job-1": api.WhyView(
        id="job-1", name="train", phase="suspended", summary="waits for a device",
        blockers=(api.BlockerView(gate="contention", text="held", holders=("rep-1",)),),
        history=("09:00 submitted", "09:01 " + EVIL),
        forecast=api.ForecastView(
            at=NOW, likely_at=NOW + 90_000, earliest_at=NOW, latest_at=None, alternatives=()
        ),
    ),
    "/api/v1/jobs/job-1/logs": api.LogChunk(
        text=f"loss 1.5\n{EVIL}\n", offset=0, next_offset=9, ended=False
    ),
    "/api/v1/utilisation": api.UtilisationView(
        since=NOW, until=NOW + 900_000, capacity_device_ms=1_800_000,
        held_device_ms={"premium.replica": 900_000, "standard.job": 300_000}, suspends=1, resumes=0,
    ),
}  # fmt: skip
PAGES = ("", "/deployments", "/jobs", "/jobs/job-1", "/events", "/keys")


def answer(status: int, view: object) -> Response:
    return Response(msgspec.json.encode(view), status, media_type="application/json")


async def canned(request: Request) -> Response:
    error = api.ErrorDetail(message="no", type="caller", param=None, code="invalid_api_key")
    if request.headers.get("authorization") != f"Bearer {KEY}":
        return answer(401, api.ErrorBody(error))
    if request.url.path == "/api/v1/events":
        after, limit = (int(request.query_params[name]) for name in ("after", "limit"))
        found = [
            api.EventView(sequence=n, at=NOW + n, kind="job.suspended", subject="job-1", text=EVIL)
            for n in range(after + 1, 778)
        ]
        return answer(200, api.Page(tuple(found[:limit])))
    view = VIEWS.get(request.url.path)
    if view is None:
        missing = msgspec.structs.replace(error, message="there is no such job", code="not_found")
        return answer(404, api.ErrorBody(missing))
    return answer(200, view)


APP = Starlette(routes=[Route("/api/v1/{rest:path}", canned), *routes()])


def ask(method: str, path: str, key: str | None = KEY, **options: Any) -> httpx2.Response:
    """One request of a browser that is signed in with `key`."""

    async def run() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=APP)
        cookies = {"onefleet_key": key} if key else {}
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://box", cookies=cookies
        ) as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


class Tags(HTMLParser):
    """Checks that every tag that is opened is closed."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.styles = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs))
        self.styles += tag == "style" or any(name == "style" for name, _ in attrs)
        assert not any(name.startswith("on") for name, _ in attrs), "an inline handler"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_whole_and_safe(page):
    got = ask("GET", f"/console{page}")
    assert got.status_code == 200, got.text
    tags = Tags()
    tags.feed(got.text)
    assert tags.open == [] and tags.styles == 0
    assert all(set(s) == {"src", "defer"} for s in tags.scripts)
    assert EVIL not in got.text, "what a job prints or is called is never markup"
    policy = got.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert got.headers["cache-control"] == "no-store"
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", got.text), "an outside resource"


@pytest.mark.parametrize("page", PAGES)
def test_without_a_key_every_page_leads_to_the_login(page):
    for key in (None, "ok-revoked", "bad\x7fkey"[:3] + ";"):
        got = ask("GET", f"/console{page}", key=key)
        assert got.status_code == 303
        assert got.headers["location"] == "/console/login"


def test_what_the_pages_show():
    assert "smollm2" in ask("GET", "/console").text
    assert "cpu (simulated)" in ask("GET", "/console").text
    assert "<small>rep-1</small> <small>cordoned: ECC errors</small>" in ask("GET", "/console").text
    assert "onefleet deploy demo:smollm2" in ask("GET", "/console/deployments").text
    job = ask("GET", "/console/jobs/job-1").text
    assert "Expected to run: in 1m30s" in job
    assert "waits for a device" in job and "loss 1.5" in job and html.escape(EVIL) in job
    assert "onefleet logs -f job-1" in job
    events = ask("GET", "/console/events").text
    assert '<td class="n">777</td>' in events and '<td class="n">577</td>' not in events
    assert "key create" in ask("GET", "/console/keys").text


def test_an_unknown_job_is_404_in_plain_words():
    got = ask("GET", "/console/jobs/job-9")
    assert got.status_code == 404
    assert "there is no such job" in got.text


def test_the_login_keeps_the_key_where_no_script_reads_it():
    got = ask("POST", "/console/login", key=None, content=f"key={KEY}")
    assert (got.status_code, got.headers["location"]) == (303, "/console")
    cookie = got.headers["set-cookie"]
    for part in (f"onefleet_key={KEY}", "HttpOnly", "SameSite=strict", "Path=/console"):
        assert part in cookie
    assert "Secure" not in cookie
    secure = ask(
        "POST", "/console/login", None, content=f"key={KEY}", headers={"x-forwarded-proto": "https"}
    )
    assert "Secure" in secure.headers["set-cookie"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ("key=wrong", {}, 401),
        ("key=", {}, 400),
        ("", {}, 400),
        ("key=%0d%0aset-cookie:x", {}, 400),
        ("key=" + "x" * 9000, {}, 413),
        (f"key={KEY}", {"origin": "http://elsewhere"}, 403),
        (f"key={KEY}", {"origin": "null"}, 403),
    ],
)
def test_a_login_that_fails_sets_no_cookie(body, headers, status):
    got = ask("POST", "/console/login", key=None, content=body, headers=headers)
    assert got.status_code == status
    assert "set-cookie" not in got.headers
    assert "Sign in" in got.text


def test_the_login_is_accepted_from_its_own_page():
    got = ask(
        "POST", "/console/login", None, content=f"key={KEY}", headers={"origin": "http://box"}
    )
    assert got.status_code == 303


def test_a_browser_says_where_our_own_forms_come_from():
    """Under no-referrer its forms have the origin "null", which is refused above."""
    assert ask("GET", "/console/login", None).headers["referrer-policy"] == "same-origin"


def test_signing_out_takes_the_cookie_away():
    got = ask("POST", "/console/logout")
    assert got.status_code == 303 and "Max-Age=0" in got.headers["set-cookie"]
    assert ask("POST", "/console/logout", headers={"origin": "http://evil"}).status_code == 403


def test_static_files_are_the_named_ones_alone():
    for name, kind in FILES.items():
        got = ask("GET", f"/console/static/{name}", key=None)
        assert got.status_code == 200 and got.headers["content-type"].startswith(kind)
    assert ask("GET", "/console/static/..%2froutes.py", key=None).status_code == 404
    assert sorted(p.name for p in STATIC.iterdir()) == sorted(FILES)


def test_there_is_little_javascript():
    lines = sum(len(p.read_text().splitlines()) for p in STATIC.glob("*.js"))
    assert lines <= 300


def test_the_root_leads_to_the_console():
    assert ask("GET", "/").headers["location"] == "/console"


def used(capacity: int, **held: int) -> api.UtilisationView:
    return api.UtilisationView(
        since=0,
        until=1,
        capacity_device_ms=capacity,
        held_device_ms={k.replace("_", "."): v for k, v in held.items()},
        suspends=0,
        resumes=0,
    )


@pytest.mark.parametrize(
    "view",
    [
        used(100, premium_job=50, standard_replica=25),
        used(3, basic_job=1),
        used(100),
        used(10, premium_job=20),
        used(1_000_000, premium_job=1, standard_job=999_999),
    ],
)
def test_the_bar_is_filled_exactly(view):
    parts = utilisation_parts(view)
    assert sum(p.width for p in parts) <= WIDTH
    assert parts[-1].label == "free"
    ends = [p.x + p.width for p in parts]
    assert [p.x for p in parts] == [0, *ends[:-1]]


def test_no_bar_without_devices():
    assert utilisation_parts(used(0)) == ()
