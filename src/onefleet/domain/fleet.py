"""Nodes and their devices. Fleet > Region > Zone > Node > Device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from onefleet.domain.ids import NO_GENERATION, DeviceId, Generation, Instant, NodeId


class DeviceKind(StrEnum):
    """What a device is; one contract for all (the accelerator abstraction)."""

    CPU = "cpu"  # one core
    GPU = "gpu"
    FPGA = "fpga"
    ASIC = "asic"


@dataclass(frozen=True, slots=True)
class Device:
    """One schedulable device. A simulated device never counts as measured.

    uuid: the name that its maker gave it for good; empty for a device that its index names.
    """

    id: DeviceId
    kind: DeviceKind
    index: int  # the number by which the operating system or its driver knows it
    product: str  # "AMD EPYC 9R14", "NVIDIA H200"
    memory_bytes: int  # device memory; for a CPU core its share of the node's memory
    simulated: bool = False
    uuid: str = ""


class NodeState(StrEnum):
    READY = "ready"
    DRAINING = "draining"  # keeps what runs, gets nothing new
    LOST = "lost"  # its lease ran out


class CheckpointMode(StrEnum):
    """How a job can be saved on a node, best first."""

    CRIU = "criu"  # transparent: the process tree is saved from outside
    COOPERATIVE = "cooperative"  # SIGTERM, and the program saves itself
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Cordon:
    """A device that gets no work: who or what says so, and why.

    until: when it is looked at again, with a burn-in; None: only a person takes it back.
    """

    device_id: DeviceId
    reason: str
    since: Instant
    until: Instant | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with an agent. lease_expires_at: until when its work may run unrenewed.

    address: where other agents fetch images from, "host:port"; empty: they cannot. cordons: its
    devices that get no work, by device.
    """

    id: NodeId
    name: str
    state: NodeState
    devices: tuple[Device, ...]
    memory_bytes: int
    checkpoint_mode: CheckpointMode
    checkpoint_reason: str  # why it is not criu; empty when it is
    lease_expires_at: Instant
    joined_at: Instant
    region: str = ""
    zone: str = ""
    address: str = ""
    cordons: tuple[Cordon, ...] = ()
    generation: Generation = NO_GENERATION
