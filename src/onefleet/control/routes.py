"""Every route of the control plane in one table: method, path, who may use it, handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import msgspec
from starlette.responses import Response

from onefleet.control.api import (
    code,
    deployments,
    fleet,
    internal,
    job_verbs,
    jobs,
    ledger,
    logs,
    model,
    nodes,
    reading,
    reservations,
    spares,
    tenants,
    why,
)
from onefleet.control.auth import Permission
from onefleet.control.call import Call

Handler = Callable[[Call], Awaitable[msgspec.Struct | Response]]


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """One line of the table. status: of an answer that is not an error."""

    method: str
    path: str
    permission: Permission
    handler: Handler
    status: int = 200


_MEMBER, _ADMIN = Permission.MEMBER, Permission.ADMIN
_INTERNAL, _NODE = Permission.INTERNAL, Permission.NODE

ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("GET", "/api/v1/status", _MEMBER, reading.status),
    ApiRoute("POST", "/api/v1/tenants", _ADMIN, tenants.create_tenant, 201),
    ApiRoute("GET", "/api/v1/tenants", _MEMBER, tenants.list_tenants),
    ApiRoute("POST", "/api/v1/keys", _ADMIN, tenants.create_key, 201),
    ApiRoute("GET", "/api/v1/keys", _ADMIN, tenants.list_keys),
    ApiRoute("DELETE", "/api/v1/keys/{id}", _ADMIN, tenants.revoke_key),
    ApiRoute("POST", "/api/v1/models", _ADMIN, model.add_model, 201),
    ApiRoute("GET", "/api/v1/models", _MEMBER, model.list_models),
    ApiRoute("GET", "/api/v1/models/{id:path}", _MEMBER, model.show_model),
    ApiRoute("DELETE", "/api/v1/models/{id:path}", _ADMIN, model.remove_model),
    ApiRoute("POST", "/api/v1/deployments", _MEMBER, deployments.create_deployment, 201),
    ApiRoute("GET", "/api/v1/deployments", _MEMBER, deployments.list_deployments),
    ApiRoute("GET", "/api/v1/deployments/{name}", _MEMBER, deployments.show_deployment),
    ApiRoute("DELETE", "/api/v1/deployments/{name}", _MEMBER, deployments.remove_deployment),
    ApiRoute("POST", "/api/v1/code", _MEMBER, code.upload_code, 201),
    ApiRoute("POST", "/api/v1/reservations", _ADMIN, reservations.create_reservation, 201),
    ApiRoute("GET", "/api/v1/reservations", _MEMBER, reservations.list_reservations),
    ApiRoute("DELETE", "/api/v1/reservations/{id}", _ADMIN, reservations.remove_reservation),
    ApiRoute("POST", "/api/v1/spares", _ADMIN, spares.set_spares),
    ApiRoute("GET", "/api/v1/spares", _MEMBER, spares.list_spares),
    ApiRoute("POST", "/api/v1/jobs", _MEMBER, jobs.submit_job, 201),
    ApiRoute("POST", "/api/v1/arrays", _MEMBER, jobs.submit_array, 201),
    ApiRoute("GET", "/api/v1/jobs", _MEMBER, jobs.list_jobs),
    ApiRoute("GET", "/api/v1/jobs/{id}", _MEMBER, jobs.show_job),
    *(
        ApiRoute("POST", f"/api/v1/{things}/{{id}}/{name}", _MEMBER, partial(ask, verb))
        for things, ask in (("jobs", job_verbs.ask_job), ("arrays", job_verbs.ask_array))
        for name, verb in job_verbs.VERBS.items()
    ),
    ApiRoute("GET", "/api/v1/jobs/{id}/ledger", _MEMBER, ledger.job_ledger),
    ApiRoute("GET", "/api/v1/jobs/{id}/receipts", _MEMBER, ledger.job_receipts),
    ApiRoute("GET", "/api/v1/ledger", _MEMBER, ledger.list_ledger),
    ApiRoute("GET", "/api/v1/jobs/{id}/logs", _MEMBER, logs.job_logs),
    ApiRoute("GET", "/api/v1/nodes", _MEMBER, fleet.list_nodes),
    ApiRoute("POST", "/api/v1/nodes/{id}/drain", _ADMIN, fleet.drain_node),
    ApiRoute("POST", "/api/v1/nodes/{id}/undrain", _ADMIN, fleet.undrain_node),
    ApiRoute("GET", "/api/v1/devices", _MEMBER, fleet.list_devices),
    ApiRoute("POST", "/api/v1/devices/{id:path}/cordon", _ADMIN, fleet.cordon_device),
    ApiRoute("POST", "/api/v1/devices/{id:path}/uncordon", _ADMIN, fleet.uncordon_device),
    ApiRoute("GET", "/api/v1/replicas", _MEMBER, fleet.list_replicas),
    ApiRoute("GET", "/api/v1/why/{name}", _MEMBER, why.why),
    ApiRoute("GET", "/api/v1/utilisation", _MEMBER, reading.utilisation),
    ApiRoute("GET", "/api/v1/usage", _MEMBER, reading.usage),
    ApiRoute("GET", "/api/v1/events", _MEMBER, reading.events),
    ApiRoute("GET", "/api/v1/plan", _ADMIN, reading.last_plan),
    ApiRoute("POST", "/api/v1/node/sync", _NODE, nodes.node_sync),
    ApiRoute("GET", "/api/v1/node/code/{digest}", _NODE, nodes.node_code),
    ApiRoute("POST", "/internal/agent/sync", _INTERNAL, nodes.agent_sync),
    ApiRoute("POST", "/internal/gateway/sync", _INTERNAL, internal.gateway_sync),
    ApiRoute("GET", "/health", Permission.OPEN, reading.health),
    ApiRoute("GET", "/ready", Permission.OPEN, reading.ready),
)
