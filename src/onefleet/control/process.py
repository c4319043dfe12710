"""The control process: loads the state, serves the API on a given socket, runs the passes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator, Sequence

import structlog
import uvicorn
import uvloop
from starlette.routing import BaseRoute

from onefleet import collector, config
from onefleet.control.adding import adder
from onefleet.control.app import make_app
from onefleet.control.clock import TimeIds, WallClock
from onefleet.control.first_start import ensure_administrator
from onefleet.control.orders import OrderBook
from onefleet.control.pool import AddModel, Pool
from onefleet.core.policy import DEFAULT_POLICY, Policy
from onefleet.domain.layout import Layout
from onefleet.registry.hub import DEFAULT_ENDPOINT, Hub
from onefleet.store.sql import SqlStore

#: How long calls under way may take to end after SIGTERM.
SHUTDOWN_S = 5
#: An idle connection is kept this long; longer than clients and the gateway keep theirs.
KEEP_ALIVE_S = 75
#: After a defect in a pass, before the next try.
DEFECT_PAUSE_S = 1.0


def run(
    listen_fd: int,
    layout: Layout,
    internal_token: str,
    extra_routes: Sequence[BaseRoute] = (),
    *,
    policy: Policy = DEFAULT_POLICY,
) -> None:
    """Serve until SIGTERM or SIGINT. listen_fd: a bound, listening TCP socket.

    Raises OnefleetError when the state cannot be loaded; nothing is served then.
    """
    collector.settle()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        listener = socket.socket(fileno=listen_fd)
        runner.run(serve(listener, layout, internal_token, extra_routes, policy=policy))


async def serve(
    listener: socket.socket,
    layout: Layout,
    internal_token: str,
    extra_routes: Sequence[BaseRoute] = (),
    *,
    policy: Policy = DEFAULT_POLICY,
    add_model: AddModel | None = None,
) -> None:
    """What `run` does, inside an event loop."""
    layout.root.mkdir(parents=True, exist_ok=True)
    store = await SqlStore.open(layout.database, sole_writer=True)
    pool = await Pool.load(
        store, layout, WallClock(), TimeIds(), policy, add_model or adder(layout, _hub())
    )
    pool.orders = OrderBook(internal_token)  # nodes' doors know their keys after a restart, too
    passes = None
    try:
        await ensure_administrator(pool)
        passes = asyncio.create_task(run_passes(pool))
        server = Server(_config(pool, internal_token, extra_routes), pool)
        await server.serve(sockets=[listener])
    finally:
        if passes is not None:
            passes.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await passes
        await pool.close()


async def run_passes(pool: Pool) -> None:
    """Pass after pass until cancelled. A defect in one is logged and shown, and the next tries."""
    log = structlog.get_logger("control")
    while True:
        try:
            await pool.next_pass()
        except Exception as error:
            log.exception("defect in a pass")
            pool.failed_pass(pool.clock.now(), f"a defect of ours: {error!r}")
            await asyncio.sleep(DEFECT_PAUSE_S)


class Server(uvicorn.Server):
    """Ends in good order: held calls are answered first, and cleaning up is left to `serve`."""

    def __init__(self, config: uvicorn.Config, pool: Pool) -> None:
        super().__init__(config)
        self._pool = pool

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, without ending the process by the signal afterwards."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self._pool.stop_waiting()
        self.should_exit = True


def _config(pool: Pool, token: str, extra_routes: Sequence[BaseRoute]) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(pool, token, extra_routes),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


def _hub() -> Hub:
    endpoint, token = config.hub_access()
    return Hub(endpoint or DEFAULT_ENDPOINT, token)
