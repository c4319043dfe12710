"""The worker machine: single steps by example, all interleavings by property."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

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
from onefleet.agent.worker import RETRY_MS
from onefleet.agent.worker_machine import WorkerMachine
from onefleet.domain.ids import DeviceId, Generation, ImageId, Instant, NodeId, WorkId
from onefleet.drivers.base import WorkerState
from onefleet.wire.agent import EngineSpec, JobSpec, NodeOrders, Observed, Order, OrderVerb

JOB = WorkerKey(WorkId("job-1"), 0)
REPLICA = WorkerKey(WorkId("replica-1"), 0)
RUN, SAVE, STOP, KEEP = OrderVerb.RUN, OrderVerb.SAVE, OrderVerb.STOP, OrderVerb.KEEP
LEASE_MS = 10_000


def order(
    verb: OrderVerb,
    epoch: int = 1,
    image: str | None = None,
    key: WorkerKey = JOB,
    keep: str | None = None,
) -> Order:
    job = JobSpec(name="j", tenant_id="t", command=("true",)) if key == JOB else None
    engine = EngineSpec(
        engine="simulated", model_id="m", purpose="chat", path="/m", revision="r", slots=1,
        context_length=1, served_name="m",
    )  # fmt: skip
    return Order(
        work_id=key.work_id, rank=key.rank, epoch=Generation(epoch), verb=verb,
        image=ImageId(image) if image else None,
        keep=(ImageId(keep),) if keep else (), grace_ms=7, job=job,
        engine=None if job else engine,
    )  # fmt: skip


class Bench:
    """A machine, its clock and a generation that rises."""

    def __init__(self) -> None:
        self.machine = WorkerMachine()
        self.now = 0
        self.generation = 0

    def orders(self, *orders: Order) -> Sequence[Effect]:
        self.generation += 1
        return self.event(
            OrdersReceived(
                NodeOrders(
                    node_id=NodeId("n"), generation=Generation(self.generation),
                    lease_ms=LEASE_MS, orders=orders,
                ),
                Instant(self.now),
            )
        )  # fmt: skip

    def event(self, event: Event) -> Sequence[Effect]:
        effects = self.machine.handle(event, Instant(self.now))
        self.machine.check()
        return [e for e in effects if not isinstance(e, Report)]

    def done(self, act: Effect, error: str = "", exit_code: int | None = None) -> Sequence[Effect]:
        assert not isinstance(act, Report)
        return self.event(Done(act.key, act.verb, error=error, exit_code=exit_code))

    def seen(self, key: WorkerKey = JOB) -> Observed | None:
        worker = self.machine.get(key)
        return None if worker is None else worker.observed

    def running(self, epoch: int = 1) -> Bench:
        (start,) = self.orders(order(RUN, epoch))
        assert self.done(start) == []
        return self


def test_a_run_is_started_once_and_told() -> None:
    bench = Bench()
    (start,) = bench.orders(order(RUN))
    assert isinstance(start, Start) and bench.seen() is Observed.STARTING
    assert bench.orders(order(RUN)) == []
    assert bench.done(start) == [] and bench.seen() is Observed.RUNNING
    assert bench.orders(order(RUN)) == []


def test_a_change_is_reported_and_nothing_else() -> None:
    machine = WorkerMachine()
    first = NodeOrders(
        node_id=NodeId("n"), generation=Generation(1), lease_ms=LEASE_MS, orders=(order(RUN),)
    )
    assert Report() in machine.handle(OrdersReceived(first, Instant(0)), Instant(0))
    assert machine.handle(OrdersReceived(first, Instant(1)), Instant(1)) == []


def test_a_command_that_cannot_be_started_is_an_end() -> None:
    bench = Bench()
    (start,) = bench.orders(order(RUN))
    assert bench.done(start, "no such command", 127) == []
    worker = bench.machine.get(JOB)
    assert worker is not None and worker.observed is Observed.ENDED
    assert (worker.exit_code, worker.reason) == (127, "no such command")
    assert bench.orders(order(RUN)) == []  # not again under the same epoch
    assert isinstance(bench.orders(order(RUN, 2))[0], Start)


def test_an_own_end_is_told_until_it_is_known() -> None:
    bench = Bench().running()
    assert bench.event(StatusSeen(JOB, Generation(1), WorkerState.ENDED, 3, "exited")) == []
    assert bench.seen() is Observed.ENDED
    (discard,) = bench.orders()
    assert isinstance(discard, Discard)
    assert bench.done(discard) == [] and bench.machine.get(JOB) is None


def test_saved_kept_and_brought_back() -> None:
    bench = Bench().running()
    (save,) = bench.orders(order(SAVE, 1, "i1"))
    assert isinstance(save, Save) and bench.seen() is Observed.SAVING
    assert bench.done(save) == [] and bench.seen() is Observed.SAVED
    assert bench.orders(order(SAVE, 1, "i1")) == []
    assert bench.orders(order(KEEP, 1, "i1")) == [] and bench.seen() is Observed.SAVED
    (restore,) = bench.orders(order(RUN, 2, "i1"))
    assert isinstance(restore, Restore) and restore.image == "i1"
    assert bench.done(restore) == [] and bench.seen() is Observed.RUNNING
    assert bench.orders(order(RUN, 2, "i1")) == []


def test_where_files_may_lie_is_ordered() -> None:
    for in_memory in (False, True):
        ordered = structs.replace(order(SAVE, 1, "i1"), in_memory=in_memory)
        (save,) = Bench().running().orders(ordered)
        assert isinstance(save, Save) and save.in_memory is in_memory


def test_a_save_that_fails_is_not_tried_again_before_a_run() -> None:
    bench = Bench().running()
    (save,) = bench.orders(order(SAVE, 1, "i1"))
    assert bench.done(save, "full disk") == [] and bench.seen() is Observed.SAVE_FAILED
    assert bench.orders(order(SAVE, 1, "i1")) == []
    assert bench.orders(order(RUN, 1)) == [] and bench.seen() is Observed.RUNNING
    assert isinstance(bench.orders(order(SAVE, 1, "i1"))[0], Save)


def test_a_restore_that_fails_keeps_its_image() -> None:
    bench = Bench().running()
    (save,) = bench.orders(order(SAVE, 1, "i1"))
    bench.done(save)
    (restore,) = bench.orders(order(RUN, 2, "i1"))
    assert bench.done(restore, "no") == [] and bench.seen() is Observed.RESTORE_FAILED
    assert bench.orders(order(RUN, 2, "i1")) == []
    assert bench.orders(order(KEEP, 3, "i1")) == [] and bench.seen() is Observed.SAVED


def test_a_save_waits_for_the_start_and_a_stop_for_the_save() -> None:
    bench = Bench()
    (start,) = bench.orders(order(RUN))
    assert bench.orders(order(SAVE, 1, "i1")) == []
    (save,) = bench.done(start)
    assert isinstance(save, Save)
    assert bench.orders(order(STOP)) == []
    assert bench.done(save) == [] and bench.seen() is Observed.ENDED


def test_a_stop_ends_what_runs_and_tells_its_code() -> None:
    bench = Bench().running()
    (stop,) = bench.orders(order(STOP))
    assert isinstance(stop, Stop) and stop.grace_ms == 7
    assert bench.done(stop, exit_code=143) == []
    worker = bench.machine.get(JOB)
    assert worker is not None and (worker.observed, worker.exit_code) == (Observed.ENDED, 143)


def test_a_stop_that_fails_is_asked_again_after_a_pause() -> None:
    bench = Bench().running()
    (stop,) = bench.orders(order(STOP))
    assert bench.done(stop, "it hangs") == []
    assert bench.machine.next_deadline() == RETRY_MS
    bench.now = RETRY_MS
    assert isinstance(bench.event(Tick())[0], Stop)


def test_an_older_epoch_is_refused_and_a_newer_one_replaces() -> None:
    bench = Bench().running(2)
    assert bench.orders(order(STOP, 1)) == [] and bench.seen() is Observed.RUNNING
    (stop,) = bench.orders(order(RUN, 3))
    assert isinstance(stop, Stop)
    (start,) = bench.done(stop)
    assert isinstance(start, Start) and start.order.epoch == 3


def test_overtaken_orders_change_nothing() -> None:
    bench = Bench().running()
    bench.generation = -1
    assert bench.orders() == [] and bench.seen() is Observed.RUNNING


def test_who_is_not_named_is_ended_and_cleaned() -> None:
    bench = Bench().running()
    (stop,) = bench.orders()
    assert isinstance(stop, Stop)
    (discard,) = bench.done(stop)
    assert isinstance(discard, Discard)
    assert bench.orders(order(RUN, 2)) == []  # ordered again while it is cleaned
    assert isinstance(bench.done(discard)[0], Start)


def test_a_lease_that_runs_out_saves_the_job_but_not_the_replica() -> None:
    bench = Bench()
    job, replica = bench.orders(order(RUN), order(RUN, key=REPLICA))
    bench.done(job)
    bench.done(replica)
    bench.event(Ready(REPLICA, Generation(1), "127.0.0.1", 5))
    assert bench.machine.lease_until == LEASE_MS
    assert bench.machine.next_deadline() == LEASE_MS - LEASE_MS // 3  # so that it is done in time
    bench.now = LEASE_MS - LEASE_MS // 3
    (save,) = bench.event(Tick())
    assert isinstance(save, Save) and save.key == JOB
    assert bench.done(save) == [] and bench.machine.next_deadline() is None
    assert bench.seen(REPLICA) is Observed.RUNNING
    (restore,) = bench.orders(order(RUN), order(RUN, key=REPLICA))
    assert isinstance(restore, Restore) and restore.image == save.image


def test_a_job_that_cannot_be_saved_is_ended_when_its_lease_runs_out() -> None:
    bench = Bench().running()
    bench.now = LEASE_MS
    (save,) = bench.event(Tick())
    (stop,) = bench.done(save, "cannot")
    assert isinstance(stop, Stop)
    bench.done(stop, exit_code=143)
    worker = bench.machine.get(JOB)
    assert worker is not None and worker.exit_code is None and "cannot" in worker.reason


def test_a_drain_saves_jobs_ends_replicas_and_starts_nothing() -> None:
    bench = Bench()
    job, replica = bench.orders(order(RUN), order(RUN, key=REPLICA))
    bench.done(job)
    bench.done(replica)
    save, stop = bench.event(Drain())
    assert isinstance(save, Save) and isinstance(stop, Stop)
    assert not bench.machine.at_rest
    bench.done(save)
    bench.done(stop)
    assert bench.machine.at_rest
    assert bench.orders(order(RUN, 2, str(save.image)), order(RUN, 2, key=REPLICA)) == []


def test_a_replica_runs_when_it_answers_and_is_ended_when_it_does_not() -> None:
    bench = Bench()
    (start,) = bench.orders(order(RUN, key=REPLICA))
    bench.done(start)
    assert bench.seen(REPLICA) is Observed.STARTING
    bench.event(Ready(REPLICA, Generation(1), "127.0.0.1", 5))
    assert bench.seen(REPLICA) is Observed.RUNNING
    (stop,) = bench.event(Unfit(REPLICA, Generation(1), "it hangs"))
    bench.done(stop, exit_code=137)
    worker = bench.machine.get(REPLICA)
    assert worker is not None and (worker.exit_code, worker.reason) == (None, "it hangs")


def test_old_images_go_and_the_one_to_fall_back_to_stays() -> None:
    bench = Bench().running()
    for epoch in (1, 2, 3):
        (save,) = bench.orders(order(SAVE, epoch, f"i{epoch}"))
        bench.done(save)
        acts = bench.orders(order(KEEP, epoch, f"i{epoch}", keep=f"i{epoch - 1}"))
        if epoch == 3:
            assert acts == [Prune(JOB, (ImageId("i2"), ImageId("i3")))]
            bench.done(acts[0])
        else:
            assert acts == []
            back = order(RUN, epoch + 1, f"i{epoch}", keep=f"i{epoch - 1}")
            (restore,) = bench.orders(back)
            bench.done(restore)


def adopted(state: WorkerState | None, **changes: object) -> Adopted:
    values: dict[str, object] = {"key": JOB, "is_job": True, "epoch": 1, "grace_ms": 7}
    return Adopted(**{**values, "state": state, **changes})  # type: ignore[arg-type]


def test_what_was_adopted_runs_on() -> None:
    bench = Bench()
    assert bench.event(adopted(WorkerState.RUNNING)) == []
    assert bench.seen() is Observed.RUNNING
    assert bench.orders(order(RUN)) == []


def test_what_once_went_wrong_is_not_told_of_what_was_adopted_and_runs() -> None:
    bench = Bench()
    bench.event(adopted(WorkerState.RUNNING, reason="the last save failed"))
    worker = bench.machine.get(JOB)
    assert worker is not None and worker.reason == ""


def test_what_was_adopted_amid_a_save_is_waited_for() -> None:
    bench = Bench()
    bench.event(adopted(WorkerState.SAVING, image=ImageId("i1")))
    assert bench.orders(order(SAVE, 1, "i1")) == []
    bench.event(StatusSeen(JOB, Generation(1), WorkerState.SAVED))
    assert bench.seen() is Observed.SAVED


def test_what_has_only_files_is_started_or_kept() -> None:
    bench = Bench()
    bench.event(adopted(None))
    assert isinstance(bench.orders(order(RUN))[0], Start)
    other = Bench()
    other.event(adopted(None, image=ImageId("i1"), images=(ImageId("i1"),)))
    assert other.seen() is Observed.SAVED
    assert other.orders(order(KEEP, 1, "i1")) == []


def test_an_image_that_is_not_here_is_told() -> None:
    bench = Bench()
    assert bench.orders(order(KEEP, 1, "i9")) == []
    assert bench.seen() is Observed.RESTORE_FAILED


def test_a_saved_job_waits_for_its_devices_and_then_goes_on() -> None:
    bench = Bench()
    core = (DeviceId("n/cpu0"),)
    bench.event(adopted(WorkerState.SAVED, image=ImageId("own-1-0"), images=(ImageId("own-1-0"),)))
    bench.event(adopted(WorkerState.RUNNING, key=REPLICA, is_job=False, devices=core))
    wanted = msgspec.structs.replace(order(RUN), devices=core)
    (stop,) = bench.orders(wanted)
    assert isinstance(stop, Stop) and bench.seen() is Observed.SAVED
    acts = bench.done(stop)
    assert any(isinstance(act, Restore) and act.key == JOB for act in acts)


# --- all interleavings -------------------------------------------------------------------------


class World:
    """A driver that does one thing at a time and may fail; counts processes."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.pending: list[Act] = []
        self.processes: dict[WorkerKey, int] = {}
        self.images: dict[WorkerKey, set[ImageId]] = {}
        self.kept: dict[WorkerKey, ImageId] = {}

    def take(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Report):
                continue
            assert all(p.key != effect.key for p in self.pending), "two calls for one worker"
            self.pending.append(effect)

    def perform(self, index: int, fails: bool) -> None:
        act = self.pending.pop(index % len(self.pending))
        running = self.processes.get(act.key, 0)
        images = self.images.setdefault(act.key, set())
        if act.verb in (Verb.START, Verb.RESTORE):
            assert running == 0, "two processes for one worker"
            missing = isinstance(act, Restore) and act.image not in images
            fails = fails or missing
            self.processes[act.key] = 0 if fails else 1
        elif isinstance(act, Save):
            if running == 0:
                fails = True  # it ended meanwhile
            elif not fails:
                images.add(act.image)
                self.processes[act.key] = 0
        elif act.verb is Verb.STOP and not fails:
            self.processes[act.key] = 0
        elif isinstance(act, Prune):
            assert self.kept.get(act.key) in (None, *act.keep), "an ordered image was removed"
            images.intersection_update(act.keep)
            fails = False
        elif act.verb is Verb.DISCARD:
            assert running == 0, "cleaned away while it ran"
            images.clear()
            fails = False
        self.take(self.bench.done(act, "failed" if fails else "", None))

    def dies(self, key: WorkerKey) -> None:
        if self.processes.get(key):
            self.processes[key] = 0

    def poll(self) -> None:
        for worker in list(self.bench.machine.workers()):
            state = WorkerState.RUNNING if self.processes.get(worker.key) else WorkerState.ENDED
            if worker.alive and worker.doing is None:
                self.take(self.bench.event(StatusSeen(worker.key, worker.ran, state, 1)))

    def give(self, orders: Sequence[Order]) -> None:
        for o in orders:
            key = WorkerKey(o.work_id, o.rank)
            self.kept.pop(key, None)
            worker = self.bench.machine.get(key)
            held = o.image is not None and o.image in self.images.get(key, set())
            if o.verb is KEEP and held and (worker is None or o.epoch >= worker.epoch):
                assert o.image is not None
                self.kept[key] = o.image
        self.take(self.bench.orders(*orders))


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("orders"),
            st.lists(
                st.tuples(
                    st.sampled_from([JOB, REPLICA]),
                    st.sampled_from([RUN, RUN, SAVE, STOP, KEEP]),
                    st.integers(0, 1),
                    st.integers(0, 3),
                ),
                max_size=2,
                unique_by=lambda o: o[0],
            ),
        ),
        st.tuples(st.just("perform"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("perform"), st.integers(0, 3), st.just(False)),
        st.tuples(st.just("die"), st.sampled_from([JOB, REPLICA])),
        st.tuples(st.just("poll")),
        st.tuples(st.just("time"), st.sampled_from([1, 500, LEASE_MS])),
        st.tuples(st.just("ready"), st.integers(1, 4)),
        st.tuples(st.just("unfit"), st.integers(1, 4)),
    ),
    max_size=60,
)


