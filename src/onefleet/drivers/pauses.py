"""The supervisor's pauses: its worker waits for its turn on cores that it shares.

To everybody but the one who asked, it runs: a pause ends when anything else is to be done with the
worker, and by itself after a limit, because an agent that vanished must not stop a job for ever.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from onefleet.domain.errors import Conflict

if TYPE_CHECKING:
    from onefleet.drivers.supervisor import Supervisor

#: How long a worker may take to stand still for it. One that waits for a disk keeps its turn.
_LIMIT_S = 1.0


class Pauses:
    """The pauses of one supervisor's worker. deadline: of the present one, by the monotonic
    clock."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._daemon = supervisor
        self.deadline: float | None = None

    def begin(self, limit_ms: int) -> None:
        """Pause it, or set a pause's limit anew; 0 ends it. Raises Conflict, OSError, TimedOut."""
        worker, state = self._daemon.worker, self._daemon.state["state"]
        if worker is None or state != "running":
            raise Conflict("the worker cannot wait for its turn", why=f"it is {state}")
        if limit_ms <= 0:
            self.end()
            return
        if self.deadline is None:
            worker.freezer.freeze(worker.processes, _LIMIT_S)
        self.deadline = time.monotonic() + limit_ms / 1000

    def end(self) -> None:
        """Let it go on, if it is paused. Raises OSError."""
        worker, paused = self._daemon.worker, self.deadline is not None
        self.deadline = None
        if paused and worker is not None:
            worker.freezer.thaw(worker.processes)

    def look(self) -> None:
        """End what is over. Raises OSError."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.end()
