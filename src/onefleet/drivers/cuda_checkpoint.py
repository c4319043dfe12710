"""The CUDA driver's calls that take a process's state off its GPUs, through cuda-bindings.

They are called from a process of their own (`device_calls`): a restore needs an initialised CUDA,
which no long-lived daemon of ours should hold, and a call that hangs can only be left by dying.
https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__CHECKPOINT.html
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping
from typing import Any

from onefleet.domain.errors import Unsupported
from onefleet.drivers.device_checkpoint import DeviceError, DeviceErrorKind, DeviceState

_STATES = {
    "CU_PROCESS_STATE_RUNNING": DeviceState.RUNNING,
    "CU_PROCESS_STATE_LOCKED": DeviceState.LOCKED,
    "CU_PROCESS_STATE_CHECKPOINTED": DeviceState.CHECKPOINTED,
    "CU_PROCESS_STATE_FAILED": DeviceState.FAILED,
    "CU_PROCESS_STATE_CHECKPOINTING": DeviceState.BUSY,
    "CU_PROCESS_STATE_RESTORING": DeviceState.BUSY,
}
_KINDS = {
    "CUDA_ERROR_NOT_READY": DeviceErrorKind.NOT_READY,
    "CUDA_ERROR_ILLEGAL_STATE": DeviceErrorKind.ILLEGAL_STATE,
    "CUDA_ERROR_NOT_SUPPORTED": DeviceErrorKind.NOT_SUPPORTED,
    "CUDA_ERROR_NOT_INITIALIZED": DeviceErrorKind.NOT_INITIALIZED,
    "CUDA_ERROR_INVALID_VALUE": DeviceErrorKind.INVALID_VALUE,
    "CUDA_ERROR_OUT_OF_MEMORY": DeviceErrorKind.OUT_OF_MEMORY,
}
#: What the driver says of a process that does not use CUDA.
_NO_CUDA = (DeviceErrorKind.NOT_INITIALIZED, DeviceErrorKind.INVALID_VALUE)
_SUCCESS = "CUDA_SUCCESS"


def load() -> Any:
    """cuda-bindings' driver module. Raises Unsupported, with what to install."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise Unsupported(
            "the CUDA driver cannot be called",
            why=f"the package cuda-bindings is not installed ({error})",
            hint="install cuda-bindings (the extra gpu) into the environment of onefleet",
        ) from error


class CudaCheckpoint:
    """A `DeviceCheckpoint` of NVIDIA GPUs; devices are named by UUID, as "GPU-01234567-..."."""

    def __init__(self, driver: Any) -> None:
        """driver: what `load` returned."""
        self._driver = driver
        self._initialised = False

    def state(self, pid: int) -> DeviceState:
        """See DeviceCheckpoint.state."""
        try:
            (state,) = self._call("cuCheckpointProcessGetState", pid)
        except DeviceError as error:
            if error.kind in _NO_CUDA:
                return DeviceState.NONE
            raise
        return _STATES.get(state.name, DeviceState.BUSY)

    def lock(self, pid: int, limit_ms: int) -> None:
        """See DeviceCheckpoint.lock."""
        arguments = self._driver.CUcheckpointLockArgs()
        arguments.timeoutMs = limit_ms
        self._call("cuCheckpointProcessLock", pid, arguments)

    def checkpoint(self, pid: int) -> None:
        """See DeviceCheckpoint.checkpoint."""
        self._call("cuCheckpointProcessCheckpoint", pid, None)

    def restore(self, pid: int, devices: Mapping[str, str]) -> None:
        """See DeviceCheckpoint.restore. `devices` has to name every GPU that the process knew."""
        if not self._initialised:
            # Else it works only where persistence mode is on.
            self._call("cuInit", 0)
            self._initialised = True
        arguments = None
        if devices:
            arguments = self._driver.CUcheckpointRestoreArgs()
            arguments.gpuPairs = [self._pair(old, new) for old, new in sorted(devices.items())]
            arguments.gpuPairsCount = len(devices)
        self._call("cuCheckpointProcessRestore", pid, arguments)

    def unlock(self, pid: int) -> None:
        """See DeviceCheckpoint.unlock."""
        self._call("cuCheckpointProcessUnlock", pid, None)

    def _pair(self, old: str, new: str) -> Any:
        pair = self._driver.CUcheckpointGpuPair()
        pair.oldUuid, pair.newUuid = self._uuid(old), self._uuid(new)
        return pair

    def _uuid(self, name: str) -> Any:
        """The package's own type for a UUID cannot be given a value but through its memory."""
        value = bytes.fromhex(name.removeprefix("GPU-").replace("-", ""))
        uuid = self._driver.CUuuid()
        ctypes.memmove(int(uuid.getPtr()), value, 16)
        return uuid

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """What the call gives besides its result code. Raises DeviceError for any other code."""
        try:
            code, *values = getattr(self._driver, name)(*arguments)
        except (AttributeError, RuntimeError) as error:
            # A driver without this call, or no driver at all.
            raise DeviceError(DeviceErrorKind.NOT_SUPPORTED, f"{name}: {error}") from error
        if code.name != _SUCCESS:
            kind = _KINDS.get(code.name, DeviceErrorKind.OTHER)
            raise DeviceError(kind, f"{code.name} ({int(code)}) from {name}")
        return tuple(values)
