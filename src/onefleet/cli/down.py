"""``onefleet down``: stop the pool that runs on a data folder, also what a killed one left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from onefleet.cli.boundary import debug_option, say
from onefleet.cli.times import Number
from onefleet.config import settings

if TYPE_CHECKING:
    from onefleet.cli.pool_folder import Pool
    from onefleet.domain.layout import Layout

#: Between words about what is still waited for.
_SAY_S = 5.0
_LOOK_S = 0.05


@click.command()
@click.option("--data-dir", metavar="DIR", help="The pool's data folder.")
@click.option(
    "--timeout",
    "limit_s",
    type=Number(0),
    default=220.0,
    show_default=True,
    metavar="S",
    help="Give up after S seconds.",
)
@debug_option
def down(data_dir: str | None, limit_s: float) -> None:
    """Stop the pool: jobs are saved so that the next `up` resumes them, replicas are ended."""
    from onefleet.cli import pool_folder

    layout = settings(data_dir).layout
    pool = pool_folder.read_pool(layout)
    if pool is not None and pool.launcher.alive:
        _stop(layout, pool, limit_s)
    elif pool is None and not pool_folder.is_locked(layout) and not _leftovers(layout):
        say(f"no pool runs on {layout.root}")
    else:
        _clean(layout)


def _stop(layout: Layout, pool: Pool, limit_s: float) -> None:
    import signal

    from onefleet.domain.errors import InternalError, TimedOut

    pool.launcher.signal(signal.SIGTERM)
    started = said = time.monotonic()
    while pool.launcher.alive:
        now = time.monotonic()
        waiting = [n for n, p in pool.processes.items() if p.alive] or ["the launcher"]
        if now - started > limit_s:
            raise TimedOut(
                f"the pool on {layout.root} did not stop within {limit_s:g} s",
                why=f"still running: {', '.join(waiting)} (launcher: process {pool.pid})",
                hint=f"onefleet down --timeout {limit_s * 2:g}; the logs are in {layout.logs}",
            )
        if now - said > _SAY_S:
            said = now
            say(f"waiting for {', '.join(waiting)}")
        time.sleep(_LOOK_S)
    left = [f"{n} (process {p.pid})" for n, p in pool.processes.items() if p.alive]
    if left or layout.pool_file.exists():
        raise InternalError(
            "the launcher ended, but left something behind",
            why=", ".join(left) or f"{layout.pool_file} is still there",
            hint="onefleet down once more cleans up",
        )
    say(f"stopped the pool on {layout.root} in {time.monotonic() - started:.1f} s")


def _clean(layout: Layout) -> None:
    """End what a launcher left that was killed: its children, then workers without an agent."""
    from onefleet.cli import pool_folder
    from onefleet.cli.launcher import sweep, sweep_command
    from onefleet.domain.errors import InternalError

    with pool_folder.take_lock(layout):
        ended = pool_folder.end_strays(layout)
        if not sweep(layout, sweep_command(layout)):
            raise InternalError(
                "not every worker could be ended", hint=f"see {layout.logs / 'sweep.log'}"
            )
        layout.pool_file.unlink(missing_ok=True)
        layout.internal_file.unlink(missing_ok=True)
    say(f"cleaned up after a launcher that was killed; ended {ended} of its processes")


def _leftovers(layout: Layout) -> bool:
    """Whether a worker may run that nobody holds: one whose record is there, and not as saved."""
    workers = layout.agent / "workers"
    return workers.is_dir() and any(workers.glob("*/agent.json"))
