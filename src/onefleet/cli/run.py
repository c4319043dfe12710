"""``onefleet run``: any command as a job."""

from __future__ import annotations

import time
from pathlib import Path

import click

from onefleet.cli.boundary import EXIT_INTERRUPTED, say
from onefleet.cli.job_logs import STREAMS, LogReader, follow
from onefleet.cli.kinds import JOB
from onefleet.cli.logs import show_text
from onefleet.cli.options import KINDS, TIERS, Acting, Span, acting
from onefleet.domain.errors import TimedOut
from onefleet.domain.quantities import size
from onefleet.wire.api import CodeView, JobView, NewJob
from onefleet.wire.client import Client

#: What `run --watch` returns for a job that ended without an exit code (it was cancelled).
EXIT_WITHOUT_CODE = 1


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", ctx, param)
        found[name] = text
    return found


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, metavar="-- CMD...", type=click.UNPROCESSED)
@click.option("--tier", type=TIERS, default="standard", show_default=True)
@click.option(
    "--devices", type=Span(1), default="1", show_default=True, help="How many, or from MIN to MAX."
)
@click.option(
    "--kind", type=KINDS, default="cpu", show_default=True, help="Of device that it runs on."
)
@click.option("--name", help="Default: after the command.")
@click.option("--tenant", help="Default: the key's.")
@click.option("--memory", type=click.IntRange(0), default=0, metavar="BYTES", help="Of one worker.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", callback=_pairs)
@click.option(
    "--code",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to send along; the job runs in its copy. Default: the current folder, when a "
    "word of CMD names a file in it.",
)
@click.option("--no-code", is_flag=True, help="Send nothing; the job runs in an empty folder.")
@click.option(
    "--network",
    type=click.Choice(("cell", "host")),
    default="cell",
    show_default=True,
    help="cell: a loopback of its own. host: the machine's network.",
)
@click.option("--watch", "-w", is_flag=True, help="Show its output; return its exit code.")
@click.option("--timeout", type=float, metavar="S", help="With --watch: leave it after S seconds.")
@acting
def run(
    act: Acting,
    command: tuple[str, ...],
    tier: str,
    devices: tuple[int, int],
    kind: str,
    name: str | None,
    tenant: str | None,
    memory: int,
    env: dict[str, str],
    code: Path | None,
    no_code: bool,
    network: str,
    watch: bool,
    timeout: float | None,
) -> int:
    """Run CMD as a job and print its id.

    A job that can never fit is refused at once (exit 6), with what would fit.
    """
    folder = None if no_code else code or code_folder(command, Path.cwd())
    sent = None if folder is None else send_code(act.pool, folder)
    if sent is not None:
        say(f"code: {sent.files} files of {folder}, {size(sent.size_bytes)}")
    job = act.pool.post(
        "/api/v1/jobs",
        NewJob(
            command=command,
            name=name,
            tenant=tenant,
            tier=tier,
            device_kind=kind,
            devices_min=devices[0],
            devices_max=devices[1],
            memory_bytes=memory,
            environment=env,
            code=None if sent is None else sent.digest,
            network=network,
        ),
        JobView,
    )
    if not watch:
        act.done(JOB, job)
        return 0
    # What the job prints owns stdout now, so its id goes where a person sees it.
    say(f"{job.id} ({job.name})")
    return _watch(act.pool, job, timeout)


def code_folder(command: tuple[str, ...], folder: Path) -> Path | None:
    """`folder`, when a word of the command names a file in it (``python train.py``)."""
    for word in command:
        path = Path(word)
        if not path.is_absolute() and ".." not in path.parts and (folder / path).is_file():
            return folder
    return None


def send_code(pool: Client, folder: Path) -> CodeView:
    """Package a folder and give it to the pool."""
    import io

    from onefleet.registry.code import pack

    return pool.upload("/api/v1/code", io.BytesIO(pack(folder).data), CodeView)


def _watch(pool: Client, job: JobView, timeout_s: float | None) -> int:
    started = time.monotonic()

    def moved(now: JobView) -> None:
        say(f"[{now.phase}{': ' + now.reason if now.reason else ''}]")

    def tick(now: JobView) -> None:
        if timeout_s is not None and time.monotonic() - started > timeout_s:
            raise TimedOut(
                f"{now.name} did not end within {timeout_s:g} s",
                why=f"it is {now.phase}; it goes on",
                hint=f"onefleet logs -f {now.id}; onefleet cancel {now.id}",
            )

    try:
        ended = follow(LogReader(pool, job.id), STREAMS, show_text, moved, tick)
    except KeyboardInterrupt:
        say(f"\nstill running: onefleet logs -f {job.id} · onefleet cancel {job.id}")
        return EXIT_INTERRUPTED
    if ended.outcome != "succeeded":
        say(f"{ended.outcome}: {ended.why_ended}")
    return EXIT_WITHOUT_CODE if ended.exit_code is None else ended.exit_code
