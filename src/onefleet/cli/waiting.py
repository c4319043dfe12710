"""Waiting for something of the pool, with a limit and a word on what is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from onefleet.domain.errors import TimedOut

View = TypeVar("View")

PERIOD_S = 0.25


def wait_until(
    look: Callable[[], View],
    done: Callable[[View], bool],
    describe: Callable[[View], str],
    timeout_s: float,
    hint: str = "",
    since: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> View:
    """Look until it is done; return the last look. Raises TimedOut with what it waited for.

    since: when the time began to run, by `clock`, where one limit is for several; default: now.
    """
    until = (clock() if since is None else since) + timeout_s
    while True:
        now = look()
        if done(now):
            return now
        if clock() >= until:
            raise TimedOut(
                f"waited {timeout_s:g} s for {describe(now)}",
                why="the time limit of --timeout passed; nothing was undone",
                hint=hint,
            )
        sleep(PERIOD_S)
