"""Starts a pool's processes on this machine, keeps them running, and ends all of them.

The launcher serves nothing itself. It holds the data folder's lock and the listening sockets, so
a child that dies is started again without a client being refused. It waits for signals with
`sigtimedwait`; everything happens in one thread.

When the launcher itself is killed, its children notice and exit, but workers run on under their
supervisors: the next `up` adopts them, and `down` ends them.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from onefleet import __version__
from onefleet.cli import listening, pool_folder
from onefleet.cli.pool_folder import Pool, Process
from onefleet.config import DEFAULT_HOST, child_environment
from onefleet.domain.errors import InternalError, OnefleetError, StorageFull, TimedOut
from onefleet.domain.layout import Layout

#: The pause before a child that died is started again; doubles up to the maximum.
BACKOFF_S = 0.1
BACKOFF_S_MAX = 5.0
#: Having run for this long ends a row of failures.
STABLE_S = 30.0
#: A child that dies this often before the pool is ready will not get there.
START_FAILURES_MAX = 3
#: How long the pool may take to get ready.
READY_LIMIT_S = 90.0
#: How long the agent may take to save jobs and end replicas, and the others to exit.
DRAIN_LIMIT_S = 200.0
EXIT_LIMIT_S = 10.0
_LOOK_S = 0.05
_IDLE_S = 0.5
_BOUND_LOGS_S = 60.0

Say = Callable[[str], None]
_SIGNALS = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ReadyCheck(Protocol):
    """What the pool still waits for; empty when it is ready."""

    def __call__(self, layout: Layout, url: str) -> str: ...


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One process to keep running. listener: the name of the socket that it is given, if any.

    drains: asked by SIGUSR1 to end all that it runs, then itself; the others just end on SIGTERM.
    """

    name: str
    command: tuple[str, ...]
    listener: str | None = None
    drains: bool = False


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    running: subprocess.Popen[bytes] | None = None
    process: Process = field(default_factory=lambda: Process(0, 0))
    started_at: float = 0.0
    failures: int = 0
    not_before: float = 0.0


