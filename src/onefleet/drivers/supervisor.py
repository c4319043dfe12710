"""The supervisor: a small daemon that owns one worker's processes and outlives the agent.

usage: python -m onefleet.drivers.supervisor [FOLDER]

Without a folder, a line on stdin names it, in JSON; it may come late. It reads the order there,
forks twice so that it is nobody's child, starts or restores the worker, answers one JSON line on
stdout (of the process that was called), and then serves commands on a socket in the folder until
the worker has ended or is saved. If it is killed, its worker's processes are killed with it:
nothing ever runs unseen. When the lease runs out under which a job runs here, it stands still until
an agent that has a new one lets it go on.

Kept to the standard library's light modules: it starts in some 50 ms and there is one a worker.
What more a restore needs is loaded while it waits for the line.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from onefleet.domain.errors import Conflict, InternalError, InvalidRequest, OnefleetError
from onefleet.drivers import cell_worker, image, keeper, linux, process_tree
from onefleet.drivers import supervisor_files as files
from onefleet.drivers.command_socket import Client, CommandSocket, line, refuse, send, told
from onefleet.drivers.device_checkpoint import DeviceStateUnknown
from onefleet.drivers.lease import Lease
from onefleet.drivers.pauses import Pauses
from onefleet.drivers.supervisor_saves import LOOK_S, Saves
from onefleet.drivers.work_files import WorkFiles

#: How long a new supervisor waits for the one before it, which has given its last answer, to end.
_LOCK_LIMIT_S = 120.0
#: While it waits for processes whose end the kernel does not announce to it.
_POLL_S = 0.02
_KILLED = 128 + signal.SIGKILL
#: What a restore may need.
_HEAVY = ("tarfile", "onefleet.drivers.chunk_store")

Worker = cell_worker.CellWorker | keeper.Keeper


class Supervisor:
    """One worker from its start or restore to its end or save.

    worker: None before it has processes. began_ns: of this stretch, by the wall clock.
    """

    def __init__(self, order: dict[str, Any], folder: str) -> None:
        self._order = order
        self._folder = folder
        self._files = WorkFiles(folder, order["work"], order.get("origin"))
        self.worker: Worker | None = None
        self.state: dict[str, Any] = {}
        self.cpu_before_ms = 0
        self.began_ns = 0
        self._deadline: float | None = None  # of a stop's grace
        self._overran = self._at_once = False
        self._stopping = False
        self._waiting: list[Client] = []
        self._selector = selectors.DefaultSelector()
        self._finished = False
        self._saves = Saves(self, order, self._files)
        self._pauses = Pauses(self)
        self._lease = Lease(order.get("lease"))  # an older agent gives none

    def begin(self) -> dict[str, Any]:
        """Start or restore the worker; what to answer to whoever asked for it."""
        restoring = self._order["action"] == "restore"
        before = self._order["image"] if restoring else None
        self.write(state="restoring" if restoring else "starting", pid=None, image=before)
        wakeup, poke = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(poke, False)
        signal.set_wakeup_fd(poke, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._request_stop(0))
        self._wakeup = wakeup
        try:
            self._prepare(restoring)
            if not self._order.get("hold"):
                self.resume()
        except (OnefleetError, OSError) as error:
            state = "saved" if restoring else "ended"
            code = None if restoring else 127
            self.write(state=state, exit_code=code, reason=line(error))
            return {"ok": False, "error": told(error)}
        self._socket = CommandSocket(self._selector)
        if self._order.get("hold"):
            self._saves.hold_restore()
        else:
            self.write_going(reason="")
        return {"ok": True}

    def _prepare(self, restoring: bool) -> None:
        """Have all that is needed for `resume`."""
        order = self._order
        if not os.path.isdir(order["work"]):
            why = f"{order['work']} is not a folder"
            raise InvalidRequest("the work folder does not exist", why=why, hint="create it first")
        if restoring:
            manifest = image.read(order["image"])
            self.cpu_before_ms = int(manifest["cpu_ms"])
            if manifest["kind"] != order["driver"]:
                raise Conflict(
                    f"image {order['image']} is not one of driver {order['driver']}",
                    why=f"driver {manifest['kind']} made it",
                )
        if order["driver"] == "criu":
            self.worker = cell_worker.CellWorker(order, self._folder, self._files, restoring)
            return
        if restoring:
            with image.opened(order["image"], order.get("chunks")) as manifest:
                facts = manifest.get("work")
                if facts is not None and self._files.is_foreign(facts):
                    self._files.bring_back(order["image"], manifest["id"], facts)
        self._files.arrive()

    def resume(self) -> None:
        """Let the worker run that was prepared. Raises OnefleetError, OSError."""
        if self._order["driver"] != "criu":
            self.worker = keeper.Keeper(self._order, self._folder)
            self._selector.register(self.worker.descriptor, selectors.EVENT_READ)
        elif self._order["action"] == "restore":
            assert isinstance(self.worker, cell_worker.CellWorker)
            self.worker.resume()
        self.began_ns = time.time_ns()

    def undo(self) -> None:
        """End a worker that was prepared, and has not been let run."""
        if isinstance(self.worker, cell_worker.CellWorker):
            self.worker.undo()
            self.sweep()

    def serve(self) -> None:
        """Handle the worker's end, commands and deadlines until it has ended or is saved."""
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        owner = self._watch_owner()
        while not self._finished:
            for key, _ in self._selector.select(self._timeout()):
                if isinstance(key.fileobj, socket.socket):
                    if (command := self._socket.read(key.fileobj)) is not None:
                        self._obey(*command)
                elif key.fileobj == owner:
                    self._selector.unregister(owner)
                    self._request_stop(0)
                elif key.fileobj == self._wakeup:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wakeup, 512)
                if self._finished:
                    return
            if self.worker is not None:
                self.worker.poll()
            self._reap()
            self._pauses.look()
            self._advance()
            if not self._finished and self._lease.left_s == 0:
                self._mind_lease()

    def _watch_owner(self) -> int:
        """A descriptor that tells the end of the process that this worker shall not outlive."""
        if not self._order.get("ends_with"):  # an older agent does not say
            return -1
        try:
            watch = os.pidfd_open(self._order["ends_with"])
        except ProcessLookupError:
            self._request_stop(0)
            return -1
        self._selector.register(watch, selectors.EVENT_READ)
        return watch

    # Ends

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._reaped(pid, status, usage.ru_utime + usage.ru_stime)

    def _reaped(self, pid: int, status: int, seconds: float) -> None:
        if self.worker is not None:
            self.worker.reaped(pid, status, int(seconds * 1000))

    def _timeout(self) -> float | None:
        known = (self._deadline, self._saves.deadline, self._pauses.deadline)
        deadlines = [d for d in known if d is not None]
        lease_s = self._lease.left_s
        if lease_s is not None and self._runs:
            deadlines.append(time.monotonic() + lease_s)
        if not deadlines:
            return None
        ended = self.worker is not None and self.worker.root_status is not None
        if ended and not self._saves.is_held:
            return _POLL_S
        left = max(0.0, min(deadlines) - time.monotonic())
        asked = self._saves.asked
        return min(left, LOOK_S) if asked is not None and asked.leave_running else left

    def _advance(self) -> None:
        """Decide whether this is the end, or that of a hold."""
        worker, saves = self.worker, self._saves
        if worker is not None and worker.lost:
            self._end(None, worker.lost)
        elif self._deadline is not None or saves.ends_worker:
            assert worker is not None
            deadline = saves.deadline if self._deadline is None else self._deadline
            if worker.root_status is not None and not worker.members():
                self._leave()
            elif deadline is not None and time.monotonic() >= deadline:
                self._overran = not self._at_once
                self._leave()
        elif worker is not None and worker.root_status is not None and not saves.is_held:
            self._leave()
        elif saves.asked is not None:
            saves.look()
        elif saves.deadline is not None and time.monotonic() >= saves.deadline:
            saves.lapse()

    @property
    def _runs(self) -> bool:
        worker = self.worker
        return worker is not None and not worker.freezer.frozen and not self._saves.is_held

    def _mind_lease(self) -> None:
        """The control plane may believe by now that nothing runs here: see that nothing does.

        What is being stopped, or asked to save itself and end, has no time for it any more. What
        cannot be frozen is ended.
        """
        worker = self.worker
        if worker is None or not self._runs:
            return
        if self._deadline is not None:
            self._deadline = time.monotonic()
        elif self._saves.ends_worker:
            self._saves.deadline = time.monotonic()
        else:
            try:
                if self.state["state"] == "running":
                    self._turn(True, "it stands still: the lease of its node has run out")
                else:
                    worker.freezer.freeze(worker.processes)
            except (OnefleetError, OSError):
                if not self._finished:
                    self._request_stop(0)

    def _leave(self) -> None:
        """The grace is over or not needed: end what is left, and write what became of it."""
        worker = self.worker
        assert worker is not None
        if worker.root_status is None:
            self.cpu_before_ms += process_tree.cpu_ms(worker.processes())
        self.sweep()
        code, reason = _meaning(worker.root_status)
        if self._saves.ends_worker:
            cpu_ms = self.cpu_before_ms + worker.ended_cpu_ms
            killed, self._overran = self._overran, False
            self._saves.program_ended(code, cpu_ms, killed)
        elif self._stopping:
            late = "; killed, because its grace time was over" if self._overran else ""
            self._end(code, f"stopped on request{late}")
        else:
            self._end(code, reason)

    def sweep(self) -> None:
        """Kill and reap whatever is left, so that nothing runs when the state says so."""
        worker = self.worker
        if worker is None:
            return
        if isinstance(worker, keeper.Keeper):
            with contextlib.suppress(KeyError):
                self._selector.unregister(worker.descriptor)
        worker.destroy()
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(-1, 0)
                self._reaped(pid, status, usage.ru_utime + usage.ru_stime)
                worker.destroy()

    def _end(self, code: int | None, reason: str) -> None:
        worker = self.worker
        if worker is not None and worker.lost:
            self.sweep()
        self._saves.forget()
        cpu_ms = self.cpu_before_ms + (worker.ended_cpu_ms if worker is not None else 0)
        self.write(state="ended", pid=None, exit_code=code, reason=reason, cpu_ms=cpu_ms)
        self.finish()

    def finish(self) -> None:
        """Nothing of the worker is left, and the state says what became of it."""
        self._socket.close()
        if self.worker is not None:
            self.worker.leave()
        for client in self._waiting:
            send(client, {"ok": True})
        self._waiting.clear()
        self._finished = True

    # Commands

    def _obey(self, command: dict[str, Any], client: Client) -> None:
        try:
            if command["op"] not in ("pause", "where"):
                self._pauses.end()
            match command["op"]:
                case "stop":
                    self._waiting.append(client)
                    self._request_stop(int(command["grace_ms"]))
                case _ if self._deadline is not None:
                    why = "it is being stopped"
                    raise Conflict("the worker takes no other command", why=why)
                case "save":
                    self._saves.save(command, client)
                case "finish":
                    self._saves.finish(bool(command["commit"]), client)
                case "freeze" | "thaw":
                    # An older agent does not say where a thawed worker is to be.
                    self._turn(command["op"] == "freeze", gpus=command.get("gpus", ()))
                    send(client, {"ok": True})
                case "off" | "on":
                    state, gpus = self.state["state"], [str(g) for g in command["gpus"]]
                    cell_worker.place(self.worker, state, gpus, on=command["op"] == "on")
                    send(client, {"ok": True})
                case "where":
                    worker = self.worker
                    off = isinstance(worker, cell_worker.CellWorker) and worker.devices.is_off
                    send(client, {"ok": True, "off": off})
                case "pause":
                    self._pauses.begin(int(command["limit_ms"]))
                    send(client, {"ok": True})
                case "pin":
                    self._pin([int(cpu) for cpu in command["cpus"]])
                    send(client, {"ok": True})
                case "connect":
                    self._connect(str(command["node"]), [str(n) for n in command["nodes"]])
                    send(client, {"ok": True})
                case unknown:
                    raise InvalidRequest(f"no {unknown!r}")
        except (ValueError, KeyError, TypeError) as error:
            refuse(client, InvalidRequest(f"bad command: {error}"))
        except DeviceStateUnknown as error:
            if not self._finished:
                self._saves.distrust(error)
            refuse(client, error)
        except (OnefleetError, OSError) as error:
            refuse(client, error)

    def _turn(self, freeze: bool, reason: str = "", gpus: Sequence[str] = ()) -> None:
        """Freeze or thaw it, and say so in one write: who sees that it stands still sees why.
        gpus: on which a thawed one is put; empty: its own."""
        worker, state = self.worker, self.state["state"]
        if worker is None or state not in ("running", "frozen"):
            verb = "frozen" if freeze else "thawed"
            raise Conflict(f"the worker cannot be {verb}", why=f"it is {state}")
        try:
            if not isinstance(worker, cell_worker.CellWorker):
                turn = worker.freezer.freeze if freeze else worker.freezer.thaw
                turn(worker.processes)
            elif freeze:
                worker.stand_still()
            else:
                worker.go_on(gpus)
        except DeviceStateUnknown as error:
            self._saves.distrust(error)
            raise
        if (state == "frozen") is not worker.freezer.frozen:
            self.write_going(reason=reason)

    def _pin(self, cpus: list[int]) -> None:
        if self.worker is None:
            raise Conflict("the worker has no threads", why=f"it is {self.state['state']}")
        try:
            process_tree.pin(self.worker.processes(), cpus)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise InvalidRequest(
                f"the worker cannot run on cores {cpus}", why="the machine does not have them"
            ) from error

    def _connect(self, node: str, nodes: list[str]) -> None:
        cell = self.worker.cell if isinstance(self.worker, cell_worker.CellWorker) else None
        if cell is None or cell.gang is None:
            raise Conflict("the worker has no network of a gang")
        cell.gang.connect(node, nodes)

    def _request_stop(self, grace_ms: int) -> None:
        """Ask the worker to end. A second request may shorten the grace, never lengthen it."""
        worker, held = self.worker, self._saves.is_held  # it has no say then
        deadline = time.monotonic() + (0 if held else grace_ms / 1000)
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
        if self._stopping:
            return
        self._stopping = True
        self._at_once = held
        self._saves.drop()
        if worker is None:
            self._end(_KILLED, "stopped on request")
            return
        self.write(state="stopping")
        self._pauses.end()
        if not held:
            if worker.freezer.frozen:
                worker.freezer.thaw(worker.processes)
            worker.ask_to_end()

    # State

    def write_going(self, **changes: Any) -> None:
        """The worker has processes that run, or are frozen."""
        assert self.worker is not None
        root = self.worker.root
        state = "frozen" if self.worker.freezer.frozen else "running"
        self.write(state=state, pid=root, born=process_tree.born_at(root), **changes)

    def write(self, **changes: Any) -> None:
        """Change the state file. A full disk neither ends the worker nor hides its fate."""
        self.state.update(changes)
        self.state["supervisor"] = os.getpid()
        self.state.setdefault("exit_code", None)
        self.state.setdefault("cpu_ms", self.cpu_before_ms)
        self.state["cpu_before_ms"] = self.cpu_before_ms
        try:
            files.write_json(files.STATE, self.state)
        except OSError as error:
            _complain(f"state.json could not be replaced, so it is overwritten: {error}")
            files.overwrite_json(files.STATE, self.state)

    def cpu_ms(self) -> int:
        """What the worker has used so far."""
        used = process_tree.cpu_ms(self.worker.processes()) if self.worker is not None else 0
        return self.cpu_before_ms + used


