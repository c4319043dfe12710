"""Devices that do not exist, with the rules of those that do: for tests of what saves their state.

A process computes on its device: `work` adds to a number in the device's memory, and waits while
the process is locked. What a checkpoint takes off a device is with the process until it is put
back. The states, the errors and what is left after an error are the CUDA driver's, as documented;
what may go wrong is told to it by `Fault`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onefleet.drivers.device_checkpoint import DeviceError, DeviceErrorKind, DeviceState
from onefleet.drivers.device_cut import Verb


@dataclass(frozen=True, slots=True)
class Fault:
    """What the next call of a verb on a process comes to.

    done: it did its work all the same. leaves: the state that the process is in afterwards; None:
    the one that follows from `done`.
    """

    kind: DeviceErrorKind
    done: bool = False
    leaves: DeviceState | None = None


@dataclass(slots=True)
class FakeProcess:
    """A process that uses devices. busy_ms: how long what it has submitted still takes."""

    devices: tuple[str, ...]
    memory_bytes: int = 1 << 20
    state: DeviceState = DeviceState.RUNNING
    busy_ms: int = 0
    number: int | None = 0  # in device memory; None while it is off
    kept: int | None = None  # in the process's own memory
    faults: dict[Verb, list[Fault | None]] = field(default_factory=dict)  # None: this call works


class FakeDevices:
    """A node's devices by name, each with so much memory, and the processes that use them.

    As a `DeviceCheckpoint`: a process that is not known has ended. forgives: a process for which
    there was too little memory once can be restored later; with drivers so far it cannot.
    """

    def __init__(self, devices: Mapping[str, int], forgives: bool = False) -> None:
        self.sizes = dict(devices)
        self.forgives = forgives
        self.processes: dict[int, FakeProcess] = {}

    def used(self, device: str) -> int:
        """Bytes of a device that are taken."""
        return sum(
            p.memory_bytes
            for _, p in sorted(self.processes.items())
            if p.number is not None and device in p.devices
        )

    def work(self, pid: int) -> bool:
        """One step of a process; False: it waits, because it is not running."""
        process = self.processes[pid]
        if process.state is not DeviceState.RUNNING or process.number is None:
            return False
        process.number += 1
        return True

    def state(self, pid: int) -> DeviceState:
        """See DeviceCheckpoint.state."""
        process = self._process(pid)
        self._strike(process, Verb.STATE)
        return process.state

    def lock(self, pid: int, limit_ms: int) -> None:
        """See DeviceCheckpoint.lock."""
        process = self._process(pid)
        fault = self._strike(process, Verb.LOCK)
        self._require(process, DeviceState.RUNNING)
        if process.busy_ms > limit_ms:
            raise DeviceError(DeviceErrorKind.NOT_READY, "device not ready")
        process.busy_ms = 0
        self._move(process, DeviceState.LOCKED, fault)

    def checkpoint(self, pid: int) -> None:
        """See DeviceCheckpoint.checkpoint."""
        process = self._process(pid)
        fault = self._strike(process, Verb.CHECKPOINT)
        self._require(process, DeviceState.LOCKED)
        process.kept, process.number = process.number, None
        self._move(process, DeviceState.CHECKPOINTED, fault)

    def restore(self, pid: int, devices: Mapping[str, str]) -> None:
        """See DeviceCheckpoint.restore. `devices` names all that the process was on, or none."""
        process = self._process(pid)
        fault = self._strike(process, Verb.RESTORE)
        self._require(process, DeviceState.CHECKPOINTED)
        there = tuple(devices.get(name, "") for name in process.devices)
        there = there if devices else process.devices
        if not all(name in self.sizes for name in there):
            raise DeviceError(DeviceErrorKind.INVALID_VALUE, "invalid argument")
        if any(self.sizes[n] - self.used(n) < process.memory_bytes for n in there):
            if not self.forgives:
                process.faults[Verb.RESTORE] = [Fault(DeviceErrorKind.OTHER)] * 1_000
            raise DeviceError(DeviceErrorKind.OUT_OF_MEMORY, "out of memory")
        process.devices, process.number, process.kept = there, process.kept, None
        self._move(process, DeviceState.LOCKED, fault)

    def unlock(self, pid: int) -> None:
        """See DeviceCheckpoint.unlock."""
        process = self._process(pid)
        fault = self._strike(process, Verb.UNLOCK)
        self._require(process, DeviceState.LOCKED)
        self._move(process, DeviceState.RUNNING, fault)

    def _process(self, pid: int) -> FakeProcess:
        if pid not in self.processes:
            raise DeviceError(DeviceErrorKind.GONE, "no such process")
        return self.processes[pid]

    def _require(self, process: FakeProcess, state: DeviceState) -> None:
        if process.state is DeviceState.NONE:
            raise DeviceError(DeviceErrorKind.NOT_INITIALIZED, "initialization error")
        if process.state is not state:
            raise DeviceError(DeviceErrorKind.ILLEGAL_STATE, "the operation cannot be performed")

    def _strike(self, process: FakeProcess, verb: Verb) -> Fault | None:
        """Raise the next fault that is told for this call, or return it: it strikes at the end."""
        waiting = process.faults.get(verb)
        if not waiting:
            return None
        fault = waiting.pop(0)
        if fault is None or fault.done:
            return fault
        process.state = fault.leaves or process.state
        if fault.kind is DeviceErrorKind.GONE:
            self._end(process)
        raise DeviceError(fault.kind, f"told to fail: {fault.kind}")

    def _move(self, process: FakeProcess, state: DeviceState, fault: Fault | None) -> None:
        process.state = state
        if fault is not None:
            process.state = fault.leaves or state
            if fault.kind is DeviceErrorKind.GONE:
                self._end(process)
            raise DeviceError(fault.kind, f"told to fail: {fault.kind}")

    def _end(self, process: FakeProcess) -> None:
        for pid, known in sorted(self.processes.items()):
            if known is process:
                del self.processes[pid]
