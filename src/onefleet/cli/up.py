"""``onefleet up``: start the pool on this machine and keep it running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from onefleet.cli.boundary import debug_option, program, say
from onefleet.cli.indices import Indices, spelled
from onefleet.config import DEFAULT_PORT, child_environment, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from onefleet.domain.layout import Layout


@click.command()
@click.option("--port", type=int, default=DEFAULT_PORT, show_default=True, help="0: any free one.")
@click.option("--data-dir", metavar="DIR", help="Where the pool keeps everything.")
@click.option(
    "--cpus",
    type=Indices(),
    metavar="LIST",
    help="The cores that the pool has here, as 0,2-3; the rest is for others, or further nodes.",
)
@click.option("--detach", is_flag=True, help="Return once it is ready; it runs on.")
@click.option("--quiet", "-q", is_flag=True, help="Leave out what to do next.")
@debug_option
def up(
    port: int,
    data_dir: str | None,
    cpus: tuple[int, ...] | None,
    detach: bool,
    quiet: bool,
) -> None:
    """Start the pool on this machine: gateway, control plane and agent.

    Without --detach it keeps running until Ctrl-C, which saves the jobs and ends every process.
    """
    layout = settings(data_dir).layout

    def ready(url: str) -> None:
        say(_where(layout, url))
        if not quiet:
            say(_next_steps(f"{program()} down" if detach else "Ctrl-C"))

    if detach:
        _detached(layout, port, spelled(cpus), ready)
        return
    from onefleet.cli.launcher import start

    start(layout, port, say, ready, spelled(cpus))


def _detached(layout: Layout, port: int, cpus: str, ready: Callable[[str], None]) -> None:
    """Start the launcher as a daemon; relay what it says until it is ready or fails."""
    from onefleet.cli import pool_folder

    reader, writer = os.pipe()
    with pool_folder.open_log(layout, "up") as log, open(reader, "rb") as said:
        subprocess.Popen(
            (
                sys.executable, "-m", "onefleet.cli.processes", "launcher",
                f"--data-dir={layout.root}", f"--port={port}", f"--fd={writer}", f"--cpus={cpus}",
            ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
            env=child_environment(),
        )  # fmt: skip
        os.close(writer)
        for line in said:
            message = json.loads(line)
            if "url" in message:
                ready(message["url"])
                return
            if "error" in message:
                raise _error(message)
            say(message["say"])
    from onefleet.domain.errors import InternalError

    path = layout.logs / "up.log"
    raise InternalError(
        "the launcher ended before the pool was ready",
        why=pool_folder.tail(path) or "it said nothing",
        hint=f"all that it said is in {path}",
    )


def _error(message: dict[str, str]) -> Exception:
    """The launcher's error, of its own class."""
    from onefleet.wire.client import error_of

    return error_of(int(message["status"]), json.dumps({"error": message["error"]}).encode())


def _where(layout: Layout, url: str) -> str:
    return "\n".join(
        (
            f"pool is ready at {url}",
            f"  OpenAI API  {url}/v1",
            f"  console     {url}/console",
            f"  key         in {layout.credentials}",
            f"  data        {layout.root}",
        )
    )


def _next_steps(end: str) -> str:
    name = program()
    steps = f"{name} status, {name} model add demo:smollm2, {name} tour"
    return f"next: {steps}\nstop it with {end}"
