"""``onefleet logs``: what a job printed."""

from __future__ import annotations

import json
import sys

import click

from onefleet.cli.boundary import EXIT_INTERRUPTED, say
from onefleet.cli.job_logs import STREAMS, LogReader, follow
from onefleet.cli.options import Reading, reading
from onefleet.cli.output import API_VERSION
from onefleet.cli.plain_yaml import dump


@click.command()
@click.argument("job")
@click.option(
    "--follow", "-f", "on", is_flag=True, help="Go on until the job ends, as --watch does."
)
@click.option("--stream", type=click.Choice((*STREAMS, "both")), default="both", show_default=True)
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines so far.")
@click.option("--rank", type=click.IntRange(0), default=0, show_default=True, help="Of a gang.")
@reading
def logs(view: Reading, job: str, on: bool, stream: str, tail: int | None, rank: int) -> int:
    """What JOB printed: its stdout on stdout, its stderr on stderr.

    It lasts over suspends, restarts of the pool and the job's end. With -o json, yaml or jsonl
    both streams come on stdout, as objects.
    """
    streams = STREAMS if stream == "both" else (stream,)
    reader = LogReader(view.pool, job, rank)
    show = _show_json if view.format in ("json", "yaml", "jsonl") else show_text
    try:
        if view.format in ("json", "yaml"):
            _whole(reader, streams, view.format, tail)
        else:
            for name in streams:
                if text := _tail("".join(reader.rest(name)), tail):
                    show(name, text)
        if on or view.watch:
            follow(reader, streams, show)
    except KeyboardInterrupt:
        if not (on or view.watch):
            raise
        say(f"\nleft; the job goes on. Come back: onefleet logs -f {job}")
        return EXIT_INTERRUPTED
    return 0


def _whole(reader: LogReader, streams: tuple[str, ...], format_: str, tail: int | None) -> None:
    body = {"apiVersion": API_VERSION, "object": "Logs", "job": reader.job} | {
        name: _tail("".join(reader.rest(name)), tail) for name in streams
    }
    click.echo(json.dumps(body, indent=2) if format_ == "json" else dump(body).rstrip("\n"))


def _tail(text: str, count: int | None) -> str:
    if count is None:
        return text
    return "".join(text.splitlines(keepends=True)[-count:]) if count else ""


def show_text(stream: str, text: str) -> None:
    """A job's stdout on ours, its stderr on ours."""
    out = sys.stdout if stream == "stdout" else sys.stderr
    out.write(text)
    out.flush()


def _show_json(stream: str, text: str) -> None:
    for line in text.splitlines():
        click.echo(json.dumps({"stream": stream, "line": line}))