class Launcher:
    """Runs one pool. children: in the order of their start; they are stopped in reverse.

    sweep: the command that ends workers which no agent holds any more.
    """

    def __init__(
        self,
        layout: Layout,
        port: int,
        children: Sequence[ChildSpec],
        sweep: Sequence[str],
        ready: ReadyCheck,
        say: Say,
    ) -> None:
        self._layout = layout
        self._port = port
        self._children = [_Child(spec) for spec in children]
        self._sweep_command = tuple(sweep)
        self._ready = ready
        self._say = say
        self._listeners: Mapping[str, socket.socket] = {}
        self._started: list[tuple[str, Process]] = []
        self._is_ready = False
        self._unpublished = False  # the pool file does not say what is true
        self._interrupts = 0
        self._started_at = time.time_ns() // 1_000_000
        self.url = ""

    def run(self, on_ready: Callable[[str], None]) -> None:
        """Start, call `on_ready` with the address, keep running until told to stop, stop.

        Raises OnefleetError when it cannot start (everything is stopped again), and when a
        process could not be ended.
        """
        with pool_folder.take_lock(self._layout):
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                self._listen()
                try:
                    for child in self._children:
                        self._spawn(child)
                    if self._wait_until_ready():
                        on_ready(self.url)
                        self._watch()
                finally:
                    self._stop()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    # --- start -----------------------------------------------------------------------------------

    def _listen(self) -> None:
        if strays := pool_folder.end_strays(self._layout):
            self._say(f"ended {strays} processes of a launcher that was killed")
        public = listening.bind(DEFAULT_HOST, self._port)
        control = listening.bind(DEFAULT_HOST, 0)
        self._listeners = {"public": public, "control": control}
        host, port = public.getsockname()
        self.url = f"http://{host}:{port}"
        internal_host, internal_port = control.getsockname()
        token = secrets.token_hex(32)
        internal = f'{{"host":"{internal_host}","port":{internal_port},"token":"{token}"}}\n'
        pool_folder.write_whole(self._layout.internal_file, internal)

    def _spawn(self, child: _Child) -> None:
        spec = child.spec
        command = list(spec.command)
        passed: tuple[int, ...] = ()
        if spec.listener is not None:
            descriptor = self._listeners[spec.listener].fileno()
            passed = (descriptor,)
            command.append(f"--fd={descriptor}")
        with pool_folder.open_log(self._layout, spec.name) as log:
            child.running = _popen(command, log, passed)
        child.process = pool_folder.process(child.running.pid)
        child.started_at = time.monotonic()
        self._started.append((spec.name, child.process))
        self._publish()

    def _publish(self) -> None:
        """Write the pool file. Once the pool serves, a full disk does not end it: what the file
        says of a child that was started again is made up for when there is room."""
        pool = Pool(
            url=self.url,
            pid=_own().pid,
            start=_own().start,
            version=__version__,
            started_at=self._started_at,
            processes={c.spec.name: c.process for c in self._children if c.running},
        )
        try:
            pool_folder.write_pool(self._layout, pool)
        except StorageFull as error:
            if not self._is_ready:
                raise
            if not self._unpublished:
                self._say(error.lines())
            self._unpublished = True
        else:
            self._unpublished = False

    def _wait_until_ready(self) -> bool:
        """Whether it got ready; False when it was told to stop before. Raises TimedOut."""
        deadline = time.monotonic() + READY_LIMIT_S
        said = ""
        while missing := self._ready(self._layout, self.url):
            if missing != said:
                self._say(f"waiting for {missing}")
                said = missing
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"the pool was not ready within {READY_LIMIT_S:g} s",
                    why=f"it still waits for {missing}",
                    hint=f"the logs are in {self._layout.logs}",
                )
            if self._told_to_stop(_LOOK_S):
                return False
            self._tend()
        self._is_ready = True
        return True

    # --- keep running ----------------------------------------------------------------------------

    def _watch(self) -> None:
        bound_at = time.monotonic() + _BOUND_LOGS_S
        while not self._told_to_stop(_IDLE_S):
            self._tend()
            if self._unpublished:
                self._publish()
            if time.monotonic() > bound_at:
                bound_at = time.monotonic() + _BOUND_LOGS_S
                for path in sorted(self._layout.logs.glob("*.log")):
                    pool_folder.bound_log(path)

    def _told_to_stop(self, limit_s: float) -> bool:
        """Wait for a signal, at most so long; whether one said to stop. A dead child wakes it."""
        due = [c.not_before - time.monotonic() for c in self._children if not c.running]
        seen = signal.sigtimedwait(_SIGNALS, max(min([limit_s, *due]), 0.0))
        if seen is None or seen.si_signo == signal.SIGCHLD:
            return False
        self._interrupts += 1
        return True

    def _tend(self) -> None:
        """Take note of children that died, and start them again when their pause is over."""
        now = time.monotonic()
        for child in self._children:
            if child.running is not None and child.running.poll() is not None:
                self._note_death(child, now)
            if child.running is None and now >= child.not_before:
                self._spawn_again(child, now)

    def _spawn_again(self, child: _Child, now: float) -> None:
        """Start a child; where the machine has no memory or process for it, later."""
        try:
            self._spawn(child)
        except OSError as error:
            child.failures += 1
            child.not_before = now + BACKOFF_S_MAX
            self._say(f"{child.spec.name} cannot be started: {error}; again in {BACKOFF_S_MAX:g} s")

    def _note_death(self, child: _Child, now: float) -> None:
        assert child.running is not None
        name, code = child.spec.name, child.running.returncode
        child.running = None
        child.failures = 1 if now - child.started_at > STABLE_S else child.failures + 1
        pause_s = min(BACKOFF_S * 2 ** (child.failures - 1), BACKOFF_S_MAX)
        child.not_before = now + pause_s
        if not self._is_ready and child.failures >= START_FAILURES_MAX:
            path = self._layout.logs / f"{name}.log"
            raise InternalError(
                f"{name} ended {child.failures} times ({_code(code)}) before the pool was ready",
                why=pool_folder.tail(path) or "it said nothing",
                hint=f"all that it said is in {path}",
            )
        self._say(f"{name} ended ({_code(code)}); starting it again in {pause_s:g} s")

    # --- stop ------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """End the children in reverse, then the workers that are left, then look twice."""
        swept = True
        for child in reversed(self._children):
            swept = (self._stop_child(child) or not child.spec.drains) and swept
        for listener in self._listeners.values():
            listener.close()
        if not swept:
            swept = sweep(self._layout, self._sweep_command)
        for path in (self._layout.pool_file, self._layout.internal_file):
            path.unlink(missing_ok=True)
        left = [f"{name} (process {p.pid})" for name, p in self._started if p.alive]
        if left or not swept:
            raise InternalError(
                f"not everything could be ended: {', '.join(left) or 'a worker is left'}",
                hint=f"onefleet down --data-dir {self._layout.root}",
            )
        self._say(f"stopped; none of the {len(self._started)} processes that it started is left")

    def _stop_child(self, child: _Child) -> bool:
        """Ask, wait, kill. Whether it exited by itself with code 0."""
        if child.running is None or child.running.poll() is not None:
            return False
        drains = child.spec.drains
        self._say(f"stopping {child.spec.name}" + (": saving jobs, ending replicas" * drains))
        asked = signal.SIGUSR1 if drains else signal.SIGTERM
        child.running.send_signal(asked)
        limit_s = DRAIN_LIMIT_S if drains else EXIT_LIMIT_S
        deadline = time.monotonic() + limit_s
        while child.running.poll() is None and time.monotonic() < deadline:
            if self._told_to_stop(_LOOK_S):
                self._say("faster")
                child.running.send_signal(asked if self._interrupts < 3 else signal.SIGKILL)
        if child.running.poll() is None:
            self._say(f"{child.spec.name} did not end within {limit_s:g} s")
            child.running.kill()
        return child.running.wait(EXIT_LIMIT_S) == 0


