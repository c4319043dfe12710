"""A job that has had next to nothing of its time goes first in its rank for a while.

Who has had the least goes first, and so a large or a long job could wait for as long as small ones
keep coming. When what it has had falls behind a floor, a small part of the time since it was
submitted, by more than a level's worth, it goes first and may take its turn from all others of its
rank. Once it runs it does so until it has had twice the floor, so that it is not taken off again at
once, not by tenants that are under their part either; then it takes as long again until it falls
behind once more. So it happens a few times in a job's life, and takes little from the others. After
the promotion of starved jobs in Tiresias (Gu et al., NSDI 2019), here as a part of the job's time.
"""

from __future__ import annotations

from onefleet.core.ledger import held_milli, served_ms
from onefleet.core.policy import Policy
from onefleet.domain.ids import Instant
from onefleet.domain.work import WHOLE, Phase, Want, Work, WorkKind


def is_starved(work: Work, now: Instant, policy: Policy) -> bool:
    """Whether it goes first, because it has had next to nothing."""
    if not _counts(work, policy):
        return False
    if work.phase is Phase.RUNNING:
        was_behind = work.phase_since >= _behind_at(work, _served_by_start(work), policy)
        return was_behind and _lacks(work, now, policy) > 0
    return now >= _behind_at(work, work.served_ms, policy)


def starvation_changes_at(work: Work, now: Instant, policy: Policy) -> Instant | None:
    """From when on `is_starved` has to be asked again, if nothing happens; None: never."""
    if not _counts(work, policy):
        return None
    if work.phase is not Phase.RUNNING:
        behind_at = _behind_at(work, work.served_ms, policy)
        return behind_at if behind_at > now else None
    gain = 1_000 * held_milli(work) - 2 * policy.floor_permille * _width(work)
    if not is_starved(work, now, policy) or gain <= 0:
        return None
    return Instant(now - -_lacks(work, now, policy) // gain)


def _counts(work: Work, policy: Policy) -> bool:
    wants = work.want is Want.RUN and work.phase is not Phase.ENDED
    return wants and work.ready and work.kind is WorkKind.JOB and policy.floor_permille > 0


def _width(work: Work) -> int:
    """Thousandths of devices that it asks for."""
    return work.demand.least * work.demand.milli


def _behind_at(work: Work, served: int, policy: Policy) -> Instant:
    """When it falls behind the floor by a level's worth, having had so many device-milliseconds."""
    width = _width(work)
    needed = 1_000 * (policy.level_ms * width + served * WHOLE)
    return Instant(work.submitted_at - -needed // (policy.floor_permille * width))


def _served_by_start(work: Work) -> int:
    """What it had had when it began to run."""
    since_ms = max(work.accounted_until - work.phase_since, 0)
    return work.served_ms - since_ms * held_milli(work) // WHOLE


def _lacks(work: Work, now: Instant, policy: Policy) -> int:
    """What it lacks to twice the floor, in thousandths of its width times milliseconds."""
    twice = 2 * policy.floor_permille * _width(work) * (now - work.submitted_at)
    return twice - 1_000 * served_ms(work, now) * WHOLE
