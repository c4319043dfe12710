"""Transparent saves: a worker in a cell, dumped and restored by criu.

The work is done by the worker's supervisor; here are the agent's side and the proof that it works
on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onefleet.domain.errors import OnefleetError, Unsupported
from onefleet.domain.fleet import CheckpointMode
from onefleet.drivers.base import Capability, SavedImage, WorkerSpec, WorkerState
from onefleet.drivers.criu_setup import CriuTool, check, find_criu
from onefleet.drivers.rights import rights
from onefleet.drivers.supervised import SupervisedDriver
from onefleet.drivers.supervisor_files import STDOUT

#: A program whose state is in memory alone, and which holds a TCP connection: what it prints, only
#: an unbroken run prints.
_FACTOR, _MASK = 6364136223846793005, (1 << 64) - 1
_COUNTER = f"""
import socket, sys, time
n = x = 1
server = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(server.getsockname())
far = server.accept()[0]
while True:
    near.sendall(b"x"); far.recv(1)
    x = (x * {_FACTOR} + n) & {_MASK}
    sys.stdout.write(f"{{n}} {{x}}\\n"); sys.stdout.flush()
    n += 1; time.sleep(0.002)
"""
_PROBE_LIMIT_S = 30.0
_PROBE = "onefleet-probe-"
#: A probe's folder that is this old was left by a process that was killed at it.
_PROBE_AGE_S = 600.0
_POLL_S = 0.005


class CriuDriver(SupervisedDriver):
    """Workers in cells; saves without the program's help."""

    name = "criu"

    def __init__(self, find: Callable[[], CriuTool]) -> None:
        """find: names the criu to use, or raises Unsupported; called until it has found one."""
        self._find = find
        self._tool: CriuTool | None = None
        self._proved: tuple[str, Capability] | None = None
        self._probing = asyncio.Lock()

    async def probe(self) -> Capability:
        """See Driver.probe. A success is kept for this boot and this criu; a failure is not."""
        async with self._probing:
            key = f"{_boot()} {self._tool.version if self._tool else ''}"
            if self._proved is not None and self._proved[0] == key:
                return self._proved[1]
            capability = await self._try()
            if capability.mode is CheckpointMode.CRIU and self._tool is not None:
                self._proved = (f"{_boot()} {self._tool.version}", capability)
            return capability

    async def start(self, spec: WorkerSpec) -> None:
        """See Driver.start. Raises Unsupported where there is no criu or no cell."""
        await self._find_tool()
        await super().start(spec)

    async def restore(self, spec: WorkerSpec, image: Path, *, hold: bool = False) -> None:
        """See Driver.restore. Raises UpstreamFailed for a torn, corrupt or foreign image."""
        await self._find_tool()
        await super().restore(spec, image, hold=hold)

    def _order(self) -> dict[str, Any]:
        assert self._tool is not None
        return {"criu": list(self._tool.command), "criu_version": self._tool.version}

    async def _find_tool(self) -> CriuTool:
        if self._tool is None:
            self._tool = await asyncio.to_thread(self._find)
        return self._tool

    async def _try(self) -> Capability:
        """`criu check`, then a counter saved and restored for real."""
        began = time.monotonic()
        try:
            tool = await self._find_tool()
            mine = rights()
            if mine.checks:
                await asyncio.to_thread(check, tool)
            saved = await self._save_a_counter()
        except OnefleetError as error:
            why = f"{error.what}: {error.why}" if error.why else error.what
            return Capability(CheckpointMode.NONE, reason=why, evidence=error.hint)
        took_ms = int((time.monotonic() - began) * 1000)
        evidence = (
            f"criu {tool.version} ({tool.source}) saved a counter of {saved.size_bytes} "
            f"bytes, restored it, and it counted on: {took_ms} ms"
        )
        if mine.user_namespace:
            limits = ", ".join(limit.what for limit in mine.limits)
            evidence += f"; as user {os.getuid()}, in a user namespace; limits: {limits}"
        return Capability(mode=CheckpointMode.CRIU, reason="", evidence=evidence)

    async def _save_a_counter(self) -> SavedImage:
        await asyncio.to_thread(_sweep_old_probes)
        base = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=_PROBE))
        spec = WorkerSpec(
            folder=base / "worker",
            command=(sys.executable, "-I", "-c", _COUNTER),
            work=base,
            ends_with=os.getpid(),
        )
        try:
            await super().start(spec)
            await _counted(spec.folder, 3)
            saved = await self.save(spec.folder, base / "image")
            before = await _counted(spec.folder, 1)
            await super().restore(spec, base / "image")
            await _counted(spec.folder, before + 3)
            state = (await self.status(spec.folder)).state
            if state is not WorkerState.RUNNING:
                raise Unsupported("the restored counter does not run", why=f"it is {state}")
            return saved
        finally:
            if (spec.folder / "worker.json").exists():
                await self.stop(spec.folder, 0)
            await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)


def _sweep_old_probes() -> None:
    """Remove the folders of probes whose process was killed; its worker ended with it."""
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{_PROBE}*")):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _PROBE_AGE_S:
                shutil.rmtree(folder, ignore_errors=True)


def make_finder(managed: Path, given: Path | None) -> Callable[[], CriuTool]:
    """What CriuDriver asks for its criu; see `criu_setup.find_criu`."""
    return lambda: find_criu(managed, given)


async def _counted(folder: Path, at_least: int) -> int:
    """Wait for that many whole lines of the counter; how many there are.

    Raises Unsupported when a line is not what an unbroken run prints, or none comes in time.
    """
    deadline = time.monotonic() + _PROBE_LIMIT_S
    while time.monotonic() < deadline:
        lines = (folder / STDOUT).read_text(encoding="ascii").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) >= at_least:
            x = 1
            for number, line in enumerate(whole, 1):
                x = (x * _FACTOR + number) & _MASK
                if line != f"{number} {x}\n":
                    raise Unsupported("a restored program did not go on", why=f"it said {line!r}")
            return len(whole)
        await asyncio.sleep(_POLL_S)
    raise Unsupported("a test program stood still", why=f"no output for {_PROBE_LIMIT_S:.0f} s")


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
