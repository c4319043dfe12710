"""What speaks against this node's devices: error counters, looks that fail, and a burn-in.

A source reads one kind of device; what it cannot read it leaves out, since no counter is no
evidence. Memory that a controller reports as bad belongs to no core, so it counts against all cores
of the node. What is found is judged by `core/health.py`.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from onefleet.core.health import Counted, ProbeFailed
from onefleet.domain.fleet import Device, DeviceKind

_SYS = Path("/sys/devices/system")

Finding = Counted | ProbeFailed


class HealthSource(Protocol):
    """Reads the counters of the devices of one kind."""

    @property
    def kind(self) -> DeviceKind: ...

    def read(self, devices: Sequence[Device]) -> Sequence[Finding]:
        """What the counters of these devices, all of the kind, stand at. Blocking, short."""
        ...


@dataclass(frozen=True, slots=True)
class CoreCounters:
    """Cores and their memory: EDAC's counters, machine-check throttling, cores taken offline.

    Sources: Linux Documentation/admin-guide/RAS (edac/mc*/ce_count, ue_count) and
    Documentation/ABI/testing/sysfs-devices-system-cpu (online, thermal_throttle).
    """

    root: Path = _SYS
    kind: DeviceKind = DeviceKind.CPU

    def read(self, devices: Sequence[Device]) -> Sequence[Finding]:
        """See HealthSource.read."""
        found: list[Finding] = []
        for device in devices:
            found.extend(self._core(device))
        for controller in sorted((self.root / "edac" / "mc").glob("mc*")):
            for file, name, fatal in (
                ("ce_count", "corrected memory errors", False),
                ("ue_count", "uncorrected memory errors", True),
            ):
                value = _number(controller / file)
                if value is not None:
                    counter = f"{name} ({controller.name})"
                    found.extend(Counted(d.id, counter, value, fatal) for d in devices)
        return found

    def _core(self, device: Device) -> Sequence[Finding]:
        core = self.root / "cpu" / f"cpu{device.index}"
        if _number(core / "online") == 0:
            return [ProbeFailed(device.id, "the core was taken offline")]
        throttled = _number(core / "thermal_throttle" / "core_throttle_count")
        return [] if throttled is None else [Counted(device.id, "thermal throttling", throttled)]


@dataclass(frozen=True, slots=True)
class GpuCounters:
    """NVIDIA GPUs, through the driver's management library.

    Uncorrected errors and rows that wait to be remapped are fatal until the next reset; a GPU that
    its driver lost is gone.
    """

    kind: DeviceKind = DeviceKind.GPU

    def read(self, devices: Sequence[Device]) -> Sequence[Finding]:
        """See HealthSource.read."""
        nvml: Any = importlib.import_module("pynvml")
        real = [device for device in devices if not device.simulated]
        if not real:
            return []
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return [
                ProbeFailed(device.id, f"its driver does not answer: {error}") for device in real
            ]
        try:
            return [finding for device in real for finding in _gpu(nvml, device)]
        finally:
            nvml.nvmlShutdown()


def _gpu(nvml: Any, device: Device) -> Sequence[Finding]:
    found: list[Finding] = []
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(device.uuid)
    except nvml.NVMLError as error:
        return [ProbeFailed(device.id, f"its driver lost it: {error}")]
    for name, fatal, read in (
        ("corrected ECC errors", False, lambda: _ecc(nvml, handle, "CORRECTED")),
        ("uncorrected ECC errors", True, lambda: _ecc(nvml, handle, "UNCORRECTED")),
        ("failed row remappings", True, lambda: nvml.nvmlDeviceGetRemappedRows(handle)[3]),
    ):
        try:
            found.append(Counted(device.id, name, int(read()), fatal))
        except nvml.NVMLError as error:
            if getattr(error, "value", None) == nvml.NVML_ERROR_GPU_IS_LOST:
                return [ProbeFailed(device.id, f"its driver lost it: {error}")]
            # This GPU has no such counter.
    return found


def _ecc(nvml: Any, handle: Any, kind: str) -> int:
    errors = getattr(nvml, f"NVML_MEMORY_ERROR_TYPE_{kind}")
    return int(nvml.nvmlDeviceGetTotalEccErrors(handle, errors, nvml.NVML_VOLATILE_ECC))


def default_sources() -> tuple[HealthSource, ...]:
    return (CoreCounters(), GpuCounters())


#: A computation whose every step needs the one before, in integers, floats and memory, so that a
#: wrong bit stays wrong to the end; its result is known.
_BURN_IN = """
import hashlib, os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
prime, x, y, block = (1 << 61) - 1, 1, 0.5, bytearray(1 << 16)
for step in range(60_000):
    x = (x * 7 + 11 * step) % prime
    y = 3.99 * y * (1.0 - y)
    block[x % len(block)] ^= step & 255
print(hashlib.sha256(block + x.to_bytes(8, "big") + y.hex().encode()).hexdigest())
"""
#: What the computation comes to, on any machine with IEEE 754 doubles.
BURN_IN_RESULT = "6d6e60fae4ded38cd2669568abbd42b84a6041473c37b3e85206adabf96c8d00"
#: How often it is run: about two seconds in all.
_ROUNDS = 20
_BURN_IN_LIMIT_S = 50.0


async def burn_in(device: Device) -> str:
    """Put load on a device and look at what it computes; "" when all was right, else what was not.

    Cores compute the same thing again and again. Of a GPU only its driver's own view is looked at:
    a computation on it would need a runtime that not every node has.
    """
    if device.kind is not DeviceKind.CPU:
        findings = [f for s in default_sources() if s.kind is device.kind for f in s.read([device])]
        return next((f.reason for f in findings if isinstance(f, ProbeFailed)), "")
    for _ in range(_ROUNDS):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", _BURN_IN, str(device.index),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_BURN_IN_LIMIT_S):
                said, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"a computation did not end within {_BURN_IN_LIMIT_S:.0f} s"
        if process.returncode:
            return f"a computation ended with {process.returncode}"
        if said.decode().strip() != BURN_IN_RESULT:
            return f"a computation came to {said.decode().strip()[:16]}, not {BURN_IN_RESULT[:16]}"
    return ""


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
