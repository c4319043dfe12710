"""What a node's report means: each observation in each phase, gangs, epochs, and nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.fleets import START, a_job, a_node, a_replica, placed, suspended
from tests.unit.control.states import NOW, a_report, a_state, a_worker, by_id

from onefleet.control.observe import Seen, observe
from onefleet.core import lifecycle
from onefleet.domain.fleet import CheckpointMode, Cordon, Node, NodeState
from onefleet.domain.ids import DeviceId, Generation, ImageId, Instant
from onefleet.domain.serving import Replica
from onefleet.domain.work import Outcome, Phase, Want, Work
from onefleet.store.base import Commit, State
from onefleet.wire.agent import NodeReport, Observed, WorkerReport

LEASE = Instant(NOW + 30_000)


def observed(state: State, report: NodeReport, **changes: Any) -> Commit:
    seen = Seen({(w.work_id, w.rank): w for w in report.workers}, **changes)
    return observe(state, report, seen, LEASE, NOW)


def work_after(work: Work, *workers: WorkerReport, node: str = "n1") -> Work:
    commit = observed(a_state(work), a_report(node, workers))
    found = [c.record for c in commit.changes if isinstance(c.record, Work)]
    assert len(found) <= 1
    if found:
        lifecycle.check(found[0])
    return found[0] if found else work


STARTING = placed(a_job("job-1"), ("n1", "0"), running=False)
RUNNING = placed(a_job("job-1"), ("n1", "0"))
SAVING = lifecycle.apply(RUNNING, lifecycle.SaveOrdered("made room"), NOW)
SUSPENDED = suspended(a_job("job-1"), "n1")
RESTORING = lifecycle.apply(SUSPENDED, lifecycle.Placed(RUNNING.placement, restore=True), NOW)
STOPPING = lifecycle.apply(
    replace(RUNNING, want=Want.STOP), lifecycle.StopOrdered("its owner wants it"), NOW
)


@pytest.mark.parametrize(
    ("work", "saw", "phase"),
    [
        (STARTING, Observed.STARTING, Phase.STARTING),
        (STARTING, Observed.RUNNING, Phase.RUNNING),
        (STARTING, Observed.SAVED, Phase.STARTING),
        (STARTING, Observed.RESTORE_FAILED, Phase.PENDING),
        (RUNNING, Observed.RUNNING, Phase.RUNNING),
        (RUNNING, Observed.STARTING, Phase.RUNNING),
        (RUNNING, Observed.SAVED, Phase.SUSPENDED),
        (RUNNING, Observed.RESTORING, Phase.RUNNING),
        (RUNNING, Observed.RESTORE_FAILED, Phase.PENDING),
        (SAVING, Observed.RUNNING, Phase.SAVING),
        (SAVING, Observed.SAVING, Phase.SAVING),
        (SAVING, Observed.SAVED, Phase.SUSPENDED),
        (SAVING, Observed.SAVE_FAILED, Phase.RUNNING),
        (SUSPENDED, Observed.SAVED, Phase.SUSPENDED),
        (SUSPENDED, Observed.RESTORE_FAILED, Phase.PENDING),
        (RESTORING, Observed.RESTORING, Phase.RESTORING),
        (RESTORING, Observed.RUNNING, Phase.RUNNING),
        (RESTORING, Observed.RESTORE_FAILED, Phase.SUSPENDED),
        (STOPPING, Observed.RUNNING, Phase.STOPPING),
        (STOPPING, Observed.STOPPING, Phase.STOPPING),
        (STOPPING, Observed.RESTORE_FAILED, Phase.STOPPING),
    ],
)
def test_each_observation_in_each_phase(work: Work, saw: Observed, phase: Phase) -> None:
    assert work_after(work, a_worker(work, saw, reason="because")).phase is phase


@pytest.mark.parametrize("work", [STARTING, RUNNING, SAVING, RESTORING])
@pytest.mark.parametrize("code", [0, 3, 137])
def test_a_job_that_ends_by_itself_is_over(work: Work, code: int) -> None:
    ended = work_after(work, a_worker(work, Observed.ENDED, exit_code=code))
    assert (ended.phase, ended.exit_code) == (Phase.ENDED, code)
    assert ended.outcome is (Outcome.SUCCEEDED if code == 0 else Outcome.FAILED)
    assert ended.started_at is not None


def test_a_command_that_could_not_be_started_never_started() -> None:
    report = a_worker(STARTING, Observed.ENDED, exit_code=127, reason="no such command: trian")
    ended = work_after(STARTING, report)
    assert (ended.outcome, ended.started_at) == (Outcome.FAILED, None)
    assert "trian" in ended.why_ended


def test_a_cancelled_job_is_cancelled_whatever_its_code() -> None:
    ended = work_after(STOPPING, a_worker(STOPPING, Observed.ENDED, exit_code=143))
    assert (ended.outcome, ended.exit_code) == (Outcome.CANCELLED, 143)


def test_a_worker_that_the_pool_lost_sight_of_is_not_the_jobs_failure() -> None:
    lost = work_after(RUNNING, a_worker(RUNNING, Observed.ENDED, reason="its supervisor died"))
    assert (lost.phase, lost.outcome) == (Phase.PENDING, None)


def test_reports_of_an_older_epoch_are_ignored() -> None:
    work = replace(RESTORING, epoch=Generation(5))
    for saw in Observed:
        old = a_worker(work, saw, epoch=Generation(4), exit_code=1, reason="old")
        assert work_after(work, old) == work


@pytest.mark.parametrize("work", [RESTORING, SUSPENDED])
def test_a_failure_that_is_told_again_costs_no_further_image(work: Work) -> None:
    """A node says it in each report until it has its next orders; another's look at it, too."""
    image = suspended(a_job("job-1"), "n1").image
    assert image is not None
    work = replace(work, image_before=replace(image, id=ImageId("before")), failures=1)
    failed = a_worker(work, Observed.RESTORE_FAILED, reason="torn")
    back = work_after(work, failed)
    assert back.phase is Phase.SUSPENDED and back.image is not None
    assert (back.image.id, back.image_before) == ("before", None)
    assert work_after(back, failed) == back


