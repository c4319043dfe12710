"""The lifecycle's table and the rules of its events."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fleets import NOW, a_job, a_replica, placed, suspended

from onefleet.core import lifecycle
from onefleet.core.lifecycle import (
    ATTEMPTS_MAX,
    LOSSES_MAX,
    RESTORE_TRIES_MAX,
    STABLE_MS,
    TRANSITIONS,
    Checkpointed,
    CheckpointFailed,
    CheckpointOrdered,
    CutMade,
    Froze,
    IllegalTransition,
    ImageLost,
    Lost,
    Placed,
    ProcessEnded,
    Resized,
    Restored,
    RestoreFailed,
    Saved,
    SaveFailed,
    SaveOrdered,
    Started,
    StopOrdered,
    Thawed,
    WantChanged,
    apply,
    backoff_ms,
    progress_ms,
)
from onefleet.domain.ids import DeviceId, Instant, NodeId, WorkId
from onefleet.domain.work import Image, Outcome, Phase, Receipt, Want, Work


def later(ms: int) -> Instant:
    return Instant(NOW + ms)


def restoring(work: Work, at: Instant = NOW) -> Work:
    assert work.image is not None
    slots = placed(a_job("x"), *((node, "0") for node in work.image.nodes)).placement
    return apply(work, Placed(slots, restore=True), at)


def test_a_job_runs_and_succeeds_exactly_with_exit_code_0() -> None:
    running = placed(a_job("j"), ("n1", "0"))
    assert (running.phase, running.epoch, running.attempts) == (Phase.RUNNING, 1, 1)
    done = apply(running, ProcessEnded(0, ""), later(500))
    assert (done.outcome, done.exit_code, done.ran_ms) == (Outcome.SUCCEEDED, 0, 500)
    assert done.placement == () and done.ended_at == later(500) and done.why_ended
    failed = apply(running, ProcessEnded(3, ""), later(500))
    assert (failed.outcome, failed.exit_code) == (Outcome.FAILED, 3)
    assert failed.why_ended == "exited with code 3"


def test_a_job_that_could_not_start_fails_for_good() -> None:
    starting = placed(a_job("j"), ("n1", "0"), running=False)
    ended = apply(starting, ProcessEnded(127, "no such command"), NOW)
    assert (ended.outcome, ended.why_ended) == (Outcome.FAILED, "no such command")


def test_a_save_keeps_the_run_and_the_image_before() -> None:
    first = suspended(a_job("j"), "n1", at=NOW)
    assert first.image is not None and first.image.ran_ms == 0 and first.suspends == 1
    again = apply(restoring(first), Restored(), later(10))
    saving = apply(again, SaveOrdered("room"), later(2_010))
    assert saving.reason == "room" and saving.phase.holds_devices
    saved = apply(saving, Saved(replace(first.image, id=lifecycle.image_id(saving))), later(2_100))
    assert saved.image is not None and saved.image.ran_ms == 2_000 == progress_ms(saved)
    assert saved.image_before == first.image and saved.suspends == 2 and saved.epoch == 2


def test_a_failed_save_leaves_it_running_and_waits_before_the_next() -> None:
    saving = apply(placed(a_job("j"), ("n1", "0")), SaveOrdered("room"), later(100))
    running = apply(saving, SaveFailed("disk full"), later(200))
    assert running.phase is Phase.RUNNING and running.reason == "not saved: disk full"
    assert running.not_before == later(200) + backoff_ms(1) and running.placement
    twice = apply(apply(running, SaveOrdered("room"), later(300)), SaveFailed("x"), later(300))
    assert twice.saves_failed == 2 and twice.not_before == later(300) + backoff_ms(2)
    late = later(300 + 10 * lifecycle.STABLE_MS)
    again = apply(twice, SaveOrdered("room"), late)
    assert apply(again, SaveFailed("x"), late).saves_failed == 3  # however long it ran since
    image = suspended(a_job("j"), "n1").image
    assert image is not None and apply(again, Saved(image), late).saves_failed == 0


def test_a_failed_copy_while_it_runs_counts_until_one_is_made() -> None:
    making = apply(placed(a_job("j"), ("n1", "0")), CheckpointOrdered(), later(1))
    failed = apply(making, CheckpointFailed("disk full"), later(2))
    assert (failed.saves_failed, failed.failures) == (1, 0)
    assert failed.not_before == later(2) + backoff_ms(1)
    making = apply(failed, CheckpointOrdered(), later(5_000))
    image = suspended(a_job("j"), "n1").image
    assert making.making is not None and image is not None
    made = replace(image, id=making.making.id)
    done = apply(making, Checkpointed(made), later(5_001))
    assert (failed.reason, done.reason) == ("no image was made while it ran: disk full", "")
    assert done.saves_failed == 0


def test_a_failed_restore_is_tried_again_then_falls_back_then_starts_afresh() -> None:
    first = suspended(a_job("j"), "n1", at=NOW)
    running = apply(restoring(first), Restored(), NOW)
    saving = apply(running, SaveOrdered("room"), later(3_000))
    newer = replace(first.image, id=lifecycle.image_id(saving))  # type: ignore[type-var]
    work = apply(saving, Saved(newer), later(3_000))
    assert newer is not None and first.image is not None
    seen = []
    for _ in range(2 * RESTORE_TRIES_MAX):
        work = apply(restoring(work, later(9_000)), RestoreFailed("bad page"), later(9_000))
        seen.append((work.phase, work.image and work.image.id, work.lost_ms))
    older_id = first.image.id
    assert seen == [
        (Phase.SUSPENDED, newer.id, 0),
        (Phase.SUSPENDED, older_id, 3_000),
        (Phase.SUSPENDED, older_id, 3_000),
        (Phase.PENDING, None, 3_000),
    ]
    assert "could not be restored: bad page" in work.reason
    assert work.not_before > later(9_000)


def test_a_lost_job_without_an_image_starts_afresh_a_bounded_number_of_times() -> None:
    work = a_job("j")
    for attempt in range(1, ATTEMPTS_MAX):
        work = apply(placed(work, ("n1", "0")), Lost("n1 is lost"), later(1_000))
        assert (work.phase, work.attempts) == (Phase.PENDING, attempt)
        assert work.lost_ms == attempt * 1_000 == work.ran_ms
        assert work.reason == "n1 is lost; 1000 ms of its run are lost"
    work = apply(placed(work, ("n1", "0")), Lost("n1 is lost"), later(1_000))
    assert work.outcome is Outcome.FAILED and "gave up after 8 starts" in work.why_ended


def test_a_loss_voids_late_reports_and_goes_back_to_the_image() -> None:
    running = apply(restoring(suspended(a_job("j"), "n1", at=NOW)), Restored(), NOW)
    lost = apply(running, Lost("n1 is lost"), later(700))
    assert lost.phase is Phase.SUSPENDED and lost.epoch == running.epoch + 1
    assert lost.lost_ms == 700 and progress_ms(lost) == 0
    for _ in range(LOSSES_MAX - 1):
        lost = apply(apply(restoring(lost), Restored(), NOW), Lost("again"), NOW)
    assert lost.phase is Phase.PENDING and lost.image is None


def test_a_job_whose_supervisor_died_is_not_to_blame() -> None:
    running = placed(a_job("j"), ("n1", "0"))
    assert apply(running, ProcessEnded(None, "supervisor died"), NOW).phase is Phase.PENDING


def test_a_lost_image_falls_back() -> None:
    work = suspended(a_job("j"), "n1")
    assert work.image is not None
    with_older = replace(work, image_before=replace(work.image, ran_ms=0))
    assert apply(with_older, ImageLost("gone"), NOW).phase is Phase.SUSPENDED
    assert apply(work, ImageLost("gone"), NOW).phase is Phase.PENDING


def test_a_replica_that_ends_unasked_comes_back_after_a_growing_pause() -> None:
    work = a_replica("r")
    for failures in range(1, 9):
        running = placed(work, ("n1", "0"))
        work = apply(running, ProcessEnded(1, "segfault"), NOW)
        assert work.phase is Phase.PENDING and work.failures == failures
        assert work.not_before - NOW == min(1_000 * 2 ** (failures - 1), 60_000)
    steady = apply(placed(work, ("n1", "0")), ProcessEnded(1, "segfault"), later(STABLE_MS))
    assert steady.failures == 1
    lost = apply(placed(work, ("n1", "0")), Lost("n1"), NOW)
    assert lost.phase is Phase.PENDING and lost.epoch == placed(work, ("n1", "0")).epoch + 1


def test_a_replica_that_made_room_waits_without_blame() -> None:
    running = placed(a_replica("r"), ("n1", "0"))
    stopping = apply(running, StopOrdered("makes room"), NOW)
    back = apply(stopping, ProcessEnded(143, ""), NOW)
    assert back.phase is Phase.PENDING and back.failures == 0 and back.not_before == 0
    assert back.reason == "makes room"


@pytest.mark.parametrize("make", [a_job, a_replica])
def test_what_its_owner_stops_is_cancelled_wherever_it_is(make: object) -> None:
    assert callable(make)
    for work in (make("w"), placed(make("w"), ("n1", "0"))):
        wanted = apply(work, WantChanged(Want.STOP), NOW)
        stopped = apply(wanted, StopOrdered("cancelled by its owner"), NOW)
        if stopped.phase is Phase.STOPPING:
            stopped = apply(stopped, ProcessEnded(143, ""), NOW)
        assert (stopped.outcome, stopped.why_ended) == (
            Outcome.CANCELLED,
            "cancelled by its owner",
        )
        with pytest.raises(IllegalTransition, match="WantChanged"):
            apply(stopped, WantChanged(Want.RUN), NOW)
        with pytest.raises(IllegalTransition):
            apply(wanted, WantChanged(Want.RUN), NOW)


def test_what_is_to_be_stopped_and_is_lost_or_ends_first_is_over_too() -> None:
    for work in (a_job("j"), a_replica("r")):
        wanted = apply(placed(work, ("n1", "0")), WantChanged(Want.STOP), NOW)
        assert apply(wanted, Lost("n1"), NOW).outcome is Outcome.CANCELLED
    replica = apply(placed(a_replica("r"), ("n1", "0")), WantChanged(Want.STOP), NOW)
    assert apply(replica, ProcessEnded(1, "crash"), NOW).outcome is Outcome.CANCELLED


def test_rules_of_events_are_kept() -> None:
    job = a_job("j", workers=2)
    slots = placed(job, ("n1", "0"), ("n1", "1")).placement
    with pytest.raises(IllegalTransition) as raised:
        apply(job, Placed(slots[:1], restore=False), NOW)
    assert "whole or not" in raised.value.why
    with pytest.raises(IllegalTransition):
        apply(job, Placed(slots, restore=True), NOW)
    with pytest.raises(IllegalTransition):
        apply(placed(a_replica("r"), ("n1", "0")), SaveOrdered("room"), NOW)
    saving = apply(placed(job, ("n1", "0"), ("n1", "1")), SaveOrdered("room"), NOW)
    image = suspended(a_job("k"), "n1").image
    assert image is not None
    with pytest.raises(IllegalTransition):
        apply(saving, Saved(image), NOW)


def test_every_pair_that_the_table_does_not_name_is_refused() -> None:
    samples = (
        Started(),
        Restored(),
        SaveFailed("x"),
        Lost("x"),
        ProcessEnded(0, ""),
        ImageLost(""),
    )
    works = {w.phase: w for w in (a_job("j"), placed(a_job("j"), ("n1", "0")))}
    for phase, work in works.items():
        for event in samples:
            if (phase, type(event)) not in TRANSITIONS:
                with pytest.raises(IllegalTransition):
                    apply(work, event, NOW)


def test_time_that_steps_back_costs_nothing() -> None:
    running = placed(a_job("j"), ("n1", "0"))
    assert apply(running, ProcessEnded(0, ""), Instant(NOW - 5)).ran_ms == 0


def running(**changes: object) -> Work:
    return replace(placed(a_job("j", **changes), ("n1", "0")), phase_since=NOW, accounted_until=NOW)


def test_frozen_work_holds_its_nodes_and_no_device_and_thaws_where_it_is() -> None:
    work = running()
    frozen = apply(work, Froze("a burst", WorkId("hot")), later(1_000))
    assert frozen.phase is Phase.FROZEN and frozen.epoch == work.epoch
    assert [(s.node_id, s.devices) for s in frozen.placement] == [("n1", ())]
    thawed = apply(frozen, Thawed(work.placement), later(3_000))
    assert thawed.phase is Phase.RUNNING and thawed.epoch == work.epoch
    assert thawed.ran_ms == 1_000 and thawed.lost_ms == 0
    elsewhere = tuple(replace(s, node_id=NodeId("n2")) for s in work.placement)
    with pytest.raises(IllegalTransition):
        apply(frozen, Thawed(elsewhere), later(3_000))
    with pytest.raises(IllegalTransition):
        apply(placed(a_replica("r"), ("n1", "0")), Froze("no"), NOW)


def test_a_deeper_save_of_frozen_work_that_fails_leaves_it_frozen() -> None:
    frozen = apply(running(), Froze("a burst"), later(1))
    saving = apply(frozen, SaveOrdered("its memory is needed"), later(2))
    assert apply(saving, SaveFailed("disk full"), later(3)).phase is Phase.FROZEN
    image = Image(lifecycle.image_id(saving), (NodeId("n1"),), 7, later(3))
    assert apply(saving, Saved(image), later(3)).phase is Phase.SUSPENDED


def test_after_the_cut_a_save_cannot_fail_any_more() -> None:
    cut = apply(apply(running(), SaveOrdered("room"), later(1)), CutMade(), later(2))
    assert cut.cut
    with pytest.raises(IllegalTransition):
        apply(cut, SaveFailed("late"), later(3))


def test_a_checkpoint_while_it_runs_is_what_a_loss_goes_back_to() -> None:
    ordered = apply(running(), CheckpointOrdered(), later(10_000))
    assert ordered.making is not None and ordered.phase is Phase.RUNNING
    image = Image(ordered.making.id, (NodeId("n1"),), 7, later(10_500))
    made = apply(ordered, Checkpointed(image), later(10_500))
    assert made.image is not None and made.image.ran_ms == 10_000 and made.making is None
    lost = apply(made, Lost("node n1 is lost"), later(14_000))
    assert lost.phase is Phase.SUSPENDED and lost.lost_ms == 4_000
    again = apply(made, CheckpointOrdered(), later(20_000))
    assert again.making is not None and again.making.id != ordered.making.id
    failed = apply(again, CheckpointFailed("disk full"), later(21_000))
    assert failed.image == made.image and failed.phase is Phase.RUNNING
    with pytest.raises(IllegalTransition):  # of a checkpoint that was given up
        apply(failed, Checkpointed(image), later(22_000))


def test_a_receipt_says_who_needed_the_devices_and_when_it_ran_again() -> None:
    saving = apply(running(), SaveOrdered("makes room", WorkId("hot")), later(1_000))
    image = Image(lifecycle.image_id(saving), (NodeId("n1"),), 7, later(1_200))
    back = apply(apply(saving, Saved(image), later(1_200)), Placed(running().placement, True), NOW)
    (receipt,) = apply(back, Restored(), later(9_000)).receipts
    assert receipt == Receipt(later(1_000), WorkId("hot"), "makes room", 1, 0, later(9_000))
    owner = apply(replace(running(), want=Want.SUSPEND), SaveOrdered("asked"), later(1))
    assert owner.receipts == ()


def test_a_loss_has_a_receipt_of_its_own_or_is_part_of_the_one_that_is_open() -> None:
    lost = apply(running(), Lost("node n1 is lost"), later(4_000))
    (receipt,) = lost.receipts
    assert receipt == Receipt(later(4_000), None, "node n1 is lost", 1, 4_000)
    saving = apply(running(), SaveOrdered("makes room", WorkId("hot")), later(1_000))
    (receipt,) = apply(saving, Lost("node n1 is lost"), later(1_500)).receipts
    assert receipt == Receipt(later(1_000), WorkId("hot"), "makes room", 1, 1_000)


def test_a_resize_changes_the_devices_and_nothing_else() -> None:
    work = running(devices_max=2)
    wide = tuple(replace(s, devices=(*s.devices, DeviceId("n1/cpu1"))) for s in work.placement)
    resized = apply(work, Resized(wide), later(5_000))
    assert resized.placement == wide and resized.epoch == work.epoch
    assert resized.phase_since == work.phase_since
    with pytest.raises(IllegalTransition):
        apply(work, Resized(tuple(replace(s, devices=()) for s in wide)), later(1))


@pytest.mark.parametrize("exit_code", [None, 1])
def test_a_gang_whose_save_is_broken_off_has_given_way_all_the_same(exit_code: int | None) -> None:
    gang = placed(a_job("g", workers=2), ("n1", "0"), ("n2", "0"))
    saving = apply(gang, SaveOrdered("makes room", WorkId("hot")), later(1_000))
    stopping = apply(saving, StopOrdered("a rank was not saved in time"), later(2_000))
    ended = apply(stopping, ProcessEnded(exit_code, "not saved in time"), later(3_000))
    (receipt,) = ended.receipts
    assert (receipt.by, receipt.lost_ms, ended.stranded) == ("hot", ended.lost_ms, False)
    assert ended.phase is (Phase.PENDING if exit_code is None else Phase.ENDED)


def test_what_is_ended_for_others_is_no_failure_of_its_image() -> None:
    image, last = suspended(a_job("j"), "n1").image, lifecycle.LOSSES_MAX - 1
    work = replace(placed(a_job("j"), ("n1", "0")), image=image, failures=last)
    called = apply(work, StopOrdered("could not be saved", WorkId("owner")), later(1_000))
    back = apply(called, ProcessEnded(143, ""), later(2_000))
    assert (back.phase, back.image, back.failures) == (Phase.SUSPENDED, image, last)
    assert apply(work, Lost("node n1 is lost"), later(1_000)).image is None
