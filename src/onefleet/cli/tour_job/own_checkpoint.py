"""How the tour's job saves itself on a machine where nobody can save it from outside.

Such a machine asks a job to end with SIGTERM, and later runs the same command again. What lies in
ONEFLEET_CHECKPOINT_DIR is still there then.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType


class OwnCheckpoint:
    """The state that an earlier run left, and whether this one was asked to leave its own.

    on: False keeps nothing and leaves SIGTERM as it is.
    """

    def __init__(self, on: bool) -> None:
        self.asked = False
        self._file = Path(os.environ["ONEFLEET_CHECKPOINT_DIR"]) / "state" if on else None
        if on:
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True  # a step is never cut in half: the loop looks after each

    def load(self) -> bytes | None:
        """What the run before this one left; None: this is the first."""
        if self._file is None or not self._file.exists():
            return None
        return self._file.read_bytes()

    def leave(self, state: bytes) -> None:
        """Keep the state, wholly or not at all, and end this process."""
        assert self._file is not None, "only asked where it is on"
        fresh = self._file.with_name("state.new")
        with fresh.open("wb") as out:
            out.write(state)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(self._file)
        sys.exit(0)