def test_a_save_records_what_was_saved() -> None:
    report = a_worker(SAVING, Observed.SAVED, image="own-1-0", image_bytes=77)
    image = work_after(SAVING, report).image
    assert image is not None
    assert (image.id, image.size_bytes, image.nodes) == ("own-1-0", 77, ("n1",))


def test_a_node_that_saved_a_job_by_itself_stops_its_run_time() -> None:
    began = replace(RUNNING, phase_since=Instant(NOW - 5_000), started_at=Instant(NOW - 5_000))
    report = a_worker(began, Observed.SAVED, image="own-1-0", image_bytes=77)
    saved = work_after(began, report)
    assert (saved.phase, saved.ran_ms, saved.lost_ms, saved.suspends) == (
        Phase.SUSPENDED, 5_000, 0, 1,
    )  # fmt: skip
    assert saved.image is not None and saved.image.id == "own-1-0"
    assert "by itself" in saved.reason


def test_what_cannot_be_saved_stays_as_it_is_when_its_node_saved_it() -> None:
    fixed = replace(RUNNING, suspendable=False)
    assert work_after(fixed, a_worker(fixed, Observed.SAVED)) == fixed


def test_what_a_program_did_not_save_itself_is_lost_and_told() -> None:
    began = replace(RUNNING, phase_since=Instant(NOW - 5_000), started_at=Instant(NOW - 5_000))
    saving = lifecycle.apply(began, lifecycle.SaveOrdered("made room"), NOW)
    report = a_worker(saving, Observed.SAVED, image_lost_ms=4_000)
    saved = work_after(saving, report)
    assert (saved.ran_ms, saved.lost_ms) == (5_000, 4_000)
    assert saved.image is not None and saved.image.ran_ms == 1_000
    assert saved.reason.startswith("made room; 4000 ms of its run are lost")
    whole = work_after(saving, a_worker(saving, Observed.SAVED, image_lost_ms=9_000))
    assert (whole.lost_ms, whole.image and whole.image.ran_ms) == (5_000, 0)


GANG = placed(a_job("job-1", workers=2), ("n1", "0"), ("n2", "0"), running=False)


def gang_after(work: Work, *workers: WorkerReport) -> Work:
    seen = Seen({(w.work_id, w.rank): w for w in workers})
    report = a_report("n1", [w for w in workers if w.rank == 0])
    commit = observe(a_state(work), report, seen, LEASE, NOW)
    return next((c.record for c in commit.changes if isinstance(c.record, Work)), work)


