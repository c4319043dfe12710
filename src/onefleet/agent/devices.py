"""Finds this node's devices, and how busy the node is.

One `DeviceProbe` a kind. CPU cores are devices of their own: a job's or replica's cores are given
to it by affinity. A core's memory is its share of the node's, so that memory is never promised
twice. FPGA and ASIC kinds have no probe here yet; a probe for one is a class like these.
"""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from onefleet.domain.errors import InvalidRequest
from onefleet.domain.fleet import Device, DeviceKind
from onefleet.domain.ids import DeviceId, NodeId

log = structlog.get_logger()

_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_STAT = Path("/proc/stat")
#: How much of a UUID tells the GPUs of a node apart.
_UUID_SHOWN = 8


class DeviceProbe(Protocol):
    """Finds the devices of one kind."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> DeviceKind: ...

    def discover(self, node_id: NodeId) -> Sequence[Device]:
        """The devices that this process may use, by index; empty when there are none."""
        ...


@dataclass(frozen=True, slots=True)
class CpuProbe:
    """The cores that this process may run on, cut down to the control group's quota."""

    cgroup: Path = _CGROUP
    name: str = "cpu"
    kind: DeviceKind = DeviceKind.CPU

    def discover(self, node_id: NodeId) -> Sequence[Device]:
        """One device a core."""
        cores = sorted(os.sched_getaffinity(0))
        quota = cpu_quota(self.cgroup)
        if quota is not None and quota < len(cores):
            log.info("cores are limited by the control group", cores=len(cores), quota=quota)
            cores = cores[: max(quota, 1)]
        share = memory_bytes(self.cgroup)[0] // len(cores)
        product = cpu_product()
        return [_device(node_id, self.kind, core, product, share) for core in cores]


@dataclass(frozen=True, slots=True)
class NvidiaProbe:
    """NVIDIA GPUs, through the driver's management library; their identity is their UUID."""

    name: str = "nvidia"
    kind: DeviceKind = DeviceKind.GPU

    def discover(self, node_id: NodeId) -> Sequence[Device]:
        """One device a GPU; none where the driver is not there or does not answer."""
        pynvml: Any = importlib.import_module("pynvml")
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.info("no NVIDIA devices", reason=str(error))
            return []
        try:
            return [self._one(pynvml, node_id, i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            log.warning("NVIDIA devices cannot be read", reason=str(error))
            return []
        finally:
            pynvml.nvmlShutdown()

    def _one(self, pynvml: Any, node_id: NodeId, index: int) -> Device:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        product = pynvml.nvmlDeviceGetName(handle)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        found = _device(node_id, self.kind, index, str(product), int(memory))
        # When a GPU fails, those behind it get other numbers; an id must go on meaning the same.
        name = f"{self.kind}-{uuid.removeprefix('GPU-')[:_UUID_SHOWN]}"
        return replace(found, id=DeviceId(f"{node_id}/{name}"), uuid=uuid)


def nvidia_driver() -> str:
    """The version of the NVIDIA driver; empty where there is none."""
    pynvml: Any = importlib.import_module("pynvml")
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return ""


@dataclass(frozen=True, slots=True)
class SimulatedProbe:
    """Devices that do not exist, for demonstrations and tests; they say so."""

    kind: DeviceKind
    count: int
    memory_bytes: int = 16 << 30
    name: str = "simulated"

    def discover(self, node_id: NodeId) -> Sequence[Device]:
        """`count` devices of the kind, marked as simulated."""
        product = f"simulated {self.kind}"
        return [
            _device(node_id, self.kind, i, product, self.memory_bytes, simulated=True)
            for i in range(self.count)
        ]


@dataclass(frozen=True, slots=True)
class Only:
    """Some of the devices of another probe, by index: the rest is of other nodes here."""

    probe: DeviceProbe
    indices: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.probe.name

    @property
    def kind(self) -> DeviceKind:
        return self.probe.kind

    def discover(self, node_id: NodeId) -> Sequence[Device]:
        """Those of the indices. Raises InvalidRequest when there is one that is not there."""
        found = {device.index: device for device in self.probe.discover(node_id)}
        if missing := [index for index in self.indices if index not in found]:
            raise InvalidRequest(
                f"this machine has no {self.kind} {', '.join(map(str, missing))}",
                why=f"it has {', '.join(map(str, found)) or 'none'}",
            )
        return [found[index] for index in self.indices]


def default_probes(
    cpus: Sequence[int] | None = None, gpus: Sequence[int] | None = None
) -> tuple[DeviceProbe, ...]:
    """What a node looks for. cpus, gpus: those that it has; None: all of them."""
    probes: list[DeviceProbe] = []
    for probe, chosen in ((CpuProbe(), cpus), (NvidiaProbe(), gpus)):
        if chosen is None:
            probes.append(probe)
        elif chosen:
            probes.append(Only(probe, tuple(chosen)))
    return tuple(probes)


def discover(node_id: NodeId, probes: Sequence[DeviceProbe]) -> tuple[Device, ...]:
    """All devices of the node, in the order of the probes."""
    return tuple(device for probe in probes for device in probe.discover(node_id))


def cpu_quota(cgroup: Path = _CGROUP) -> int | None:
    """Whole cores that the control group grants (version 2, then 1); None: no limit."""
    words = _read(cgroup / "cpu.max").split()
    if len(words) != 2:
        words = [_read(cgroup / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None  # "max" or -1
    return max(int(words[0]) // int(words[1]), 1)


def memory_bytes(cgroup: Path = _CGROUP) -> tuple[int, int]:
    """(total, free) memory of the node, within the control group's limit."""
    values = dict(line.partition(":")[::2] for line in _read(_MEMINFO).splitlines())
    total, free = (
        int(values.get(name, "0 kB").split()[0]) * 1024 for name in ("MemTotal", "MemAvailable")
    )
    for limit_file, used_file in (
        (cgroup / "memory.max", cgroup / "memory.current"),
        (cgroup / "memory" / "memory.limit_in_bytes", cgroup / "memory" / "memory.usage_in_bytes"),
    ):
        limit, used = _read(limit_file), _read(used_file)
        if limit.isdigit() and used.isdigit() and int(limit) < total:
            return int(limit), min(free, max(int(limit) - int(used), 0))
    return total, free


def cpu_product() -> str:
    """The processor's name as its maker gives it."""
    for line in _read(_CPUINFO).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


class CpuMeter:
    """How busy all cores were since the last reading."""

    def __init__(self) -> None:
        self._last = _cpu_ticks()

    def busy_permille(self) -> int:
        """0..1000; 0 when no time has passed."""
        busy, total = _cpu_ticks()
        last_busy, last_total = self._last
        self._last = (busy, total)
        return min((busy - last_busy) * 1000 // max(total - last_total, 1), 1000)


def _cpu_ticks() -> tuple[int, int]:
    """(busy, total) ticks of all cores since the machine started; proc(5), /proc/stat."""
    ticks = [int(word) for word in _read(_STAT).partition("\n")[0].split()[1:9]]
    idle = sum(ticks[3:5])  # idle and waiting for disks
    return sum(ticks) - idle, sum(ticks)


def _device(
    node_id: NodeId,
    kind: DeviceKind,
    index: int,
    product: str,
    memory: int,
    simulated: bool = False,
) -> Device:
    return Device(
        id=DeviceId(f"{node_id}/{kind}{index}"),
        kind=kind,
        index=index,
        product=product,
        memory_bytes=memory,
        simulated=simulated,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
