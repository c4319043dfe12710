"""Why work does not run, in words, from the planner's own blockers; whether it comes too late."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onefleet.core.deadlines import is_urgent
from onefleet.core.forecast import HORIZON_MS, Start
from onefleet.core.ledger import width_permille
from onefleet.core.lifecycle import progress_ms
from onefleet.core.plan import Blocker
from onefleet.core.policy import Policy
from onefleet.domain.ids import Instant, WorkId
from onefleet.domain.quantities import duration
from onefleet.domain.work import Outcome, Phase, Work


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


def outlook(work: Work, now: Instant, policy: Policy, start: Start | None) -> str:
    """What becomes of its deadline; empty without one. start: of the forecast, if it has one."""
    due = work.terms.deadline
    if due is None:
        return ""
    if work.phase is Phase.ENDED:
        if work.outcome is not Outcome.SUCCEEDED or work.ended_at is None:
            return ""
        late_ms = work.ended_at - due
        return f"missed by {duration(late_ms)}" if late_ms > 0 else "met"
    if due <= now:
        over = f"passed {duration(now - due)} ago"
        claimed = work.terms.estimate_ms is not None
        return f"{over}; it no longer goes before others of its rank" if claimed else over
    prospect = _prospect(work, due, now, policy, start)
    return f"in {duration(due - now)}" + (f"; {prospect}" if prospect else "")


def _prospect(work: Work, due: Instant, now: Instant, policy: Policy, start: Start | None) -> str:
    """Whether a deadline that is ahead will be met. What is late by this will be as late at least:
    who is made to wait again, or runs narrower, is later."""
    estimate_ms = work.terms.estimate_ms
    if estimate_ms is None:
        return "nobody knows how long it runs (onefleet run --estimate), so it is not hurried"
    left_ms, runs = estimate_ms - progress_ms(work), work.phase is Phase.RUNNING
    if runs:
        left_ms -= now - work.phase_since
        left_ms = left_ms * 1_000 // max(width_permille(work), 1)
    if left_ms <= 0:
        return f"it has run for longer than the {duration(estimate_ms)} that it was to take"
    if not runs and start is not None and start.likely is None:
        return "it is not expected to run by then" if due <= now + HORIZON_MS else ""
    begins_at = now if runs or start is None or start.likely is None else start.likely
    late_ms, left = begins_at + left_ms - due, duration(left_ms)
    if late_ms > 0 and runs:
        return f"it is expected to be late by {duration(late_ms)}: it has {left} left to run"
    if late_ms > 0 and start is None:
        return f"it would be late by {duration(late_ms)} if it ran now: it has {left} left to run"
    if late_ms > 0:
        begins = f"is expected to run in {duration(begins_at - now)}, for {left}"
        return f"it is expected to be late by {duration(late_ms)}: it {begins}"
    if not runs and is_urgent(work, now, policy):
        return "it goes first in its rank now"
    if runs or (start is not None and start.latest is not None and start.latest + left_ms <= due):
        return "it is expected to be met"
    return "" if start is None else "it is expected to be met, but not surely"
