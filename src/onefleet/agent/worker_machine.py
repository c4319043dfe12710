"""Decides what the agent does for its workers: orders and observations in, driver calls out.

Level-triggered: an order names the desired state, and the machine compares it with what is here
each time that it is called. A worker has at most one driver call under way; a new order that
arrives meanwhile is acted on when the call's outcome is known. So a stop during a save waits for
the save, and a save during a start for the start.

Fencing: an order of an older epoch than one seen is refused, and a process of an older epoch is
ended before the new one starts. When the lease runs out unrenewed, the control plane may give a
job to another node; so jobs are saved (ended where that fails) and stay so until orders come
again. Replicas keep serving: two copies of a replica do no harm, and a pool whose control plane
is away must still answer.

An image that was made without an order (its name begins with "own-") is reported like any other.
If the next order still says RUN under the same epoch, the worker is brought back from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from onefleet.agent.protocol import (
    Act,
    Adopted,
    Discard,
    Done,
    Drain,
    Effect,
    Event,
    OrdersReceived,
    Prune,
    Ready,
    Report,
    Restore,
    Save,
    Start,
    StatusSeen,
    Stop,
    Tick,
    Unfit,
    Verb,
    WorkerKey,
)
from onefleet.domain.fleet import CheckpointMode
from onefleet.domain.ids import NO_GENERATION, DeviceId, Generation, ImageId, Instant
from onefleet.drivers.base import WorkerState
from onefleet.wire.agent import NodeOrders, Observed, Order, OrderVerb, WorkerReport

#: Between asking and killing, for a worker whose order did not say.
DEFAULT_GRACE_MS = 10_000
#: How the name of an image begins that nobody ordered.
_OWN = "own-"
_NEVER_BEFORE = Instant(0)
#: Before a stop that failed is asked for again.
STOP_RETRY_MS = 1_000

_DURING = {
    Verb.START: Observed.STARTING,
    Verb.RESTORE: Observed.RESTORING,
    Verb.SAVE: Observed.SAVING,
    Verb.STOP: Observed.STOPPING,
}
_ADOPTED = {
    WorkerState.STARTING: Observed.STARTING,
    WorkerState.RUNNING: Observed.RUNNING,
    WorkerState.SAVING: Observed.SAVING,
    WorkerState.SAVED: Observed.SAVED,
    WorkerState.RESTORING: Observed.RESTORING,
    WorkerState.STOPPING: Observed.STOPPING,
    WorkerState.ENDED: Observed.ENDED,
}
_SETTLED = (WorkerState.RUNNING, WorkerState.SAVED, WorkerState.ENDED)


@dataclass(slots=True)
class Worker:
    """What the machine knows of one worker.

    epoch: the highest that an order named. ran: that its process was started under. alive: a
    process of it may exist; true from before a start until its end is known. doing: the driver
    call under way. settling: adopted in the middle of a call of the agent before. image: what it
    was saved as. failed_save: the image that could not be made. condemned: why it is to be ended
    without an order. not_before: nothing is asked of it until then. devices: that its process has
    while it is alive; no other worker starts on them.
    """

    key: WorkerKey
    is_job: bool
    order: Order | None = None
    epoch: Generation = NO_GENERATION
    ran: Generation = NO_GENERATION
    observed: Observed | None = None
    alive: bool = False
    doing: Act | None = None
    settling: bool = False
    image: ImageId | None = None
    images: tuple[ImageId, ...] = ()
    image_bytes: int = 0
    image_lost_ms: int = 0
    failed_save: ImageId | None = None
    condemned: str = ""
    exit_code: int | None = None
    reason: str = ""
    host: str = ""
    port: int = 0
    grace_ms: int = DEFAULT_GRACE_MS
    not_before: Instant = _NEVER_BEFORE
    devices: tuple[DeviceId, ...] = ()

    def view(self) -> tuple[object, ...]:
        """What the control plane is told; a change of it is worth a report."""
        return (
            self.ran, self.observed, self.image, self.exit_code, self.reason, self.port,
        )  # fmt: skip

    def report(
        self, mode: CheckpointMode = CheckpointMode.NONE, memory_bytes: int = 0, cpu_ms: int = 0
    ) -> WorkerReport:
        """All that is true of a worker that has been observed. The arguments: what its driver
        knows of it.
        """
        assert self.observed is not None
        return WorkerReport(
            work_id=self.key.work_id,
            rank=self.key.rank,
            epoch=self.ran,
            observed=self.observed,
            reason=self.reason,
            exit_code=self.exit_code,
            image=self.image,
            image_bytes=self.image_bytes,
            image_lost_ms=self.image_lost_ms,
            memory_bytes=memory_bytes,
            cpu_ms=cpu_ms,
            checkpoint_mode=mode,
            host=self.host if self.alive else "",
            port=self.port if self.alive else 0,
        )


class WorkerMachine:
    """All workers of one node. `now` is any clock in milliseconds that never goes back."""

    def __init__(self) -> None:
        self._workers: dict[WorkerKey, Worker] = {}
        self._ordered = False  # before the first orders, everything runs on
        self._draining = False
        self._lease_until: Instant | None = None
        self._fenced = False
        self.generation = NO_GENERATION

    # --- the machine ---------------------------------------------------------------------------

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """Take one event; return what is to be done, in order."""
        before = {key: w.view() for key, w in self._workers.items()}
        match event:
            case OrdersReceived(orders):
                self._take_orders(orders, now)
            case Done():
                self._take_done(event, now)
            case StatusSeen():
                self._take_status(event)
            case Ready():
                self._take_ready(event)
            case Unfit(key, epoch, reason):
                worker = self._workers.get(key)
                if worker is not None and worker.alive and worker.ran == epoch:
                    worker.condemned = reason
            case Adopted():
                self._adopt(event)
            case Drain():
                self._draining = True
            case Tick():
                pass
            case _:
                assert_never(event)
        if self._lease_until is not None and now >= self._lease_until:
            self._fenced = True
        effects: list[Effect] = []
        for key in sorted(self._workers):
            act = self._act(self._workers[key], now)
            if act is not None:
                effects.append(act)
        if before != {key: w.view() for key, w in self._workers.items()}:
            effects.append(Report())
        return effects

    def next_deadline(self) -> Instant | None:
        """When the lease runs out, or a stop that failed is asked for again."""
        times = [w.not_before for w in self._workers.values() if w.alive and w.doing is None]
        if self._lease_until is not None and not self._fenced:
            times.append(self._lease_until)
        return min((t for t in times if t > 0), default=None)

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        for key, w in self._workers.items():
            assert w.key == key
            if w.observed in (Observed.ENDED, Observed.SAVED, Observed.RESTORE_FAILED):
                assert not w.alive, f"{key} is {w.observed} but may be alive"
            if isinstance(w.doing, Start | Restore | Save | Stop):
                assert w.alive, f"{key}: {w.doing.verb} of what cannot be alive"
            if isinstance(w.doing, Discard):
                assert not w.alive, f"{key} is cleaned away but may be alive"
            if w.observed is Observed.SAVED:
                assert w.image is not None

    # --- what others may look at ---------------------------------------------------------------

    def workers(self) -> Sequence[Worker]:
        """All workers, by key. To be read only."""
        return [self._workers[key] for key in sorted(self._workers)]

    def get(self, key: WorkerKey) -> Worker | None:
        return self._workers.get(key)

    @property
    def at_rest(self) -> bool:
        """Nothing runs and nothing is under way."""
        return not any(w.alive or w.doing for w in self._workers.values())

    # --- events --------------------------------------------------------------------------------

    def _take_orders(self, orders: NodeOrders, now: Instant) -> None:
        if orders.generation < self.generation:
            return  # an answer that was overtaken
        self.generation = orders.generation
        self._ordered = True
        self._fenced = False
        self._lease_until = Instant(now + orders.lease_ms)
        named = {}
        for order in orders.orders:
            named[WorkerKey(order.work_id, order.rank)] = order
        for key, worker in self._workers.items():
            if key not in named:
                worker.order = None
        for key, order in named.items():
            worker = self._workers.setdefault(key, Worker(key, is_job=order.job is not None))
            if order.epoch < worker.epoch:
                continue  # refused: it was given away since
            worker.order = order
            worker.epoch = order.epoch
            worker.grace_ms = order.grace_ms

    def _take_done(self, done: Done, now: Instant) -> None:
        worker = self._workers[done.key]
        act, worker.doing = worker.doing, None
        assert act is not None and act.verb is done.verb, f"{done} answers {act}"
        match act:
            case Start():
                self._started(worker, done, Observed.ENDED)
            case Restore():
                self._started(worker, done, Observed.RESTORE_FAILED)
            case Save(image=image):
                self._saved(worker, done, image)
            case Stop():
                worker.not_before = _NEVER_BEFORE
                if done.error:  # it may live still: the next decision asks again
                    worker.reason = done.error
                    worker.not_before = Instant(now + STOP_RETRY_MS)
                    return
                worker.alive = False
                worker.observed = Observed.ENDED
                worker.exit_code = None if worker.condemned else done.exit_code
                worker.reason, worker.condemned = worker.condemned, ""
            case Prune(keep=keep):
                worker.images = tuple(i for i in worker.images if i in keep)
            case Discard():
                if worker.order is None:
                    del self._workers[worker.key]
                else:  # it was ordered again meanwhile
                    self._workers[worker.key] = Worker(
                        worker.key, worker.is_job, worker.order, worker.epoch
                    )
            case _:
                assert_never(act)

    def _started(self, worker: Worker, done: Done, failed: Observed) -> None:
        worker.alive = not done.error
        worker.reason = done.error
        if done.error:
            worker.observed = failed
            worker.exit_code = done.exit_code
        else:
            worker.observed = Observed.RUNNING if worker.is_job else Observed.STARTING

    def _saved(self, worker: Worker, done: Done, image: ImageId) -> None:
        worker.reason = done.error
        if done.error:
            worker.observed = Observed.SAVE_FAILED
            worker.failed_save = image
            if self._retreating:
                worker.condemned = f"it could not be saved: {done.error}"
            return
        worker.alive = False
        worker.observed = Observed.SAVED
        worker.image = image
        worker.image_bytes = done.image_bytes
        worker.image_lost_ms = done.lost_ms
        if image not in worker.images:
            worker.images = (*worker.images, image)

    def _take_status(self, seen: StatusSeen) -> None:
        worker = self._workers.get(seen.key)
        if worker is None or worker.doing is not None or worker.ran != seen.epoch:
            return
        if worker.settling and seen.state in _SETTLED:
            worker.settling = False
            worker.image_bytes, worker.image_lost_ms = seen.image_bytes, seen.lost_ms
            self._settle(worker, seen.state)
        if seen.state is WorkerState.ENDED and worker.alive:
            worker.alive = False
            worker.observed = Observed.ENDED
        if worker.observed is Observed.ENDED and worker.exit_code is None:
            worker.exit_code = seen.exit_code
            worker.reason = worker.reason or seen.reason

    def _take_ready(self, ready: Ready) -> None:
        worker = self._workers.get(ready.key)
        if worker is None or not worker.alive or worker.ran != ready.epoch:
            return
        worker.host, worker.port = ready.host, ready.port
        if worker.doing is None:
            worker.observed = Observed.RUNNING

    def _adopt(self, found: Adopted) -> None:
        assert found.key not in self._workers, f"{found.key} was adopted twice"
        worker = Worker(
            found.key,
            found.is_job,
            ran=found.epoch,
            epoch=found.epoch,
            image=found.image,
            images=found.images,
            image_bytes=found.image_bytes,
            image_lost_ms=found.lost_ms,
            exit_code=found.exit_code,
            reason=found.reason,
            grace_ms=found.grace_ms,
            devices=found.devices,
        )
        self._workers[found.key] = worker
        if found.state is None:
            if found.image in found.images:
                worker.observed = Observed.SAVED
            else:
                worker.image = None
                worker.ran = NO_GENERATION
            return
        worker.settling = found.state not in _SETTLED
        worker.alive = worker.settling
        worker.observed = _ADOPTED[found.state]
        if not worker.settling:
            self._settle(worker, found.state)

    def _settle(self, worker: Worker, state: WorkerState) -> None:
        worker.alive = state is WorkerState.RUNNING
        worker.observed = _ADOPTED[state]
        if state is WorkerState.RUNNING and not worker.is_job:
            worker.observed = Observed.STARTING  # until it answers
        if state is WorkerState.SAVED:
            if worker.image is None:  # nobody knows as what: it cannot be brought back
                worker.observed = Observed.ENDED
                worker.reason = "it was saved, but its image is not known"
            elif worker.image not in worker.images:
                worker.images = (*worker.images, worker.image)

    # --- decisions -----------------------------------------------------------------------------

    @property
    def _retreating(self) -> bool:
        return self._draining or self._fenced

    def _act(self, worker: Worker, now: Instant) -> Act | None:
        """Decide, and note what is now under way."""
        if worker.doing is not None or worker.settling or now < worker.not_before:
            return None
        act = self._decide(worker)
        if act is None:
            return None
        if isinstance(act, Start | Restore) and self._taken(worker, act.order):
            if worker.ran != act.order.epoch:  # else it is saved, and must stay known as that
                worker.observed = _DURING[act.verb]
            return None  # it is looked at again when something ends
        worker.doing = act
        if act.verb in _DURING:
            worker.observed = _DURING[act.verb]
        if isinstance(act, Start | Restore):
            worker.alive = True
            worker.devices = act.order.devices
            worker.ran = act.order.epoch
            worker.exit_code = None
            worker.reason = worker.condemned = ""
            worker.host, worker.port = "", 0
            worker.failed_save = None
        if isinstance(act, Start):
            worker.image = None
        return act

    def _taken(self, worker: Worker, order: Order) -> bool:
        """Whether a device of the order is still had by another worker, which is on its way out.

        The control plane counts devices as free once it gave their holder up; whether it is gone
        is known here alone.
        """
        return any(
            other.alive and other is not worker and device in other.devices
            for other in self._workers.values()
            for device in order.devices
        )

    def _decide(self, worker: Worker) -> Act | None:
        order = worker.order
        if worker.alive and worker.condemned:
            return Stop(worker.key, worker.grace_ms)
        if self._retreating:
            return self._retreat(worker)
        if not self._ordered:
            return None
        if order is None:
            return Stop(worker.key, worker.grace_ms) if worker.alive else Discard(worker.key)
        if worker.alive and worker.ran != order.epoch:
            return Stop(worker.key, worker.grace_ms)  # of an older epoch
        match order.verb:
            case OrderVerb.RUN:
                return self._run(worker, order)
            case OrderVerb.SAVE:
                return self._save(worker, order)
            case OrderVerb.STOP:
                return self._stop(worker, order)
            case OrderVerb.KEEP:
                return self._keep(worker, order)
            case _:
                assert_never(order.verb)

    def _run(self, worker: Worker, order: Order) -> Act | None:
        if worker.ran != order.epoch:
            if order.image is None:
                return Start(worker.key, order)
            return Restore(worker.key, order, order.image)
        if worker.observed is Observed.SAVED and worker.image is not None:
            return Restore(worker.key, order, worker.image)
        if worker.alive and worker.observed is Observed.SAVE_FAILED:
            worker.observed = Observed.RUNNING
            worker.reason = ""
            worker.failed_save = None  # the next order may ask for the same image again
        return self._prune(worker, order) if worker.alive else None

    def _save(self, worker: Worker, order: Order) -> Act | None:
        assert order.image is not None, "a save names its image"
        if worker.ran != order.epoch:
            # Said as a failed save: the control plane goes back to RUN, and it is started then.
            worker.observed = Observed.SAVE_FAILED
            worker.reason = "it was not running yet"
            return None
        if worker.alive and worker.failed_save != order.image:
            return Save(worker.key, order.image)
        return None

    def _stop(self, worker: Worker, order: Order) -> Act | None:
        if worker.alive:
            return Stop(worker.key, order.grace_ms)
        if worker.observed is not Observed.ENDED or worker.ran != order.epoch:
            worker.observed = Observed.ENDED
            worker.ran = order.epoch
            worker.exit_code = None
            worker.reason = "it was stopped while it did not run"
        return None

    def _keep(self, worker: Worker, order: Order) -> Act | None:
        assert order.image is not None, "a keep names its image"
        if worker.alive:
            return Stop(worker.key, order.grace_ms)
        worker.ran = order.epoch
        worker.exit_code = None
        if order.image in worker.images:
            worker.observed, worker.image, worker.reason = Observed.SAVED, order.image, ""
            return self._prune(worker, order)
        worker.observed = Observed.RESTORE_FAILED
        worker.reason = f"image {order.image} is not on this node"
        return None

    def _prune(self, worker: Worker, order: Order) -> Act | None:
        """Remove the images that no order can name any more."""
        keep = tuple(i for i in worker.images if i in (order.image, *order.keep, worker.image))
        return Prune(worker.key, keep) if keep != worker.images else None

    def _retreat(self, worker: Worker) -> Act | None:
        """Nobody renews the lease, or the pool goes down: free the devices, lose nothing."""
        if not worker.alive:
            return None
        unwanted = self._ordered and (
            worker.order is None or worker.order.verb in (OrderVerb.STOP, OrderVerb.KEEP)
        )
        if not worker.is_job:
            if self._draining:
                worker.condemned = "the pool went down"
            return Stop(worker.key, worker.grace_ms) if self._draining or unwanted else None
        if unwanted:
            return Stop(worker.key, worker.grace_ms)
        count = len(worker.images)
        while (image := ImageId(f"{_OWN}{worker.ran}-{count}")) in worker.images:
            count += 1
        return Save(worker.key, image)
