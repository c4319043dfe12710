"""``onefleet run``: any command as a job."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
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
from onefleet.domain.quantities import counted, size
from onefleet.wire.api import CodeView, JobView, NewArray, NewJob, Page
from onefleet.wire.client import Client

#: What a shell, and `--option=FILE`, put between the names of files.
_BETWEEN = re.compile(r"""[\s"'`;|&<>()=,]+""")
_SCRIPTS = (".py", ".sh")

#: What `run --watch` returns for a job that ended without an exit code (it was cancelled).
EXIT_WITHOUT_CODE = 1


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--code",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to send along; the job runs in its copy. Default: the current folder, when CMD "
    "names a file in it.",
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

    CMD is looked up on the PATH of the node that it runs on: name the python of a virtual
    environment by its whole path. A job that can never fit is refused at once (exit 6), with what
    would fit.
    """
    if array is not None and watch:
        raise click.UsageError("--watch is for one job, and --array makes several")
    folder = None if no_code else code or code_folder(asked.command, Path.cwd())
    sent = None if folder is None else send_code(act.pool, folder)
    if sent is not None:
        say(f"code: {counted(sent.files, 'file')} of {folder}, {size(sent.size_bytes)} packed")
    elif not no_code and (script := _script(asked.command)):
        say(f"code: none sent, as there is no {script} in {Path.cwd()}; --code DIR sends a folder")
    if own := _of_an_environment(asked.command[0]):
        say(f"note: a job runs its node's own {asked.command[0]!r}; for this shell's, say {own}")
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
    """`folder`, when the command names a file in it: `python train.py`, `python -m lab.train`,
    `sh -c "python train.py > log"`, `prog --config=a.yaml`.
    """
    for name in _names(command):
        path = Path(name)
        if not path.is_absolute() and ".." not in path.parts and (folder / path).is_file():
            return folder
    return None


def _names(command: tuple[str, ...]) -> Iterator[str]:
    """What may be the name of a file in these words."""
    for before, word in zip(("", *command), command, strict=False):
        if before == "-m":
            module = word.replace(".", "/")
            yield from (f"{module}.py", f"{module}/__main__.py")
        yield word
        yield from _BETWEEN.split(word)


def _script(command: tuple[str, ...]) -> str:
    """A script that the command names by a relative path; empty: none."""
    names = (name for word in command for name in _BETWEEN.split(word))
    return next((n for n in names if n.endswith(_SCRIPTS) and not Path(n).is_absolute()), "")


def _of_an_environment(program: str) -> str:
    """The path of a program that this shell takes from a virtual environment; empty: it does not.

    A job is started where that environment may not be, and never on the PATH of who submits it.
    """
    found = shutil.which(program) if "/" not in program else None
    if found is None or not (Path(found).parent.parent / "pyvenv.cfg").is_file():
        return ""
    return found


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
