"""What one worker's processes have on their devices: taken into their own memory, and back.

A save of processes that hold a device is refused by criu; one of processes that were taken off
it first carries the device's memory along. The calls are made by a process in the worker's cell
(`device_calls`), so that process ids mean the same to it before a save and after a restore.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from onefleet.domain.errors import OnefleetError, Unsupported, UpstreamFailed
from onefleet.drivers import linux
from onefleet.drivers.cell import Cell
from onefleet.drivers.device_checkpoint import DeviceErrorKind, DeviceStateUnknown
from onefleet.drivers.device_cut import (
    Answer,
    Answers,
    Ask,
    End,
    LockRules,
    Outcome,
    Pause,
    PutBack,
    TakeOff,
)
from onefleet.drivers.device_lines import heard, limit_s, to_line
from onefleet.drivers.gpu_support import OTHER_GPUS, branch, device_map, why_not
from onefleet.drivers.launch import close_all_but

#: How long the process that makes the calls may take beyond the limit of what it was asked.
_MARGIN_S = 15.0
CANNOT = "the state of the worker's GPUs cannot be saved"
_HINT = "onefleet doctor says what can be saved of GPUs here"


class Node:
    """What the driver says of the machine: its version, and all GPUs in its own order."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.driver = str(said["driver"])
        self.products: dict[str, str] = {g["name"]: g["product"] for g in said["gpus"]}
        self.free: dict[str, int] = {g["name"]: int(g["free_bytes"]) for g in said["gpus"]}
        self.used: dict[str, int] = {g["name"]: int(g["used_bytes"]) for g in said["gpus"]}


class HeldDevices:
    """A worker's GPUs by UUID. taken: what was taken off them, for the manifest; None: nothing.

    command: starts a `device_calls`. A worker without GPUs is as one that has nothing on them.
    """

    def __init__(
        self, cell: Cell, gpus: Sequence[str], command: Sequence[str], rules: LockRules
    ) -> None:
        self.taken: dict[str, Any] | None = None
        self._cell = cell
        self._gpus = list(gpus)
        self._command = list(command)
        self._rules = rules

    def take_off(self) -> None:
        """Leave nothing of the worker on its devices; its processes run, and wait for them.

        When this raises, the worker runs on as if nothing had been, unless it is
        DeviceStateUnknown. Nothing is done to a worker that was taken off already.
        """
        if self.taken is not None or not self._gpus:
            return
        members = self._cell.living()
        with _Calls(self._cell, self._command) as calls:
            before = calls.node()
            check(before, self._gpus)
            self._check_memory(before)
            end = calls.carry_out(TakeOff(members, self._rules))
            if end.outcome is Outcome.UNKNOWN:
                raise _unknown(end.why)
            if end.outcome is not Outcome.OFF:
                raise UpstreamFailed(CANNOT, why=end.why, hint=_hint(end.why))
            after = calls.node()
        self.taken = {
            "pids": list(end.pids),
            "gpus": self._gpus,
            "bytes": [max(after.free[g] - before.free[g], 0) for g in self._gpus],
            "products": list(before.products.items()),
            "driver": before.driver,
        }

    def put_back(self, thaw: Callable[[], None] | None = None) -> None:
        """On the same devices as before. Raises DeviceStateUnknown when that fails.

        thaw: for processes that stand still, and whose devices others may have used: called once
        there is room for them. Raises UpstreamFailed, and leaves all as it is, when there is not: a
        process for which there was too little memory once can never be put back.
        """
        if self.taken is None:
            if thaw is not None:
                thaw()
            return
        with _Calls(self._cell, self._command) as calls:
            if thaw is not None:
                _check_room(calls.node(), self._gpus, self.taken["bytes"])
                thaw()
            end = calls.carry_out(PutBack(self.taken["pids"]))
        if end.outcome is not Outcome.BACK:
            raise _unknown(end.why)
        self.taken = None

    def bring(self, taken: dict[str, Any] | None) -> None:
        """Put a worker that was made from an image on its devices of now.

        taken: of the image. Raises OnefleetError; it must not run then.
        """
        if not taken:
            return
        with _Calls(self._cell, self._command) as calls:
            node = calls.node()
            check(node, self._gpus)
            moves = device_map(dict(taken["products"]), taken["gpus"], node.products, self._gpus)
            if moves and branch(node.driver) < OTHER_GPUS.since:
                why = f"{OTHER_GPUS.what} with driver {node.driver}, from {OTHER_GPUS.since} on any"
                raise Unsupported("the worker cannot come back on these GPUs", why=why)
            _check_room(node, self._gpus, taken["bytes"])
            end = calls.carry_out(PutBack(taken["pids"], moves, strict=True))
        if end.outcome is not Outcome.BACK:
            raise UpstreamFailed("the worker could not be put back on its GPUs", why=end.why)

    def _check_memory(self, node: Node) -> None:
        """Whether the machine's memory has room for that of the GPUs."""
        needed, free = sum(node.used[name] for name in self._gpus), _free_memory_bytes()
        if needed > free:
            raise UpstreamFailed(
                CANNOT,
                why=f"{needed} bytes of their memory are in use, and the machine has {free} free",
                hint="free some memory",
            )


