"""A process that makes the calls on devices for a supervisor, which must not hang or hold a device.

usage: python -m onefleet.drivers.device_calls

It lives beside the worker for the length of one operation. One JSON line in, one out:

    {"verb": "node"}                       {"driver": "580.95.05", "gpus": [{"name": "GPU-..", ..}]}
    {"verb": "lock", "pids": [100, 101],   {"100": {}, "101": {"error": "not_ready", "text": ".."}}
     "limit_ms": 2000, "devices": {}}

Each process has a lane of its own, so that all are called at the same time, and a call that hangs
holds up nobody else; what is asked about such a process later waits behind that call. When the
driver cannot be used at all, the answer is {"failed": why, "hint": what to try}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any

from onefleet.domain.errors import OnefleetError, Unsupported
from onefleet.drivers import process_tree
from onefleet.drivers.cuda_checkpoint import CudaCheckpoint, load
from onefleet.drivers.device_checkpoint import (
    DeviceCheckpoint,
    DeviceError,
    DeviceErrorKind,
    DeviceState,
)
from onefleet.drivers.device_cut import Answer, Answers, Ask, Verb
from onefleet.drivers.device_lines import from_line, limit_s, told

Done = SimpleQueue[tuple[int, Answer]]


class Lanes:
    """Calls on many processes at a time, one after the other on each. Of one thread's use."""

    def __init__(self, devices: DeviceCheckpoint, lives: Callable[[int], bool]) -> None:
        """lives: whether a process exists, which a device's driver does not tell."""
        self._devices = devices
        self._lives = lives
        self._lanes: dict[int, SimpleQueue[tuple[Ask, Done]]] = {}

    def ask(self, ask: Ask, limit_s: float) -> Answers:
        """What came of each call; NO_ANSWER for those that take longer than `limit_s`."""
        done: Done = SimpleQueue()
        for pid in ask.pids:
            if pid not in self._lanes:
                self._lanes[pid] = SimpleQueue()
                threading.Thread(target=self._serve, args=(pid,), daemon=True).start()
            self._lanes[pid].put((ask, done))
        answers: dict[int, Answer] = {}
        deadline = time.monotonic() + limit_s
        while len(answers) < len(ask.pids):
            try:
                pid, answer = done.get(timeout=max(deadline - time.monotonic(), 0))
            except Empty:
                break
            answers[pid] = answer
        late = Answer(
            error=DeviceErrorKind.NO_ANSWER, text=f"the driver did not answer within {limit_s:g} s"
        )
        return {pid: answers.get(pid, late) for pid in ask.pids}

    def _serve(self, pid: int) -> None:
        while True:
            ask, done = self._lanes[pid].get()
            answer = call(self._devices, ask, pid)
            if (answer.error or answer.state is DeviceState.NONE) and not self._lives(pid):
                answer = Answer(error=DeviceErrorKind.GONE, text="it has ended")
            done.put((pid, answer))


def call(devices: DeviceCheckpoint, ask: Ask, pid: int) -> Answer:
    """Make one call on one process."""
    try:
        match ask.verb:
            case Verb.STATE:
                return Answer(devices.state(pid))
            case Verb.LOCK:
                devices.lock(pid, ask.limit_ms)
            case Verb.CHECKPOINT:
                devices.checkpoint(pid)
            case Verb.RESTORE:
                devices.restore(pid, ask.devices)
            case Verb.UNLOCK:
                devices.unlock(pid)
    except DeviceError as error:
        return Answer(error=error.kind, text=error.text)
    return Answer()


def node() -> dict[str, Any]:
    """The driver and all of its GPUs, in its own order. Raises Unsupported."""
    pynvml: Any = importlib.import_module("pynvml")
    try:
        pynvml.nvmlInit()
        try:
            handles = [
                pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())
            ]
            return {
                "driver": pynvml.nvmlSystemGetDriverVersion(),
                "gpus": [
                    {
                        "name": pynvml.nvmlDeviceGetUUID(handle),
                        "product": pynvml.nvmlDeviceGetName(handle),
                        "free_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).free),
                        "used_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
                        "holders": _holders(pynvml, handle),
                    }
                    for handle in handles
                ],
            }
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise Unsupported("the GPUs cannot be read", why=str(error)) from error


def _holders(pynvml: Any, handle: Any) -> list[tuple[int, int]]:
    """Processes with memory on it, by their ids on the machine, and how many bytes of it; nothing
    where the driver does not count them."""
    try:
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return []
    return [(int(p.pid), int(p.usedGpuMemory)) for p in found if p.usedGpuMemory is not None]


def serve(
    lines: Iterable[str],
    say: Callable[[str], object],
    devices: Callable[[], DeviceCheckpoint],
    facts: Callable[[], dict[str, Any]],
    lives: Callable[[int], bool],
) -> None:
    """Answer lines until there are no more."""
    lanes: Lanes | None = None
    for text in lines:
        line = json.loads(text)
        try:
            if line["verb"] == "node":
                answer: dict[str, Any] = facts()
            else:
                lanes = lanes or Lanes(devices(), lives)
                ask = from_line(line)
                answer = told(lanes.ask(ask, limit_s(ask)))
        except OnefleetError as error:
            answer = {"failed": f"{error.what}: {error.why}", "hint": error.hint}
        say(json.dumps(answer))


def _lives(pid: int) -> bool:
    return process_tree.stat_fields(pid)[:1] not in ([], ["Z"])


def main() -> None:
    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    serve(sys.stdin, say, lambda: CudaCheckpoint(load()), node, _lives)
    # Threads may hang in the driver for good: leave without them.
    os._exit(0)


if __name__ == "__main__":
    main()
