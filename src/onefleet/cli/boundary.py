"""Where a command line becomes a call, and what it raises becomes three lines and an exit code.

Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 permission, 5 conflict or quota, 6 infeasible,
7 unreachable, 124 timeout, 130 interrupted, 141 nobody reads our output any more.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from types import TracebackType
from typing import Any

import click

from onefleet.cli.main import COMMANDS, USAGE, help_text
from onefleet.domain.errors import OnefleetError

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

DEBUG_KEY = "onefleet.debug"
COLOR_KEY = "onefleet.color"


class LazyGroup(click.Group):
    """The root group: a command's module is imported when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for _, commands in COMMANDS for name, _, _ in commands]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        for _, commands in COMMANDS:
            for known, target, _ in commands:
                if known == name:
                    module, attribute = target.split(":")
                    found = getattr(importlib.import_module(f"onefleet.cli.{module}"), attribute)
                    if not isinstance(found, click.Command):
                        raise TypeError(f"onefleet.cli.{target} is not a command")
                    return found
        return None

    def get_help(self, ctx: click.Context) -> str:
        return help_text()


def _set(key: str) -> Any:
    def callback(ctx: click.Context, param: click.Parameter, value: object) -> object:
        if value is not None and value is not False:
            ctx.meta[key] = value
        return value

    return callback


def debug_option(function: Any) -> Any:
    """``--debug``, on the root and on every command."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set(DEBUG_KEY),
        help="Add the traceback to an error.",
    )(function)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--color",
    type=click.Choice(("auto", "always", "never")),
    expose_value=False,
    is_eager=True,
    callback=_set(COLOR_KEY),
)
@debug_option
def root() -> None:
    """One shared AI pool."""


def run_command(words: list[str]) -> int:
    """Parse and run; print an error as three lines on stderr. Returns the exit code."""
    meta: dict[str, Any] = {}
    previous, sys.excepthook = sys.excepthook, _defect(meta)
    try:
        code = _run(words, meta)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader left (`| head`). Point stdout elsewhere so that the flush at exit is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_BROKEN_PIPE
    sys.excepthook = previous
    return code


def _run(words: list[str], meta: dict[str, Any]) -> int:
    try:
        _must_be_text(words)
        with root.make_context("onefleet", list(words)) as ctx:
            try:
                result = root.invoke(ctx)
            finally:
                meta.update(ctx.meta)
            return result if isinstance(result, int) else 0
    except OnefleetError as error:
        if meta.get(DEBUG_KEY):
            sys.excepthook(type(error), error, error.__traceback__)
        else:
            say(_lines(error))
        return error.exit_code
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return error.exit_code
    except click.UsageError as error:
        say(_usage_lines(error))
        return error.exit_code
    except click.ClickException as error:
        say(f"error: {error.format_message()}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        return EXIT_INTERRUPTED


def _must_be_text(words: list[str]) -> None:
    """Raise UsageError for a word whose bytes are not UTF-8: no answer or record could carry it."""
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            shown = os.fsencode(word).decode(errors="replace")
            raise click.UsageError(f"{shown[:80]!r} is not UTF-8 text")


def _lines(error: OnefleetError) -> str:
    """The three lines. OpenAI clients show a message alone, so /v1 repeats why and hint in it."""
    for extra, mark in ((error.hint, "; try: "), (error.why, "; ")):
        if extra:
            error.what = error.what.removesuffix(f"{mark}{extra}")
    return error.lines()


def program() -> str:
    """What to type for this command line: `onefleet` where the PATH has it, else where it is."""
    own = os.path.abspath(sys.argv[0])
    found = shutil.which("onefleet")
    if not os.path.basename(own).startswith("onefleet") or (found and os.path.samefile(found, own)):
        return "onefleet"
    near = os.path.relpath(own)
    return own if near.startswith("..") else near


def say(text: str) -> None:
    """Print for a person: on stderr, never mixed into data."""
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()


def _usage_lines(error: click.UsageError) -> str:
    ctx = error.ctx
    if ctx is None or ctx.parent is None:
        usage, path = USAGE.removeprefix("Usage: "), "onefleet"
    else:
        usage = ctx.get_usage().removeprefix("Usage: ")
        path = ctx.command_path
    message = " ".join(error.format_message().split()).rstrip(".")
    missing = error.param if isinstance(error, click.MissingParameter) else None
    why = f"usage is {' '.join(usage.split())}"
    if isinstance(missing, click.Option) and missing.help:
        why = f"{path} needs it: {missing.help}"
    return f"error: {message}\nwhy: {why}\ntry: {path} --help"


def _defect(meta: dict[str, Any]) -> Any:
    """What is printed for an error that nobody expected: our own defect."""

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if meta.get(DEBUG_KEY):
            sys.__excepthook__(kind, error, traceback)
            if not isinstance(error, OnefleetError):
                return
        if isinstance(error, OnefleetError):
            say(_lines(error))
            return
        say(
            f"error: the command stopped: {kind.__name__}: {error}\n"
            "why: a defect of onefleet itself\n"
            "try: the same command with --debug, and report what it prints"
        )

    return hook
