"""When a running job is saved without stopping it: as often as its cost and the failures call for.

The interval that loses the least is about sqrt(2 x cost x mean time between failures): Young, "A
first order approximation to the optimum checkpoint interval", CACM 17(9), 1974; the terms of higher
order are Daly's, "A higher order estimate of the optimum checkpoint interval for restart dumps",
Future Generation Computer Systems 22(3), 2006, equation 37.

The fleet's failure rate is learnt: nodes that were lost over the time that nodes were watched,
beside a prior that stands for what is known before anything was seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from onefleet.core.lifecycle import progress_ms
from onefleet.domain.ids import Instant
from onefleet.domain.work import Phase, Want, Work, WorkKind

#: What is believed of a node before it was seen to fail: once in 180 days. Large fleets report a
#: mean of 7.9 h at 1,024 devices in nodes of 8 (arXiv 2410.21680), which is 42 days a node.
PRIOR_NODE_MS = 180 * 24 * 3_600_000
#: Saving costs the work itself little, but the machine something: never more often than this.
INTERVAL_MS_MIN = 10_000


@dataclass(frozen=True, slots=True)
class Failures:
    """What was seen of a fleet's failures. watched_ms: summed over its nodes."""

    watched_ms: int = 0
    lost: int = 0

    def node_mttf_ms(self, prior_ms: int = PRIOR_NODE_MS) -> int:
        """The expected time until one node fails: the mean of the posterior rate, inverted.

        prior_ms: what was believed before anything was seen; it weighs as much as one failure in
        that time (failures are Poisson, the prior of their rate is Gamma(1, prior_ms)). Rounded
        down to two binary digits, so that it does not change with every look.
        """
        mttf_ms = (self.watched_ms + prior_ms) // (self.lost + 1)
        digits = max(mttf_ms.bit_length() - 2, 0)
        return mttf_ms >> digits << digits


@dataclass(frozen=True, slots=True)
class SaveCost:
    """What a save costs where it was not measured yet: a fixed part, and its state's bytes."""

    fixed_ms: int
    bytes_per_ms: int


def cost_ms(work: Work, cost: SaveCost) -> int:
    """How long the work stands still for one image: as its newest one took, else estimated."""
    if work.image is not None and work.image.took_ms:
        return work.image.took_ms
    known = 0 if work.image is None else work.image.size_bytes
    size = max(known, work.demand.memory_bytes * work.demand.workers)
    return cost.fixed_ms + size // max(cost.bytes_per_ms, 1)


def interval_ms(work: Work, node_mttf_ms: int, cost: SaveCost) -> int | None:
    """The run time between two images of the work; None: it is not saved while it runs."""
    chosen = work.terms.checkpoint_every_ms
    if work.kind is not WorkKind.JOB or not work.suspendable or chosen == 0:
        return None
    if chosen is not None:
        return max(chosen, INTERVAL_MS_MIN)
    nodes = len(dict.fromkeys(slot.node_id for slot in work.placement))
    mttf_ms = node_mttf_ms // max(nodes, 1)
    return max(daly_ms(cost_ms(work, cost), mttf_ms), INTERVAL_MS_MIN)


def daly_ms(cost: int, mttf: int) -> int:
    """The best run time between two saves that cost so much, with failures so far apart.

    Daly's equation 37: sqrt(2 c m) (1 + sqrt(c / 2m) / 3 + (c / 2m) / 9) - c for c < 2 m, else m.
    """
    if cost >= 2 * mttf:
        return max(mttf, 1)
    young = isqrt(2 * cost * mttf)
    # sqrt(2cm) sqrt(c/2m) = c, and sqrt(2cm) (c/2m) = c sqrt(c/2m) = c c / sqrt(2cm)
    second = cost * cost // (9 * young) if young else 0
    return max(young + cost // 3 + second - cost, 1)


def due_at(work: Work, node_mttf_ms: int, cost: SaveCost) -> Instant | None:
    """When the next image of the work should be ordered; None: never, as things are."""
    if work.phase is not Phase.RUNNING or work.want is not Want.RUN or work.making is not None:
        return None
    interval = interval_ms(work, node_mttf_ms, cost)
    if interval is None:
        return None
    saved_ms = 0 if work.image is None else work.image.ran_ms
    # When this stretch of running began; less than nothing when the image was made in it.
    unsaved_ms = progress_ms(work) - saved_ms
    return Instant(max(work.phase_since + interval - unsaved_ms, work.not_before))
