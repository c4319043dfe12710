"""Between the control plane and a node's agent: one call, both ways, level-triggered.

The agent posts what it sees (`NodeReport`) to ``/internal/agent/sync`` and gets what should be
(`NodeOrders`). Neither side sends differences: a lost or repeated call changes nothing. Orders
carry the epoch of their work; an agent refuses an older epoch than it has seen, and the control
plane ignores reports of an older one. The control plane may hold the call until something
changes, at most `NodeReport.wait_ms`.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from onefleet.domain.fleet import CheckpointMode, Device
from onefleet.domain.ids import DeviceId, Generation, ImageId, Instant, NodeId, WorkId


class OrderVerb(StrEnum):
    """What the agent shall bring about for one worker; each is idempotent."""

    RUN = "run"  # have it running: start it, or restore it from `image` when one is named
    SAVE = "save"  # save its state as `image` and free its memory and devices
    STOP = "stop"  # end its processes and report the end
    KEEP = "keep"  # nothing runs here, but keep the files of `image`


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
    """What a job's worker is started with."""

    name: str
    tenant_id: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    code: str | None = None  # digest of the packaged code folder
    network: str = "cell"
    workers: int = 1


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The desired state of one worker on this node. Exactly one of job and engine is set."""

    work_id: WorkId
    rank: int
    epoch: Generation
    verb: OrderVerb
    devices: tuple[DeviceId, ...] = ()
    image: ImageId | None = None
    keep: tuple[ImageId, ...] = ()  # further images to fall back to; they must not be removed
    grace_ms: int = 10_000  # between asking a process to end and killing it
    job: JobSpec | None = None
    engine: EngineSpec | None = None


class NodeOrders(msgspec.Struct, frozen=True, kw_only=True):
    """All that this node shall do. A worker that is not named has no business here: end it."""

    node_id: NodeId
    generation: Generation  # of the state that the orders were made from
    lease_ms: int  # from the receipt of this answer, work may run this long unrenewed
    orders: tuple[Order, ...]


class Observed(StrEnum):
    """What the agent sees of one worker."""

    STARTING = "starting"
    RUNNING = "running"  # an engine: and it answers
    SAVING = "saving"
    SAVED = "saved"  # `image` is whole and durable on this node; nothing runs
    SAVE_FAILED = "save_failed"  # it runs on, unharmed
    RESTORING = "restoring"
    RESTORE_FAILED = "restore_failed"  # nothing runs; the image is kept
    STOPPING = "stopping"
    ENDED = "ended"  # exit_code is set


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of one worker now."""

    work_id: WorkId
    rank: int
    epoch: Generation
    observed: Observed
    reason: str = ""  # of a failure or an end, a person's line
    exit_code: int | None = None  # 128 + signal for a process that a signal ended
    image: ImageId | None = None
    image_bytes: int = 0
    image_lost_ms: int = 0  # work just before the save that is not in the image (cooperative)
    memory_bytes: int = 0  # resident now
    cpu_ms: int = 0  # used so far by its processes
    host: str = ""  # engines: where it listens
    port: int = 0
    checkpoint_mode: CheckpointMode = CheckpointMode.NONE
    checkpoint_reason: str = ""  # what of its devices keeps criu from saving it


class NodeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of one node now."""

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
