"""Deadlines: a job whose slack gets small goes first in its rank.

Its slack is the time until its deadline in which it need not run to meet it. That takes the run
time that its owner said (`Terms.estimate_ms`); without it a deadline is a wish that nobody can act
upon. While the job waits its slack melts, while it runs its slack stays, and so the order of all
jobs with deadlines comes to that of the least slack (Mok, "Fundamental design problems of
distributed systems for the hard-real-time environment", 1983), but only when it has to: until then
short work goes first, as ever. A deadline that has passed gives no claim any more.

The claim is to the first place in the job's own rank. It takes nothing from a higher one, from who
was promised devices, or from a tenant that has had less than its part.
"""

from __future__ import annotations

from onefleet.core.lifecycle import progress_ms
from onefleet.core.policy import Policy
from onefleet.domain.ids import Instant
from onefleet.domain.work import Phase, Want, Work


def is_urgent(work: Work, now: Instant, policy: Policy) -> bool:
    """Whether it would come too late if it went on waiting for its turn."""
    begins_at = urgent_at(work, now, policy)
    return begins_at is not None and begins_at <= now


def urgent_at(work: Work, now: Instant, policy: Policy) -> Instant | None:
    """From when on it is urgent, if it waits, or runs, on; None: never, or not any more."""
    deadline, estimate_ms = work.terms.deadline, work.terms.estimate_ms
    if deadline is None or estimate_ms is None or deadline <= now:
        return None
    if work.phase is Phase.ENDED or work.want is not Want.RUN:
        return None
    slack_ms = max(estimate_ms * policy.slack_permille // 1_000, policy.slack_ms)
    left_ms = estimate_ms - progress_ms(work)
    if work.phase is not Phase.RUNNING:
        return Instant(deadline - max(left_ms, 0) - slack_ms)
    ends_at = work.phase_since + left_ms  # as if it ran on: its slack stays until then
    if deadline - ends_at <= slack_ms:
        return work.phase_since
    return Instant(deadline - slack_ms)
