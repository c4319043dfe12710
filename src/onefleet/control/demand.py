"""What is asked of each deployment, as gateways last said: a moment's fact, kept in memory only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onefleet.core.autoscale import DemandNow
from onefleet.domain.ids import DeploymentId, Instant
from onefleet.wire.gateway import DemandReport

#: A gateway that was silent for this long counts as gone, and what was asked of it as well.
SILENT_MS = 60_000


class Demands:
    """Demand by gateway, added up by deployment.

    The time of the last request survives the gateway that told it, and starts as the control
    plane's own start: a restart is no reason to take replicas away at once.
    """

    def __init__(self, started_at: Instant) -> None:
        self._started_at = started_at
        self._by_gateway: dict[str, dict[DeploymentId, DemandReport]] = {}
        self._heard: dict[str, Instant] = {}
        self._last_request: dict[DeploymentId, Instant] = {}

    def take(self, gateway_id: str, reports: Sequence[DemandReport], now: Instant) -> bool:
        """Take one gateway's report; True when what is asked differs from before."""
        before = self._by_gateway.get(gateway_id)
        after = {DeploymentId(r.deployment_id): r for r in reports}
        self._by_gateway[gateway_id] = after
        self._heard[gateway_id] = now
        for name, report in after.items():
            known = self._last_request.get(name, self._started_at)
            busy = now if report.active or report.waiting else Instant(0)
            # A gateway's clock may be ahead of ours; nothing was asked in the future.
            last = min(now, max(report.last_request_at, busy))
            self._last_request[name] = Instant(max(known, last))
        return before != after

    def now(self, now: Instant) -> Mapping[DeploymentId, DemandNow]:
        """What is asked of each deployment that any gateway named."""
        for gateway_id, heard in list(self._heard.items()):
            if now - heard > SILENT_MS:
                del self._heard[gateway_id], self._by_gateway[gateway_id]
        return {name: self.of(name) for name in sorted(self._last_request)}

    def of(self, deployment_id: DeploymentId) -> DemandNow:
        """What is asked of one deployment."""
        reports = [d[deployment_id] for d in self._by_gateway.values() if deployment_id in d]
        return DemandNow(
            active=sum(r.active for r in reports),
            waiting=sum(r.waiting for r in reports),
            last_request_at=self._last_request.get(deployment_id, self._started_at),
        )

    def forget(self, known: Mapping[DeploymentId, object]) -> None:
        """Drop what is known of deployments that are no more."""
        self._last_request = {n: at for n, at in self._last_request.items() if n in known}

    def seen_at(self) -> Instant | None:
        """When a gateway was last heard of."""
        return max(self._heard.values(), default=None)
