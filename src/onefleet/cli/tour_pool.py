"""What the tour needs of the pool, and how it asks for it: over the public API alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from onefleet.cli.job_verb import get_job
from onefleet.cli.model_add import add_model
from onefleet.cli.output import Terminal
from onefleet.cli.progress import Bar
from onefleet.cli.waiting import wait_until
from onefleet.domain.errors import Conflict, NotFound, OnefleetError, TimedOut
from onefleet.wire.api import (
    DeploymentView,
    DeviceView,
    EventView,
    JobView,
    KeyView,
    ModelView,
    NewDeployment,
    NewKey,
    NewModel,
    NewTenant,
    NodeView,
    Page,
    ReplicaView,
    TenantView,
    UtilisationView,
)
from onefleet.wire.client import Client, segment

MODEL = "demo:smollm2"
SHARED = "smollm2"  # the default tenant's deployment: always on
PREMIUM_TENANT = "tour"
PREMIUM = "tour-premium"  # the premium tenant's deployment: on while it is asked
SERVING_S = 120.0
EVENTS_PAGE = 1000


@dataclass
class TourPool:
    """The pool as its administrator sees it."""

    pool: Client
    screen: Terminal

    def model(self) -> ModelView:
        """The demo model; added when it is not there."""
        path = f"/api/v1/models/{segment(MODEL)}"
        with suppress(NotFound):
            return self.pool.get(path, ModelView)
        with Bar(self.screen, f"getting {MODEL}") as bar:
            return add_model(self.pool, NewModel(source=MODEL), bar)

    def deployment(self, wanted: NewDeployment) -> DeploymentView:
        """A deployment by its name; made when it is not there."""
        path = f"/api/v1/deployments/{segment(wanted.name or wanted.model)}"
        with suppress(NotFound):
            found = self.pool.get(path, DeploymentView)
            if found.state != "removing":
                return found
        return self.pool.post("/api/v1/deployments", wanted, DeploymentView)

    def ready(self, name: str) -> DeploymentView:
        """Wait until a deployment answers."""
        path = f"/api/v1/deployments/{segment(name)}"
        with Bar(self.screen, f"{name} loads its model"):
            return wait_until(
                lambda: self.pool.get(path, DeploymentView),
                lambda now: now.state == "ready",
                lambda now: f"{name} to answer; it is {now.state}: {now.reason}",
                SERVING_S,
                hint=f"onefleet why {name}",
            )

    def premium_tenant(self) -> TenantView:
        """The premium tenant; made when it is not there."""
        for tenant in self.pool.get("/api/v1/tenants", Page[TenantView]).data:
            if tenant.id == PREMIUM_TENANT:
                return tenant
        return self.pool.post("/api/v1/tenants", NewTenant(id=PREMIUM_TENANT), TenantView)

    @contextmanager
    def key(self, tenant: str) -> Iterator[str]:
        """A key of a tenant that is good for the block."""
        new = NewKey(tenant=tenant, name="tour", role="caller")
        made = self.pool.post("/api/v1/keys", new, KeyView)
        try:
            yield made.key or ""
        finally:
            with suppress(OnefleetError):
                self.pool.delete(f"/api/v1/keys/{segment(made.id)}", object)

    def serving_devices(self) -> tuple[DeviceView, list[DeviceView]]:
        """The device that serves SHARED, and the free ones of the same node and kind."""
        devices = self.pool.get("/api/v1/devices", Page[DeviceView]).data
        replicas = self.pool.get("/api/v1/replicas", Page[ReplicaView]).data
        own = {r.id for r in replicas if r.deployment == SHARED}
        serving = next((d for d in devices if d.holder in own), None)
        if serving is None:
            raise NotFound(f"no device holds {SHARED}", why="it was just ready; it moved or died")
        alike = [d for d in devices if d.node == serving.node and d.kind == serving.kind]
        free = [d for d in alike if not d.holder]
        if not free:
            holders = ", ".join(d.holder for d in alike)
            raise Conflict(
                f"no free device for the tour's job: {len(alike)} of {len(alike)} are held",
                why=f"held by {holders}; the tour needs one beside the one that serves",
                hint="onefleet ps, onefleet deployment list; then onefleet cancel or undeploy",
            )
        return serving, free

    def node(self, node_id: str) -> NodeView:
        """One machine. Raises NotFound."""
        nodes = self.pool.get("/api/v1/nodes", Page[NodeView]).data
        found = next((n for n in nodes if n.id == node_id), None)
        if found is None:
            raise NotFound(f"there is no node {node_id}", why="it was just there; it left")
        return found

    def job(self, job_id: str) -> JobView:
        return get_job(self.pool, job_id)

    def await_job(
        self, job_id: str, done: Callable[[JobView], bool], what: str, timeout_s: float
    ) -> JobView:
        """Wait for a job; fail at once when it ends in another way than it should."""

        def over(now: JobView) -> bool:
            if now.outcome in ("failed", "cancelled"):
                raise Conflict(
                    f"the tour's job {now.outcome} (exit {now.exit_code})",
                    why=now.why_ended or now.reason,
                    hint=f"onefleet logs {now.id}; onefleet why {now.id}",
                )
            return done(now)

        return wait_until(
            lambda: self.job(job_id),
            over,
            lambda now: f"{now.name} to {what}; it is {now.phase}: {now.reason}",
            timeout_s,
            hint=f"onefleet why {job_id}",
        )

    def last_event(self) -> int:
        """The sequence of the newest event."""
        after = 0
        while page := self._events(after):
            after = page[-1].sequence
        return after

    def events(self, after: int, subject: str) -> list[EventView]:
        """Events of one subject since `after`, oldest first."""
        found: list[EventView] = []
        while page := self._events(after):
            found += [e for e in page if e.subject == subject]
            after = page[-1].sequence
        return found

    def _events(self, after: int) -> tuple[EventView, ...]:
        path = f"/api/v1/events?after={after}&limit={EVENTS_PAGE}"
        return self.pool.get(path, Page[EventView]).data

    def utilisation(self, since: int) -> UtilisationView:
        return self.pool.get(f"/api/v1/utilisation?since={since}", UtilisationView)


def await_route(client: Client, model: str, timeout_s: float = 15.0) -> None:
    """Wait until the gateway knows a fresh key and deployment. Raises TimedOut."""
    until = time.monotonic() + timeout_s
    while True:
        with suppress(OnefleetError):
            listed: dict[str, Any] = client.get("/v1/models", dict[str, Any])
            if any(entry.get("id") == model for entry in listed.get("data", ())):
                return
        if time.monotonic() > until:
            raise TimedOut(
                f"the gateway did not offer {model} within {timeout_s:g} s",
                why="its route table is older than the deployment",
                hint="onefleet status (gateway seen?)",
            )
        time.sleep(0.1)
