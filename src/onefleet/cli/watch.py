"""``--watch``: on a terminal the screen is redrawn, in a pipe each change is a line of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

import click

from onefleet.cli.output import Kind, Terminal, plain, render_list, render_one

View = TypeVar("View")

#: Between two looks. The pool is asked once a period, whatever the number of views.
PERIOD_S = 1.0
_HOME, _CLEAR_BELOW = "\x1b[H", "\x1b[J"
_CLEAR = "\x1b[2J"


def watch_many(
    kind: Kind[View],
    fetch: Callable[[], Sequence[View]],
    format_: str,
    screen: Terminal,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a list and what changes in it, until interrupted."""
    if screen.live and format_ in ("table", "wide"):
        redraw(lambda: render_list(kind, fetch(), format_, screen) or kind.empty + "\n", sleep)
    seen: Mapping[str, object] = {}
    while True:
        now = {kind.id(view): plain(kind.name, view) for view in fetch()}
        for change, body in changes(seen, now):
            click.echo(json.dumps({"type": change, "object": body}))
        seen = now
        sleep(PERIOD_S)


def watch_one(
    kind: Kind[View],
    fetch: Callable[[], View],
    format_: str,
    screen: Terminal,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show one object and its changes, until interrupted."""
    if screen.live and format_ in ("table", "wide"):
        redraw(lambda: render_one(kind, fetch(), format_, screen), sleep)
    watch_many(kind, lambda: (fetch(),), format_, screen, sleep)


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[tuple[str, object]]:
    """What differs, as ("added" | "changed" | "removed", object); `now`'s order first."""
    found: list[tuple[str, object]] = []
    for name, body in now.items():
        if name not in before:
            found.append(("added", body))
        elif before[name] != body:
            found.append(("changed", body))
    found += [("removed", body) for name, body in before.items() if name not in now]
    return found


def redraw(draw: Callable[[], str], sleep: Callable[[float], None] = time.sleep) -> NoReturn:
    """Draw over what was drawn before, until interrupted."""
    click.echo(_CLEAR, nl=False, color=True)
    while True:
        text = draw().replace("\n", "\x1b[K\n")
        click.echo(f"{_HOME}{text}{_CLEAR_BELOW}", nl=False, color=True)
        sleep(PERIOD_S)
