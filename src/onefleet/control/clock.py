"""The live control plane's time and ids: the only place here that reads a clock or draws."""

from __future__ import annotations

import secrets
import time

from onefleet.domain.ids import Instant

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_TIME_DIGITS = 9
_CHANCE_DIGITS = 4


class WallClock:
    """Milliseconds since the Unix epoch that never go back, whatever is done to the machine's
    clock."""

    def __init__(self) -> None:
        self._last = 0

    def now(self) -> Instant:
        self._last = max(self._last, time.time_ns() // 1_000_000)
        return Instant(self._last)


class TimeIds:
    """Fresh ids whose body sorts by creation time: nine digits of time, four of chance."""

    def __init__(self) -> None:
        self._last = 0

    def new(self, prefix: str) -> str:
        self._last = max(self._last + 1, time.time_ns() // 1_000_000)
        chance = secrets.randbelow(32**_CHANCE_DIGITS)
        return f"{prefix}-{_text(self._last, _TIME_DIGITS)}{_text(chance, _CHANCE_DIGITS)}"


def _text(number: int, digits: int) -> str:
    text = ""
    for _ in range(digits):
        number, digit = divmod(number, 32)
        text = _DIGITS[digit] + text
    return text
