"""Watches a replica's engine from the outside: when it answers, and whether it still does.

The engine writes its port file once it listens; it is ready when its health path answers 200.
That it exited is the driver's to say; here is only what a living process can hide: that it never
gets ready, or that it hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from onefleet.agent.protocol import Ready, Unfit, WorkerKey
from onefleet.domain.ids import Generation
from onefleet.engines.launch import read_port_file

#: Between looks at an engine that is not ready yet, and at one that is.
LOOK_S = 0.05
HEALTH_S = 5.0
#: An engine that answers nothing for this long is busy; after so many in a row it hangs.
ANSWER_S = 10.0
FAILURES_MAX = 6
#: Large weights take minutes from a cold disk.
READY_LIMIT_S = 900.0


async def watch(
    key: WorkerKey,
    epoch: Generation,
    port_file: Path,
    health_path: str,
    post: Callable[[Ready | Unfit], None],
    ready_limit_s: float = READY_LIMIT_S,
) -> None:
    """Post `Ready` once it answers; return after posting `Unfit`. Cancelled when it ended."""
    address = await _ready(port_file, health_path, ready_limit_s)
    if address is None:
        post(Unfit(key, epoch, f"its engine was not ready within {ready_limit_s:g} s"))
        return
    post(Ready(key, epoch, *address))
    failures = 0
    while failures < FAILURES_MAX:
        await asyncio.sleep(HEALTH_S)
        failures = 0 if await answers(*address, health_path) else failures + 1
    post(Unfit(key, epoch, f"its engine failed {failures} health checks in a row"))


async def _ready(port_file: Path, health_path: str, limit_s: float) -> tuple[str, int] | None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while loop.time() < deadline:
        address = read_port_file(port_file)
        if address is not None and await answers(*address, health_path):
            return address
        await asyncio.sleep(LOOK_S)
    return None


async def answers(host: str, port: int, path: str, limit_s: float = ANSWER_S) -> bool:
    """Whether GET of the path answers 200 within the limit."""
    try:
        async with asyncio.timeout(limit_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                head = f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n"
                writer.write(head.encode("ascii"))
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
    return status.split()[1:2] == [b"200"]
