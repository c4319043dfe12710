"""Work: what the planner places, be it a job's gang of workers or a replica.

A `Work` holds the scheduling facts of one job or replica. Its phases and their transitions are
the table in `core/lifecycle.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import (
    EPOCH,
    NO_GENERATION,
    DeviceId,
    Generation,
    ImageId,
    Instant,
    NodeId,
    TenantId,
    WorkId,
)
from onefleet.domain.tiers import Tier


class WorkKind(StrEnum):
    JOB = "job"
    REPLICA = "replica"


class Want(StrEnum):
    """What the owner wants of it. The planner may still suspend work that wants to run."""

    RUN = "run"
    SUSPEND = "suspend"
    STOP = "stop"


class Phase(StrEnum):
    PENDING = "pending"  # waits for devices; nothing of it exists anywhere
    STARTING = "starting"  # placed; the agent starts it
    RUNNING = "running"  # its processes run (a replica: and it answers)
    SAVING = "saving"  # its state is being saved; its devices are still held
    SUSPENDED = "suspended"  # saved, memory freed, no device held
    RESTORING = "restoring"  # placed; the agent brings it back from its image
    STOPPING = "stopping"  # its processes are being ended
    ENDED = "ended"

    @property
    def holds_devices(self) -> bool:
        return self in _HOLDING


_HOLDING = frozenset((Phase.STARTING, Phase.RUNNING, Phase.SAVING, Phase.RESTORING, Phase.STOPPING))


class Outcome(StrEnum):
    """How ended work ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one worker (rank) of a work is: a node and devices of it."""

    node_id: NodeId
    devices: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Image:
    """The bytes of one checkpoint: which worker images make it whole, and where they lie.

    ran_ms: the run time that is in it, so that going back to it says what is thrown away.
    """

    id: ImageId
    nodes: tuple[NodeId, ...]  # one a worker, by rank
    size_bytes: int
    saved_at: Instant
    ran_ms: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What work needs to run. Every worker gets between devices_min and devices_max devices."""

    kind: DeviceKind
    devices_min: int
    devices_max: int
    workers: int = 1  # more than one: a gang, placed whole or not at all
    memory_bytes: int = 0  # of one worker; 0 when unknown


@dataclass(frozen=True, slots=True)
class Work:
    """The scheduling facts of a job or replica.

    epoch fences: it rises with every placement and every loss, and agents refuse orders and report
    under it. placement: by rank; held while the phase holds devices, empty otherwise.
    attempts: fresh starts so far. suspends: how often it was saved. lost_ms: run time thrown away,
    a part of ran_ms. image: the newest; image_before: the one to fall back to, kept until then.
    failures: of the pool's tries (start, save, restore) in a row; not_before: the next try waits.
    reason: why it is in this phase, in a person's words. why_ended: for ended work, a full line.
    """

    id: WorkId
    kind: WorkKind
    tenant_id: TenantId
    tier: Tier
    demand: Demand
    want: Want
    phase: Phase
    submitted_at: Instant
    phase_since: Instant
    suspendable: bool  # can be saved; what cannot is never a victim unless it is a replica
    epoch: Generation = NO_GENERATION
    placement: tuple[Slot, ...] = ()
    image: Image | None = None
    attempts: int = 0
    suspends: int = 0
    ran_ms: int = 0  # time in RUNNING, over all its phases before the current one
    lost_ms: int = 0
    reason: str = ""
    outcome: Outcome | None = None
    exit_code: int | None = None
    why_ended: str = ""
    started_at: Instant | None = None
    ended_at: Instant | None = None
    image_before: Image | None = None
    failures: int = 0
    not_before: Instant = EPOCH
    generation: Generation = NO_GENERATION
