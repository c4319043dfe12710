"""What goes into the worker machine and what comes out of it: events and effects as data.

The shell turns what happens into events and effects into driver calls. Each effect but `Report`
is answered by exactly one `Done` with the same key and verb; until then the machine asks nothing
more of that worker, so that no two driver calls ever work on one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from onefleet.domain.ids import DeviceId, Generation, ImageId, WorkId
from onefleet.drivers.base import WorkerState
from onefleet.wire.agent import NodeOrders, Order


class WorkerKey(NamedTuple):
    """One worker on this node."""

    work_id: WorkId
    rank: int


class Verb(StrEnum):
    """What the shell is asked to do for one worker."""

    START = "start"
    RESTORE = "restore"
    SAVE = "save"
    STOP = "stop"
    PRUNE = "prune"  # remove its images, but for the named ones
    DISCARD = "discard"  # it has no business here any more: clean its folder


# --- effects -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start it afresh as the order says."""

    key: WorkerKey
    order: Order
    verb: Verb = Verb.START


@dataclass(frozen=True, slots=True)
class Restore:
    """Bring it back from an image on this node."""

    key: WorkerKey
    order: Order
    image: ImageId
    verb: Verb = Verb.RESTORE


@dataclass(frozen=True, slots=True)
class Save:
    """Save its state and free its memory."""

    key: WorkerKey
    image: ImageId
    verb: Verb = Verb.SAVE


@dataclass(frozen=True, slots=True)
class Stop:
    """End its process tree."""

    key: WorkerKey
    grace_ms: int
    verb: Verb = Verb.STOP


@dataclass(frozen=True, slots=True)
class Prune:
    """Remove the images that nobody can ask for any more."""

    key: WorkerKey
    keep: tuple[ImageId, ...]
    verb: Verb = Verb.PRUNE


@dataclass(frozen=True, slots=True)
class Discard:
    """Remove what was needed to run it; what its owner may want to read stays for a while."""

    key: WorkerKey
    verb: Verb = Verb.DISCARD


@dataclass(frozen=True, slots=True)
class Report:
    """Something that the control plane does not know yet: sync now."""


Act = Start | Restore | Save | Stop | Prune | Discard
Effect = Act | Report


# --- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OrdersReceived:
    orders: NodeOrders


@dataclass(frozen=True, slots=True)
class Done:
    """An effect's outcome. error: empty when it was done, else a person's line.

    exit_code: of what a stop ended, or of a command that could not be started (126, 127).
    """

    key: WorkerKey
    verb: Verb
    error: str = ""
    exit_code: int | None = None
    image_bytes: int = 0
    lost_ms: int = 0  # of a save: work just before it that is not in the image


@dataclass(frozen=True, slots=True)
class StatusSeen:
    """What a driver says of a worker that was started or restored under `epoch`."""

    key: WorkerKey
    epoch: Generation
    state: WorkerState
    exit_code: int | None = None
    reason: str = ""
    image_bytes: int = 0
    lost_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """A replica's engine answers at this address."""

    key: WorkerKey
    epoch: Generation
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Unfit:
    """A replica's engine does not get ready, or answers no more: it is to be ended."""

    key: WorkerKey
    epoch: Generation
    reason: str


@dataclass(frozen=True, slots=True)
class Adopted:
    """A worker of an earlier agent. state None: only its files are here.

    epoch: that its process was started under, 0 if it never was. image: what it was last saved
    as, or was being saved as. images: all that lie here. devices: that its process was given.
    """

    key: WorkerKey
    is_job: bool
    epoch: Generation
    grace_ms: int
    state: WorkerState | None
    exit_code: int | None = None
    reason: str = ""
    image: ImageId | None = None
    images: tuple[ImageId, ...] = ()
    image_bytes: int = 0
    lost_ms: int = 0
    devices: tuple[DeviceId, ...] = ()


@dataclass(frozen=True, slots=True)
class Drain:
    """The pool goes down: save the jobs, end the replicas, start nothing more."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = OrdersReceived | Done | StatusSeen | Ready | Unfit | Adopted | Drain | Tick
