"""The control plane's web application: authentication, errors and request ids around the table."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Sequence

import structlog
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onefleet.control.auth import (
    Caller,
    Permission,
    caller_of,
    must_be_internal,
    must_have,
)
from onefleet.control.call import Call
from onefleet.control.errors import json_response, response_of
from onefleet.control.pool import Pool
from onefleet.control.routes import ROUTES, ApiRoute
from onefleet.domain.errors import CallerError, InternalError, NotFound, OnefleetError
from onefleet.domain.ids import KeyId
from onefleet.domain.tenancy import DEFAULT_TENANT, Role

#: Of calls that need no key; it may do nothing.
NOBODY = Caller(KeyId(""), DEFAULT_TENANT, Role.CALLER)

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

Endpoint = Callable[[Request], Awaitable[Response]]


class MethodNotAllowed(CallerError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"
    status = 405


def make_app(pool: Pool, internal_token: str, extra_routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The application. extra_routes come after the API's own and bring their own permission."""
    log = structlog.get_logger("control")

    async def on_defect(request: Request, error: Exception) -> Response:
        log.error("defect", path=request.url.path, error=repr(error))
        return response_of(
            InternalError(
                "the control plane failed to answer this call",
                why=f"a defect of ours ({type(error).__name__})",
                hint="the data folder's log/control.log has the details",
            )
        )

    routes = [_route(route, pool, internal_token) for route in ROUTES]
    return Starlette(
        routes=[*routes, *extra_routes],
        middleware=[Middleware(RequestIds)],
        exception_handlers={HTTPException: _on_http_error, Exception: on_defect},
    )


def _route(route: ApiRoute, pool: Pool, token: str) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            caller = await _admit(route.permission, request, pool, token)
            answer = await route.handler(Call(pool, request, caller))
        except OnefleetError as error:
            return response_of(error)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        if isinstance(answer, Response):
            return answer
        return json_response(answer, route.status)

    return Route(route.path, endpoint, methods=[route.method])


async def _admit(permission: Permission, request: Request, pool: Pool, token: str) -> Caller:
    """Check a call's permission. Raises Unauthenticated or Forbidden."""
    if permission is Permission.OPEN:
        return NOBODY
    if permission is Permission.INTERNAL:
        peer = request.client.host if request.client else None
        must_be_internal(request.headers.get("x-onefleet-internal"), peer, token)
        return NOBODY
    state = await pool.store.read()
    caller = caller_of(request.headers.get("authorization"), state)
    must_have(permission, caller)
    return caller


async def _on_http_error(request: Request, error: Exception) -> Response:
    """The router's own errors in the body that all errors have."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        refused = response_of(
            MethodNotAllowed(f"{path} does not take {request.method}", why=f"it takes {allowed}")
        )
        refused.headers["allow"] = allowed
        return refused
    return response_of(NotFound(f"there is nothing at {path}", hint="the API is under /api/v1"))


class RequestIds:
    """Gives each answer exactly one x-request-id: the caller's where it is a good one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        chosen = given.decode() if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = chosen
            await send(message)

        await self.app(scope, receive, send_with_id)
