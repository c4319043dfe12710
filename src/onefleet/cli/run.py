"""``onefleet run``: any command as a job."""

from __future__ import annotations

import time
from pathlib import Path

import click
import msgspec

from onefleet.cli.boundary import EXIT_INTERRUPTED, say
from onefleet.cli.job_logs import STREAMS, LogReader, follow
from onefleet.cli.job_options import job_options
from onefleet.cli.kinds import JOB
from onefleet.cli.logs import show_text
from onefleet.cli.options import Acting, acting
from onefleet.cli.times import Number
from onefleet.domain.errors import TimedOut
from onefleet.domain.quantities import size
from onefleet.wire.api import CodeView, JobView, NewArray, NewJob, Page
from onefleet.wire.client import Client

#: What `run --watch` returns for a job that ended without an exit code (it was cancelled).
EXIT_WITHOUT_CODE = 1


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--code",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to send along; the job runs in its copy. Default: the current folder, when a "
    "word of CMD names a file in it.",
)
@click.option("--no-code", is_flag=True, help="Send nothing; the job runs in an empty folder.")
@click.option(
    "--array",
    type=click.IntRange(1),
    metavar="N",
    help="N such jobs; ONEFLEET_ARRAY_INDEX differs.",
)
@click.option("--watch", "-w", is_flag=True, help="Show its output; return its exit code.")
@click.option(
    "--timeout", type=Number(0), metavar="S", help="With --watch: leave it after S seconds."
)
@job_options
@acting
def run(
    act: Acting,
    asked: NewJob,
    code: Path | None,
    no_code: bool,
    array: int | None,
    watch: bool,
    timeout: float | None,
) -> int:
    """Run CMD as a job and print its id.

    A job that can never fit is refused at once (exit 6), with what would fit.
    """
    if array is not None and watch:
        raise click.UsageError("--watch is for one job, and --array makes several")
    folder = None if no_code else code or code_folder(asked.command, Path.cwd())
    sent = None if folder is None else send_code(act.pool, folder)
    if sent is not None:
        say(f"code: {sent.files} files of {folder}, {size(sent.size_bytes)}")
    new = msgspec.structs.replace(asked, code=None if sent is None else sent.digest)
    if array is not None:
        page = act.pool.post("/api/v1/arrays", NewArray(job=new, size=array), Page[JobView])
        act.done_many(JOB, page.data)
        return 0
    job = act.pool.post("/api/v1/jobs", new, JobView)
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