def test_a_gang_runs_when_all_its_workers_do() -> None:
    one, two = (a_worker(GANG, Observed.RUNNING, rank) for rank in (0, 1))
    assert gang_after(GANG, one).phase is Phase.STARTING
    assert gang_after(GANG, one, a_worker(GANG, Observed.STARTING, 1)).phase is Phase.STARTING
    assert gang_after(GANG, one, two).phase is Phase.RUNNING


def test_a_gang_without_a_common_image_is_not_saved() -> None:
    running = lifecycle.apply(GANG, lifecycle.Started(), NOW)
    one, two = (a_worker(running, Observed.SAVED, rank, image=f"own-1-{rank}") for rank in (0, 1))
    assert gang_after(running, one, two) == running
    assert gang_after(running, one, a_worker(running, Observed.RUNNING, 1)) == running


def test_a_gang_is_saved_when_all_its_workers_are() -> None:
    running = lifecycle.apply(GANG, lifecycle.Started(), NOW)
    saving = lifecycle.apply(running, lifecycle.SaveOrdered("room"), NOW)
    one, two = (a_worker(saving, Observed.SAVED, rank) for rank in (0, 1))
    assert gang_after(saving, one).phase is Phase.SAVING
    whole = gang_after(saving, one, two)
    assert whole.phase is Phase.SUSPENDED and whole.image is not None
    assert (whole.image.nodes, whole.image.size_bytes) == (("n1", "n2"), 200)


def test_a_gang_whose_worker_failed_is_stopped_and_then_over() -> None:
    running = lifecycle.apply(GANG, lifecycle.Started(), NOW)
    failed = a_worker(running, Observed.ENDED, 0, exit_code=9, reason="out of memory")
    fine = a_worker(running, Observed.RUNNING, 1)
    stopping = gang_after(running, failed, fine)
    assert (stopping.phase, "rank 0" in stopping.reason) == (Phase.STOPPING, True)
    other = a_worker(running, Observed.ENDED, 1, exit_code=143)
    over = gang_after(stopping, failed, other)
    assert (over.phase, over.outcome, over.exit_code) == (Phase.ENDED, Outcome.FAILED, 9)


@pytest.mark.parametrize(
    ("codes", "phase", "code"),
    [((143, 9), Phase.ENDED, 9), ((9, 143), Phase.ENDED, 9), ((143, None), Phase.PENDING, None)],
)
def test_what_ended_a_gang_is_told_by_the_worker_that_was_not_stopped(
    codes: tuple[int | None, int | None], phase: Phase, code: int | None
) -> None:
    running = lifecycle.apply(GANG, lifecycle.Started(), NOW)
    stopping = lifecycle.apply(running, lifecycle.StopOrdered("room"), NOW)
    reports = [a_worker(running, Observed.ENDED, rank, exit_code=c) for rank, c in enumerate(codes)]
    after = gang_after(stopping, *reports)
    assert (after.phase, after.exit_code) == (phase, code)


def test_a_gang_of_which_one_worker_is_done_goes_on() -> None:
    running = lifecycle.apply(GANG, lifecycle.Started(), NOW)
    done = a_worker(running, Observed.ENDED, 0, exit_code=0)
    assert gang_after(running, done, a_worker(running, Observed.RUNNING, 1)) == running
    over = gang_after(running, done, a_worker(running, Observed.ENDED, 1, exit_code=0))
    assert over.outcome is Outcome.SUCCEEDED


def test_a_vanished_worker_is_given_up() -> None:
    commit = observed(a_state(RUNNING), a_report(), vanished=(RUNNING.id,))
    (change,) = commit.changes
    assert isinstance(change.record, Work)
    assert (change.record.phase, change.record.epoch) == (Phase.PENDING, RUNNING.epoch + 1)


def test_a_replicas_address_is_kept_with_its_start_and_renewed_when_it_changes() -> None:
    work = placed(a_replica("rep-1"), ("n1", "0"), running=False)
    report = a_worker(work, Observed.RUNNING, host="127.0.0.1", port=4_000)
    commit = observed(a_state(work), a_report("n1", [report]))
    records = [change.record for change in commit.changes]
    assert [type(record) for record in records] == [Work, Replica]
    assert isinstance(records[1], Replica) and records[1].port == 4_000
    running = lifecycle.apply(work, lifecycle.Started(), NOW)
    known = a_state(running, replicas=by_id(records[1]))
    assert observed(known, a_report("n1", [report])).changes == []
    moved = a_worker(running, Observed.RUNNING, host="127.0.0.1", port=5_000)
    (change,) = observed(known, a_report("n1", [moved])).changes
    assert isinstance(change.record, Replica) and change.record.port == 5_000


