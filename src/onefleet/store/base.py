"""The seam between decisions and durability: read a whole state, commit changes to it.

Every write is a compare-and-swap on a generation; there are no locks. A commit is atomic and is
on disk when it returns. Losing the race is normal: read again, decide again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from onefleet.domain.events import Event, Held, Usage
from onefleet.domain.fleet import Node
from onefleet.domain.ids import (
    DeploymentId,
    Generation,
    Instant,
    KeyId,
    ModelId,
    NodeId,
    ReservationId,
    TenantId,
    WorkId,
)
from onefleet.domain.jobs import Job
from onefleet.domain.serving import Deployment, Model, Replica
from onefleet.domain.tenancy import ApiKey, Reservation, Tenant
from onefleet.domain.work import Work

Record = Tenant | Reservation | ApiKey | Node | Model | Deployment | Replica | Job | Work


@dataclass(frozen=True, slots=True)
class State:
    """Everything that the control plane knows, as of one generation. Mappings iterate by id.

    marks: named counters, such as the last usage batch that was taken from a gateway.
    newest_event: the sequence of the newest event, 0 before the first.
    """

    generation: Generation
    tenants: Mapping[TenantId, Tenant]
    reservations: Mapping[ReservationId, Reservation]
    keys: Mapping[KeyId, ApiKey]
    nodes: Mapping[NodeId, Node]
    models: Mapping[ModelId, Model]
    deployments: Mapping[DeploymentId, Deployment]
    replicas: Mapping[WorkId, Replica]
    jobs: Mapping[WorkId, Job]
    works: Mapping[WorkId, Work]
    marks: Mapping[str, int] = field(default_factory=dict)
    newest_event: int = 0


@dataclass(frozen=True, slots=True)
class Put:
    """Write a record. Its generation must be the stored one (0: it must not exist yet)."""

    record: Record


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a record, if its generation is still the stored one."""

    record: Record


@dataclass(frozen=True, slots=True)
class Note:
    """An event to append with the commit; the store gives it its sequence."""

    at: Instant
    kind: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Commit:
    """What is written together or not at all.

    parent: when given, the state's generation must still be this one (a plan names its parent).
    usage and held are added to what is there; marks replace the counters that they name, and a
    mark of 0 removes its counter.
    """

    changes: Sequence[Put | Delete] = ()
    notes: Sequence[Note] = ()
    parent: Generation | None = None
    usage: Sequence[Usage] = ()
    held: Sequence[Held] = ()
    marks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """The net effect of a commit on one record. old: what was stored, new: what is."""

    table: str
    id: str
    old: Record | None
    new: Record | None


class Store(Protocol):
    """Durable state. Each stored record's generation rises by one with each write of it."""

    async def read(self) -> State:
        """The newest state. Cheap when nothing changed since the last call."""
        ...

    async def commit(self, commit: Commit) -> Generation:
        """Write it; return the new state generation.

        Raises StaleGeneration when a generation does not match (nothing is written), StorageFull
        when the disk is.
        """
        ...

    def changed(self, since: Generation, until: Generation) -> Sequence[Written] | None:
        """What the commits after `since`, up to `until`, wrote, oldest first.

        None when that is not known: too long ago, or another process wrote. Never waits.
        """
        ...

    async def events(self, after: int, limit: int) -> Sequence[Event]:
        """Events with a higher sequence than `after`, oldest first, at most `limit`."""
        ...

    async def usage(self, since: Instant) -> Sequence[Usage]:
        """Usage of minutes at or after `since`, added up by key, deployment and minute."""
        ...

    async def held(self, since: Instant) -> Sequence[Held]:
        """Device time of minutes at or after `since`, added up by minute and label."""
        ...

    async def close(self) -> None:
        """Let go of files and connections."""
        ...
