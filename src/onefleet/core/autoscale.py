"""How many replicas a deployment wants, from what is asked of it.

Up at once, down one at a time and only after a quiet time: the two thresholds lie apart
(hysteresis), so that a demand between them changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from onefleet.core.policy import Policy
from onefleet.domain.ids import Instant, WorkId
from onefleet.domain.serving import Deployment
from onefleet.domain.work import Phase, Want, Work


class DemandNow(NamedTuple):
    """What is asked of a deployment. last_request_at: 0 when nothing ever was."""

    active: int
    waiting: int
    last_request_at: Instant


class Scaling(NamedTuple):
    """What to do to a deployment's replicas: how many to make, which to stop."""

    make: int
    stop: tuple[WorkId, ...]


def wanted(
    deployment: Deployment, demand: DemandNow, ready: int, now: Instant, policy: Policy
) -> int:
    """The number of replicas wanted now, within min..max; 0 for a removed deployment.

    ready: replicas that answer. While fewer are ready than wanted, nothing more is added: what is
    on its way must show first that it does not suffice.
    """
    if deployment.removed_at is not None:
        return 0
    low, high = deployment.replicas_min, deployment.replicas_max
    current = min(max(deployment.replicas_wanted, low), high)
    slots = max(deployment.slots, 1)
    needed = -(-(demand.active + demand.waiting) // slots)
    if needed > current and (current == 0 or demand.waiting >= policy.scale_up_waiting * current):
        if current == 0 or ready >= current:
            return min(needed, high)
        return current
    quiet = demand.active == 0 and demand.waiting == 0
    idle_for = now - demand.last_request_at
    if quiet and idle_for >= policy.idle_ms:
        return max(current - 1, low)
    return current


def scale(wanted_now: int, works: Iterable[Work]) -> Scaling:
    """Which replicas to make or stop so that `wanted_now` are there.

    works: of the deployment's replicas, in any order. What runs longest is stopped last.
    """
    alive = sorted(
        (w for w in works if w.phase is not Phase.ENDED and w.want is not Want.STOP),
        key=lambda w: (w.phase is Phase.RUNNING, w.phase.holds_devices, -w.submitted_at, w.id),
    )
    surplus = max(len(alive) - wanted_now, 0)
    return Scaling(max(wanted_now - len(alive), 0), tuple(w.id for w in alive[:surplus]))
