"""What reports mean for gangs in two phases, images that are made as work runs, and copies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fleets import a_job, a_node, placed, suspended
from tests.unit.control.states import NOW, a_report, a_state, a_worker, by_id

from onefleet.control.observe import Seen, observe
from onefleet.core import lifecycle
from onefleet.domain.fleet import NodeState
from onefleet.domain.gang import CUT_LIMIT_MS
from onefleet.domain.ids import ImageId, Instant
from onefleet.domain.work import Image, Phase, Work
from onefleet.wire.agent import Made, Observed, WorkerReport

RUNNING = placed(a_job("job-1", workers=2), ("n1", "0"), ("n2", "0"))
SAVING = lifecycle.apply(RUNNING, lifecycle.SaveOrdered("room"), NOW)
CUT = lifecycle.apply(SAVING, lifecycle.CutMade(), NOW)
MAKING = lifecycle.apply(RUNNING, lifecycle.CheckpointOrdered(), NOW)
FROZEN = lifecycle.apply(RUNNING, lifecycle.Froze("room"), NOW)
SUSPENDED = suspended(a_job("job-1", workers=2), "n1", "n2")
RESTORING = lifecycle.apply(SUSPENDED, lifecycle.Placed(RUNNING.placement, True), NOW)
HELD = ImageId("job-1.1")


def after(work: Work, *workers: WorkerReport, late_ms: int = 0) -> Work:
    seen = Seen({(w.work_id, w.rank): w for w in workers})
    now = Instant(NOW + late_ms)
    commit = observe(a_state(work), a_report("n1", workers[:1]), seen, now, now)
    found = next((c.record for c in commit.changes if isinstance(c.record, Work)), work)
    lifecycle.check(found)
    return found


def both(work: Work, one: Observed, two: Observed, **more: object) -> tuple[WorkerReport, ...]:
    return a_worker(work, one, 0, **more), a_worker(work, two, 1, **more)


def test_a_save_counts_when_all_stand_still_with_their_images() -> None:
    held, saving = Observed.SAVE_HELD, Observed.SAVING
    assert not after(SAVING, *both(SAVING, held, saving, image=HELD)).cut
    assert not after(SAVING, a_worker(SAVING, held, image=HELD)).cut
    cut = after(SAVING, *both(SAVING, held, held, image=HELD))
    assert cut.cut and cut.phase is Phase.SAVING


def test_what_counts_is_saved_when_all_have_given_up_their_processes() -> None:
    assert after(CUT, *both(CUT, Observed.SAVED, Observed.SAVE_HELD)) == CUT
    saved = after(CUT, *both(CUT, Observed.SAVED, Observed.SAVED, image_took_ms=7))
    assert saved.phase is Phase.SUSPENDED and saved.image is not None
    assert (saved.image.id, saved.image.took_ms) == (HELD, 7)


def test_a_save_fails_with_any_of_its_workers_before_it_counts_and_not_after() -> None:
    failed = both(SAVING, Observed.SAVE_HELD, Observed.SAVE_FAILED, reason="full disk")
    back = after(SAVING, *failed)
    assert back.phase is Phase.RUNNING and "full disk" in back.reason
    assert after(CUT, *failed) == CUT


def test_a_save_that_takes_too_long_to_be_of_one_moment_is_given_up() -> None:
    held = both(SAVING, Observed.SAVE_HELD, Observed.SAVE_HELD, image=HELD)
    assert after(SAVING, *held, late_ms=CUT_LIMIT_MS - 1).cut
    back = after(SAVING, *held, late_ms=CUT_LIMIT_MS)
    assert back.phase is Phase.RUNNING and "90 s" in back.reason
    assert after(CUT, *held, late_ms=CUT_LIMIT_MS) == CUT


def test_a_worker_that_its_node_saved_before_spoils_the_save() -> None:
    own = a_worker(SAVING, Observed.SAVED, 0, image=ImageId("own-1-0"))
    back = after(SAVING, own, a_worker(SAVING, Observed.SAVE_HELD, 1, image=HELD))
    assert back.phase is Phase.RUNNING and "rank 0" in back.reason


def test_a_worker_that_has_ended_spoils_the_save_too() -> None:
    done = a_worker(SAVING, Observed.ENDED, 0, exit_code=0)
    back = after(SAVING, done, a_worker(SAVING, Observed.SAVE_HELD, 1, image=HELD))
    assert back.phase is Phase.RUNNING and "rank 0" in back.reason


def test_a_gang_is_back_when_all_are_there() -> None:
    held = Observed.RESTORE_HELD
    assert after(RESTORING, *both(RESTORING, held, Observed.RESTORING)) == RESTORING
    for other in (held, Observed.RUNNING):
        assert after(RESTORING, *both(RESTORING, held, other)).phase is Phase.RUNNING
    failed = after(RESTORING, *both(RESTORING, held, Observed.RESTORE_FAILED))
    assert failed.phase is Phase.SUSPENDED


def ended(work: Work, rank: int, code: int | None, reason: str) -> WorkerReport:
    return a_worker(work, Observed.ENDED, rank, exit_code=code, reason=reason)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_gang_fails_with_the_worker_that_failed_first(killed: int) -> None:
    """Where that is seen: the others of it fail, too, when they miss it, or are told to stop."""
    first = ended(RUNNING, killed, 137, "killed by SIGKILL")
    other = ended(RUNNING, 1 - killed, 1, "exited with code 1")
    stopping = after(RUNNING, first, a_worker(RUNNING, Observed.RUNNING, 1 - killed))
    assert stopping.phase is Phase.STOPPING
    for failed in (after(RUNNING, first, other), after(stopping, first, other)):
        assert (failed.exit_code, failed.why_ended) == (137, "killed by SIGKILL")
    own = ended(RUNNING, killed, 3, "exited with code 3")
    told = ended(RUNNING, 1 - killed, 143, "ended by SIGTERM")
    stopping = after(RUNNING, own, a_worker(RUNNING, Observed.RUNNING, 1 - killed))
    assert after(stopping, own, told).exit_code == 3
    lost = ended(RUNNING, 1 - killed, None, "its supervisor is gone")
    assert after(RUNNING, first, lost).exit_code is None


def test_frozen_work_that_its_node_saved_is_suspended() -> None:
    saved = after(FROZEN, *both(FROZEN, Observed.SAVED, Observed.SAVED, image=ImageId("own-1-0")))
    assert saved.phase is Phase.SUSPENDED


def made(rank: int, image: str = "job-1.1-1", error: str = "") -> WorkerReport:
    told = Made(image=ImageId(image), image_bytes=10, took_ms=rank + 3, error=error)
    return a_worker(MAKING, Observed.RUNNING, rank, made=told)


def test_an_image_that_was_made_as_it_ran() -> None:
    assert after(MAKING, made(0), a_worker(MAKING, Observed.RUNNING, 1)) == MAKING
    assert after(MAKING, made(0), made(1, image="job-1.1-0")) == MAKING
    whole = after(MAKING, made(0), made(1))
    assert (whole.phase, whole.making) == (Phase.RUNNING, None)
    assert whole.image == Image(ImageId("job-1.1-1"), ("n1", "n2"), 20, NOW, 0, 4)  # type: ignore[arg-type]


def test_an_image_that_could_not_be_made_as_it_ran() -> None:
    failed = after(MAKING, made(0), made(1, error="full disk"))
    assert failed.making is None and failed.image is None and "full disk" in failed.reason
    slow = after(MAKING, made(0), made(1), late_ms=CUT_LIMIT_MS)
    assert slow.making is None and slow.image is None
    ended = after(MAKING, a_worker(MAKING, Observed.ENDED, 0, exit_code=0), made(1))
    assert ended.making is None and ended.phase is Phase.RUNNING


# --- copies --------------------------------------------------------------------------------------


def told(work: Work, node: str, *workers: WorkerReport, **state: object) -> Work:
    seen = Seen({(w.work_id, w.rank): w for w in workers})
    commit = observe(a_state(work, **state), a_report(node, workers), seen, NOW, NOW)
    return next((c.record for c in commit.changes if isinstance(c.record, Work)), work)


def having(rank: int, *images: str, saw: Observed = Observed.SAVED) -> WorkerReport:
    return a_worker(SUSPENDED, saw, rank, images=tuple(ImageId(i) for i in images))


def holders(work: Work) -> list[tuple[str, ...]]:
    assert work.image is not None
    return [work.image.holders(rank) for rank in (0, 1)]


def test_copies_are_known_and_forgotten() -> None:
    copied = told(SUSPENDED, "n2", having(0, "job-1.1"), having(1, "job-1.1"))
    assert holders(copied) == [("n1", "n2"), ("n2",)]
    assert told(copied, "n2", having(0, "job-1.1"), having(1, "job-1.1")) == copied
    gone = told(copied, "n2", having(0, "other"), having(1, "job-1.1"))
    assert gone == SUSPENDED
    assert told(SUSPENDED, "n2", having(0, "other")) == SUSPENDED


def test_copies_of_the_image_before_are_known_too() -> None:
    assert SUSPENDED.image is not None
    older = replace(SUSPENDED.image, id=ImageId("job-1.0"), copies=())
    work = replace(SUSPENDED, image_before=older)
    copied = told(work, "n3", having(0, "job-1.0"), having(1, "job-1.0", "job-1.1"))
    assert copied.image_before is not None
    assert [copied.image_before.holders(rank) for rank in (0, 1)] == [("n1", "n3"), ("n2", "n3")]
    assert holders(copied) == [("n1",), ("n2", "n3")]


def test_a_copy_takes_the_place_of_an_image_that_is_lost() -> None:
    copied = told(SUSPENDED, "n2", having(0, "job-1.1"))
    failed = told(copied, "n1", having(0, saw=Observed.RESTORE_FAILED))
    assert failed.phase is Phase.SUSPENDED and holders(failed) == [("n2",), ("n2",)]
    alone = told(SUSPENDED, "n1", having(0, saw=Observed.RESTORE_FAILED))
    assert alone.phase is Phase.PENDING  # nobody has it: it starts afresh


@pytest.mark.parametrize("known", [True, False])
def test_a_copy_takes_the_place_of_a_node_that_is_lost(known: bool) -> None:
    lost = replace(a_node("n1"), state=NodeState.LOST)
    nodes = by_id(lost, a_node("n2")) if known else by_id(a_node("n2"))
    after = told(SUSPENDED, "n2", having(0, "job-1.1"), nodes=nodes)
    assert holders(after) == [("n2", "n1"), ("n2",)]
