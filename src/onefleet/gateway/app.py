"""The gateway as one value: the route table, who may ask, and which exchange answers what.

Everything here runs on one event loop and waits for nothing: not for the database, not for the
control plane. What it knows is the last route table.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote

import msgspec
import structlog

from onefleet.core.admission import TenantQuota
from onefleet.domain.errors import (
    Forbidden,
    NotFound,
    OnefleetError,
    TooLarge,
    Unauthenticated,
    Unreachable,
)
from onefleet.domain.ids import NO_GENERATION, Generation, Instant
from onefleet.domain.tenancy import Role
from onefleet.engines.base import Dialect
from onefleet.gateway import generation, replies
from onefleet.gateway.connection import ClientConnection, Exchange
from onefleet.gateway.exchange import EngineExchange
from onefleet.gateway.limits import GatewayLimits
from onefleet.gateway.metering import MINUTE_MS, Meter
from onefleet.gateway.metrics import Metrics
from onefleet.gateway.proxy import ControlProxy, is_passed_on
from onefleet.gateway.request import Request
from onefleet.gateway.target import Target
from onefleet.gateway.upstream import Upstream
from onefleet.wire.gateway import DemandReport, DeploymentRoute, KeyRoute, RouteTable

_encode = msgspec.json.Encoder().encode

#: Makes an exchange of a request; raises an OnefleetError when it shall not pass.
Handler = Callable[["Gateway", Request, ClientConnection], "Exchange | None"]


class Gateway:
    """The data plane of a pool.

    As of the last tick: now (milliseconds, monotonic), wall (milliseconds of the epoch), minute
    (its beginning).
    """

    def __init__(
        self,
        limits: GatewayLimits,
        dialects: Mapping[str, Dialect],
        meter: Meter,
        control: Upstream,
        demand_changed: Callable[[], None],
    ) -> None:
        self.limits = limits
        self.dialects = dialects
        self.meter = meter
        self.control = control
        self.metrics = Metrics()
        self.log = structlog.get_logger("gateway")
        self._look_at_clocks()
        self.quotas: dict[str, TenantQuota] = {}
        self.generation: Generation = NO_GENERATION
        self.ready = False
        self.idle = asyncio.Event()  # set once it is stopping and nothing is under way
        self._stopping = False
        self._demand_changed = demand_changed
        self._connections: dict[ClientConnection, None] = {}
        self._keys: dict[bytes, KeyRoute] = {}
        self._targets: dict[str, Target] = {}  # by deployment id
        self._own: dict[tuple[str, str], Target] = {}  # by tenant and name
        self._public: dict[str, Target] = {}  # by name
        self._id_prefix = f"req-{secrets.token_hex(5)}".encode()
        self._ids = 0

    # --- time

    def clock(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def _look_at_clocks(self) -> None:
        self.now = self.clock()
        self.wall = time.time_ns() // 1_000_000
        self.minute = self.wall // MINUTE_MS * MINUTE_MS

    def tick(self) -> None:
        """Called every limits.tick_ms: looks at every time limit."""
        self._look_at_clocks()
        now = self.now
        for connection in list(self._connections):
            connection.tick(now)
        for target in list(self._targets.values()):
            target.tick(Instant(now))
        self.control.tick(now)
        self.meter.tick()
        self._note_idle()

    # --- the route table

    def apply(self, table: RouteTable) -> bool:
        """Serve by this table from now on. False: it is older than the one in force."""
        if table.generation < self.generation and self.ready:
            return False
        self.generation = table.generation
        self.ready = True
        self._keys = {_digest(key.digest): key for key in table.keys}
        now = Instant(self.clock())
        quotas: dict[str, TenantQuota] = {}
        for tenant in table.tenants:
            if tenant.requests_per_minute is None and tenant.tokens_per_minute is None:
                continue
            quota = self.quotas.get(tenant.tenant_id) or TenantQuota()
            quota.change(tenant.requests_per_minute, tenant.tokens_per_minute, now)
            quotas[tenant.tenant_id] = quota
        self.quotas = quotas
        self._apply_deployments(table.deployments)
        return True

    def demand(self) -> tuple[DemandReport, ...]:
        return tuple(target.demand() for _, target in sorted(self._targets.items()))

    # --- what connections ask

    def joined(self, connection: ClientConnection) -> bool:
        self._connections[connection] = None
        if len(self._connections) > 2 * self.limits.connections:
            connection.transport.abort()  # not even refusals can be waited for
        return len(self._connections) <= self.limits.connections

    def left(self, connection: ClientConnection) -> None:
        self._connections.pop(connection, None)
        self._note_idle()

    def judge(self, request: Request) -> None:
        path = request.path
        route = ROUTES.get(path)
        if route is None and path.startswith(b"/v1/models/"):
            route = _MODEL
        if route is None:
            self._judge_other(request)
            return
        request.body_limit = self.limits.body_bytes
        method = b"GET" if request.head_only else request.method
        handler = route.get(method)
        if handler is None:
            self._judge_method(request, route)
            return
        request.route = handler
        if handler in OPEN:
            return
        try:
            request.key = self._authenticate(request)
        except OnefleetError as error:
            request.refusal = error

    def begin(self, request: Request, connection: ClientConnection) -> Exchange | None:
        if not request.request_id:
            request.request_id = self._new_id()
        try:
            exchange: Exchange | None = request.route(self, request, connection)
            if isinstance(exchange, EngineExchange):
                return exchange if exchange.start() else None
            return exchange
        except OnefleetError as error:
            connection.write(self.refuse(request, error, not request.keep_alive))
            connection.finish()
            return None

    def refuse(self, request: Request | None, error: OnefleetError, closing: bool) -> bytes:
        self.metrics.failed(error.status, error.error_code)
        request_id, extra, bare = b"", b"", False
        if request is not None:
            request_id, extra, bare = request.request_id, request.refusal_headers, request.head_only
            extra += request.connection_line(closing)
        elif closing:
            extra = b"connection: close\r\n"
        extra += replies.error_headers(error)
        body = replies.error_body(error)
        return replies.whole(
            error.status, replies.JSON, body, request_id or self._new_id(), extra, bare
        )

    # --- what handlers ask

    def target(self, request: Request, name: str) -> Target:
        """The deployment of that name that the key sees, its tenant's own first."""
        key = request.key
        assert key is not None
        target = self._own.get((key.tenant_id, name)) or self._public.get(name)
        if target is None:
            raise NotFound(
                f'the model "{name}" does not exist',
                why=f'tenant "{key.tenant_id}" has no deployment of that name',
                hint="GET /v1/models lists what there is",
                param="model",
                code="model_not_found",
            )
        return target

    def visible(self, request: Request) -> list[Target]:
        """All deployments that the key sees, by name."""
        key = request.key
        assert key is not None
        found = dict(self._public)
        for (tenant, name), target in self._own.items():
            if tenant == key.tenant_id:
                found[name] = target
        return [found[name] for name in sorted(found)]

    def answer(
        self,
        request: Request,
        connection: ClientConnection,
        body: bytes,
        status: int = 200,
        kind: bytes = replies.JSON,
        extra: bytes = b"",
    ) -> None:
        """Answer at once."""
        self.metrics.answered(status)
        extra += request.connection_line(not request.keep_alive)
        connection.write(
            replies.whole(status, kind, body, request.request_id, extra, request.head_only)
        )
        connection.finish()

    # --- stopping

    @property
    def busy(self) -> int:
        """Connections on which something is under way."""
        return sum(not connection.idle for connection in self._connections)

    def stop(self) -> None:
        """Answer what is under way, take nothing new."""
        self._stopping = True
        for connection in list(self._connections):
            connection.end_after_answer()
        self._note_idle()

    def abort(self) -> None:
        """End every connection now."""
        for connection in list(self._connections):
            connection.transport.abort()

    def close(self) -> None:
        """Close what is kept open to engines and the control plane."""
        for target in self._targets.values():
            target.close()
        self.control.close()
        self.meter.close()

    # --- inside

    def _note_idle(self) -> None:
        if self._stopping and not self.busy:
            self.idle.set()

    def _new_id(self) -> bytes:
        self._ids += 1
        return b"%b-%x" % (self._id_prefix, self._ids)

    def _authenticate(self, request: Request) -> KeyRoute:
        if not self.ready:
            raise Unreachable(
                "the pool is starting", why="there is no route table yet", retry_after_ms=1_000
            )
        credential = request.credential
        if not credential:
            raise Unauthenticated(
                "there is no API key",
                why="the request has neither Authorization: Bearer KEY nor api-key: KEY",
                hint="onefleet key create",
            )
        key = self._keys.get(sha256(credential).digest())
        if key is None:
            raise Unauthenticated(
                "the API key is not one of this pool",
                why="it was never made here, or it is revoked",
                hint="onefleet key list",
            )
        return key

    def _judge_other(self, request: Request) -> None:
        """A path that is not of the data plane."""
        if not is_passed_on(request.path):
            request.refusal = NotFound(
                f"there is no {request.method.decode()} {request.path.decode('latin-1')}",
                hint=f"there are {', '.join(p.decode() for p in ROUTES if p[:4] == b'/v1/')}",
                code="unknown_url",
            )
            return
        request.route = _pass_on
        request.streams = True
        request.body_limit = self.limits.upload_bytes

    def _judge_method(self, request: Request, route: Mapping[bytes, Handler]) -> None:
        allowed = [*route, b"OPTIONS"] + ([b"HEAD"] if b"GET" in route else [])
        line = b"allow: %b\r\n" % b", ".join(sorted(allowed))
        if request.method == b"OPTIONS":
            request.route = lambda gateway, asked, client: gateway.answer(
                asked, client, b"", 200, replies.TEXT, line
            )
            return
        request.refusal = replies.MethodNotAllowed(
            f"{request.method.decode()} is not for {request.path.decode('latin-1')}",
            why=f"it takes {', '.join(sorted(name.decode() for name in allowed))}",
        )
        request.refusal_headers = line

    def _apply_deployments(self, deployments: tuple[DeploymentRoute, ...]) -> None:
        targets: dict[str, Target] = {}
        for route in deployments:
            dialect = self.dialects.get(route.engine)
            if dialect is None:
                self.log.error("unknown_engine", deployment=route.name, engine=route.engine)
                continue
            target = self._targets.pop(route.deployment_id, None)
            if target is None:
                target = Target(route, dialect, self.limits, self._demand_changed, self.metrics)
            else:
                target.apply(route)
            targets[route.deployment_id] = target
        gone, self._targets = self._targets, targets
        self._own = {(one.route.tenant_id, one.route.name): one for one in targets.values()}
        self._public = {
            one.route.name: one for _, one in sorted(targets.items()) if one.route.public
        }
        for target in gone.values():
            target.close()
        for target in targets.values():
            target.dispatch(Instant(self.now))