def sweep(layout: Layout, command: Sequence[str]) -> bool:
    """Save the jobs and end the replicas that an agent left. Whether nothing of them is left."""
    with pool_folder.open_log(layout, "sweep") as log:
        running = _popen(command, log, ())
        with suppress(subprocess.TimeoutExpired):
            return running.wait(DRAIN_LIMIT_S) == 0
        running.kill()
        running.wait()
    return False


def _popen(
    command: Sequence[str], log: IO[bytes], passed: Sequence[int]
) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, so that a Ctrl-C reaches the launcher alone."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=passed,
        start_new_session=True,
        env=child_environment({"PYTHONUNBUFFERED": "1"}),
    )


def _own() -> Process:
    return pool_folder.process(os.getpid())


def _code(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def pool_children(layout: Layout, cpus: str) -> tuple[ChildSpec, ...]:
    """The three processes of a pool. They are stopped in reverse: first the agent drains.

    cpus: the list of cores that the agent has; empty: all.
    """
    return (
        ChildSpec("control", _entry("control", layout), listener="control"),
        ChildSpec("gateway", _entry("gateway", layout), listener="public"),
        ChildSpec(
            "agent",
            (*_entry("agent", layout), f"--cpus={cpus}"),
            drains=True,
        ),
    )


def sweep_command(layout: Layout) -> tuple[str, ...]:
    """What ends workers that no agent holds."""
    return _entry("sweep", layout)


def _entry(name: str, layout: Layout) -> tuple[str, ...]:
    return (
        sys.executable, "-m", "onefleet.cli.processes", name, f"--data-dir={layout.root}",
    )  # fmt: skip


def pool_ready(layout: Layout, url: str) -> str:
    """What the pool still waits for: control, the gateway, the first node; empty when ready."""
    from onefleet.wire.api import StatusView
    from onefleet.wire.client import Client

    key = _stored_key(layout.credentials)
    if not key:
        return "the control plane"
    try:
        status = Client(url, key, timeout_s=5).get("/api/v1/status", StatusView)
    except OnefleetError as error:
        return f"the gateway ({error.what})"
    return "" if status.nodes_ready else "this machine's agent"


def _stored_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def start(
    layout: Layout, port: int, say: Say, on_ready: Callable[[str], None], cpus: str = ""
) -> None:
    """Run a whole pool until it is told to stop. cpus: as of `pool_children`."""
    Launcher(layout, port, pool_children(layout, cpus), sweep_command(layout), pool_ready, say).run(
        on_ready
    )
