"""The works that others were asked to make room for, and that have not had it yet.

Their room comes free as others are saved, one after another, and would be gone by then if it were
there for whoever goes first: more would have to leave for them again. Kubernetes calls a pod
nominated for the node on which others make room for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from onefleet.domain.ids import WorkId
from onefleet.domain.work import Work


class Nominees:
    """works: as they are by now. waiting: those of them that are in line for the room that others
    made since they wait."""

    def __init__(self, works: Mapping[WorkId, Work]) -> None:
        self.waiting: dict[WorkId, None] = {}
        self._works = works
        self._in_line: dict[WorkId, None] = {}
        self._left: dict[WorkId, dict[WorkId, None]] = {}  # for whom, and who is not back yet

    def enter(self, work: Work, *, in_line: bool) -> None:
        """The work is now like this. in_line: it waits for devices and for nothing else."""
        nominee = _made_room_for(work)
        if nominee is not None:
            self._left.setdefault(nominee, {})[work.id] = None
            self._look_at(nominee)
        if in_line:
            self._in_line[work.id] = None
            if work.id in self._left:
                self._look_at(work.id)

    def leave(self, work: Work) -> None:
        """The work is no more like this."""
        if work.id in self._in_line:
            del self._in_line[work.id]
            self.waiting.pop(work.id, None)
        nominee = _made_room_for(work)
        if nominee is not None:
            left = self._left[nominee]
            del left[work.id]
            if not left:
                del self._left[nominee]
            self._look_at(nominee)

    def _look_at(self, nominee: WorkId) -> None:
        self.waiting.pop(nominee, None)
        if nominee in self._in_line:
            since = self._works[nominee].phase_since
            left = (self._works[name] for name in self._left.get(nominee, ()))
            if any(work.receipts[-1].at >= since for work in left):
                self.waiting[nominee] = None


def _made_room_for(work: Work) -> WorkId | None:
    """For whom it had to leave, if it has not run since."""
    if not work.receipts or work.receipts[-1].back_at is not None:
        return None
    return work.receipts[-1].by
