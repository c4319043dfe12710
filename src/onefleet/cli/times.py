"""Lengths and points of time, sizes, shares and numbers, as a person types them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from onefleet.domain.quantities import duration, parse_duration, parse_size
from onefleet.domain.work import WHOLE


class Parsed(click.ParamType[int]):
    """What a function makes of the text; it raises ValueError with a reason."""

    parse: Callable[[str], int]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Length(Parsed):
    """`90s`, `40m`, `2h`, `3d`, or seconds; in milliseconds."""

    name = "TIME"

    def __init__(self, least_ms: int = 0, most_ms: int | None = None) -> None:
        self._least_ms, self._most_ms = least_ms, most_ms

    def parse(self, text: str) -> int:
        """Raises ValueError where it is not within the limits, too."""
        ms = parse_duration(text)
        if self._most_ms is not None and not self._least_ms <= ms <= self._most_ms:
            limits = f"{duration(self._least_ms)} and {duration(self._most_ms)}"
            raise ValueError(f"{text!r} is not between {limits}")
        return ms


class Moment(click.ParamType[int]):
    """`+2h` from now, or `2026-11-25T18:00` on this machine's clock; in milliseconds since 1970."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            if value.startswith("+"):
                return int(time.time() * 1000) + parse_duration(value[1:])
            return int(datetime.fromisoformat(value).timestamp() * 1000)
        except ValueError:
            self.fail(f"{value!r} is neither +2h nor 2026-11-25T18:00", param, ctx)


class Share(click.ParamType[int]):
    """A part of one device, `0.25`; in thousandths."""

    name = "PART"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            milli = round(float(value) * WHOLE)
        except (ValueError, OverflowError):
            milli = 0
        if not 1 <= milli <= WHOLE:
            self.fail(f"{value!r} is not a part of a device between 0.001 and 1", param, ctx)
        return milli


class Size(Parsed):
    """`500MB`, `2GiB`, or bytes; in bytes."""

    name = "SIZE"
    parse = staticmethod(parse_size)


class Number(click.FloatRange):
    """A number within a range, which "nan" is not."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number
