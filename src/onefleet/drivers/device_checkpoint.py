"""The seam between a save and the memory of accelerators: what may be asked about one process.

A device's driver can take the state that a process has on its devices into the process's own
memory, so that a save of the process saves it, too, and put it back later:

    RUNNING --lock--> LOCKED --checkpoint--> CHECKPOINTED --restore--> LOCKED --unlock--> RUNNING

Locked, the process's calls to the device wait, and what it had submitted has been done.
Checkpointed, it holds nothing on any device. The states and errors are those of the CUDA driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from onefleet.domain.errors import UpstreamFailed


class DeviceState(StrEnum):
    """Of one process towards its devices."""

    NONE = "none"  # it uses no device
    RUNNING = "running"
    LOCKED = "locked"
    CHECKPOINTED = "checkpointed"
    FAILED = "failed"  # the driver gave it up; it cannot go on
    BUSY = "busy"  # on the way between two of them, in somebody else's hands


class DeviceErrorKind(StrEnum):
    """Why a call failed."""

    NOT_READY = "not_ready"  # a lock's time limit passed; the process is RUNNING
    ILLEGAL_STATE = "illegal_state"
    NOT_SUPPORTED = "not_supported"  # this process has something that cannot be saved
    NOT_INITIALIZED = "not_initialized"
    INVALID_VALUE = "invalid_value"
    OUT_OF_MEMORY = "out_of_memory"
    GONE = "gone"  # the process has ended
    NO_ANSWER = "no_answer"  # the call did not come back: what it did is unknown
    OTHER = "other"


class DeviceError(Exception):
    """A call on a process failed. text: the driver's own words."""

    def __init__(self, kind: DeviceErrorKind, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class NoRoom(UpstreamFailed):
    """The devices have too little memory for a worker that is off them, and it stays so."""


class DeviceStateUnknown(UpstreamFailed):
    """Nobody knows what is true of a worker's state on its devices: it cannot be let go on."""


class DeviceCheckpoint(Protocol):
    """The driver's calls, each about one process by its id. Raise DeviceError.

    Calls for different processes may run at the same time, in different threads.
    """

    def state(self, pid: int) -> DeviceState:
        """What is true of it now."""
        ...

    def lock(self, pid: int, limit_ms: int) -> None:
        """RUNNING > LOCKED. It stays RUNNING when its submitted work takes longer (NOT_READY)."""
        ...

    def checkpoint(self, pid: int) -> None:
        """LOCKED > CHECKPOINTED."""
        ...

    def restore(self, pid: int, devices: Mapping[str, str]) -> None:
        """CHECKPOINTED > LOCKED, on the device of `devices` for each one that it was on before.

        devices: new by old name (a GPU's UUID); empty: the same ones.
        """
        ...

    def unlock(self, pid: int) -> None:
        """LOCKED > RUNNING."""
        ...
