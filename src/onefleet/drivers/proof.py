"""Proof, not belief: a real program is saved and restored here before anybody relies on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from onefleet.domain.errors import Unsupported
from onefleet.drivers.base import Driver, SavedImage, WorkerSpec, WorkerState
from onefleet.drivers.supervisor_files import STDERR, STDOUT, tail

FACTOR, MASK = 6364136223846793005, (1 << 64) - 1
#: A program whose state is in memory alone, and which holds a TCP connection: what it prints, only
#: an unbroken run prints.
_COUNTER = f"""
import socket, sys, time
n = x = 1
server = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(server.getsockname())
far = server.accept()[0]
while True:
    near.sendall(b"x"); far.recv(1)
    x = (x * {FACTOR} + n) & {MASK}
    sys.stdout.write(f"{{n}} {{x}}\\n"); sys.stdout.flush()
    n += 1; time.sleep(0.002)
"""
COUNTER = (sys.executable, "-I", "-c", _COUNTER)
GPU_COUNTER = (sys.executable, "-P", "-m", "onefleet.drivers.gpu_counter")

_LIMIT_S = 30.0
_NAME = "onefleet-probe-"
#: A probe's folder that is this old was left by a process that was killed at it.
_AGE_S = 600.0
_POLL_S = 0.005
_COMPLAINT_BYTES = 300


async def prove(
    driver: Driver,
    command: Sequence[str] = COUNTER,
    environment: Mapping[str, str] | None = None,
    gpus: Sequence[str] = (),
) -> SavedImage:
    """Save and restore a counter with this driver; what its save came to.

    command: prints the counter's lines. Raises Unsupported when it does not go on as if nothing
    had been, and what the driver raises.
    """
    await asyncio.to_thread(_sweep_old)
    base = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=_NAME))
    spec = WorkerSpec(
        folder=base / "worker",
        command=tuple(command),
        work=base,
        environment=tuple(sorted((environment or {}).items())),
        gpus=tuple(gpus),
        ends_with=os.getpid(),
    )
    try:
        await driver.start(spec)
        await _counted(spec.folder, 3)
        saved = await driver.save(spec.folder, base / "image")
        before = await _counted(spec.folder, 1)
        await driver.restore(spec, base / "image")
        await _counted(spec.folder, before + 3)
        state = (await driver.status(spec.folder)).state
        if state is not WorkerState.RUNNING:
            raise Unsupported("the restored counter does not run", why=f"it is {state}")
        return saved
    finally:
        if (spec.folder / "worker.json").exists():
            await driver.stop(spec.folder, 0)
        await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)


def _sweep_old() -> None:
    """Remove the folders of probes whose process was killed; its worker ended with it."""
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{_NAME}*")):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _AGE_S:
                shutil.rmtree(folder, ignore_errors=True)


async def _counted(folder: Path, at_least: int) -> int:
    """Wait for that many whole lines of the counter; how many there are.

    Raises Unsupported when a line is not what an unbroken run prints, or none comes in time.
    """
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline:
        lines = (folder / STDOUT).read_text(encoding="ascii").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) >= at_least:
            x = 1
            for number, line in enumerate(whole, 1):
                x = (x * FACTOR + number) & MASK
                if line != f"{number} {x}\n":
                    raise Unsupported("a restored program did not go on", why=f"it said {line!r}")
            return len(whole)
        if complaint := tail(str(folder / STDERR), _COMPLAINT_BYTES).strip():
            raise Unsupported("a test program failed", why=complaint.splitlines()[-1])
        await asyncio.sleep(_POLL_S)
    raise Unsupported("a test program stood still", why=f"no output for {_LIMIT_S:.0f} s")
