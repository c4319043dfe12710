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
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from onefleet.domain.errors import Conflict, OnefleetError, Unsupported, UpstreamFailed
from onefleet.drivers import linux, process_tree
from onefleet.drivers.cell import Cell
from onefleet.drivers.device_checkpoint import DeviceErrorKind, DeviceStateUnknown, NoRoom
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
_WHO = "see who else is on it: nvidia-smi"
_HINT = "onefleet doctor says what can be saved of GPUs here"


class Node:
    """What the driver says of the machine: its version, and all GPUs in its own order."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.driver = str(said["driver"])
        self.products: dict[str, str] = {g["name"]: g["product"] for g in said["gpus"]}
        self.free: dict[str, int] = {g["name"]: int(g["free_bytes"]) for g in said["gpus"]}
        #: By process, as the machine numbers it, where the driver tells.
        self.holders: dict[str, dict[int, int]] = {
            g["name"]: {int(pid): int(size) for pid, size in g.get("holders", ())}
            for g in said["gpus"]
        }
        self.used: dict[str, int] = {g["name"]: int(g["used_bytes"]) for g in said["gpus"]}


class HeldDevices:
    """A worker's GPUs by UUID. taken: what was taken off them, for the manifest; None: nothing.

    gpus: those that it is on, or was last. Where a worker goes that is off them says who puts it
    on: nothing is kept of that here, so that nobody can be put where it was once to go.
    command: starts a `device_calls`. A worker without GPUs is as one that has nothing on them.
    takes_turns: it is put on its devices by `put_on` alone, not when it is thawed or brought back.
    """

    def __init__(
        self,
        cell: Cell,
        gpus: Sequence[str],
        command: Sequence[str],
        rules: LockRules,
        takes_turns: bool,
    ) -> None:
        self.taken: dict[str, Any] | None = None
        self._cell = cell
        self._gpus = list(gpus)
        self._command = list(command)
        self._rules = rules
        self._takes_turns = takes_turns
        self._lacked = ""  # why it could not be put on, the last time

    @property
    def is_off(self) -> bool:
        """Whether it was taken off its devices."""
        return self.taken is not None

    def take_off(self, ran: bool = False) -> None:
        """Leave nothing of the worker on its devices; its processes run, and wait for them.

        When this raises, the worker runs on as if nothing had been, unless it is
        DeviceStateUnknown. ran: it may have run since it was taken off: then so is what has come
        to its devices meanwhile. Else nothing is done to a worker that was taken off already.
        """
        if not self._gpus or (self.taken is not None and not ran):
            return
        if self.taken is not None:
            self._take_off_more(self.taken)
            return
        members = self._cell.living()
        with _Calls(self._cell, self._command) as calls:
            before = calls.node()
            check(before, self._gpus)
            self._check_memory(before)
            end = self._off(calls, members)
            after = calls.node()
        self.taken = {
            "pids": list(end.pids),
            "gpus": self._gpus,
            "bytes": self._needed(before, after),
            "products": list(before.products.items()),
            "driver": before.driver,
        }

    def _off(self, calls: _Calls, members: Sequence[int]) -> End:
        end = calls.carry_out(TakeOff(members, self._rules))
        if end.outcome is Outcome.UNKNOWN:
            raise _unknown(end.why)
        if end.outcome is not Outcome.OFF:
            raise UpstreamFailed(CANNOT, why=end.why, hint=_hint(end.why))
        return end

    def _take_off_more(self, taken: dict[str, Any]) -> None:
        """Processes that began to use the devices after the others were taken off."""
        members = [pid for pid in self._cell.living() if pid not in taken["pids"]]
        if not members:
            return
        with _Calls(self._cell, self._command) as calls:
            before = calls.node()
            end = self._off(calls, members)
            more = self._needed(before, calls.node()) if end.pids else [0] * len(self._gpus)
        sizes = [a + b for a, b in zip(taken["bytes"], more, strict=True)]
        self.taken = {**taken, "pids": [*taken["pids"], *end.pids], "bytes": sizes}

    def _needed(self, before: Node, after: Node) -> list[int]:
        """Bytes of each device that it needs to come back."""
        return needed(before, after, self._gpus, process_tree.tree(self._cell.init))

    def put_back(self) -> None:
        """Where it was just taken off. One that takes turns stays off where others have the room
        now, or nobody can tell: its turn comes. Raises DeviceStateUnknown when that fails."""
        if self.taken is None:
            return
        with _Calls(self._cell, self._command) as calls:
            try:
                if self._takes_turns:
                    _check_room(calls.node(), self._gpus, self.taken["bytes"])
                self._back(calls, PutBack(self.taken["pids"]))
            except DeviceStateUnknown:
                raise
            except OnefleetError as error:
                if not self._takes_turns:
                    raise _unknown(error.why) from error

    def leave(self, towards: Sequence[str], ran: bool) -> None:
        """Take it off. towards: devices on which it is to go; whether it can is found out now.
        ran: as of `take_off`. Raises OnefleetError, and then it is where it was, unless it is
        DeviceStateUnknown."""
        was_on = self.taken is None
        self.take_off(ran)
        try:
            self._check_way(list(towards) or self._gpus)
        except OnefleetError:
            if was_on:
                self.put_back()
            raise

    def thaw(self, gpus: Sequence[str], thaw: Callable[[], None]) -> None:
        """Let a worker run that stands still, as `put_on`, or off its devices as it is."""
        if self._takes_turns:
            thaw()
        else:
            self.put_on(gpus, thaw)

    def put_on(self, gpus: Sequence[str] = (), thaw: Callable[[], None] = lambda: None) -> None:
        """On these devices, or its own where none are named; others may have used them meanwhile.

        thaw: lets processes run that stand still; called once there is room for them: a process
        for which there was too little once can be refused by the driver for good. Raises NoRoom,
        and leaves it off; Conflict for one that is on others or has nothing to be moved;
        DeviceStateUnknown when nobody knows where it is.
        """
        there = list(gpus) or self._gpus
        if self.taken is None or not self.taken["pids"]:
            self._check_way(there)
            thaw()
            self.taken = None
            return
        with _Calls(self._cell, self._command) as calls:
            node = calls.node()
            moves = _moves(node, self.taken, there)
            _check_room(node, there, self.taken["bytes"])
            thaw()
            self._back(calls, PutBack(self.taken["pids"], moves))
        self._gpus = there

    def _back(self, calls: _Calls, machine: PutBack) -> None:
        end = calls.carry_out(machine)
        if end.outcome is Outcome.OFF:
            self._lacked = f"; before, there was too little memory for it: {end.why}"
            raise NoRoom("the worker does not fit on its GPUs", why=end.why, hint=_WHO)
        if end.outcome is not Outcome.BACK:
            raise _unknown(end.why + self._lacked)
        self.taken, self._lacked = None, ""

    def _check_way(self, gpus: Sequence[str]) -> None:
        """Whether it can be put on these devices, in the place of its own. Raises Unsupported,
        Conflict for one that has nothing to be moved."""
        if gpus == self._gpus:
            return
        if self.taken is None or not self.taken["pids"]:
            raise Conflict(
                "the worker cannot be moved to other GPUs",
                why="it makes no use of its own so far, and would begin on those"
                if self.taken is not None
                else "it is on its own",
                hint="wait until it uses them" if self.taken is not None else "take it off first",
            )
        with _Calls(self._cell, self._command) as calls:
            _moves(calls.node(), self.taken, gpus)

    def bring(self, taken: dict[str, Any] | None) -> None:
        """Put a worker that was made from an image on its devices of now; of one that takes turns,
        see that it can be.

        taken: of the image. Raises OnefleetError; it must not run then.
        """
        if not taken:
            return
        with _Calls(self._cell, self._command) as calls:
            node = calls.node()
            check(node, self._gpus)
            moves = _moves(node, taken, self._gpus)
            if self._takes_turns:
                self.taken = taken
                return
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


def needed(before: Node, after: Node, gpus: Sequence[str], mine: Collection[int]) -> list[int]:
    """Bytes of each GPU that these processes had and gave up, where the driver counts by process;
    else what became free, of which others may have taken some, or given up more, at that time."""

    def held(node: Node, gpu: str) -> int:
        return sum(size for pid, size in node.holders[gpu].items() if pid in mine)

    freed = (max(after.free[gpu] - before.free[gpu], 0) for gpu in gpus)
    own = (held(before, gpu) - held(after, gpu) for gpu in gpus)
    return [mine_ if mine_ > 0 else all_ for mine_, all_ in zip(own, freed, strict=True)]


def _moves(node: Node, taken: Mapping[str, Any], gpus: Sequence[str]) -> dict[str, str]:
    """Which GPU takes the place of which, of what was taken off. Raises Unsupported."""
    moves = device_map(dict(taken["products"]), taken["gpus"], node.products, gpus)
    if moves and branch(node.driver) < OTHER_GPUS.since:
        why = f"{OTHER_GPUS.what} with driver {node.driver}, from {OTHER_GPUS.since} on any"
        raise Unsupported("the worker cannot come back on these GPUs", why=why)
    return moves


def _check_room(node: Node, gpus: Sequence[str], needed: Sequence[int]) -> None:
    for name, size in zip(gpus, needed, strict=True):
        if node.free[name] < size:
            raise NoRoom(
                f"the worker does not fit on GPU {name}",
                why=f"it needs {size} bytes, and {node.free[name]} are free",
                hint=_WHO,
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
