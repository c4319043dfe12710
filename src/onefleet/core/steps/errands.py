"""What is done for works besides placing them: readied, promised, saved while they run."""

from __future__ import annotations

import heapq

from onefleet.core.index.homes import way_ms
from onefleet.core.plan import Checkpoint, GivePromise, Ready, Stop
from onefleet.core.promise import delays, missing_to, shortfall
from onefleet.core.scratch import Scratch
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import Instant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Outcome, Work


def ready(this: Scratch) -> None:
    """Ready what everything that it comes after has succeeded; end what that cannot happen to."""
    readied, ended = 0, 0
    for work_id in sorted(this.index.roster.errands.to_ready):
        work = this.works[work_id]
        failed = _failed(this, work)
        if failed:
            this.decide(Stop(work_id, failed))
            ended += 1
        else:
            this.decide(Ready(work_id))
            readied += 1
    text = f"{readied} works have seen what they come after succeed"
    this.report("ready", text + (f", {ended} never will" if ended else ""))


def _failed(this: Scratch, work: Work) -> str:
    """Why it can never be readied; empty when it can."""
    for other_id in work.terms.after:
        other = this.works.get(other_id)
        if other is None:
            return f"{other_id}, which it comes after, is not known any more"
        if other.outcome is not Outcome.SUCCEEDED:
            outcome = other.outcome.value if other.outcome else other.phase.value
            return f"{other_id}, which it comes after, {outcome}: {other.why_ended}"
    return ""


def promise(this: Scratch) -> None:
    """Promise what fits beside what is promised already: higher tiers first, then by age.

    What does not fit is waited for: nothing behind it in this order is promised any of it.
    """
    waiting = this.index.roster.errands.to_promise
    heads = [(key[0].tier.rank, line[0], key) for key, line in waiting.items()]
    heapq.heapify(heads)
    given = 0
    first: dict[DeviceKind, Work] = {}  # of those that do not fit
    missing: dict[DeviceKind, dict[Instant, int]] = {}  # to it, beside what is promised by now
    hopeless: dict[object, int] = {}  # the least that does not fit; what is promised only grows
    while heads:
        _, (_, work_id), key = heapq.heappop(heads)
        bearer, milli = key
        alike: object = bearer if bearer.tier is Tier.PREMIUM else (bearer.kind, bearer.classes)
        if milli >= hopeless.get(alike, milli + 1):
            continue
        work = this.works[work_id]
        book, ahead = this.index.book(), first.get(bearer.kind)
        if ahead is not None and bearer.kind not in missing:
            missing[bearer.kind] = missing_to(book, ahead, this.now)
        waits = ahead is not None and delays(book, work, ahead, missing[bearer.kind])
        if waits or shortfall(book, work, this.now):
            first.setdefault(bearer.kind, work)
            hopeless[alike] = milli
            continue
        this.decide(GivePromise(work_id))
        missing.clear()
        given += 1
        if key in waiting:
            heapq.heappush(heads, (bearer.tier.rank, waiting[key][0], key))
    left = sum(len(line) for line in waiting.values())
    text = f"{given} works were promised their device fraction"
    this.report("promise", text + (f", {left} wait for that" if left else ""))


def checkpoint(this: Scratch) -> None:
    """Have images made of running works whose newest is old; one at a time on a node.

    Not before the last one has had the time to get to another node, where there is one: no copy
    would ever be of an image that still counts.
    """
    ordered, later = 0, 0
    for work_id in sorted(this.index.roster.errands.to_checkpoint):
        if work_id in this.touched or _is_copied_still(this, this.works[work_id]):
            continue
        nodes = dict.fromkeys(slot.node_id for slot in this.works[work_id].placement)
        others = (hold.work for node in nodes for hold in this.index.fleet.works_on(node))
        if any(other.making is not None for other in others):
            later += 1
        else:
            this.decide(Checkpoint(work_id, "its newest image is older than its interval"))
            ordered += 1
    text = f"{ordered} images ordered of works that run on"
    this.report("checkpoint", text + (f", {later} wait for others on their nodes" if later else ""))


def _is_copied_still(this: Scratch, work: Work) -> bool:
    """Whether its newest image is on no other node yet, and may well be on the way to one."""
    image = work.image
    if image is None or image.copies or this.now >= image.saved_at + way_ms(image, this.policy):
        return False
    return any(node_id not in image.nodes for node_id in this.index.fleet.open)
