"""Lists of indices on the command line, as in ``0,2-3``: which of a machine's devices are meant."""

from __future__ import annotations

import re

import click

_PART = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


class Indices(click.ParamType[tuple[int, ...]]):
    """A tuple of indices, rising and each once; ``none`` is empty."""

    name = "list"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        text = str(value)
        found: dict[int, None] = {}
        for part in [] if text == "none" else text.split(","):
            spans = _PART.fullmatch(part.strip())
            if spans is None:
                self.fail(f"{text!r} is no list like 0,2-3", param, ctx)
            first = int(spans[1])
            found.update(dict.fromkeys(range(first, int(spans[2] or first) + 1)))
        return tuple(sorted(found))


def spelled(indices: tuple[int, ...] | None) -> str:
    """The list as one could have given it; None: empty."""
    if indices is None:
        return ""
    return ",".join(map(str, indices)) or "none"
