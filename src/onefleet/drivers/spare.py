"""A supervisor that has started already, and waits to be told for which worker.

Python and its modules take a fifth of a second to start, much more on a busy machine, and while a
worker is brought back it stands still for that. So whoever starts workers again and again keeps one
ahead (some 20 MB). It ends with its keeper, by the end of its standard input.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from threading import Lock

COMMAND = (sys.executable, "-P", "-m", "onefleet.drivers.supervisor")


class Spare:
    """Calls block, and may come from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._ready: subprocess.Popen[bytes] | None = None

    def take(self) -> subprocess.Popen[bytes]:
        """One to be told its worker's folder on stdin; a new one when none is ready."""
        with self._lock:
            found, self._ready = self._ready, None
        if found is not None and found.poll() is None:
            return found
        _end(found)
        return start()

    def refill(self) -> None:
        """See that one is ready, if this machine has room for it."""
        with self._lock, contextlib.suppress(OSError):
            if self._ready is None or self._ready.poll() is not None:
                _end(self._ready)
                self._ready = start()

    def close(self) -> None:
        """Keep none any more."""
        with self._lock:
            found, self._ready = self._ready, None
        _end(found)


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.communicate()


def start(*folder: str) -> subprocess.Popen[bytes]:
    """The supervisor of this worker, or one that waits for the folder on stdin. Raises OSError."""
    pipe = subprocess.PIPE
    return subprocess.Popen((*COMMAND, *folder), stdin=pipe, stdout=pipe, stderr=pipe)
