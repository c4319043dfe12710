"""Between the control plane and a node's agent: one call, both ways, level-triggered.

The agent posts what it sees (`NodeReport`) to ``/internal/agent/sync`` and gets what should be
(`NodeOrders`). Neither side sends differences: a lost or repeated call changes nothing. Orders
carry the epoch of their work; an agent refuses an older epoch than it has seen, and the control
plane ignores reports of an older one. The control plane may hold the call until something
changes, at most `NodeReport.wait_ms`.

A gang is saved in two phases, so that its image is of one moment. With `Order.hold` each worker is
saved and then stands still (SAVE_HELD); when all stand, the save counts, and the orders come
without `hold`: each gives its process up (SAVED). If one fails before that, the orders say RUN, and
all run on. A restore is held in the same way until all are there (RESTORE_HELD, then RUN without
`hold`), and so is an image that is made while it runs (`Order.making`): the orders name it among
their images from when it counts, and not at all when it does not.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from onefleet.domain.fleet import CheckpointMode, Cordon, Device
from onefleet.domain.ids import DeviceId, Generation, ImageId, Instant, NodeId, WorkId
from onefleet.domain.work import WHOLE

#: The name of the node that the pool's own machine is.
LOCAL_NODE = "local"


def node_id(name: str) -> NodeId:
    """A node keeps its id over restarts: it is made of its name."""
    return NodeId(f"node-{name}")


class OrderVerb(StrEnum):
    """What the agent shall bring about for one worker; each is idempotent."""

    RUN = "run"  # have it running: start it, or restore it from `image` when one is named
    SAVE = "save"  # save its state as `image` and free its memory and devices
    FREEZE = "freeze"  # let it stand still: its devices are free, its memory stays
    STOP = "stop"  # end its processes and report the end
    KEEP = "keep"  # nothing runs here, but keep the files of `image`, or fetch them


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica's engine process is started with."""

    engine: str
    model_id: str
    purpose: str
    path: str
    revision: str
    slots: int
    context_length: int
    served_name: str
    options: dict[str, str] = {}


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a job's worker is started with. width: devices of one worker at full width. index: its
    number in its array; None where it is in none."""

    name: str
    tenant_id: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    code: str | None = None  # digest of the packaged code folder
    network: str = "cell"
    workers: int = 1
    width: int = 1
    index: int | None = None


class GangSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where the machines of a gang are.

    node: the address of the node of this order for the others, and nodes: those of the others;
    both empty when the gang lies on one machine. master: the address of the node of rank 0.
    """

    node: str = ""
    nodes: tuple[str, ...] = ()
    master: str = ""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A node that has an image of the order's worker. ticket: what opens it there."""

    node_id: NodeId
    address: str
    ticket: str


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The desired state of one worker on this node. Exactly one of job and engine is set.

    hold: stand still when it is saved, or restored, until orders come without it. making: an image
    that shall be made of it while it runs. sources: nodes that have `image`. milli: the share of
    each device that is its own. in_memory: a save may leave its files in memory, if there is room:
    only the devices are to be free, and soon to be used again. limit_ms: how long a save may take
    before it is broken off, and the job ended; 0: as long as any. soon: what is kept here is about
    to run here. coming: `image` is being made, and counts only when an order says so without this.
    """

    work_id: WorkId
    rank: int
    epoch: Generation
    verb: OrderVerb
    devices: tuple[DeviceId, ...] = ()
    image: ImageId | None = None
    keep: tuple[ImageId, ...] = ()  # further images to fall back to; they must not be removed
    hold: bool = False
    making: ImageId | None = None
    sources: tuple[Source, ...] = ()
    milli: int = WHOLE
    in_memory: bool = False
    limit_ms: int = 0
    soon: bool = False
    coming: bool = False
    grace_ms: int = 10_000  # between asking a process to end and killing it
    job: JobSpec | None = None
    gang: GangSpec | None = None
    engine: EngineSpec | None = None

    @property
    def images(self) -> tuple[ImageId, ...]:
        """The images that count: the others may go."""
        return self.keep if self.image is None else (self.image, *self.keep)


class NodeOrders(msgspec.Struct, frozen=True, kw_only=True):
    """All that this node shall do. A worker that is not named has no business here: end it.

    door: the secret that tickets for this node's images are made with.
    """

    node_id: NodeId
    generation: Generation  # of the state that the orders were made from
    lease_ms: int  # from when the agent asked for this answer, work may run this long unrenewed
    orders: tuple[Order, ...]
    door: str = ""


class Observed(StrEnum):
    """What the agent sees of one worker."""

    STARTING = "starting"
    RUNNING = "running"  # an engine: and it answers
    FROZEN = "frozen"  # it stands still, and its memory stays
    SAVING = "saving"
    SAVE_HELD = "save_held"  # `image` is whole and durable, and it stands still
    SAVED = "saved"  # `image` is whole and durable on this node; nothing runs
    SAVE_FAILED = "save_failed"  # it runs on, unharmed
    FETCHING = "fetching"  # its image comes from another node
    RESTORING = "restoring"
    RESTORE_HELD = "restore_held"  # all of it is there again, and nothing moves
    RESTORE_FAILED = "restore_failed"  # nothing runs; the image is kept
    STOPPING = "stopping"
    ENDED = "ended"  # exit_code is set


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an image that was ordered while the worker runs. error: why there is none.

    took_ms: how long it stood still for it.
    """

    image: ImageId
    image_bytes: int = 0
    took_ms: int = 0
    error: str = ""


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of one worker now. images: all that are whole here, oldest first."""

    work_id: WorkId
    rank: int
    epoch: Generation
    observed: Observed
    reason: str = ""  # of a failure or an end, a person's line
    exit_code: int | None = None  # 128 + signal for a process that a signal ended
    image: ImageId | None = None
    image_bytes: int = 0
    image_lost_ms: int = 0  # work just before the save that is not in the image (cooperative)
    image_took_ms: int = 0  # how long it stood still before its memory was free
    images: tuple[ImageId, ...] = ()
    made: Made | None = None
    memory_bytes: int = 0  # resident now
    cpu_ms: int = 0  # used so far by its processes
    host: str = ""  # engines: where it listens
    port: int = 0
    checkpoint_mode: CheckpointMode = CheckpointMode.NONE
    turns: int = 0  # how many take turns on its core or its GPUs, it included; 0: it takes none
    checkpoint_reason: str = ""  # what of its devices keeps criu from saving it


class NodeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of one node now. address: as `Node.address`. identity: of its data folder, by
    chance; two agents of one name are told apart by it. data_dir: that folder, for people. cordons:
    devices that its agent found to be bad."""

    node_id: NodeId
    name: str
    devices: tuple[Device, ...]
    memory_bytes: int
    memory_free_bytes: int
    cpu_busy_permille: int  # of all cores, since the last report
    checkpoint_mode: CheckpointMode
    checkpoint_reason: str
    seen: Generation  # the generation of the last orders, 0 at first
    wait_ms: int  # how long the answer may be held when there is nothing new
    workers: tuple[WorkerReport, ...]
    sent_at: Instant
    region: str = ""
    zone: str = ""
    address: str = ""
    identity: str = ""
    data_dir: str = ""
    cordons: tuple[Cordon, ...] = ()
