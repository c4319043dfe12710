"""What to do next for one worker, from what is true of it and what is ordered: one call, or none.

Level-triggered: the same worker under the same order gives the same call, and none when it is as
ordered. `decide` may also settle what is to be told of a worker for which nothing can be done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from onefleet.agent.protocol import (
    Act,
    Discard,
    Fetch,
    Finish,
    Freeze,
    HoldKind,
    Pin,
    Prune,
    Restore,
    Save,
    Start,
    Stop,
    Thaw,
)
from onefleet.agent.worker import TRIES_MAX, Worker
from onefleet.domain.ids import ImageId
from onefleet.wire.agent import Observed, Order, OrderVerb

#: How the name of an image begins that nobody ordered.
_OWN = "own-"


@dataclass(frozen=True, slots=True)
class Standing:
    """How the node stands. ordered: orders have come. draining: the pool goes down. fenced: its
    lease has run out."""

    ordered: bool
    draining: bool
    fenced: bool

    @property
    def retreats(self) -> bool:
        return self.draining or self.fenced


def decide(worker: Worker, node: Standing) -> Act | None:
    """The next call for a worker for which none is under way."""
    order = worker.order
    if worker.alive and worker.condemned:
        return Stop(worker.key, worker.grace_ms)
    if node.retreats:
        return _retreat(worker, node)
    if not node.ordered:
        return None
    if order is None:
        return Stop(worker.key, worker.grace_ms) if worker.alive else Discard(worker.key)
    if worker.alive and worker.ran != order.epoch:
        return _end(worker, order)  # of an older epoch
    match order.verb:
        case OrderVerb.RUN:
            return _run(worker, order)
        case OrderVerb.SAVE:
            return _save(worker, order)
        case OrderVerb.FREEZE:
            return _freeze(worker, order)
        case OrderVerb.STOP:
            return _stop(worker, order)
        case OrderVerb.KEEP:
            return _keep(worker, order)
        case _:
            assert_never(order.verb)


def hurries(order: Order) -> bool:
    """Whether an image that is fetched for this order is waited for."""
    return order.verb is OrderVerb.RUN or order.soon


def _run(worker: Worker, order: Order) -> Act | None:
    if worker.ran != order.epoch:
        return _begin(worker, order)
    if worker.observed is Observed.SAVED and worker.image is not None:
        return Restore(worker.key, order, worker.image, hold=order.hold)
    if not worker.alive:
        return None
    if worker.hold is not None:
        if order.hold and worker.hold.kind is HoldKind.RESTORE:
            return None
        return _let_go(worker, order)
    _runs_on(worker)
    if worker.frozen:
        return Thaw(worker.key, order.devices)
    if worker.devices != order.devices or worker.binding:
        return Pin(worker.key, order.devices)
    if order.making and (worker.made is None or worker.made.image != order.making):
        return Save(worker.key, order.making, hold=is_gang(order), runs_on=True)
    return _prune(worker, order)


def _begin(worker: Worker, order: Order) -> Act | None:
    """Start it, or bring it back, with its image from elsewhere if it is not here."""
    image = order.image
    if image is None:
        return Start(worker.key, order)
    if image not in worker.images and order.sources:
        return Fetch(worker.key, order, image)
    return Restore(worker.key, order, image, hold=order.hold)


def _save(worker: Worker, order: Order) -> Act | None:
    image = order.image
    assert image is not None, "a save names its image"
    if worker.ran != order.epoch:
        _over(worker, order, "nothing is known of it on its node")
    if not worker.alive:
        return None
    if worker.hold is not None:
        if worker.hold.kind is HoldKind.SAVE and worker.hold.image == image:
            return None if order.hold else Finish(worker.key, image, commit=True)
        return _let_go(worker, order)
    if worker.failed_save == image:
        return None
    if is_gang(order) and not order.hold:  # it counts already, and is not to be made anew
        return Finish(worker.key, image, commit=True)
    return Save(
        worker.key, image, hold=order.hold, in_memory=order.in_memory, limit_ms=order.limit_ms
    )


def _freeze(worker: Worker, order: Order) -> Act | None:
    if worker.ran != order.epoch:
        _over(worker, order, "nothing is known of it on its node")
    if not worker.alive:
        return None
    if worker.hold is not None:
        return _let_go(worker, order)
    _runs_on(worker)
    if worker.frozen and not (worker.devices or worker.binding):
        return _prune(worker, order)
    if worker.tries >= TRIES_MAX:  # its devices were given away: saved, it is off them, too
        return Save(worker.key, _own_image(worker))
    return Freeze(worker.key)  # also of one that an agent before this one may have let go on


def _stop(worker: Worker, order: Order) -> Act | None:
    if worker.alive:
        return _end(worker, order)
    if worker.observed is not Observed.ENDED or worker.ran != order.epoch:
        _over(worker, order, "it was stopped while it did not run")
    return None


def _keep(worker: Worker, order: Order) -> Act | None:
    image = order.image
    assert image is not None, "a keep names its image"
    if worker.alive:
        hold = worker.hold
        if hold is not None and hold.kind is HoldKind.RESTORE and hold.image == image:
            return Finish(worker.key, image, commit=False)
        return _end(worker, order)
    worker.ran = order.epoch
    worker.exit_code = None
    if image in worker.images:
        worker.observed, worker.image, worker.reason = Observed.SAVED, image, ""
        # Old images can go once it runs: nothing shall be under way when it may.
        return None if order.soon else _prune(worker, order)
    if order.sources:
        worker.observed, worker.image = Observed.FETCHING, None
        return Fetch(worker.key, order, image)
    worker.observed, worker.image = Observed.RESTORE_FAILED, None
    worker.reason = f"image {image} is not on this node"
    return None


def _retreat(worker: Worker, node: Standing) -> Act | None:
    """Nobody renews the lease, or the pool goes down: free the devices, lose nothing."""
    if not worker.alive:
        return None
    unwanted = node.ordered and (
        worker.order is None or worker.order.verb in (OrderVerb.STOP, OrderVerb.KEEP)
    )
    if not worker.is_job:
        if node.draining:
            worker.condemned = "the pool went down"
        return Stop(worker.key, worker.grace_ms) if node.draining or unwanted else None
    if unwanted:
        return Stop(worker.key, worker.grace_ms)
    if worker.hold is not None:
        # What is saved is given up, whether it counts or not: it is brought back from that same
        # moment. What is restored stays what it was. An image made as it ran may count.
        commit = worker.hold.kind is not HoldKind.RESTORE
        return Finish(worker.key, worker.hold.image, commit)
    return Save(worker.key, _own_image(worker))


# --- what several of them do ---------------------------------------------------------------------


def _end(worker: Worker, order: Order) -> Act:
    """End it. What it is held with is kept, if it counts: a stop alone would throw it away."""
    hold = worker.hold
    if hold is not None and hold.kind is not HoldKind.RESTORE and hold.image in order.images:
        return Finish(worker.key, hold.image, commit=True)
    return Stop(worker.key, order.grace_ms)


def _let_go(worker: Worker, order: Order) -> Act | None:
    """End a hold that the order is past; None while it is to last."""
    hold = worker.hold
    assert hold is not None
    match hold.kind:
        case HoldKind.RESTORE:
            return Finish(worker.key, hold.image, commit=True)
        case HoldKind.SAVE:
            return Finish(worker.key, hold.image, commit=False)
        case HoldKind.MAKING if order.making != hold.image:
            return Finish(worker.key, hold.image, commit=hold.image in order.images)
        case HoldKind.MAKING if worker.made is None:  # an agent before this one had it made
            return Save(worker.key, hold.image, hold=True, runs_on=True)
        case HoldKind.MAKING:
            return None
        case _:
            assert_never(hold.kind)


def _runs_on(worker: Worker) -> None:
    """A save that failed has been told; the next order may ask for the same image again."""
    if worker.observed is Observed.SAVE_FAILED:
        worker.observed, worker.reason, worker.failed_save = worker.standing, "", None


def _over(worker: Worker, order: Order, reason: str) -> None:
    worker.observed, worker.ran = Observed.ENDED, order.epoch
    worker.exit_code, worker.reason = None, reason


def _prune(worker: Worker, order: Order) -> Act | None:
    """Remove the images that no order can name any more."""
    named = (*order.images, order.making, worker.image)
    keep = tuple(i for i in worker.images if i in named)
    return Prune(worker.key, keep) if keep != worker.images else None


def _own_image(worker: Worker) -> ImageId:
    count = len(worker.images)
    while (image := ImageId(f"{_OWN}{worker.ran}-{count}")) in worker.images:
        count += 1
    return image


def is_gang(order: Order) -> bool:
    """Whether its worker is one of several."""
    return order.job is not None and order.job.workers > 1
