"""The planner's view of the pool at one generation, and pure questions to it.

A snapshot is not a checkpoint: it is what is known, not what is saved. All mappings iterate by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from onefleet.domain.fleet import Node, NodeState
from onefleet.domain.ids import (
    DeploymentId,
    Generation,
    Instant,
    NodeId,
    ReservationId,
    TenantId,
    WorkId,
)
from onefleet.domain.serving import Deployment, Replica
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.work import Work


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a plan may depend on, besides the policy and the time.

    leases: when nodes' leases run out, where that is later known than the nodes' records say.
    """

    generation: Generation
    nodes: Mapping[NodeId, Node]
    works: Mapping[WorkId, Work]
    tenants: Mapping[TenantId, Tenant]
    reservations: Mapping[ReservationId, Reservation]
    deployments: Mapping[DeploymentId, Deployment]
    replicas: Mapping[WorkId, Replica]
    leases: Mapping[NodeId, Instant] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        generation: Generation,
        *,
        nodes: Iterable[Node],
        works: Iterable[Work],
        tenants: Iterable[Tenant] = (),
        reservations: Iterable[Reservation] = (),
        deployments: Iterable[Deployment] = (),
        replicas: Iterable[Replica] = (),
    ) -> Snapshot:
        """Build it from records in any order."""
        return cls(
            generation,
            MappingProxyType({x.id: x for x in sorted(nodes, key=lambda x: x.id)}),
            MappingProxyType({x.id: x for x in sorted(works, key=lambda x: x.id)}),
            MappingProxyType({x.id: x for x in sorted(tenants, key=lambda x: x.id)}),
            MappingProxyType({x.id: x for x in sorted(reservations, key=lambda x: x.id)}),
            MappingProxyType({x.id: x for x in sorted(deployments, key=lambda x: x.id)}),
            MappingProxyType({x.id: x for x in sorted(replicas, key=lambda x: x.id)}),
        )

    def lease_of(self, node: Node) -> Instant:
        """When its lease runs out."""
        return self.leases.get(node.id, node.lease_expires_at)


def usable(node: Node, now: Instant) -> bool:
    """Whether new work may be placed on it, as its record says."""
    return node.state is NodeState.READY and node.lease_expires_at > now


def devices_held(work: Work) -> int:
    """How many devices it holds now; one that its ranks take turns on counts once."""
    return len(dict.fromkeys(device for slot in work.placement for device in slot.devices))
