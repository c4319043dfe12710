"""Has the archive tidied in the background: a process of the lowest priority, when there is cause.

Whoever changes something about images gives a hint. Hints that come while a pass runs lead to
one more pass after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence

import structlog

from onefleet.agent.archive import IN_MEMORY
from onefleet.agent.share import Share
from onefleet.domain.layout import Layout

log = structlog.get_logger()

#: After a hint: what is saved for a moment only is brought back before it is folded.
PAUSE_S = 1.0
#: Between passes while images are in memory, where room may be wanted at any time.
LOOK_S = 30.0


class Archivist:
    """One node's. `run` is a task of the agent."""

    def __init__(
        self, command: Sequence[str], pause_s: float = PAUSE_S, look_s: float = LOOK_S
    ) -> None:
        self._command = tuple(command)
        self._pause_s = pause_s
        self._look_s = look_s
        self._wanted = asyncio.Event()
        self._in_memory = False

    def hint(self) -> None:
        """Images have changed, or may have."""
        self._wanted.set()

    async def run(self) -> None:
        """Tidy whenever that was asked for, until cancelled; nothing runs on after that."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_s if self._in_memory else None):
                    await self._wanted.wait()
            await asyncio.sleep(self._pause_s)
            self._wanted.clear()
            await self._pass()

    async def _pass(self) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            log.warning("saved images are not folded", reason=str(error))
            return
        assert process.stdout is not None
        self._in_memory = False
        try:
            async for line in process.stdout:
                told = json.loads(line)
                self._in_memory |= told["event"] == IN_MEMORY
                log.info(told.pop("event"), **told)
            if code := await process.wait():
                log.warning("saved images are not folded", exit_code=code)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


def command(layout: Layout, share: Share | None = None) -> tuple[str, ...]:
    """What tidies the archive of this data folder, and ends with this process."""
    return (
        *(sys.executable, "-P", "-m", "onefleet.agent.archive"),
        *(str(layout.root), str(os.getpid())),
        *(() if share is None else (share.node, str(share.folder))),
    )
