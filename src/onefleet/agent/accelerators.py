"""One abstraction of accelerators: how a worker gets devices, and who saves what it has on them.

A new kind is a line in ACCELERATORS, and a probe in `agent.devices`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from onefleet.domain.fleet import CheckpointMode, Device, DeviceKind
from onefleet.drivers.base import Capability, Driver
from onefleet.drivers.gpu_support import GANG_SETTINGS, why_not


class Given(StrEnum):
    """How a worker is held to the devices that it was given."""

    AFFINITY = "affinity"  # the kernel runs its threads on no other core
    ENVIRONMENT = "environment"  # the devices' own library shows it no other
    NOTHING = "nothing"  # it is told nothing


class SavedBy(StrEnum):
    """Who saves what a worker has on such devices, when it is saved without its help."""

    PROCESS = "process"  # its state is in the process's memory, and saved with that
    DRIVER = "driver"  # the devices' driver takes it into the process's memory first
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """why_not: why nobody saves their state."""

    given: Given
    saved_by: SavedBy
    why_not: str = ""


ACCELERATORS: Mapping[DeviceKind, Accelerator] = {
    DeviceKind.CPU: Accelerator(Given.AFFINITY, SavedBy.PROCESS),
    DeviceKind.GPU: Accelerator(Given.ENVIRONMENT, SavedBy.DRIVER),
    DeviceKind.FPGA: Accelerator(
        Given.NOTHING, SavedBy.NOBODY, "no driver of an FPGA takes a circuit's state out of it"
    ),
    DeviceKind.ASIC: Accelerator(
        Given.NOTHING, SavedBy.NOBODY, "no driver of such an ASIC takes its state out of it"
    ),
}


def cores(held: Sequence[Device]) -> tuple[int, ...]:
    """The cores that a worker may run on; empty: all."""
    return tuple(d.index for d in _real(held) if ACCELERATORS[d.kind].given is Given.AFFINITY)


def gpus(held: Sequence[Device]) -> tuple[str, ...]:
    """The UUIDs of those whose state their driver saves."""
    return tuple(d.uuid for d in _real(held) if ACCELERATORS[d.kind].saved_by is SavedBy.DRIVER)


def environment(held: Sequence[Device], workers: int) -> dict[str, str]:
    """What tells a worker which devices are its own. workers: of its job.

    GPUs by UUID: their numbers change when one of them fails. A worker without any sees none.
    """
    mine = [d.uuid for d in _real(held) if d.kind is DeviceKind.GPU]
    seen = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(mine)}
    return seen | (GANG_SETTINGS if mine and workers > 1 else {})


def why_not_saved(held: Sequence[Device], workers: int, gpus_why: str, driver: str) -> str:
    """Why a worker that has these devices cannot be saved from outside; empty: it can.

    gpus_why: why one GPU's state is not saved on this node, empty when it was proved. driver: the
    version of their driver.
    """
    for device in _real(held):
        found = ACCELERATORS[device.kind]
        if found.saved_by is SavedBy.NOBODY:
            return found.why_not
        if found.saved_by is SavedBy.DRIVER and gpus_why:
            return gpus_why
    count = len(gpus(held)) * workers
    return why_not(driver, platform.machine(), count) if count else ""


def _real(held: Sequence[Device]) -> list[Device]:
    return [device for device in held if not device.simulated]


class GpuProof:
    """Whether the state of this node's GPUs is saved with its jobs; tried before it is believed.

    driver: the version of the GPUs' driver.
    """

    def __init__(self, devices: Sequence[Device], driver: str) -> None:
        self._gpus = gpus(devices)
        self._driver = driver
        self.capability = Capability(CheckpointMode.NONE, "not tried yet", "")

    async def prove(self, driver: Driver) -> None:
        """Try it with the driver that saves this node's jobs. Nothing to do without GPUs, or where
        it was proved since the machine started: jobs may be on them now, and leave it no room."""
        if self._gpus and self.capability.mode is not CheckpointMode.CRIU:
            self.capability = await driver.probe_gpus(self._gpus)

    def why_not(self, held: Sequence[Device], workers: int) -> str:
        """See `why_not_saved`."""
        saved = self.capability.mode is CheckpointMode.CRIU
        return why_not_saved(held, workers, "" if saved else self.capability.reason, self._driver)
