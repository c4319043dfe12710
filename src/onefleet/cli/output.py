"""How data leaves a command: tables for people, json, yaml, jsonl and names for programs.

A `Kind` says how one view of the API is shown. Only a terminal gets colour or has its lines cut
to its width; a pipe gets every character and no escape sequence.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from onefleet.cli.plain_yaml import dump
from onefleet.config import settings

FORMATS = ("table", "wide", "json", "yaml", "jsonl", "name")
API_VERSION = "onefleet/v1"

View = TypeVar("View")

#: Words that get a colour on a terminal; the word itself says the same.
_GOOD = frozenset(("running", "ready", "succeeded", "pass", "ok"))
_WAIT = frozenset(
    ("pending", "starting", "saving", "suspended", "restoring", "stopping", "idle", "warn", "skip")
)
_BAD = frozenset(("failed", "lost", "blocked", "fail", "cancelled"))


@dataclass(frozen=True, slots=True)
class Column(Generic[View]):
    """One column. wide: only with ``-o wide``. right: numbers."""

    title: str
    cell: Callable[[View], str]
    wide: bool = False
    right: bool = False


@dataclass(frozen=True, slots=True)
class Kind(Generic[View]):
    """How views of one kind are shown. empty: said (on stderr) when there is none.

    text: a layout of its own for one view, in place of a table.
    """

    name: str
    id: Callable[[View], str]
    columns: tuple[Column[View], ...] = ()
    empty: str = ""
    text: Callable[[View], str] | None = None


@dataclass(frozen=True, slots=True)
class Terminal:
    """What stdout is. width: columns when lines must fit, else None."""

    color: bool = False
    width: int | None = None
    live: bool = False  # it can be redrawn
    progress: bool = False  # stderr can be redrawn


def terminal(color: str = "auto") -> Terminal:
    """What stdout and stderr are now.

    color: auto, always or never. auto: on a terminal, unless NO_COLOR or TERM=dumb say otherwise.
    """
    chosen = settings()
    is_tty = sys.stdout.isatty()
    wanted = not chosen.no_color and (is_tty or chosen.force_color)
    width = None
    if is_tty:
        import shutil

        width = chosen.width or shutil.get_terminal_size().columns
    return Terminal(
        color=color == "always" or (color == "auto" and wanted),
        width=width,
        live=is_tty and not chosen.dumb,
        progress=sys.stderr.isatty() and not chosen.dumb,
    )


def plain(kind: str, view: object) -> dict[str, Any]:
    """A view as plain data that says what it is; views have a `kind` of their own, so `object`."""
    import msgspec

    return {"apiVersion": API_VERSION, "object": kind, **msgspec.to_builtins(view)}


def render_list(kind: Kind[View], views: Sequence[View], format_: str, screen: Terminal) -> str:
    """All of them; the text ends with a newline unless it is empty."""
    match format_:
        case "name":
            return "".join(f"{kind.id(v)}\n" for v in views)
        case "json":
            return _json([plain(kind.name, v) for v in views])
        case "yaml":
            return dump([plain(kind.name, v) for v in views])
        case "jsonl":
            return "".join(f"{json.dumps(plain(kind.name, v))}\n" for v in views)
        case _:
            return table(kind.columns, views, wide=format_ == "wide", screen=screen)


def render_one(kind: Kind[View], view: View, format_: str, screen: Terminal) -> str:
    """One of them: an object where a list would be an array."""
    match format_:
        case "json":
            return _json(plain(kind.name, view))
        case "yaml":
            return dump(plain(kind.name, view))
        case "table" | "wide" if kind.text is not None:
            return kind.text(view).rstrip("\n") + "\n"
        case _:
            return render_list(kind, (view,), format_, screen)


def table(
    columns: Sequence[Column[View]], views: Sequence[View], *, wide: bool, screen: Terminal
) -> str:
    """Aligned columns under upper-case titles; nothing at all when there are no rows."""
    if not views:
        return ""
    shown = [c for c in columns if wide or not c.wide]
    rows = [[_clean(c.cell(view)) for c in shown] for view in views]
    widths = [max(len(c.title), *(len(r[i]) for r in rows)) for i, c in enumerate(shown)]
    lines = [_line([c.title for c in shown], shown, widths)]
    lines += [_line(row, shown, widths) for row in rows]
    if screen.width is not None:
        lines = [line if len(line) <= screen.width else _cut(line, screen.width) for line in lines]
    if screen.color:
        lines = [f"\x1b[1m{lines[0]}\x1b[0m", *map(_colored, lines[1:])]
    return "\n".join(lines) + "\n"


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values under each other."""
    width = max(len(name) for name, _ in rows) + 2
    return "".join(f"{name:<{width}}{_clean(value)}".rstrip() + "\n" for name, value in rows)


def _line(cells: Sequence[str], columns: Sequence[Column[View]], widths: Sequence[int]) -> str:
    padded = (
        cell.rjust(width) if column.right else cell.ljust(width)
        for cell, column, width in zip(cells, columns, widths, strict=True)
    )
    return "  ".join(padded).rstrip()


def _cut(line: str, width: int) -> str:
    return line[: max(width - 1, 1)].rstrip() + "…"


def _clean(text: str) -> str:
    """A cell on one line, without control characters: what a job is called is not ours."""
    return "".join(c if c.isprintable() else " " for c in text)


def _colored(line: str) -> str:
    words = line.split(" ")
    for index, word in enumerate(words):
        code = 32 if word in _GOOD else 33 if word in _WAIT else 31 if word in _BAD else 0
        if code:
            words[index] = f"\x1b[{code}m{word}\x1b[0m"
    return " ".join(words)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
