"""What commands have in common: finding the pool, choosing the output, watching.

`reading` and `acting` add the options and pass one object, so that a command's own file says only
what it reads or does.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onefleet.cli.boundary import COLOR_KEY, debug_option, say
from onefleet.cli.output import FORMATS, Kind, Terminal, render_list, render_one, terminal
from onefleet.cli.pool import connect
from onefleet.domain.quantities import parse_span

if TYPE_CHECKING:
    from onefleet.wire.client import Client

View = TypeVar("View")
Command = Callable[..., Any]

FORMAT = click.Choice(FORMATS)
TIERS = click.Choice(("premium", "standard", "basic"))
KINDS = click.Choice(("cpu", "gpu", "fpga", "asic"))


class Span(click.ParamType[tuple[int, int]]):
    """`N` or `MIN..MAX`, as a pair of integers."""

    name = "N|MIN..MAX"

    def __init__(self, minimum: int = 0) -> None:
        self._minimum = minimum

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            low, high = parse_span(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if high < 1 or low < self._minimum:
            self.fail(f"{value} asks for less than {max(self._minimum, 1)}", param, ctx)
        return low, high


@dataclass
class Session:
    """One command's way to the pool."""

    data_dir: str | None
    screen: Terminal = field(default_factory=Terminal)

    @cached_property
    def pool(self) -> Client:
        """The client; found when it is first needed. Raises Unreachable, Unauthenticated."""
        return connect(self.data_dir)


@dataclass
class Reading(Session):
    """A command that shows something. watch: go on showing what changes."""

    format: str = "table"
    watch: bool = False

    def many(self, kind: Kind[View], fetch: Callable[[], Sequence[View]]) -> None:
        """Show a list."""
        if self.watch:
            from onefleet.cli.watch import watch_many

            watch_many(kind, fetch, self.format, self.screen)
            return
        views = fetch()
        click.echo(render_list(kind, views, self.format, self.screen), nl=False, color=True)
        if not views and self.format in ("table", "wide") and kind.empty:
            say(kind.empty)

    def one(self, kind: Kind[View], fetch: Callable[[], View]) -> None:
        """Show one object."""
        if self.watch:
            from onefleet.cli.watch import watch_one

            watch_one(kind, fetch, self.format, self.screen)
            return
        click.echo(render_one(kind, fetch(), self.format, self.screen), nl=False, color=True)


@dataclass
class Acting(Session):
    """A command that changes something; it prints the id of what it made or changed."""

    format: str = "name"

    def done(self, kind: Kind[View], view: View) -> None:
        """Print the id on stdout, or the object with -o."""
        click.echo(render_one(kind, view, self.format, self.screen), nl=False, color=True)

    def done_many(self, kind: Kind[View], views: Sequence[View]) -> None:
        """Print the ids on stdout, a line each, or the objects with -o."""
        click.echo(render_list(kind, views, self.format, self.screen), nl=False, color=True)


def data_dir_option(command: Command) -> Command:
    """``--data-dir``: every command takes it."""
    return click.option(
        "--data-dir",
        metavar="DIR",
        help="The pool's data folder (default: $ONEFLEET_DATA_DIR, else the user's data folder).",
    )(command)


def reading(command: Command) -> Command:
    """Options of a command that shows something; passes a `Reading` first."""

    @functools.wraps(command)
    def wrapped(data_dir: str | None, output: str, quiet: bool, watch: bool, **rest: Any) -> object:
        chosen = "name" if quiet else output
        return command(Reading(data_dir, current_screen(), chosen, watch), **rest)

    return _with(
        wrapped,
        click.option(
            "--watch", "-w", is_flag=True, help="Go on: redraw, or JSON lines of changes."
        ),
        click.option("--quiet", "-q", is_flag=True, help="Ids only, as -o name."),
        click.option("--output", "-o", type=FORMAT, default="table"),
        data_dir_option,
        debug_option,
    )


def acting(command: Command) -> Command:
    """Options of a command that changes something; passes an `Acting` first."""

    @functools.wraps(command)
    def wrapped(data_dir: str | None, output: str, **rest: Any) -> object:
        return command(Acting(data_dir, current_screen(), output), **rest)

    return _with(
        wrapped,
        click.option("--output", "-o", type=FORMAT, default="name"),
        data_dir_option,
        debug_option,
    )


def _with(command: Command, *options: Any) -> Command:
    for option in options:
        command = option(command)
    return command


def confirm(impact: str, yes: bool) -> None:
    """Say what will happen; on a terminal ask first. Raises click.Abort for a no."""
    if yes or not sys.stdin.isatty():
        say(impact)
        return
    click.confirm(f"{impact}. Go on?", abort=True, err=True)


def current_screen() -> Terminal:
    """What stdout and stderr are, and what --color says of them."""
    ctx = click.get_current_context(silent=True)
    return terminal(ctx.meta.get(COLOR_KEY, "auto") if ctx else "auto")
