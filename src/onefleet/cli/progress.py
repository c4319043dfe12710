"""A bar on stderr for whatever takes over a second; nothing at all where it cannot be redrawn."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from onefleet.cli.output import Terminal

WIDTH = 24
PERIOD_S = 0.2


class Bar:
    """``with Bar(screen, "loading") as bar: bar.to(0.4)``: drawn after a second, gone at the end.

    Without a call of `to` it shows that time passes, not how much is left.
    """

    def __init__(self, screen: Terminal, label: str, delay_s: float = 1.0) -> None:
        self._on = screen.progress
        self._label = label
        self._delay_s = delay_s
        self._part: float | None = None
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def to(self, part: float, label: str | None = None) -> None:
        """How much is done, 0..1, and what is being done."""
        self._part = min(max(part, 0.0), 1.0)
        self._label = label or self._label

    def say(self, label: str) -> None:
        """What is being done now."""
        self._label = label

    def __enter__(self) -> Bar:
        if self._on:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._on:
            self._thread.join()

    def _run(self) -> None:
        if self._stop.wait(self._delay_s):
            return
        while not self._stop.wait(PERIOD_S):
            sys.stderr.write(f"\r{self.line(time.monotonic() - self._started)}\x1b[K")
            sys.stderr.flush()
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

    def line(self, passed_s: float) -> str:
        """What is drawn after so many seconds."""
        if self._part is None:
            at = int(passed_s * 8) % (WIDTH - 3)
            drawn = "╌" * at + "━━━" + "╌" * (WIDTH - 3 - at)
            return f"  [{drawn}] {self._label} {passed_s:.0f} s"
        full = round(self._part * WIDTH)
        drawn = "━" * full + "╌" * (WIDTH - full)
        return f"  [{drawn}] {self._part:4.0%} {self._label} {passed_s:.0f} s"
