"""The entry of each of the pool's processes: ``python -m onefleet.cli.processes NAME``.

Here everything is wired together: which drivers, which store, which pages. A process that was
started by the launcher ends with it, whatever ends the launcher.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import structlog

from onefleet.config import StandardError, settings
from onefleet.domain.layout import Layout

if TYPE_CHECKING:
    from starlette.routing import BaseRoute


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the named process until told to end. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="onefleet.cli.processes")
    parser.add_argument("name", choices=sorted(_ENTRIES))
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--fd", type=int, default=-1)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cpus", default="")
    chosen = parser.parse_args(arguments)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the launcher's own mask is inherited
    if chosen.name != "launcher":
        _end_with_the_launcher()
    configure_logs()
    return _ENTRIES[chosen.name](Layout(Path(chosen.data_dir)), chosen)


def configure_logs(least: int = logging.NOTSET) -> None:
    """One line an event, of this level at least, on stderr, which is a process's log file."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(least),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=("timestamp", "level", "event")),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, StandardError())),
        cache_logger_on_first_use=True,
    )


def _end_with_the_launcher() -> None:
    from onefleet.drivers import linux

    parent = os.getppid()
    linux.die_with_parent(signal.SIGTERM)
    if os.getppid() != parent or parent == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def _control(layout: Layout, chosen: argparse.Namespace) -> int:
    from onefleet.control.process import run
    from onefleet.wire import internal

    run(chosen.fd, layout, internal.read(layout.internal_file).token, _console_routes())
    return 0


def _console_routes() -> Sequence[BaseRoute]:
    from onefleet.console.routes import routes

    return routes()


def _gateway(layout: Layout, chosen: argparse.Namespace) -> int:
    from onefleet.gateway.process import run
    from onefleet.wire import internal

    control = internal.read(layout.internal_file)
    return run(layout, control.host, control.port, control.token, listen_fd=chosen.fd)


def _agent(layout: Layout, chosen: argparse.Namespace) -> int:
    from onefleet.agent.devices import default_probes
    from onefleet.agent.process import NodeSpec, run
    from onefleet.cli.indices import Indices
    from onefleet.drivers.catalog import create_drivers
    from onefleet.wire.agent import LOCAL_NODE

    given = settings()
    drivers = create_drivers(layout, given.criu)
    cpus = Indices().convert(chosen.cpus, None, None) if chosen.cpus else None
    probes = default_probes(cpus)
    run(layout, NodeSpec(LOCAL_NODE), drivers, probes, given.image_share)
    return 0


def _sweep(layout: Layout, chosen: argparse.Namespace) -> int:
    from onefleet.agent.process import sweep
    from onefleet.drivers.catalog import create_drivers

    return 0 if sweep(layout, create_drivers(layout, settings().criu)) else 1


def _launcher(layout: Layout, chosen: argparse.Namespace) -> int:
    """The launcher as a daemon: what it says also goes to a pipe until the pool is ready."""
    from onefleet.cli.launcher import start
    from onefleet.domain.errors import OnefleetError

    log = structlog.get_logger()
    pipe = os.fdopen(chosen.fd, "w", encoding="utf-8")

    def tell(message: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # nobody waits any more
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()

    def say(text: str) -> None:
        log.info(text)
        tell({"say": text})

    def on_ready(url: str) -> None:
        tell({"url": url})
        with contextlib.suppress(BrokenPipeError):
            pipe.close()

    os.set_inheritable(chosen.fd, False)
    try:
        start(layout, chosen.port, say, on_ready, chosen.cpus)
    except OnefleetError as error:
        log.error(error.lines())
        detail = {
            "message": error.what, "type": "", "param": error.param, "code": error.error_code,
            "why": error.why, "hint": error.hint,
        }  # fmt: skip
        tell({"error": detail, "status": error.status})
        return error.exit_code
    return 0


_ENTRIES = {
    "control": _control,
    "gateway": _gateway,
    "agent": _agent,
    "sweep": _sweep,
    "launcher": _launcher,
}


if __name__ == "__main__":
    sys.exit(main())
