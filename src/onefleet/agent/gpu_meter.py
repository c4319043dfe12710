"""Who is on this node's GPUs, and who makes use of them: as their driver's management library sees
it from outside, of processes by their ids on this machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class Use(NamedTuple):
    """Of one GPU; None: nobody can tell. holders: processes that have memory on it. users: those
    that computed on it since it was read last, or for a while before that was done first.
    """

    holders: frozenset[int] | None = None
    users: frozenset[int] | None = None


class GpuMeter(Protocol):
    """Looks at GPUs by their UUIDs."""

    def read(self, gpus: Sequence[str]) -> Mapping[str, Use]:
        """What of these can be seen. Blocking, short."""
        ...

    def holders(self, gpus: Sequence[str]) -> Mapping[str, frozenset[int] | None]:
        """The holders alone. Who computed is still told by the next `read`, to whoever calls it."""
        ...


class NvidiaMeter:
    """NVIDIA GPUs. The driver's samples are averages over up to a second."""

    def __init__(self) -> None:
        self._sampled_us: dict[str, int] = {}  # the newest sample's time, by the driver's clock

    def read(self, gpus: Sequence[str]) -> Mapping[str, Use]:
        """See GpuMeter.read."""
        return self._look(gpus, users=True)

    def holders(self, gpus: Sequence[str]) -> Mapping[str, frozenset[int] | None]:
        """See GpuMeter.holders."""
        return {gpu: use.holders for gpu, use in self._look(gpus, users=False).items()}

    def _look(self, gpus: Sequence[str], users: bool) -> dict[str, Use]:
        nvml: Any = importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return {}
        try:
            return {gpu: self._use(nvml, gpu, users) for gpu in gpus}
        finally:
            nvml.nvmlShutdown()

    def _use(self, nvml: Any, gpu: str, users: bool) -> Use:
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(gpu)
            found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError:
            return Use()
        held = frozenset(int(p.pid) for p in found)
        return Use(held, self._users(nvml, handle, gpu) if users else None)

    def _users(self, nvml: Any, handle: Any, gpu: str) -> frozenset[int] | None:
        since = self._sampled_us.get(gpu, 0)
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(handle, since)
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_NOT_FOUND:  # no sample is newer
                return frozenset()
            return self._of_all(nvml, handle)
        newer = [s for s in samples if s.timeStamp > since]
        self._sampled_us[gpu] = max([since, *(int(s.timeStamp) for s in newer)])
        return frozenset(int(s.pid) for s in newer if s.smUtil or s.memUtil)

    def _of_all(self, nvml: Any, handle: Any) -> frozenset[int] | None:
        """Of a GPU that does not count by process: nobody, where it was not used at all."""
        try:
            return None if nvml.nvmlDeviceGetUtilizationRates(handle).gpu else frozenset()
        except nvml.NVMLError:
            return None
