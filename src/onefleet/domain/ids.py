"""Typed ids and units, so that a node id is never passed where a job id belongs.

Ids are text of the form ``prefix-body``; the body sorts by creation time. They come from an
injected `IdSource`, so that a simulation counts and a live pool draws.
"""

from __future__ import annotations

from typing import NewType, Protocol

TenantId = NewType("TenantId", str)
KeyId = NewType("KeyId", str)
ReservationId = NewType("ReservationId", str)
NodeId = NewType("NodeId", str)
DeviceId = NewType("DeviceId", str)  # "<node id>/<kind><index>", or with the beginning of its UUID
ModelId = NewType("ModelId", str)
DeploymentId = NewType("DeploymentId", str)
WorkId = NewType("WorkId", str)  # a job's or a replica's id: both are work to the planner
ImageId = NewType("ImageId", str)
Digest = NewType("Digest", str)  # "sha256:<hex>"

Generation = NewType("Generation", int)  # never falls; compare-and-swap and fencing
Instant = NewType("Instant", int)  # milliseconds since the Unix epoch (simulation: since its start)
Millis = NewType("Millis", int)  # a duration

NO_GENERATION = Generation(0)  # of a record that no store has seen yet
EPOCH = Instant(0)  # long ago: no time was set


class IdSource(Protocol):
    """Gives fresh ids."""

    def new(self, prefix: str) -> str:
        """Return an id never returned before, starting with ``prefix-``."""
        ...


class CountingIds:
    """Ids for tests and simulations: ``job-0001``, ``job-0002``."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def new(self, prefix: str) -> str:
        count = self._counts.get(prefix, 0) + 1
        self._counts[prefix] = count
        return f"{prefix}-{count:04d}"
