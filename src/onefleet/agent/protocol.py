"""What goes into the worker machine and what comes out of it: events and effects as data.

The shell turns what happens into events and effects into driver calls. Each effect but `Report`
is answered by exactly one `Done` with the same key and verb; until then the machine asks nothing
more of that worker, so that no two driver calls ever work on one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from onefleet.domain.ids import DeviceId, Generation, ImageId, Instant, WorkId
from onefleet.domain.work import WHOLE
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
    FINISH = "finish"
    FREEZE = "freeze"
    THAW = "thaw"
    PIN = "pin"
    FETCH = "fetch"
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
    """Bring it back from an image on this node. hold: and let nothing move yet."""

    key: WorkerKey
    order: Order
    image: ImageId
    hold: bool = False
    verb: Verb = Verb.RESTORE


@dataclass(frozen=True, slots=True)
class Save:
    """Save its state and free its memory. hold: it stands still when it is saved, and Finish
    follows. runs_on: it is not to be given up. in_memory: its image may take memory, if there is
    room. limit_ms: as in `Driver.save`."""

    key: WorkerKey
    image: ImageId
    hold: bool = False
    runs_on: bool = False
    in_memory: bool = False
    limit_ms: int = 0
    verb: Verb = Verb.SAVE


@dataclass(frozen=True, slots=True)
class Finish:
    """End the hold of a save or restore, as `Driver.finish`."""

    key: WorkerKey
    image: ImageId
    commit: bool
    verb: Verb = Verb.FINISH


@dataclass(frozen=True, slots=True)
class Freeze:
    """Let it stand still."""

    key: WorkerKey
    verb: Verb = Verb.FREEZE


@dataclass(frozen=True, slots=True)
class Thaw:
    """Bind it to these devices, and let it run on."""

    key: WorkerKey
    devices: tuple[DeviceId, ...]
    verb: Verb = Verb.THAW


@dataclass(frozen=True, slots=True)
class Pin:
    """Bind it to these devices as it runs."""

    key: WorkerKey
    devices: tuple[DeviceId, ...]
    verb: Verb = Verb.PIN


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the image of the order from its sources, for a while: the answer may be that more is to
    come."""

    key: WorkerKey
    order: Order
    image: ImageId
    verb: Verb = Verb.FETCH


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


Act = Start | Restore | Save | Finish | Freeze | Thaw | Pin | Fetch | Stop | Prune | Discard
Effect = Act | Report


# --- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OrdersReceived:
    """The answer to a report. asked_at: when the call began; the lease counts from there, so that
    it is over before the control plane believes it to be, however slow the network was."""

    orders: NodeOrders
    asked_at: Instant


@dataclass(frozen=True, slots=True)
class Done:
    """An effect's outcome. error: empty when it was done, else a person's line.

    exit_code: of what a stop ended, or of a command that could not be started (126, 127). lost_ms:
    of a save: work just before it that is not in the image; took_ms: how long it stood still; over:
    the worker has ended without an image. more: of a fetch: it is not all there yet.
    """

    key: WorkerKey
    verb: Verb
    error: str = ""
    exit_code: int | None = None
    image_bytes: int = 0
    lost_ms: int = 0
    took_ms: int = 0
    over: bool = False
    more: bool = False


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


class HoldKind(StrEnum):
    """What a worker stands still in the middle of."""

    SAVE = "save"
    MAKING = "making"  # of an image that is made while it runs
    RESTORE = "restore"


class Hold(NamedTuple):
    """A worker stands still, all of `image` being here, until Finish says how that ends."""

    kind: HoldKind
    image: ImageId


@dataclass(frozen=True, slots=True)
class Adopted:
    """A worker of an earlier agent. state None: only its files are here.

    epoch: that its process was started under, 0 if it never was. image: what it was last saved
    as, or was being saved as. images: all that lie here. devices, milli: that its process was
    given. binding: those that it was being given instead. hold: that it was brought into, or was
    being, and that nobody has ended.
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
    binding: tuple[DeviceId, ...] = ()
    milli: int = WHOLE
    hold: Hold | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """The pool goes down: save the jobs, end the replicas, start nothing more."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = OrdersReceived | Done | StatusSeen | Ready | Unfit | Adopted | Drain | Tick
