"""Why work does not run, in words, from the planner's own blockers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onefleet.core.plan import Blocker
from onefleet.domain.ids import WorkId
from onefleet.domain.work import Phase, Work


@dataclass(frozen=True, slots=True)
class Explanation:
    """summary: one line. blockers: every reason that it does not run; empty when it does."""

    summary: str
    blockers: tuple[Blocker, ...]


def explain(work: Work, blockers: Mapping[WorkId, tuple[Blocker, ...]]) -> Explanation:
    """Explain a work by the blockers of the last plan."""
    if work.phase is Phase.ENDED:
        outcome = work.outcome.value if work.outcome else "ended"
        return Explanation(f"{work.id} {outcome}: {work.why_ended}", ())
    found = blockers.get(work.id, ())
    if work.phase is Phase.RUNNING and not found:
        where = " ".join(device for slot in work.placement for device in slot.devices)
        return Explanation(f"{work.id} runs on {where}", ())
    if not found:
        return Explanation(f"{work.id} is {work.phase}; the next pass will look at it", ())
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Explanation(f"{work.id} is {work.phase}: {found[0].text}{more}", found)
