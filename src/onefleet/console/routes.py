"""The console's routes, for the process that serves the control API to mount beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from onefleet.console import pages
from onefleet.domain.errors import NotFound

STATIC = Path(__file__).parent / "static"
#: Every file that is served as it is; nothing else in the folder is.
FILES = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in FILES:
        missing = NotFound("there is no such file")
        return pages.render("error.html", 404, here="", error=missing)
    headers = {"x-content-type-options": "nosniff", "cache-control": "public, max-age=300"}
    return FileResponse(STATIC / name, headers=headers, media_type=FILES[name])


async def _home(request: Request) -> Response:
    return RedirectResponse("/console", 303)


def routes() -> Sequence[BaseRoute]:
    """All pages under /console, and the way there from /."""
    return (
        Route("/", _home),
        Route("/console", pages.overview),
        Route("/console/", _home),
        Route("/console/deployments", pages.deployments),
        Route("/console/jobs", pages.jobs),
        Route("/console/jobs/{name}", pages.job),
        Route("/console/events", pages.events),
        Route("/console/keys", pages.keys),
        Route("/console/login", pages.login_form, methods=["GET"]),
        Route("/console/login", pages.login, methods=["POST"]),
        Route("/console/logout", pages.logout, methods=["POST"]),
        Route("/console/static/{name}", _static),
    )
