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
    FREEZE = "freeze"  # stand still: devices free at once, memory stays
    SUSPEND = "suspend"
    STOP = "stop"


class Phase(StrEnum):
    PENDING = "pending"  # waits for devices; nothing of it exists anywhere
    STARTING = "starting"  # placed; the agent starts it
    RUNNING = "running"  # its processes run (a replica: and it answers)
    SAVING = "saving"  # its state is being saved; its devices are still held
    FROZEN = "frozen"  # stands still; no device held, its memory stays on its nodes
    SUSPENDED = "suspended"  # saved, memory freed, no device held
    RESTORING = "restoring"  # placed; the agent brings it back from its image
    STOPPING = "stopping"  # its processes are being ended
    ENDED = "ended"

    @property
    def holds_devices(self) -> bool:
        return self in _HOLDING

    @property
    def is_placed(self) -> bool:
        """Whether processes of it may be on nodes; frozen ones are there without a device."""
        return self in _HOLDING or self is Phase.FROZEN


_HOLDING = frozenset((Phase.STARTING, Phase.RUNNING, Phase.SAVING, Phase.RESTORING, Phase.STOPPING))


class Outcome(StrEnum):
    """How ended work ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: A whole device, in thousandths of one.
WHOLE = 1_000


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one worker (rank) of a work is: a node and devices of it.

    Ranks of one elastic gang may name the same device: they take turns on it. milli: the share of
    each device that is held. Frozen work keeps its nodes, without devices.
    """

    node_id: NodeId
    devices: tuple[DeviceId, ...]
    milli: int = WHOLE


@dataclass(frozen=True, slots=True)
class Image:
    """The bytes of one checkpoint: which worker images make it whole, and where they lie.

    ran_ms: the run time that is in it, so that going back to it says what is thrown away. took_ms:
    how long the work stood still for it, measured; 0 when it is not known. copies: further nodes
    that have it, by rank; empty: there are none.
    """

    id: ImageId
    nodes: tuple[NodeId, ...]  # one a worker, by rank
    size_bytes: int
    saved_at: Instant
    ran_ms: int = 0
    took_ms: int = 0
    copies: tuple[tuple[NodeId, ...], ...] = ()

    def holders(self, rank: int) -> tuple[NodeId, ...]:
        """The nodes that have the image of this rank; the first is where it was made."""
        return (self.nodes[rank], *(self.copies[rank] if self.copies else ()))


@dataclass(frozen=True, slots=True)
class Speed:
    """A class of devices that work can use, and how fast it is on it.

    product: as `Device.product`. permille: of its speed on the class that it was made for.
    """

    product: str
    permille: int = 1_000


@dataclass(frozen=True, slots=True)
class Demand:
    """What work needs to run. Every worker gets between devices_min and devices_max devices.

    workers: more than one is a gang, placed whole or not at all. memory_bytes: of one worker; 0
    when unknown. milli: the share of a device, for work that needs less than one. pack: how many
    workers may take turns on one set of devices, so that a gang runs on fewer devices than it has
    workers while its world size stays. speeds: the classes that it can use; empty: any of the kind.
    zones: where it may run; empty: anywhere.
    """

    kind: DeviceKind
    devices_min: int
    devices_max: int
    workers: int = 1
    memory_bytes: int = 0
    milli: int = WHOLE
    pack: int = 1
    speeds: tuple[Speed, ...] = ()
    zones: tuple[str, ...] = ()

    @property
    def least(self) -> int:
        """The fewest devices that the whole of it can run on."""
        return self.devices_min * -(-self.workers // self.pack)

    @property
    def most(self) -> int:
        """The devices that it runs on at full speed."""
        return self.devices_max * self.workers

    @property
    def is_elastic(self) -> bool:
        return self.least < self.most


@dataclass(frozen=True, slots=True)
class Terms:
    """What a job's owner asks for besides devices; fixed when it is submitted.

    after: jobs that have to succeed first. deadline: when it shall have ended. estimate_ms: its
    run time at full width, as its owner believes. checkpoint_every_ms: between saves while it
    runs; None: chosen from their cost and the fleet's failures, 0: never.
    """

    after: tuple[WorkId, ...] = ()
    deadline: Instant | None = None
    estimate_ms: int | None = None
    checkpoint_every_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of a work's ledger: the device fraction of it is got_ms / wanted_ms.

    wanted_ms: time in which it should have run at full width. got_ms: time that it did, a narrower
    stretch counted by its share of the full width.
    """

    begins_at: Instant
    wanted_ms: int
    got_ms: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """That work had to give way: to whom and why, what that cost it, when it ran again.

    by: the work that the devices were for; None when its owner or an operator wanted it. lost_ms:
    run time that was thrown away for it (0 for everything that was saved).
    """

    at: Instant
    by: WorkId | None
    reason: str
    devices: int
    lost_ms: int = 0
    back_at: Instant | None = None


@dataclass(frozen=True, slots=True)
class Making:
    """An image that is being made while the work runs on."""

    id: ImageId
    ordered_at: Instant


@dataclass(frozen=True, slots=True)
class Work:
    """The scheduling facts of a job or replica.

    epoch fences: it rises with every placement and every loss, and agents refuse orders and report
    under it. placement: by rank; held while the phase holds devices (frozen: the nodes alone),
    empty otherwise.
    attempts: fresh starts so far. suspends: how often it was saved to make room. lost_ms: run time
    thrown away, a part of ran_ms. image: the newest; image_before: the one to fall back to, kept
    until then. making: an image that is being made while it runs; made: how many were, under this
    epoch. cut: in SAVING, all workers stand still with a whole image, and it counts.
    width: devices in all that its owner wants it to have now; None: as many as there are for it.
    move_to: nodes, by rank or one for all, that it shall be on; empty: no wish.
    failures: of the pool's tries (start, restore) in a row; saves_failed: of its saves;
    not_before: the next try waits.
    stranded: it lost its place by a failure, not to others, and has not run since.
    driven: where it moves to is the pool's choice, and not its owner's.
    ready: what it comes after has succeeded. promised: its tier's promise holds; until it does, the
    work goes before what has no promise and after what has one.
    ran_on: the nodes of its newest placement, by rank, which outlasts that.
    accounted_until: how far its ledger goes. hours, receipts: the newest ones, oldest first.
    served_ms: device-milliseconds that it has had; recent_ms: the same, halved each day.
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
    saves_failed: int = 0
    not_before: Instant = EPOCH
    terms: Terms = Terms()
    making: Making | None = None
    made: int = 0
    cut: bool = False
    width: int | None = None
    move_to: tuple[NodeId, ...] = ()
    ready: bool = True
    promised: bool = True
    ran_on: tuple[NodeId, ...] = ()
    accounted_until: Instant = EPOCH
    served_ms: int = 0
    recent_ms: int = 0
    hours: tuple[Hour, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    stranded: bool = False
    driven: bool = False
    generation: Generation = NO_GENERATION