def _complain(text: str) -> None:
    """Into the log, if the disk has room for it."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _meaning(status: int | None) -> tuple[int, str]:
    """Exit code and a person's line for a raw wait status; killed when there is none."""
    if status is None:
        return _KILLED, "killed by SIGKILL"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number < signal.SIGRTMIN else f"signal {number}"
        return 128 + number, f"killed by {name}"
    code = os.WEXITSTATUS(status)
    return code, f"exited with code {code}"


def main(arguments: list[str]) -> int:
    folder = arguments[0] if arguments else _awaited()
    if not folder:  # nobody needs it any more
        return 0
    os.chdir(folder)
    answer, say = os.pipe()
    child = os.fork()
    if child:
        os.close(say)
        os.waitpid(child, 0)
        with os.fdopen(answer, encoding="utf-8") as lines:
            sys.stdout.write(lines.readline())
        sys.stdout.flush()
        os._exit(0)  # to take Python down in order would keep who asked waiting
    os.close(answer)
    os.setsid()
    if os.fork():
        os._exit(0)
    _be_daemon(folder, say)
    return 0


def _awaited() -> str:
    """The folder, when it is told; empty at the end of standard input."""
    for module in _HEAVY:
        importlib.import_module(module)
    line = sys.stdin.readline()
    return str(json.loads(line)) if line else ""


def _be_daemon(folder: str, say: int) -> None:
    log = os.open(files.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    linux.name_process("onefleet-worker")
    try:
        _live(folder, say)
    except Exception as error:
        answer = {"ok": False, "error": told(InternalError(f"supervisor failed: {error!r}"))}
        with contextlib.suppress(OSError):
            os.write(say, json.dumps(answer).encode() + b"\n")
        raise  # into the log


def _live(folder: str, say: int) -> None:
    lock = files.take_lock(files.LOCK, _LOCK_LIMIT_S)
    if lock is None:
        held = Conflict(f"worker {folder} already has a supervisor", hint="stop it first")
        os.write(say, json.dumps({"ok": False, "error": told(held)}).encode() + b"\n")
        return
    supervisor = Supervisor(files.read_json(files.ORDER), folder)
    answer = supervisor.begin()
    with contextlib.suppress(OSError):
        os.write(say, json.dumps(answer).encode() + b"\n")
    os.close(say)
    if answer["ok"]:
        supervisor.serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
