"""Whatever happens to a work, in whatever order the table permits, its invariants hold."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fleets import a_job, a_replica

from onefleet.core import ledger, lifecycle
from onefleet.core.lifecycle import ATTEMPTS_MAX, TRANSITIONS, IllegalTransition
from onefleet.domain.ids import DeviceId, Instant, NodeId
from onefleet.domain.work import Image, Phase, Slot, Want, Work

many = settings(max_examples=150, deadline=None, derandomize=True)
BARE = (
    lifecycle.Started,
    lifecycle.Restored,
    lifecycle.CutMade,
    lifecycle.CheckpointOrdered,
    lifecycle.Readied,
    lifecycle.Promised,
)
#: What changes a work without a change of its phase.
STAYING = (
    lifecycle.WantChanged,
    lifecycle.WidthWanted,
    lifecycle.MoveWanted,
    lifecycle.Readied,
    lifecycle.Promised,
    lifecycle.Resized,
    lifecycle.CutMade,
    lifecycle.CheckpointOrdered,
    lifecycle.Checkpointed,
    lifecycle.CheckpointFailed,
)
EVENTS = sorted({event for _, event in TRANSITIONS}, key=lambda event: event.__name__)


def nodes_of(work: Work) -> list[NodeId]:
    return [slot.node_id for slot in work.placement]


def an_event(draw: st.DrawFn, kind: type[lifecycle.Event], work: Work) -> lifecycle.Event:
    count = work.demand.workers
    node = NodeId("n1")
    if kind is lifecycle.Placed:
        slots = tuple(Slot(node, (DeviceId(f"n1/cpu{rank}"),)) for rank in range(count))
        return lifecycle.Placed(slots, restore=work.phase is Phase.SUSPENDED)
    if kind is lifecycle.Saved:
        return lifecycle.Saved(Image(lifecycle.image_id(work), (node,) * count, 1, Instant(0)))
    if kind is lifecycle.ProcessEnded:
        return lifecycle.ProcessEnded(draw(st.sampled_from([0, 1, 143, None])), "ended")
    if kind is lifecycle.WantChanged:
        return lifecycle.WantChanged(draw(st.sampled_from(list(Want))))
    if kind in (lifecycle.Thawed, lifecycle.Resized):
        device = DeviceId(f"n1/cpu{draw(st.integers(0, 3))}")
        return kind(tuple(replace(s, devices=(device,)) for s in work.placement))  # type: ignore
    if kind is lifecycle.Checkpointed:
        image_id = work.making.id if work.making else lifecycle.making_id(work)
        return lifecycle.Checkpointed(Image(image_id, (node,) * count, 1, Instant(0)))
    if kind is lifecycle.WidthWanted:
        return lifecycle.WidthWanted(draw(st.sampled_from([None, 1, 2])))
    if kind is lifecycle.MoveWanted:
        return lifecycle.MoveWanted(draw(st.sampled_from([(), (node,)])))
    if kind in BARE:
        return kind()  # type: ignore[call-arg]
    return kind("because")  # type: ignore[call-arg]


@many
@given(st.data(), st.booleans(), st.integers(1, 3))
def test_any_history_keeps_the_invariants(data: st.DataObject, job: bool, workers: int) -> None:
    work = a_job("w", workers=workers) if job else a_replica("w")
    now = Instant(0)
    for _ in range(data.draw(st.integers(1, 60))):
        legal = [kind for kind in EVENTS if (work.phase, kind) in TRANSITIONS]
        if not legal:
            assert work.phase is Phase.ENDED
            return
        now = Instant(now + data.draw(st.integers(0, 100_000)))
        event = data.draw(st.composite(an_event)(data.draw(st.sampled_from(legal)), work))
        try:
            after = lifecycle.apply(work, event, now)
        except IllegalTransition as illegal:
            assert illegal.why, "a refusal says why"
            continue
        lifecycle.check(after)
        assert (after.epoch >= work.epoch and after.attempts <= ATTEMPTS_MAX) or not job
        assert after.ran_ms >= work.ran_ms and after.lost_ms >= work.lost_ms
        if after.epoch == work.epoch and after.placement:
            assert nodes_of(after) == nodes_of(work), "only a new placement moves it"
        if after.phase is work.phase and after.phase is not Phase.SUSPENDED:
            assert isinstance(event, STAYING)
        assert all(hour.got_ms <= hour.wanted_ms <= ledger.HOUR_MS for hour in after.hours)
        assert after.accounted_until <= now and len(after.hours) <= ledger.HOURS_KEPT
        work = after


@many
@given(st.data())
def test_what_the_table_does_not_name_never_changes_anything(data: st.DataObject) -> None:
    work = a_job("w")
    kind = data.draw(st.sampled_from(EVENTS))
    event = data.draw(st.composite(an_event)(kind, work))
    if (work.phase, kind) in TRANSITIONS:
        assert lifecycle.apply(work, event, Instant(0)).phase in TRANSITIONS[work.phase, kind]
        return
    try:
        lifecycle.apply(work, event, Instant(0))
    except IllegalTransition:
        return
    raise AssertionError(f"{kind.__name__} was taken in phase {work.phase}")


def test_a_job_always_can_end_and_a_replica_always_can_be_stopped() -> None:
    for phase in Phase:
        names = {event for at, event in TRANSITIONS if at is phase}
        if phase is not Phase.ENDED:
            assert lifecycle.StopOrdered in names or phase is Phase.STOPPING
            assert (phase, lifecycle.WantChanged) in TRANSITIONS
