"""The worker machine: what has two phases, stands still, changes devices, or comes from afar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.unit.agent.test_worker_machine import JOB, KEEP, RUN, SAVE, STOP, Bench, adopted

from onefleet.agent.protocol import (
    Discard,
    Done,
    Drain,
    Effect,
    Fetch,
    Finish,
    Freeze,
    Hold,
    HoldKind,
    Pin,
    Prune,
    Restore,
    Save,
    Start,
    StatusSeen,
    Stop,
    Thaw,
    Tick,
    Verb,
    WorkerKey,
)
from onefleet.agent.worker import FETCH_RETRY_MS, RETRY_MS, TRIES_MAX
from onefleet.domain.ids import DeviceId, Generation, ImageId, NodeId, WorkId
from onefleet.drivers.base import WorkerState
from onefleet.wire.agent import JobSpec, Observed, Order, OrderVerb, Source

FREEZE = OrderVerb.FREEZE
I1, I2, M1 = ImageId("i1"), ImageId("i2"), ImageId("m1")
A, B = DeviceId("n/cpu0"), DeviceId("n/cpu1")
AWAY = (Source(node_id=NodeId("n2"), address="h:1", ticket="t"),)


def order(verb: OrderVerb, image: ImageId | None = None, **more: Any) -> Order:
    """Of one worker of a gang of two."""
    key = more.pop("key", JOB)
    workers = more.pop("workers", 2)
    job = JobSpec(name="j", tenant_id="t", command=("true",), workers=workers)
    fields = {"devices": (A,), "epoch": Generation(1), **more}
    return Order(work_id=key.work_id, rank=key.rank, verb=verb, image=image, job=job, **fields)


def running(**more: Any) -> Bench:
    bench = Bench()
    (start,) = bench.orders(order(RUN, **more))
    assert isinstance(start, Start) and bench.done(start) == []
    return bench


def only(effects: Sequence[Effect]) -> Any:
    (effect,) = effects
    return effect


def held(bench: Bench) -> Bench:
    save = only(bench.orders(order(SAVE, I1, hold=True)))
    assert isinstance(save, Save) and save.hold and not save.runs_on
    assert bench.done(save) == [] and bench.seen() is Observed.SAVE_HELD
    return bench


def test_a_held_save_is_given_up_when_it_counts() -> None:
    bench = held(running())
    assert bench.orders(order(SAVE, I1, hold=True)) == []
    finish = only(bench.orders(order(SAVE, I1)))
    assert finish == Finish(JOB, I1, commit=True)
    assert bench.done(finish) == [] and bench.seen() is Observed.SAVED


def test_a_held_save_that_does_not_count_runs_on() -> None:
    bench = held(running())
    finish = only(bench.orders(order(RUN)))
    assert finish == Finish(JOB, I1, commit=False)
    assert bench.done(finish) == [] and bench.seen() is Observed.RUNNING
    worker = bench.machine.get(JOB)
    assert worker is not None and worker.images == () and worker.hold is None
    assert isinstance(only(bench.orders(order(SAVE, I1, hold=True))), Save)


def test_a_hold_whose_time_is_over_can_still_count() -> None:
    bench = held(running())
    for state in (WorkerState.RUNNING, WorkerState.ENDED):
        assert bench.event(StatusSeen(JOB, Generation(1), state, 0)) == []
        assert bench.seen() is Observed.SAVE_HELD
    assert only(bench.orders(order(SAVE, I1))).commit


def test_a_hold_that_cannot_be_ended_is_asked_again_and_then_killed() -> None:
    bench = held(running())
    act = only(bench.orders(order(SAVE, I1)))
    for _ in range(TRIES_MAX):
        assert isinstance(act, Finish)
        assert bench.done(act, "no answer") == []
        bench.now += RETRY_MS
        act = only(bench.event(StatusSeen(JOB, Generation(1), WorkerState.SAVE_HELD)))
    assert isinstance(act, Stop)
    bench.done(act)
    worker = bench.machine.get(JOB)
    assert worker is not None and worker.exit_code is None and "no answer" in worker.reason


def test_an_end_of_a_hold_that_was_done_after_all_is_seen() -> None:
    bench = held(running())
    bench.done(only(bench.orders(order(SAVE, I1))), "no answer")
    assert bench.event(StatusSeen(JOB, Generation(1), WorkerState.SAVED)) == []
    assert bench.seen() is Observed.SAVED


def test_a_stop_of_a_held_worker_leaves_no_image() -> None:
    bench = held(running())
    stop = only(bench.orders(order(STOP)))
    assert isinstance(stop, Stop)
    bench.done(stop, exit_code=137)
    worker = bench.machine.get(JOB)
    assert worker is not None and (worker.observed, worker.images) == (Observed.ENDED, ())


def restored(bench: Bench) -> Bench:
    """Held in its restore, under epoch 2."""
    bench.done(only(bench.orders(order(SAVE, I1))))
    restore = only(bench.orders(order(RUN, I1, hold=True, epoch=Generation(2))))
    assert isinstance(restore, Restore) and restore.hold
    assert bench.done(restore) == [] and bench.seen() is Observed.RESTORE_HELD
    return bench


def test_a_held_restore_is_let_go_when_all_are_there() -> None:
    bench = restored(held(running()))
    assert bench.orders(order(RUN, I1, hold=True, epoch=Generation(2))) == []
    finish = only(bench.orders(order(RUN, I1, epoch=Generation(2))))
    assert finish == Finish(JOB, I1, commit=True)
    assert bench.done(finish) == [] and bench.seen() is Observed.RUNNING


def test_a_held_restore_is_undone_when_another_failed() -> None:
    bench = restored(held(running()))
    finish = only(bench.orders(order(KEEP, I1, epoch=Generation(2))))
    assert finish == Finish(JOB, I1, commit=False)
    assert bench.done(finish) == [] and bench.seen() is Observed.SAVED
    assert isinstance(only(bench.orders(order(RUN, I1, epoch=Generation(3), hold=True))), Restore)


def test_a_save_that_comes_before_it_was_let_go_lets_it_go_first() -> None:
    bench = restored(held(running()))
    finish = only(bench.orders(order(SAVE, I2, hold=True, epoch=Generation(2))))
    assert finish == Finish(JOB, I1, commit=True)
    assert isinstance(only(bench.done(finish)), Save)


def made(bench: Bench, error: str = "") -> Bench:
    save = only(bench.orders(order(RUN, making=M1)))
    assert isinstance(save, Save) and save.runs_on and save.hold
    assert bench.done(save, error) == [] and bench.seen() is Observed.RUNNING
    return bench


def test_an_image_that_is_made_as_it_runs_is_held_until_all_are_made() -> None:
    bench = made(running())
    worker = bench.machine.get(JOB)
    assert worker is not None and worker.made is not None and worker.made.image == M1
    assert bench.orders(order(RUN, making=M1)) == []
    finish = only(bench.orders(order(RUN, M1)))
    assert finish == Finish(JOB, M1, commit=True)
    assert bench.done(finish) == [] and worker.images == (M1,)


def test_an_image_that_another_could_not_make_is_given_up() -> None:
    bench = made(running())
    finish = only(bench.orders(order(RUN)))
    assert finish == Finish(JOB, M1, commit=False)
    bench.done(finish)
    worker = bench.machine.get(JOB)
    assert worker is not None and worker.images == ()


def test_an_image_that_could_not_be_made_is_told_once() -> None:
    bench = made(running(), "full disk")
    worker = bench.machine.get(JOB)
    assert worker is not None and worker.made is not None and worker.made.error == "full disk"
    assert worker.hold is None and bench.orders(order(RUN, making=M1)) == []


def test_what_ends_it_does_not_throw_away_an_image_that_counts() -> None:
    for after in (order(KEEP, M1, epoch=Generation(2)), order(STOP, M1)):
        bench = made(running())
        finish = only(bench.orders(after))
        assert finish == Finish(JOB, M1, commit=True)
        assert isinstance(only(bench.done(finish)), Stop)


def test_a_retreat_gives_up_what_is_saved_and_undoes_what_is_restored() -> None:
    bench = held(running())
    assert only(bench.event(Drain())) == Finish(JOB, I1, commit=True)
    bench = restored(held(running()))
    undo = only(bench.event(Drain()))
    assert undo == Finish(JOB, I1, commit=False)
    assert bench.done(undo) == [] and bench.machine.at_rest


def test_holds_are_adopted() -> None:
    for state in (WorkerState.SAVE_HELD, WorkerState.RUNNING, WorkerState.FROZEN):
        bench = Bench()
        hold = Hold(HoldKind.SAVE, I1)
        bench.event(adopted(state, image=I1, images=(I1,), hold=hold))
        assert bench.seen() is Observed.SAVE_HELD
        assert only(bench.orders(order(SAVE, I1))) == Finish(JOB, I1, commit=True)
    bench = Bench()  # the save had not begun, or has failed
    bench.event(adopted(WorkerState.RUNNING, image=I1, hold=Hold(HoldKind.SAVE, I1)))
    assert isinstance(only(bench.orders(order(SAVE, I1, hold=True))), Save)
    bench = Bench()
    bench.event(
        adopted(WorkerState.RESTORE_HELD, image=I1, images=(I1,), hold=Hold(HoldKind.RESTORE, I1))
    )
    assert only(bench.orders(order(RUN, I1))) == Finish(JOB, I1, commit=True)


def test_an_image_that_an_agent_before_had_made_is_told() -> None:
    bench = Bench()
    hold = Hold(HoldKind.MAKING, M1)
    bench.event(adopted(WorkerState.SAVE_HELD, images=(M1,), hold=hold, devices=(A,)))
    assert bench.seen() is Observed.RUNNING
    again = only(bench.orders(order(RUN, making=M1)))
    assert again == Save(JOB, M1, hold=True, runs_on=True)
    bench.done(again)
    worker = bench.machine.get(JOB)
    assert worker is not None and worker.made is not None and worker.hold == hold


# --- standing still, and other devices ---------------------------------------------------------


def frozen(bench: Bench) -> Bench:
    freeze = only(bench.orders(order(FREEZE, devices=())))
    assert isinstance(freeze, Freeze)
    assert bench.done(freeze) == [] and bench.seen() is Observed.FROZEN
    return bench


def test_frozen_and_thawed_on_other_devices() -> None:
    bench = frozen(running())
    assert bench.orders(order(FREEZE, devices=())) == []
    thaw = only(bench.orders(order(RUN, devices=(B,))))
    assert thaw == Thaw(JOB, (B,))
    assert bench.done(thaw) == [] and bench.seen() is Observed.RUNNING
    assert bench.orders(order(RUN, devices=(B,))) == []


OTHER = WorkerKey(WorkId("other"), 0)


def test_a_device_is_free_when_who_had_it_really_stands_still() -> None:
    bench = running()
    acts = bench.orders(order(FREEZE, devices=()), order(RUN, key=OTHER))
    freeze = only(acts)
    assert isinstance(freeze, Freeze)
    start = only(bench.done(freeze))
    assert isinstance(start, Start) and start.key == OTHER
    bench.done(start)
    assert bench.orders(order(RUN), order(RUN, key=OTHER)) == []  # a thaw waits for it as well
    stop = only(bench.orders(order(RUN), order(STOP, key=OTHER)))
    assert only(bench.done(stop)) == Thaw(JOB, (A,))


def test_what_cannot_be_frozen_is_saved() -> None:
    bench = running()
    act = only(bench.orders(order(FREEZE, devices=())))
    for _ in range(TRIES_MAX):
        assert isinstance(act, Freeze) and bench.done(act, "no") == []
        bench.now += RETRY_MS
        act = only(bench.event(Tick()))
    assert isinstance(act, Save) and not act.hold
    bench.done(act)
    assert bench.seen() is Observed.SAVED


def test_what_its_supervisor_froze_runs_on_when_it_is_ordered_to() -> None:
    bench = running()
    thaw = only(bench.event(StatusSeen(JOB, Generation(1), WorkerState.FROZEN)))
    assert isinstance(thaw, Thaw)


def test_frozen_work_is_saved_and_stays_frozen_if_that_fails() -> None:
    bench = frozen(running())
    save = only(bench.orders(order(SAVE, I1, hold=True, devices=())))
    assert isinstance(save, Save)
    bench.done(save, "full disk")
    assert bench.orders(order(FREEZE, devices=())) == [] and bench.seen() is Observed.FROZEN


def test_a_resize_binds_it_elsewhere_and_failures_are_tried_again() -> None:
    bench = running()
    pin = only(bench.orders(order(RUN, devices=(B,))))
    assert pin == Pin(JOB, (B,))
    assert bench.done(pin, "no such core") == []
    bench.now += RETRY_MS
    assert only(bench.event(Tick())) == pin
    assert bench.done(pin) == [] and bench.orders(order(RUN, devices=(B,))) == []


def test_two_works_change_places() -> None:
    bench = running()
    bench.done(only(bench.orders(order(RUN), order(RUN, key=OTHER, devices=(B,)))))
    acts = bench.orders(order(RUN, devices=(B,)), order(RUN, key=OTHER, devices=(A,)))
    assert acts == [Pin(JOB, (B,)), Pin(OTHER, (A,))]


def test_workers_of_a_gang_and_works_with_shares_have_one_device_together() -> None:
    bench = Bench()
    second = WorkerKey(JOB.work_id, 1)
    acts = bench.orders(order(RUN), order(RUN, key=second))
    assert [act.key for act in acts if isinstance(act, Start)] == [JOB, second]
    bench = running(milli=600)
    assert bench.orders(order(RUN, milli=600), order(RUN, key=OTHER, milli=500)) == []
    (start,) = bench.orders(order(RUN, milli=600), order(RUN, key=OTHER, milli=400))
    assert isinstance(start, Start)


# --- images from elsewhere -----------------------------------------------------------------------


def test_an_image_is_fetched_bit_by_bit_and_then_restored() -> None:
    bench = Bench()
    fetch = only(bench.orders(order(RUN, I1, sources=AWAY, hold=True)))
    assert isinstance(fetch, Fetch) and bench.seen() is Observed.FETCHING
    fetch = only(bench.event(Done(JOB, Verb.FETCH, more=True)))
    assert isinstance(fetch, Fetch)
    restore = only(bench.event(Done(JOB, Verb.FETCH)))
    assert isinstance(restore, Restore) and restore.image == I1 and restore.hold


def test_a_fetch_that_nobody_wants_any_more_is_not_gone_on_with() -> None:
    bench = Bench()
    bench.orders(order(RUN, I1, sources=AWAY))
    bench.orders(order(STOP, I1))
    assert bench.event(Done(JOB, Verb.FETCH, more=True)) == []
    assert bench.seen() is Observed.ENDED


def test_a_fetch_in_no_hurry_is_overtaken_when_it_is_to_run_or_is_not_wanted() -> None:
    bench = Bench()
    bench.orders(order(KEEP, I1, sources=AWAY))
    assert bench.machine.overtaken() == []
    bench.orders(order(RUN, I1, sources=AWAY, epoch=Generation(2)))
    assert bench.machine.overtaken() == [JOB]
    again = only(bench.event(Done(JOB, Verb.FETCH, more=True)))
    assert isinstance(again, Fetch) and bench.machine.overtaken() == []
    bench = Bench()
    bench.orders(order(KEEP, I1, sources=AWAY))
    bench.orders()
    assert bench.machine.overtaken() == [JOB]
    bench = Bench()
    bench.orders(order(KEEP, I1, sources=AWAY, soon=True))
    bench.orders(order(RUN, I1, sources=AWAY, epoch=Generation(2)))
    assert bench.machine.overtaken() == []


def test_an_image_that_is_being_made_is_followed_until_it_counts_or_comes_to_nothing() -> None:
    coming = order(KEEP, I1, sources=AWAY, soon=True, coming=True)
    bench = Bench()
    fetch = only(bench.orders(coming))
    assert isinstance(fetch, Fetch) and fetch.order.coming
    assert (bench.machine.overtaken(), bench.machine.counted()) == ([], [])
    bench.orders(order(RUN, I1, sources=AWAY, epoch=Generation(2)))
    assert (bench.machine.overtaken(), bench.machine.counted()) == ([], [JOB])
    again = only(bench.event(Done(JOB, Verb.FETCH, more=True)))
    assert isinstance(again, Fetch) and not again.order.coming
    assert isinstance(only(bench.event(Done(JOB, Verb.FETCH))), Restore)
    for instead in ((), (order(KEEP, I2, sources=AWAY),)):  # its save failed
        bench = Bench()
        bench.orders(coming)
        bench.orders(*instead)
        assert (bench.machine.overtaken(), bench.machine.counted()) == ([JOB], [])
        after = only(bench.event(Done(JOB, Verb.FETCH, more=True)))
        assert isinstance(after, Fetch if instead else Discard)


def test_old_images_do_not_keep_what_is_about_to_run_waiting() -> None:
    bench = Bench()
    bench.event(adopted(None, image=I1, images=(I1, I2)))
    assert bench.orders(order(KEEP, I2, soon=True)) == []
    assert isinstance(only(bench.orders(order(KEEP, I2))), Prune)


def test_a_fetch_that_fails_is_a_restore_that_failed() -> None:
    bench = Bench()
    bench.event(adopted(None, image=I2, images=(I2,)))
    bench.orders(order(RUN, I1, sources=AWAY, epoch=Generation(2)))
    assert bench.event(Done(JOB, Verb.FETCH, "gone")) == []  # and nothing older is brought back
    worker = bench.machine.get(JOB)
    assert worker is not None
    assert (worker.observed, worker.ran, worker.reason) == (Observed.RESTORE_FAILED, 2, "gone")


def test_a_copy_that_is_kept_for_others_is_fetched_and_asked_for_again() -> None:
    bench = Bench()
    bench.orders(order(KEEP, I1, sources=AWAY))
    assert bench.event(Done(JOB, Verb.FETCH, "away")) == []
    bench.now += FETCH_RETRY_MS
    assert isinstance(only(bench.event(Tick())), Fetch)
    bench.event(Done(JOB, Verb.FETCH))
    assert bench.seen() is Observed.SAVED
    assert bench.orders(order(KEEP, I1)) == []
    assert isinstance(only(bench.orders()), Discard)