class _Calls:
    """The process that makes the calls, for the length of one operation; another when it dies."""

    def __init__(self, cell: Cell, command: Sequence[str]) -> None:
        self._cell = cell
        self._command = list(command)
        self._pid = 0
        self._asks = self._hears = -1
        self._heard = b""

    def __enter__(self) -> _Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def node(self) -> Node:
        """Raises OnefleetError where the driver cannot be used."""
        answer = self._talk({"verb": "node"}, _MARGIN_S)
        if answer is None:
            raise UpstreamFailed("the GPUs cannot be read", why="nothing answered for their driver")
        if failed := answer.get("failed"):
            raise Unsupported(CANNOT, why=str(failed), hint=_HINT)
        return Node(answer)

    def carry_out(self, machine: TakeOff | PutBack) -> End:
        """Do what a machine says until its end."""
        step = machine.begin()
        while not isinstance(step, End):
            answers: Answers = {}
            if isinstance(step, Pause):
                time.sleep(step.ms / 1000)
            else:
                answers = self._ask(step)
            step = machine.answered(answers)
        return step

    def _ask(self, ask: Ask) -> Answers:
        answer = self._talk(to_line(ask), limit_s(ask) + _MARGIN_S)
        if answer is None:
            why, kind = "the calls' own process died or hung", DeviceErrorKind.NO_ANSWER
        elif "failed" in answer:
            why, kind = str(answer["failed"]), DeviceErrorKind.OTHER
        else:
            return heard(answer)
        return dict.fromkeys(ask.pids, Answer(error=kind, text=why))

    def _talk(self, line: Mapping[str, Any], within_s: float) -> dict[str, Any] | None:
        """The answer to a line; None: none came, and the process is gone."""
        if not self._pid:
            self._start()
        deadline = time.monotonic() + within_s
        with contextlib.suppress(OSError, ValueError):
            os.write(self._asks, json.dumps(line).encode() + b"\n")
            while b"\n" not in self._heard:
                left = max(deadline - time.monotonic(), 0)
                more = b""
                if select.select([self._hears], [], [], left)[0]:
                    more = os.read(self._hears, 1 << 16)
                if not more:
                    break
                self._heard += more
            else:
                text, _, self._heard = self._heard.partition(b"\n")
                answer: dict[str, Any] = json.loads(text)
                return answer
        self._leave()
        return None

    def _start(self) -> None:
        theirs_in, self._asks = os.pipe()
        self._hears, theirs_out = os.pipe()
        command = self._command

        def body() -> NoReturn:
            os.dup2(theirs_in, 0)
            os.dup2(theirs_out, 1)
            close_all_but()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.unsetenv("CUDA_VISIBLE_DEVICES")  # all of them take part in a move
            if self._cell.rights.user_namespace:
                linux.keep_capabilities()
            os.execv(command[0], command)  # noqa: S606

        self._pid = self._cell.run(body)
        os.close(theirs_in)
        os.close(theirs_out)
        self._heard = b""

    def _leave(self) -> None:
        """End it: criu must find no stranger in the cell."""
        if self._pid:
            os.close(self._asks)
            os.close(self._hears)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0


def check(node: Node, gpus: Sequence[str]) -> None:
    """Raise Unsupported where the driver cannot save a worker's state on these GPUs at all."""
    missing = [name for name in gpus if name not in node.products]
    if missing:
        raise Unsupported(CANNOT, why=f"the driver does not know {', '.join(missing)}")
    if why := why_not(node.driver, os.uname().machine, len(gpus)):
        raise Unsupported(CANNOT, why=why, hint=_HINT)


def _check_room(node: Node, gpus: Sequence[str], needed: Sequence[int]) -> None:
    for name, size in zip(gpus, needed, strict=True):
        if node.free[name] < size:
            raise UpstreamFailed(
                f"the worker does not fit on GPU {name}",
                why=f"it needs {size} bytes, and {node.free[name]} are free",
                hint="see who else is on it: nvidia-smi",
            )


def _free_memory_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def _unknown(why: str) -> OnefleetError:
    return DeviceStateUnknown(
        "the worker was left between its GPUs and its own memory",
        why=why,
        hint="restore the last image",
    )


def _hint(why: str) -> str:
    if "not done within" in why:
        return "try again: workers that wait for each other were caught in the middle of it"
    return _HINT