def make(key: WorkerKey, verb: OrderVerb, epoch: int, image: int) -> Order:
    named = image or verb in (SAVE, KEEP)
    if key == REPLICA and verb in (SAVE, KEEP):
        verb, named = RUN, False
    return order(verb, epoch, f"i{image}" if named else None, key)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_never_two_processes_and_in_the_end_as_ordered(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    world = World()
    epochs = {JOB: 1, REPLICA: 1}
    for step in steps:
        match step:
            case ("orders", wanted):
                orders = []
                for key, verb, rise, image in wanted:
                    epochs[key] += rise
                    orders.append(make(key, verb, epochs[key], image))
                world.give(orders)
            case ("perform", index, fails):
                if world.pending:
                    world.perform(index, fails)
            case ("die", key):
                world.dies(key)
            case ("poll",):
                world.poll()
            case ("time", ms):
                world.bench.now += ms
                world.take(world.bench.event(Tick()))
            case ("ready", epoch):
                world.take(world.bench.event(Ready(REPLICA, Generation(epoch), "h", 1)))
            case ("unfit", epoch):
                world.take(world.bench.event(Unfit(REPLICA, Generation(epoch), "x")))
    # From here on the world is kind: what is ordered comes true.
    run = [order(RUN, epochs[key] + 1, None, key) for key in (JOB, REPLICA)]
    for _ in range(12):
        world.give(run)
        while world.pending:
            world.perform(0, fails=False)
        world.bench.now += RETRY_MS
    for key in (JOB, REPLICA):
        assert world.processes.get(key) == 1, f"{key} does not run"
    for _ in range(4):
        world.give([])
        while world.pending:
            world.perform(0, fails=False)
    assert world.bench.machine.workers() == []
    assert not any(world.processes.values())


@pytest.mark.parametrize("verb", [RUN, SAVE, STOP, KEEP])
def test_repeating_an_order_changes_nothing(verb: OrderVerb) -> None:
    world = World()
    world.give([order(RUN)])
    while world.pending:
        world.perform(0, fails=False)
    for _ in range(3):
        world.give([order(verb, 1, "i1" if verb in (SAVE, KEEP) else None)])
        while world.pending:
            world.perform(0, fails=False)
    before = [w.view() for w in world.bench.machine.workers()]
    world.give([order(verb, 1, "i1" if verb in (SAVE, KEEP) else None)])
    assert world.pending == [] and before == [w.view() for w in world.bench.machine.workers()]
