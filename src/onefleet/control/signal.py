"""Wakes whoever waits for the state to change: the long polls and the pass loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from onefleet.domain.errors import Overloaded

#: Calls that may be held at one time, of agents, gateways, log and event readers together.
WAITERS_MAX = 512


class Signal:
    """Level-triggered: a waiter looks at the state itself, and asks to be woken when it changes.

    `version` rises with each change, so that a change between looking and waiting is not missed.
    """

    def __init__(self) -> None:
        self.version = 0
        self._event = asyncio.Event()
        self._held = 0

    def notify(self) -> None:
        """Something changed."""
        self.version += 1
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, version: int, timeout_ms: int) -> None:
        """Return when a change after `version` happened, or after the timeout."""
        if self.version != version or timeout_ms <= 0:
            return
        try:
            await asyncio.wait_for(self._event.wait(), timeout_ms / 1000)
        except TimeoutError:
            return

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Count a held call. Raises Overloaded when too many are held already."""
        if self._held >= WAITERS_MAX:
            raise Overloaded(
                f"{WAITERS_MAX} calls are already waiting for changes",
                hint="ask without wait_ms",
                retry_after_ms=1_000,
            )
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
