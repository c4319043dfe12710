"""The pages: each asks the public API for views and fills a template with them.

They only read. What a page shows can be had by the command that it names.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from onefleet import __version__
from onefleet.console import session
from onefleet.console.api_call import get
from onefleet.console.drawing import WIDTH, utilisation_parts
from onefleet.domain.errors import Forbidden, OnefleetError, Unauthenticated
from onefleet.domain.quantities import age, duration, percent, size, span
from onefleet.wire.api import (
    DeploymentView,
    DeviceView,
    EventView,
    JobView,
    KeyView,
    LogChunk,
    ModelView,
    NodeView,
    Page,
    ReplicaView,
    StatusView,
    UtilisationView,
    WhyView,
)

T = TypeVar("T")

WINDOW_MS = 15 * 60_000
EVENTS_SHOWN = 200
LOG_BYTES_SHOWN = 64 << 10
#: Doublings when the newest event is looked for: enough for 2**40 events.
DOUBLINGS_MAX = 40

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    # Not no-referrer: browsers then send "Origin: null" with our own forms, and none is let in.
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Visit:
    """One look at a page by one key."""

    request: Request
    key: str

    async def get(self, target: str, type_: type[T]) -> T:
        return await get(self.request, self.key, target, type_)

    async def page(self, target: str, type_: type[T]) -> tuple[T, ...]:
        return (await self.get(target, Page[type_])).data  # type: ignore[valid-type]


Look = Callable[[Visit], Awaitable[Response]]


@functools.cache
def environment() -> Environment:
    """The templates; text is escaped, and a name that is missing is an error."""
    made = Environment(
        loader=PackageLoader("onefleet.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(size=size, duration=duration, segment=lambda t: quote(t, safe=""))
    made.globals.update(span=span, percent=percent, version=__version__, WIDTH=WIDTH)
    return made


def render(template: str, http_status: int = 200, **values: Any) -> HTMLResponse:
    """Fill a template. Ages are of now, by the pool's own clock."""
    now = time.time_ns() // 1_000_000
    text = (
        environment()
        .get_template(template)
        .render(
            age=lambda at: age(at, now),
            clock=lambda at: time.strftime("%H:%M:%S", time.gmtime(at / 1000)),
            **values,
        )
    )
    return HTMLResponse(text, http_status, HEADERS)


def page(look: Look) -> Callable[[Request], Awaitable[Response]]:
    """A page for whoever has a key; others are sent to sign in, errors are shown as three lines."""

    @functools.wraps(look)
    async def endpoint(request: Request) -> Response:
        key = session.key_of(request)
        if key is None:
            return RedirectResponse("/console/login", 303, HEADERS)
        try:
            return await look(Visit(request, key))
        except Unauthenticated:
            gone = RedirectResponse("/console/login", 303, HEADERS)
            session.sign_out(gone)
            return gone
        except OnefleetError as error:
            return render("error.html", error.status, here="", error=error)

    return endpoint


@page
async def overview(visit: Visit) -> Response:
    since = time.time_ns() // 1_000_000 - WINDOW_MS
    status: StatusView = await visit.get("/api/v1/status", StatusView)
    used = await visit.get(f"/api/v1/utilisation?since={since}", UtilisationView)
    return render(
        "overview.html",
        here="overview",
        status=status,
        nodes=await visit.page("/api/v1/nodes", NodeView),
        devices=await visit.page("/api/v1/devices", DeviceView),
        names=await _names(visit),
        used=used,
        bar=utilisation_parts(used),
    )


@page
async def deployments(visit: Visit) -> Response:
    return render(
        "deployments.html",
        here="deployments",
        deployments=await visit.page("/api/v1/deployments", DeploymentView),
        replicas=await visit.page("/api/v1/replicas", ReplicaView),
        models=await visit.page("/api/v1/models", ModelView),
    )


@page
async def jobs(visit: Visit) -> Response:
    found = await visit.page("/api/v1/jobs", JobView)
    return render("jobs.html", here="jobs", jobs=found[::-1])


@page
async def job(visit: Visit) -> Response:
    name = quote(visit.request.path_params["name"], safe="")
    shown = await visit.get(f"/api/v1/jobs/{name}", JobView)
    path = f"/api/v1/jobs/{shown.id}/logs?offset=-{LOG_BYTES_SHOWN}&stream="
    return render(
        "job.html",
        here="jobs",
        job=shown,
        why=await visit.get(f"/api/v1/why/{shown.id}", WhyView),
        stdout=await visit.get(path + "stdout", LogChunk),
        stderr=await visit.get(path + "stderr", LogChunk),
    )


@page
async def events(visit: Visit) -> Response:
    newest = await _newest_event(visit)
    after = max(newest - EVENTS_SHOWN, 0)
    target = f"/api/v1/events?after={after}&limit={EVENTS_SHOWN}"
    found = await visit.page(target, EventView)
    return render("events.html", here="events", events=found[::-1], names=await _names(visit))


@page
async def keys(visit: Visit) -> Response:
    try:
        found = await visit.page("/api/v1/keys", KeyView)
    except Forbidden:
        found = ()
    host = visit.request.headers.get("host", "127.0.0.1:7070")
    return render("keys.html", here="keys", keys=found, host=host)


async def login_form(request: Request) -> Response:
    return render("login.html", here="", error=None)


async def login(request: Request) -> Response:
    """Try the key on the API; keep it in a cookie when it may look at the pool."""
    try:
        if session.is_foreign(request):
            raise Forbidden("the form was sent from another site")
        key = await session.posted_key(request)
        await get(request, key, "/api/v1/status", StatusView)
    except OnefleetError as error:
        return render("login.html", error.status, here="", error=error)
    entered = RedirectResponse("/console", 303, HEADERS)
    session.sign_in(entered, request, key)
    return entered


async def logout(request: Request) -> Response:
    if session.is_foreign(request):
        return render("error.html", 403, here="", error=Forbidden("sent from another site"))
    left = RedirectResponse("/console/login", 303, HEADERS)
    session.sign_out(left)
    return left


async def _names(visit: Visit) -> dict[str, str]:
    """Names of jobs and of replicas' deployments, by id."""
    found = {r.id: r.deployment for r in await visit.page("/api/v1/replicas", ReplicaView)}
    found |= {d.id: d.name for d in await visit.page("/api/v1/deployments", DeploymentView)}
    return found | {j.id: j.name for j in await visit.page("/api/v1/jobs", JobView)}


async def _newest_event(visit: Visit) -> int:
    """The sequence of the newest event, found by halving: the API pages forwards."""

    async def is_after(sequence: int) -> bool:
        return bool(await visit.page(f"/api/v1/events?after={sequence}&limit=1", EventView))

    high = 1
    for _ in range(DOUBLINGS_MAX):
        if not await is_after(high):
            break
        high *= 2
    low = high // 2
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if await is_after(middle) else (low, middle)
    return low