def _digest(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("sha256:"))


def _models(gateway: Gateway, request: Request, client: ClientConnection) -> None:
    body = {"object": "list", "data": [_model(one) for one in gateway.visible(request)]}
    gateway.answer(request, client, _encode(body))


def _one_model(gateway: Gateway, request: Request, client: ClientConnection) -> None:
    name = request.path.removeprefix(b"/v1/models/").decode("latin-1")
    gateway.answer(request, client, _encode(_model(gateway.target(request, _unquoted(name)))))


def _model(target: Target) -> dict[str, Any]:
    route = target.route
    return {
        "id": route.name,
        "object": "model",
        "created": route.created_at // 1000,
        "owned_by": route.tenant_id,
        "purpose": route.purpose.value,
        "context_length": route.context_length,
        "replicas": len(route.endpoints),
    }


def _unquoted(text: str) -> str:
    return unquote(text)


def _health(gateway: Gateway, request: Request, client: ClientConnection) -> None:
    gateway.answer(request, client, b'{"status":"ok"}')


def _ready(gateway: Gateway, request: Request, client: ClientConnection) -> None:
    if not gateway.ready:
        raise Unreachable("there is no route table yet", retry_after_ms=1_000)
    body = {"status": "ready", "generation": gateway.generation}
    gateway.answer(request, client, _encode(body))


