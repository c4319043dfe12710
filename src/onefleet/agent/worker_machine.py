"""Decides what the agent does for its workers: orders and observations in, driver calls out.

Level-triggered: an order names the desired state, and the machine compares it with what is here
each time that it is called. A worker has at most one driver call under way; a new order that
arrives meanwhile is acted on when the call's outcome is known. So a stop during a save waits for
the save, and a save during a start for the start.

Fencing: an order of an older epoch than one seen is refused, and a process of an older epoch is
ended before the new one starts. When the lease runs out unrenewed, the control plane may give a
job to another node; so jobs are saved a while before (ended where that fails) and stay so until
orders come again; what still runs at its end is made to stand still by its supervisor, agent or
not. Replicas keep serving: two copies of a replica do no harm, and a pool whose control plane is
away must still answer.

An image that was made without an order (its name begins with "own-") is reported like any other.
If the next order still says RUN under the same epoch, the worker is brought back from it. The
workers of a gang may be saved so at different times, each by its own node: none of them has run on
after its save, so what one had received from another, that other had sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from onefleet.agent.deciding import Standing, decide, hurries
from onefleet.agent.protocol import (
    Act,
    Adopted,
    Discard,
    Done,
    Drain,
    Effect,
    Event,
    Fetch,
    OrdersReceived,
    Pin,
    Ready,
    Report,
    Restore,
    Save,
    Start,
    StatusSeen,
    Thaw,
    Tick,
    Unfit,
    Verb,
    WorkerKey,
)
from onefleet.agent.worker import NEVER_BEFORE, Worker
from onefleet.domain.ids import NO_GENERATION, DeviceId, Instant, WorkId
from onefleet.domain.work import WHOLE
from onefleet.wire.agent import NodeOrders, Observed, Order, OrderVerb

#: How long before the lease runs out jobs begin to be saved: as long as a program may take that
#: saves itself, so that it is done in time.
SAVE_AHEAD_MS = 10_000


class WorkerMachine:
    """All workers of one node. `now` is any clock in milliseconds that never goes back."""

    def __init__(self) -> None:
        self._workers: dict[WorkerKey, Worker] = {}
        self._ordered = False  # before the first orders, everything runs on
        self._draining = False
        self.lease_until: Instant | None = None  # jobs may run until then
        self._fence_at: Instant | None = None
        self._fenced = False
        self.generation = NO_GENERATION

    # --- the machine ---------------------------------------------------------------------------

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """Take one event; return what is to be done, in order."""
        before = {key: w.view() for key, w in self._workers.items()}
        match event:
            case OrdersReceived(orders, asked_at):
                self._take_orders(orders, asked_at)
            case Done():
                self._take_done(event, now)
            case StatusSeen():
                worker = self._workers.get(event.key)
                if worker is not None and worker.doing is None and worker.ran == event.epoch:
                    worker.see(event)
            case Ready():
                self._take_ready(event)
            case Unfit(key, epoch, reason):
                worker = self._workers.get(key)
                if worker is not None and worker.alive and worker.ran == epoch:
                    worker.condemned = reason
            case Adopted():
                assert event.key not in self._workers, f"{event.key} was adopted twice"
                worker = Worker(event.key, event.is_job)
                worker.adopt(event)
                self._workers[event.key] = worker
            case Drain():
                self._draining = True
            case Tick():
                pass
            case _:
                assert_never(event)
        if self._fence_at is not None and now >= self._fence_at:
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
        """When jobs are saved for want of orders, or what failed is asked for again."""
        times = [w.not_before for w in self._workers.values() if w.doing is None]
        if self._fence_at is not None and not self._fenced:
            times.append(self._fence_at)
        return min((t for t in times if t > 0), default=None)

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken."""
        for key, worker in self._workers.items():
            assert worker.key == key
            worker.check()

    # --- what others may look at ---------------------------------------------------------------

    def workers(self) -> Sequence[Worker]:
        """All workers, by key. To be read only."""
        return [self._workers[key] for key in sorted(self._workers)]

    def overtaken(self) -> Sequence[WorkerKey]:
        """Whose image is being fetched in no hurry, and is now to run here, or is not wanted here
        any more."""
        found = []
        for worker, fetch in self._fetches():
            now, before = worker.order, fetch.order
            sooner = now is not None and hurries(now) and not hurries(before)
            if sooner or now is None or (before.coming and now.image != fetch.image):
                found.append(worker.key)
        return found

    def counted(self) -> Sequence[WorkerKey]:
        """Whose image is being fetched as it was made, and counts now."""
        return [
            worker.key
            for worker, fetch in self._fetches()
            if fetch.order.coming
            and (now := worker.order) is not None
            and now.image == fetch.image
            and not now.coming
        ]

    def _fetches(self) -> Sequence[tuple[Worker, Fetch]]:
        return [(w, w.doing) for w in self.workers() if isinstance(w.doing, Fetch)]

    def get(self, key: WorkerKey) -> Worker | None:
        return self._workers.get(key)

    @property
    def at_rest(self) -> bool:
        """Nothing runs and nothing is under way."""
        return not any(w.alive or w.doing for w in self._workers.values())

    # --- events --------------------------------------------------------------------------------

    def _take_orders(self, orders: NodeOrders, asked_at: Instant) -> None:
        if orders.generation < self.generation:
            return  # an answer that was overtaken
        self.generation = orders.generation
        self._ordered = True
        self._fenced = False
        self.lease_until = Instant(asked_at + orders.lease_ms)
        self._fence_at = Instant(self.lease_until - min(SAVE_AHEAD_MS, orders.lease_ms // 3))
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
            if worker.order != order:
                worker.not_before = _sooner(worker)
            worker.order = order
            worker.epoch = order.epoch
            worker.grace_ms = order.grace_ms

    def _take_done(self, done: Done, now: Instant) -> None:
        worker = self._workers[done.key]
        act, worker.doing = worker.doing, None
        assert act is not None and act.verb is done.verb, f"{done} answers {act}"
        if not isinstance(act, Discard):
            worker.finished(act, done, now)
            if isinstance(act, Save) and done.error and self._standing.retreats:
                worker.condemned = f"it could not be saved: {done.error}"
        elif worker.order is None:
            del self._workers[worker.key]
        else:  # it was ordered again meanwhile
            self._workers[worker.key] = Worker(
                worker.key, worker.is_job, worker.order, worker.epoch
            )

    def _take_ready(self, ready: Ready) -> None:
        worker = self._workers.get(ready.key)
        if worker is None or not worker.alive or worker.ran != ready.epoch:
            return
        worker.host, worker.port = ready.host, ready.port
        if worker.doing is None:
            worker.observed = Observed.RUNNING

    # --- decisions -----------------------------------------------------------------------------

    @property
    def _standing(self) -> Standing:
        return Standing(self._ordered, self._draining, self._fenced)

    def _act(self, worker: Worker, now: Instant) -> Act | None:
        """Decide, and note what is now under way."""
        if worker.doing is not None or worker.settling or now < worker.not_before:
            return None
        worker.not_before = NEVER_BEFORE
        act = decide(worker, self._standing)
        if act is None:
            return None
        if isinstance(act, Start | Restore | Thaw | Pin) and self._taken(worker, act):
            if isinstance(act, Start | Restore) and worker.ran != act.order.epoch:
                # else it is saved, and must stay known as that
                worker.observed = _BEFORE[act.verb]
            return None  # it is looked at again when something ends
        worker.begin(act)
        return act

    def _taken(self, worker: Worker, act: Start | Restore | Thaw | Pin) -> bool:
        """Whether a device that the call needs is still had by other work, on its way out.

        The control plane counts devices as free once it gave their holder up; whether it is gone
        is known here alone. Workers of one gang may share a device, and so may works as long as
        their shares leave room. Who is to be bound elsewhere does not keep out another who is, or
        two that change places would wait for each other; they share for a moment.
        """
        order = worker.order
        assert order is not None
        devices = act.devices if isinstance(act, Thaw | Pin) else act.order.devices
        leaves = isinstance(act, Pin)
        return any(self._load(device, order, leaves) + order.milli > WHOLE for device in devices)

    def _load(self, device: DeviceId, order: Order, leaves: bool) -> int:
        """How much of the device has been given to processes of other works, or of older epochs."""
        shares: dict[WorkId, int] = {}
        for other in self._workers.values():
            mine = other.key.work_id == order.work_id and other.ran == order.epoch
            if mine or not other.alive or not other.may_use(device):
                continue
            if not ((leaves or other.frozen) and _is_to_leave(other, device)):
                key = other.key.work_id
                shares[key] = max(shares.get(key, 0), other.milli)
        return sum(shares.values())


#: What is told of a worker that waits for its devices.
_BEFORE = {Verb.START: Observed.STARTING, Verb.RESTORE: Observed.RESTORING}


def _is_to_leave(worker: Worker, device: DeviceId) -> bool:
    """Whether it is going to be bound to other devices than this one."""
    order = worker.order
    return (
        order is not None
        and order.verb is OrderVerb.RUN
        and order.epoch == worker.ran
        and device not in order.devices
    )


def _sooner(worker: Worker) -> Instant:
    """A new order of a worker that is not there is acted on at once: nothing failed of it yet."""
    return worker.not_before if worker.alive else NEVER_BEFORE