def test_an_engine_that_ended_starts_again_later() -> None:
    work = placed(a_replica("rep-1"), ("n1", "0"))
    ended = work_after(work, a_worker(work, Observed.ENDED, exit_code=134, reason="SIGABRT"))
    assert (ended.phase, ended.failures) == (Phase.PENDING, 1)
    assert ended.not_before > NOW


# --- nodes ---------------------------------------------------------------------------------------


def node_after(state: State, report: NodeReport) -> tuple[Node | None, list[str]]:
    commit = observed(state, report)
    nodes = [c.record for c in commit.changes if isinstance(c.record, Node)]
    return (nodes[0] if nodes else None), [note.kind for note in commit.notes]


def test_a_heartbeat_with_nothing_new_writes_nothing() -> None:
    report = a_report("n1", [a_worker(RUNNING, Observed.RUNNING)], memory_free_bytes=5)
    assert observed(a_state(RUNNING), report) == Commit(changes=[], notes=[])


def test_a_new_node_joins() -> None:
    node, kinds = node_after(a_state(nodes={}), a_report("n7"))
    assert node is not None and kinds == ["node.joined"]
    assert (node.state, node.lease_expires_at, node.joined_at) == (NodeState.READY, LEASE, NOW)
    assert node.generation == 0


def test_a_node_that_changed_is_written() -> None:
    state = a_state()
    fewer = a_report("n1", devices=a_node("n1").devices[:2])
    node, kinds = node_after(state, fewer)
    assert node is not None and len(node.devices) == 2 and kinds == ["node.changed"]
    worse = a_report("n1", checkpoint_mode=CheckpointMode.NONE, checkpoint_reason="no criu")
    node, _ = node_after(state, worse)
    assert node is not None and node.checkpoint_reason == "no criu"


def test_a_lost_node_comes_back_and_a_draining_one_stays_so() -> None:
    lost = a_state(nodes=by_id(replace(a_node("n1"), state=NodeState.LOST)))
    node, kinds = node_after(lost, a_report("n1"))
    assert node is not None and node.state is NodeState.READY and kinds == ["node.joined"]
    draining = a_state(nodes=by_id(replace(a_node("n1"), state=NodeState.DRAINING)))
    assert node_after(draining, a_report("n1")) == (None, [])


def test_reports_of_unknown_ended_and_pending_works_are_ignored() -> None:
    ended = lifecycle.apply(RUNNING, lifecycle.ProcessEnded(0, "done"), NOW)
    for work in (ended, a_job("job-1")):
        for saw in Observed:
            assert work_after(work, a_worker(work, saw, exit_code=1)) == work
    stranger = a_worker(a_job("job-9"), Observed.RUNNING)
    assert observed(a_state(), a_report("n1", [stranger])) == Commit(changes=[], notes=[])


def test_an_agent_s_cordons_come_and_go_and_a_person_s_stay() -> None:
    bad, by_hand = DeviceId("n1/cpu0"), Cordon(DeviceId("n1/cpu1"), "a person said so", START)

    def after(node: Node, *found: Cordon) -> tuple[Cordon, ...]:
        report = msgspec.structs.replace(a_report("n1", ()), cordons=found)
        commit = observed(a_state(nodes=by_id(node)), report)
        nodes = [c.record for c in commit.changes if isinstance(c.record, Node)]
        return nodes[0].cordons if nodes else node.cordons

    def out(at: int, until: int) -> Cordon:
        return Cordon(bad, "2 x uncorrected", Instant(at), Instant(until))

    node = a_node("n1", cordons=(by_hand,))
    assert after(node, out(NOW, NOW + 9)) == (out(NOW, NOW + 9), by_hand)
    held = replace(node, cordons=(out(NOW - 50, NOW + 9), by_hand))
    assert after(held, out(NOW, NOW + 9)) == held.cordons, "the same news is none"
    assert after(held, out(NOW, NOW + 99)) == (out(NOW - 50, NOW + 99), by_hand)
    assert after(held) == (by_hand,)
    assert after(node, replace(by_hand, until=Instant(NOW + 1))) == (by_hand,)