def _metrics(gateway: Gateway, request: Request, client: ClientConnection) -> None:
    peer = client.transport.get_extra_info("peername")
    if not (peer and ip_address(peer[0]).is_loopback):
        key = gateway._authenticate(request)
        if key.role is not Role.ADMIN:
            raise Forbidden("/metrics needs an administrator's key from another machine")
    gateway.metrics.demand = [
        (target.route.name, target.active, target.waiting)
        for _, target in sorted(gateway._targets.items())
    ]
    gateway.metrics.gauges = {
        "connections": len(gateway._connections),
        "generation": gateway.generation,
        "usage_pending": int(gateway.meter.pending),
    }
    gateway.answer(request, client, gateway.metrics.text(), kind=replies.TEXT)


def _pass_on(gateway: Gateway, request: Request, client: ClientConnection) -> Exchange | None:
    if not request.complete and request.size > request.body_limit:
        raise TooLarge("the body is too large")
    proxy = ControlProxy(gateway, request, client)
    request.sink = proxy
    proxy.start()
    return proxy


_MODEL: Mapping[bytes, Handler] = {b"GET": _one_model}

ROUTES: Mapping[bytes, Mapping[bytes, Handler]] = {
    b"/v1/models": {b"GET": _models},
    b"/v1/chat/completions": {b"POST": generation.chat},
    b"/v1/completions": {b"POST": generation.completion},
    b"/v1/embeddings": {b"POST": generation.embedding},
    b"/v1/tokenize": {b"POST": generation.tokenize},
    b"/tokenize": {b"POST": generation.tokenize},
    b"/v1/detokenize": {b"POST": generation.detokenize},
    b"/detokenize": {b"POST": generation.detokenize},
    b"/health": {b"GET": _health},
    b"/ready": {b"GET": _ready},
    b"/metrics": {b"GET": _metrics},
}

#: Routes that need no key, or judge by themselves.
OPEN: tuple[Handler, ...] = (_health, _ready, _metrics)
