"""The supervisor: a small daemon that owns one worker's processes and outlives the agent.

usage: python -m onefleet.drivers.supervisor FOLDER

It reads the order in the folder, forks twice so that it is nobody's child, starts or restores the
worker, answers one JSON line on stdout (of the process that was called), and then serves commands
on a socket in the folder until the worker has ended or is saved. If it is killed, its worker's
processes are killed with it: nothing ever runs unseen.

Kept to the standard library's light modules: it starts in some 50 ms and there is one a worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any

from onefleet.domain.errors import (
    Conflict,
    InternalError,
    InvalidRequest,
    OnefleetError,
    TimedOut,
)
from onefleet.drivers import cell_worker, image, keeper, linux, process_tree
from onefleet.drivers import supervisor_files as files
from onefleet.drivers.criu_commands import CriuKilled

#: How long a new supervisor waits for the one before it, which has given its last answer, to end.
_LOCK_LIMIT_S = 120.0
#: While it waits for processes whose end the kernel does not announce to it.
_POLL_S = 0.02
_BACKLOG = 16
#: Files get the time of the kernel's last tick, which may be this much behind the clock.
_CLOCK_TICK_NS = 20_000_000
_KILLED = 128 + signal.SIGKILL

Worker = cell_worker.CellWorker | keeper.Keeper


class Supervisor:
    """One worker from its start or restore to its end or save."""

    def __init__(self, order: dict[str, Any], folder: str) -> None:
        self._order = order
        self._folder = folder
        self._worker: Worker | None = None
        self._state: dict[str, Any] = {}
        self._cpu_before_ms = 0
        self._deadline: float | None = None  # of a stop's or cooperative save's grace
        self._overran = False
        self._saving: str | None = None  # the image of a cooperative save
        self._began_ns = 0  # of this stretch, and when it was asked to save itself; wall clock
        self._asked_ns = 0
        self._stopping = False
        self._waiting: list[socket.socket] = []
        self._clients: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._finished = False

    def begin(self) -> dict[str, Any]:
        """Start or restore the worker; what to answer to whoever asked for it."""
        restoring = self._order["action"] == "restore"
        before = self._order["image"] if restoring else None
        self._write(state="restoring" if restoring else "starting", pid=None, image=before)
        wakeup, poke = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(poke, False)
        signal.set_wakeup_fd(poke, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._request_stop(0))
        self._wakeup = wakeup
        try:
            self._worker = self._make_worker(restoring)
        except (OnefleetError, OSError) as error:
            told = _told(error)
            state = "saved" if restoring else "ended"
            code = None if restoring else 127
            self._write(state=state, exit_code=code, reason=_line(told))
            return {"ok": False, "error": told}
        self._began_ns = time.time_ns()
        self._listen()
        root = self._worker.root
        born = process_tree.born_at(root)
        self._write(state="running", pid=root, born=born, reason="")
        return {"ok": True, "pid": self._worker.root}

    def _make_worker(self, restoring: bool) -> Worker:
        order = self._order
        if not os.path.isdir(order["work"]):
            why = f"{order['work']} is not a folder"
            raise InvalidRequest("the work folder does not exist", why=why, hint="create it first")
        if restoring:
            manifest = image.read(order["image"])
            self._cpu_before_ms = int(manifest["cpu_ms"])
            if manifest["kind"] != order["driver"]:
                raise Conflict(
                    f"image {order['image']} is not one of driver {order['driver']}",
                    why=f"driver {manifest['kind']} made it",
                )
        if order["driver"] == "criu":
            return cell_worker.CellWorker(order, self._folder, restoring)
        if restoring:
            image.verify(order["image"])
        return keeper.Keeper(order, self._folder)

    def serve(self) -> None:
        """Handle the worker's end, commands and deadlines until it has ended or is saved."""
        assert self._worker is not None
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        if self._worker.descriptor >= 0:
            self._selector.register(self._worker.descriptor, selectors.EVENT_READ)
        owner = self._watch_owner()
        while not self._finished:
            for key, _ in self._selector.select(self._timeout()):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._read(key.fileobj)
                elif key.fileobj == owner:
                    self._selector.unregister(owner)
                    self._request_stop(0)
                elif key.fileobj == self._wakeup:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wakeup, 512)
                if self._finished:
                    return
            self._worker.poll()
            self._reap()
            self._advance()

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
        assert self._worker is not None
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._worker.reaped(pid, status, int((usage.ru_utime + usage.ru_stime) * 1000))

    def _timeout(self) -> float | None:
        if self._deadline is None:
            return None
        if self._worker is not None and self._worker.root_status is not None:
            return _POLL_S
        return max(0.0, self._deadline - time.monotonic())

    def _advance(self) -> None:
        """Decide whether this is the end."""
        worker = self._worker
        assert worker is not None
        if worker.lost:
            self._end(None, worker.lost)
        elif self._deadline is not None:
            over = time.monotonic() >= self._deadline
            if worker.root_status is not None and not worker.members():
                self._leave()
            elif over:
                self._overran = True
                self._leave()
        elif worker.root_status is not None:
            self._leave()

    def _leave(self) -> None:
        """The grace is over or not needed: end what is left, and write what became of it."""
        worker = self._worker
        assert worker is not None
        if worker.root_status is None:
            self._cpu_before_ms += process_tree.cpu_ms(process_tree.tree(worker.root))
        self._sweep()
        code, reason = _meaning(worker.root_status)
        if self._saving is not None:
            self._finish_cooperative(self._saving)
        elif self._stopping:
            late = "; killed, because its grace time was over" if self._overran else ""
            self._end(code, f"stopped on request{late}")
        else:
            self._end(code, reason)

    def _sweep(self) -> None:
        """Kill and reap whatever is left, so that nothing runs when the state says so."""
        worker = self._worker
        assert worker is not None
        worker.destroy()
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(-1, 0)
                worker.reaped(pid, status, int((usage.ru_utime + usage.ru_stime) * 1000))
                worker.destroy()

    def _end(self, code: int | None, reason: str) -> None:
        assert self._worker is not None
        if self._worker.lost:
            self._sweep()
        cpu_ms = self._cpu_before_ms + self._worker.ended_cpu_ms
        self._write(state="ended", pid=None, exit_code=code, reason=reason, cpu_ms=cpu_ms)
        self._finish({"ok": True})

    def _finish(self, answer: dict[str, Any]) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(files.SOCKET)
        for client in self._waiting:
            _send(client, answer)
        self._waiting.clear()
        self._finished = True

    # Commands

    def _listen(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(files.SOCKET)
        # A relative name: a socket's path may have 107 bytes, a folder's has no such limit.
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(files.SOCKET)
        os.chmod(files.SOCKET, 0o600)
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
            client.setblocking(False)
            self._clients[client] = b""
            self._selector.register(client, selectors.EVENT_READ)

    def _read(self, client: socket.socket) -> None:
        try:
            data = client.recv(files.LINE_LIMIT)
        except OSError:
            data = b""
        held = self._clients.get(client, b"") + data
        self._clients[client] = held
        if data and b"\n" not in held and len(held) < files.LINE_LIMIT:
            return
        self._selector.unregister(client)
        del self._clients[client]
        if b"\n" not in held:
            client.close()
            return
        try:
            command = json.loads(held)
            self._obey(command["op"], command, client)
        except (ValueError, KeyError, TypeError) as error:
            _send(client, {"ok": False, "error": _told(InvalidRequest(f"bad command: {error}"))})

    def _obey(self, operation: str, command: dict[str, Any], client: socket.socket) -> None:
        match operation:
            case "stop":
                self._waiting.append(client)
                self._request_stop(int(command["grace_ms"]))
            case "save" if command["image"] == self._saving:
                self._waiting.append(client)
            case "save" if self._deadline is not None:
                busy = Conflict("the worker cannot be saved", why="it is being stopped or saved")
                _send(client, {"ok": False, "error": _told(busy)})
            case "save":
                self._save(str(command["image"]), client)
            case _:
                _send(client, {"ok": False, "error": _told(InvalidRequest(f"no {operation!r}"))})

    def _request_stop(self, grace_ms: int) -> None:
        """Ask the worker to end. A second request may shorten the grace, never lengthen it."""
        deadline = time.monotonic() + grace_ms / 1000
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
        if not self._stopping and self._worker is not None:
            self._stopping = True
            if self._saving is not None:
                image.discard_partial(self._saving)
                self._saving = None
            self._write(state="stopping")
            self._worker.ask_to_end()

    def _save(self, target: str, client: socket.socket) -> None:
        worker = self._worker
        assert worker is not None
        self._write(state="saving", image=target)
        if isinstance(worker, keeper.Keeper):
            self._ask_to_save(worker, target, client)
            return
        try:
            manifest = worker.save(target, self._cpu_before_ms)
        except (CriuKilled, TimedOut) as error:
            # Nobody knows what was done to its memory: better an honest end than a wrong result.
            self._sweep()
            reason = f"ended: {error.what}, {error.why}; what it had done since its last image"
            self._waiting.append(client)
            self._write(state="ended", pid=None, exit_code=None, reason=f"{reason} is lost")
            self._finish({"ok": False, "error": _told(error)})
        except OnefleetError as error:
            self._refuse_save(error, client)
        else:
            self._waiting.append(client)
            self._saved(target, manifest, "")

    def _refuse_save(self, error: OnefleetError | OSError, client: socket.socket) -> None:
        """The worker runs on unharmed."""
        told = _told(error)
        reason = f"the last save failed, nothing was lost: {_line(told)}"
        self._write(state="running", image=None, reason=reason)
        _send(client, {"ok": False, "error": told})

    def _ask_to_save(self, worker: keeper.Keeper, target: str, client: socket.socket) -> None:
        """A cooperative save: nothing is asked of the program before the image has its place."""
        try:
            image.begin(target)
        except (OnefleetError, OSError) as error:
            self._refuse_save(error, client)
            return
        self._waiting.append(client)
        self._saving = target
        self._deadline = time.monotonic() + self._order["grace_ms"] / 1000
        self._asked_ns = time.time_ns()
        worker.ask_to_end()

    def _finish_cooperative(self, target: str) -> None:
        """The program has ended after it was asked to save itself."""
        worker = self._worker
        assert worker is not None
        code, _ = _meaning(worker.root_status)
        cpu_ms = self._cpu_before_ms + worker.ended_cpu_ms
        facts = {
            "kind": "local",
            "id": os.urandom(16).hex(),
            "made_at_ms": time.time_ns() // 1_000_000,
            "command": self._order["command"],
            "checkpoint": f"{self._folder}/{files.CHECKPOINT}",
            "exit_code": code,
            "writable": [],
            "cpu_ms": cpu_ms,
            "frozen_ms": 0,
            "lost_ms": self._unsaved_ms(),
        }
        reason = ""
        if self._overran:
            seconds = self._order["grace_ms"] / 1000
            reason = (
                f"killed after {seconds:g} s: it did not end when asked to save itself, so its "
                "work since its own last checkpoint is lost"
            )
        try:
            manifest = image.commit(target, {**facts, "reason": reason})
        except (OSError, OnefleetError) as error:
            image.discard_partial(target)
            told = _told(error)
            self._write(state="ended", pid=None, exit_code=code, reason=_line(told))
            self._finish({"ok": False, "error": told})
        else:
            self._saved(target, manifest, reason)

    def _unsaved_ms(self) -> int:
        """How long it had run, when it was asked to save itself, since what it did save.

        What it saved is what it wrote into its checkpoint folder. Nothing since this stretch
        began: then the whole stretch; what was not saved of earlier ones was told at their end.
        """
        newest = files.newest_change_ns(files.CHECKPOINT)
        if newest >= self._asked_ns - _CLOCK_TICK_NS:
            return 0
        return max(self._asked_ns - max(newest, self._began_ns), 0) // 1_000_000

    def _saved(self, target: str, manifest: dict[str, Any], reason: str) -> None:
        size = image.total_bytes(manifest)
        self._write(
            state="saved",
            pid=None,
            reason=reason,
            image=target,
            image_bytes=size,
            cpu_ms=manifest["cpu_ms"],
            frozen_ms=manifest["frozen_ms"],
            lost_ms=manifest.get("lost_ms", 0),
        )
        self._finish({"ok": True})

    # State

    def _write(self, **changes: Any) -> None:
        """Change the state file. A full disk neither ends the worker nor hides its fate."""
        self._state.update(changes)
        self._state["supervisor"] = os.getpid()
        self._state.setdefault("exit_code", None)
        self._state.setdefault("cpu_ms", self._cpu_before_ms)
        self._state["cpu_before_ms"] = self._cpu_before_ms
        try:
            files.write_json(files.STATE, self._state)
        except OSError as error:
            _complain(f"state.json could not be replaced, so it is overwritten: {error}")
            files.overwrite_json(files.STATE, self._state)


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


def _told(error: OnefleetError | OSError) -> dict[str, str]:
    if not isinstance(error, OnefleetError):
        error = InternalError("the supervisor could not do it", why=str(error))
    names = [kind.__name__ for kind in type(error).__mro__]
    return {"kind": names[0], "what": error.what, "why": error.why, "hint": error.hint}


def _line(told: dict[str, str]) -> str:
    return f"{told['what']}: {told['why']}" if told["why"] else told["what"]


def _send(client: socket.socket, answer: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        client.setblocking(True)
        client.sendall(json.dumps(answer).encode() + b"\n")
    client.close()


def main(arguments: list[str]) -> int:
    folder = arguments[0]
    os.chdir(folder)
    answer, say = os.pipe()
    child = os.fork()
    if child:
        os.close(say)
        os.waitpid(child, 0)
        with os.fdopen(answer, encoding="utf-8") as lines:
            sys.stdout.write(lines.readline())
        return 0
    os.close(answer)
    os.setsid()
    if os.fork():
        os._exit(0)
    _be_daemon(folder, say)
    return 0


def _be_daemon(folder: str, say: int) -> None:
    log = os.open(files.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    linux.name_process("onefleet-worker")
    try:
        _live(folder, say)
    except Exception as error:
        answer = {"ok": False, "error": _told(InternalError(f"supervisor failed: {error!r}"))}
        with contextlib.suppress(OSError):
            os.write(say, json.dumps(answer).encode() + b"\n")
        raise  # into the log


def _live(folder: str, say: int) -> None:
    lock = files.take_lock(files.LOCK, _LOCK_LIMIT_S)
    if lock is None:
        held = Conflict(f"worker {folder} already has a supervisor", hint="stop it first")
        os.write(say, json.dumps({"ok": False, "error": _told(held)}).encode() + b"\n")
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
