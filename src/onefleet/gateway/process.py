"""The gateway as a process: its loop, its socket, its log, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO, cast

import structlog
import uvloop

from onefleet import collector
from onefleet.config import StandardError
from onefleet.domain.layout import Layout
from onefleet.engines.base import Dialect
from onefleet.engines.catalog import ENGINES
from onefleet.gateway.app import Gateway
from onefleet.gateway.connection import ClientConnection
from onefleet.gateway.limits import GatewayLimits
from onefleet.gateway.metering import Meter
from onefleet.gateway.sync import ControlSync
from onefleet.gateway.upstream import Upstream

_BACKLOG = 4096

#: Connections to the control plane are closed before uvicorn's keep-alive of five seconds would.
_CONTROL_IDLE_MS = 5_000


class GatewayProcess:
    """Everything that one gateway is made of, on the running loop. Tests use it in their own."""

    def __init__(
        self,
        layout: Layout,
        control_host: str,
        control_port: int,
        token: str,
        limits: GatewayLimits,
        dialects: Mapping[str, Dialect],
    ) -> None:
        self.limits = limits
        control = Upstream(control_host, control_port, limits, _CONTROL_IDLE_MS, True)
        log = structlog.get_logger("gateway")
        meter = Meter(layout.usage_folder, limits, lambda code, line: log.error(code, what=line))
        self.gateway = Gateway(limits, dialects, meter, control, self._demand_changed)
        self.sync = ControlSync(self.gateway, control, token, layout.routes_file)
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Load the last table, listen, and begin to talk to the control plane."""
        self.sync.load()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ClientConnection(self.gateway), sock=listener, backlog=_BACKLOG, ssl=tls
        )
        self._tasks = [loop.create_task(self.sync.run()), loop.create_task(self._tick())]

    async def stop(self) -> bool:
        """Take nothing new, answer what is under way. False: the limit drain_ms cut some off."""
        if self._server is not None:
            self._server.close()
        gateway = self.gateway
        gateway.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.drain_ms / 1000):
                await gateway.idle.wait()
        clean = not gateway.busy
        gateway.abort()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.sync.finish()
        gateway.close()
        return clean

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.limits.tick_ms / 1000)
            self.gateway.tick()

    def _demand_changed(self) -> None:
        self.sync.tell()


def run(
    layout: Layout,
    control_host: str,
    control_port: int,
    token: str,
    *,
    listen_fd: int | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: GatewayLimits | None = None,
    dialects: Mapping[str, Dialect] | None = None,
    tls: ssl.SSLContext | None = None,
    port_file: Path | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status, 0 also when requests were cut off.

    listen_fd: a listening (or bound) TCP socket to take over; without it `host` and `port` are
    bound. port_file: where "host port\\n" is written once it listens. dialects: engines by name;
    those of this package when not given.
    """
    _log_to_stderr()
    if listen_fd is not None:
        listener = socket.socket(fileno=listen_fd)
    else:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    listener.setblocking(False)
    named = dialects or {name: engine.dialect for name, engine in ENGINES.items()}

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        process = GatewayProcess(
            layout, control_host, control_port, token, limits or GatewayLimits(), named
        )
        await process.start(listener, tls)
        if port_file is not None:
            name = listener.getsockname()
            fresh = port_file.with_suffix(".new")
            fresh.write_text(f"{name[0]} {name[1]}\n", "ascii")
            fresh.replace(port_file)
        collector.settle()
        await stop.wait()
        if not await process.stop():
            process.gateway.log.warning("requests_cut_off")

    uvloop.run(serve())
    return 0


def _log_to_stderr() -> None:
    """JSON lines. They never hold a key or a prompt: no code path gives them one."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, StandardError())),
        cache_logger_on_first_use=True,
    )
