"""A deployment as the data plane runs it: its engines' endpoints, and who waits for one.

Who waits gets no byte before an engine has begun to answer, not even a heartbeat: the status line
would be a promise that nobody can keep yet. It is answered, or told why not, within `hold_ms`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from onefleet.core.admission import HoldQueue
from onefleet.core.routing import Backend, PrefixIndex, choose
from onefleet.domain.errors import Overloaded
from onefleet.domain.ids import Instant, Millis
from onefleet.engines.base import Dialect
from onefleet.gateway.limits import GatewayLimits
from onefleet.gateway.metrics import Metrics, Series
from onefleet.gateway.upstream import Upstream
from onefleet.wire.gateway import DemandReport, DeploymentRoute, Endpoint


class Waiter(Protocol):
    """A request that needs a replica. prefixes: hashes of its prompt's beginnings."""

    prefixes: tuple[int, ...]

    def granted(self, engine: EngineEndpoint) -> None:
        """Here is one; give it back by `Target.release`."""

    def expired(self) -> None:
        """There was none in time, or the deployment was removed."""


class EngineEndpoint(Backend):
    """One replica's address and the connections to it."""

    __slots__ = ("_host", "endpoint", "name", "upstream")

    def __init__(
        self, endpoint: Endpoint, slots: int, limits: GatewayLimits, idle_close_ms: int
    ) -> None:
        super().__init__(endpoint.replica_id, slots)
        self.endpoint = endpoint
        self.name = endpoint.replica_id.encode()
        self._host = b"%b:%d" % (endpoint.host.encode(), endpoint.port)
        self.upstream = Upstream(endpoint.host, endpoint.port, limits, idle_close_ms)

    def post(self, path: bytes, body: bytes) -> bytes:
        """The bytes of a POST request to it."""
        return (
            b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (path, self._host, len(body), body)
        )


class Target:
    """One deployment. Counts its own requests: engines' reports would be too old to choose by."""

    def __init__(
        self,
        route: DeploymentRoute,
        dialect: Dialect,
        limits: GatewayLimits,
        demand_changed: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        self.route = route
        self._metrics = metrics
        self._series: dict[str, Series] = {}
        self.dialect = dialect
        self.name_json = msgspec.Raw(msgspec.json.encode(route.name))
        self.active = 0
        self.last_request_at = Instant(0)  # wall clock
        self.engines: list[EngineEndpoint] = []
        self.removed = False
        self._limits = limits
        self._queue: HoldQueue[Waiter] = HoldQueue(limits.held, Millis(limits.hold_ms))
        self._index = PrefixIndex(limits.prefixes)
        self._demand_changed = demand_changed
        self.apply(route)

    def series(self, operation: str) -> Series:
        """What is counted of an operation on this deployment."""
        series = self._series.get(operation)
        if series is None:
            series = self._series[operation] = self._metrics.of(operation, self.route.name)
        return series

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def apply(self, route: DeploymentRoute) -> None:
        """Take a new table's word for it. Endpoints that are gone finish what they answer."""
        self.route = route
        known = {engine.endpoint: engine for engine in self.engines}
        engines = []
        for endpoint in sorted(route.endpoints, key=lambda one: one.replica_id):
            engine = known.pop(endpoint, None)
            if engine is None:
                engine = EngineEndpoint(
                    endpoint, route.slots, self._limits, self.dialect.idle_close_ms
                )
            engine.slots = max(1, route.slots)
            engines.append(engine)
        self.engines = engines
        for gone in known.values():
            gone.upstream.close()

    def acquire(self, waiter: Waiter, now: Instant) -> None:
        """Grant a replica now or later, in order. Raises Overloaded when too many wait."""
        if not self._queue.waiters:
            engine = self._choose(waiter, now)
            if engine is not None:
                self._grant(waiter, engine)
                return
        if not self.engines and self.route.replicas_max <= 0:
            raise Overloaded(
                f'deployment "{self.route.name}" has no replica and may not start one',
                why=self.route.wait_reason,
                retry_after_ms=10_000,
            )
        if not self._queue.offer(waiter, now):
            raise Overloaded(
                f'{self._queue.limit} requests wait for deployment "{self.route.name}"',
                why=self.route.wait_reason or "all its replicas are busy",
                hint="raise its replicas, or ask later",
                retry_after_ms=1_000,
            )
        self._demand_changed()

    def put_back(self, waiter: Waiter, deadline: Instant) -> None:
        """Its replica turned out to be gone: it waits again, first in line."""
        if self.removed:
            waiter.expired()
            return
        self._queue.put_back(waiter, deadline)
        self._demand_changed()

    def give_up(self, waiter: Waiter) -> None:
        """It waits no longer."""
        if self._queue.remove(waiter):
            self._demand_changed()

    def release(self, engine: EngineEndpoint, now: Instant) -> None:
        """A grant is over."""
        engine.in_flight -= 1
        self.active -= 1
        if self._queue.waiters:
            self.dispatch(now)

    def dispatch(self, now: Instant) -> None:
        """Grant what can be granted to those who wait."""
        while (waiter := self._queue.first()) is not None:
            engine = self._choose(waiter, now)
            if engine is None:
                return
            self._queue.remove(waiter)
            self._grant(waiter, engine)

    def tick(self, now: Instant) -> None:
        """Time passes: end waits that took too long, try endpoints again."""
        for engine in self.engines:
            engine.upstream.tick(now)
        if len(self._queue):
            for waiter in self._queue.expired(now):
                waiter.expired()
            self.dispatch(now)

    def others(self, engine: EngineEndpoint) -> bool:
        """There is another replica to try."""
        return any(one is not engine for one in self.engines)

    def demand(self) -> DemandReport:
        return DemandReport(
            deployment_id=self.route.deployment_id,
            active=self.active,
            waiting=len(self._queue),
            last_request_at=self.last_request_at,
        )

    def close(self) -> None:
        """The deployment is gone: those who wait are told, what is answered is finished."""
        self.removed = True
        for engine in self.engines:
            engine.upstream.close()
        self.engines = []
        while (waiter := self._queue.first()) is not None:
            self._queue.remove(waiter)
            waiter.expired()

    def _choose(self, waiter: Waiter, now: Instant) -> EngineEndpoint | None:
        engines = self.engines
        if len(engines) == 1:
            only = engines[0]
            free = only.in_flight < only.slots and only.shunned_until <= now
            return only if free else None
        prefixes = waiter.prefixes
        home = self._index.home(prefixes) if prefixes else None
        chosen = choose(engines, home, now)
        assert chosen is None or isinstance(chosen, EngineEndpoint)
        return chosen

    def _grant(self, waiter: Waiter, engine: EngineEndpoint) -> None:
        engine.in_flight += 1
        engine.served += 1
        self.active += 1
        if waiter.prefixes:
            self._index.note(waiter.prefixes, engine.replica_id)
        waiter.granted(engine)
