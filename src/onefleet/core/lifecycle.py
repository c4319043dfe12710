"""The life of one work, as a table.

`TRANSITIONS` says which event is legal in which phase and where it may lead; `apply` is the only
way to change a phase. `lifecycle_diagrams` draws the pictures of the docs from it. Three rules
hold in every reachable state, and `check` asserts them: devices are held exactly in the phases
that hold them, the epoch never falls, and what ended says how.

What the pool did to a job is never the job's failure: lost and badly restored work goes back to
its newest image, then to the one before, then to a fresh attempt, each a bounded number of times,
and `lost_ms` tells what that threw away. A program that ends by itself is not started again;
a replica that ends unasked is, after a growing pause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, assert_never

from onefleet.core import ledger
from onefleet.core.work_events import (
    Checkpointed,
    CheckpointFailed,
    CheckpointOrdered,
    CutMade,
    Event,
    Froze,
    ImageLost,
    Lost,
    MoveWanted,
    Placed,
    ProcessEnded,
    Promised,
    Readied,
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
    WidthWanted,
)
from onefleet.domain.errors import InternalError
from onefleet.domain.ids import Generation, ImageId, Instant, WorkId
from onefleet.domain.records import changed
from onefleet.domain.work import (
    Image,
    Making,
    Outcome,
    Phase,
    Receipt,
    Slot,
    Want,
    Work,
    WorkKind,
)

__all__ = [
    "ATTEMPTS_MAX",
    "RECEIPTS_KEPT",
    "TRANSITIONS",
    "VOID_AFTER_CUT",
    "CheckpointFailed",
    "CheckpointOrdered",
    "Checkpointed",
    "CutMade",
    "Event",
    "Froze",
    "IllegalTransition",
    "ImageLost",
    "Lost",
    "MoveWanted",
    "Placed",
    "ProcessEnded",
    "Promised",
    "Readied",
    "Resized",
    "RestoreFailed",
    "Restored",
    "SaveFailed",
    "SaveOrdered",
    "Saved",
    "Started",
    "StopOrdered",
    "Thawed",
    "WantChanged",
    "WidthWanted",
    "apply",
    "backoff_ms",
    "check",
    "has_given_way",
    "image_id",
    "making_id",
    "progress_ms",
]

#: Fresh starts that one job may have when the pool keeps losing it.
ATTEMPTS_MAX = 8
#: Restores of one image that may fail before the image before it, or a fresh attempt, is used.
RESTORE_TRIES_MAX = 2
#: Losses in a row (a node lost, a supervisor died) before the image is taken to be the cause.
LOSSES_MAX = 5
#: The pause after the first failure in a row; it doubles with each further one, up to the maximum.
BACKOFF_MS = 1_000
BACKOFF_MS_MAX = 60_000
#: Receipts that a work remembers.
RECEIPTS_KEPT = 16
#: Having run for this long ends a row of failures.
STABLE_MS = 60_000


class IllegalTransition(InternalError):
    """An event that the table forbids in this phase."""

    code = "illegal_transition"


_BACK = (Phase.PENDING, Phase.SUSPENDED, Phase.ENDED)

#: (phase, event) -> the phases that it may lead to, in the order of how common they are.
TRANSITIONS: Mapping[tuple[Phase, type[Event]], tuple[Phase, ...]] = MappingProxyType(
    {
        (Phase.PENDING, Readied): (Phase.PENDING,),
        (Phase.PENDING, Placed): (Phase.STARTING,),
        (Phase.PENDING, StopOrdered): (Phase.ENDED,),
        (Phase.STARTING, Started): (Phase.RUNNING,),
        (Phase.STARTING, StopOrdered): (Phase.STOPPING,),
        (Phase.STARTING, ProcessEnded): _BACK,
        (Phase.STARTING, Lost): _BACK,
        (Phase.RUNNING, SaveOrdered): (Phase.SAVING,),
        (Phase.RUNNING, StopOrdered): (Phase.STOPPING,),
        (Phase.RUNNING, ProcessEnded): _BACK,
        (Phase.RUNNING, Lost): _BACK,
        (Phase.RUNNING, Froze): (Phase.FROZEN,),
        (Phase.RUNNING, Resized): (Phase.RUNNING,),
        (Phase.RUNNING, CheckpointOrdered): (Phase.RUNNING,),
        (Phase.RUNNING, Checkpointed): (Phase.RUNNING,),
        (Phase.RUNNING, CheckpointFailed): (Phase.RUNNING,),
        (Phase.SAVING, Saved): (Phase.SUSPENDED,),
        (Phase.SAVING, CutMade): (Phase.SAVING,),
        (Phase.SAVING, SaveFailed): (Phase.RUNNING, Phase.FROZEN),
        (Phase.SAVING, StopOrdered): (Phase.STOPPING,),
        (Phase.SAVING, ProcessEnded): _BACK,
        (Phase.SAVING, Lost): _BACK,
        (Phase.FROZEN, Thawed): (Phase.RUNNING,),
        (Phase.FROZEN, SaveOrdered): (Phase.SAVING,),
        (Phase.FROZEN, StopOrdered): (Phase.STOPPING,),
        (Phase.FROZEN, ProcessEnded): _BACK,
        (Phase.FROZEN, Lost): _BACK,
        (Phase.SUSPENDED, Placed): (Phase.RESTORING,),
        (Phase.SUSPENDED, StopOrdered): (Phase.ENDED,),
        (Phase.SUSPENDED, ImageLost): _BACK,
        (Phase.RESTORING, Restored): (Phase.RUNNING,),
        (Phase.RESTORING, RestoreFailed): _BACK,
        (Phase.RESTORING, StopOrdered): (Phase.STOPPING,),
        (Phase.RESTORING, ProcessEnded): _BACK,
        (Phase.RESTORING, Lost): _BACK,
        (Phase.STOPPING, ProcessEnded): _BACK,
        (Phase.STOPPING, Lost): _BACK,
        **{
            (phase, event): (phase,)
            for event in (WantChanged, WidthWanted, MoveWanted, Promised)
            for phase in Phase
            if phase is not Phase.ENDED
        },
    }
)


#: What cannot happen any more once a save has made its cut: the image is whole, and counts.
VOID_AFTER_CUT: frozenset[type[Event]] = frozenset({SaveFailed})


def apply(work: Work, event: Event, now: Instant) -> Work:
    """Return the work after the event.

    Raises IllegalTransition when the table, or a rule of the event, forbids it.
    """
    targets = TRANSITIONS.get((work.phase, type(event)))
    if targets is None:
        raise _illegal(work, event, f"the table has no such event in phase {work.phase}")
    if work.cut and type(event) in VOID_AFTER_CUT:
        raise _illegal(work, event, "its image is whole, and counts")
    after = _after(ledger.account(work, now), event, now)
    if after.phase not in targets:  # pragma: no cover - a defect of this file
        raise _illegal(work, event, f"it led to {after.phase}, which the table does not name")
    return after


def image_id(work: Work) -> ImageId:
    """The id of the image that a save of this placement makes. A repeated save makes the same."""
    return ImageId(f"{work.id}.{work.epoch}")


def making_id(work: Work) -> ImageId:
    """The id of the next image that is made of it while it runs."""
    return ImageId(f"{work.id}.{work.epoch}-{work.made + 1}")


def progress_ms(work: Work) -> int:
    """Run time that is not thrown away, without the current stretch in RUNNING."""
    return work.ran_ms - work.lost_ms


def backoff_ms(failures: int) -> int:
    """The pause after this many failures in a row."""
    return min(BACKOFF_MS << min(max(failures - 1, 0), 16), BACKOFF_MS_MAX)


def check(work: Work) -> None:
    """Assert what holds for every work that only `apply` has changed."""
    assert bool(work.placement) == work.phase.is_placed, work
    assert work.phase is not Phase.FROZEN or not _has_devices(work), work
    assert work.making is None or work.phase is Phase.RUNNING, work
    assert not work.cut or work.phase is Phase.SAVING, work
    assert (work.outcome is not None) == (work.phase is Phase.ENDED), work
    assert (work.ended_at is not None) == (work.phase is Phase.ENDED), work
    assert work.phase is not Phase.ENDED or work.why_ended, work
    assert work.phase not in (Phase.SUSPENDED, Phase.RESTORING) or work.image is not None, work
    assert 0 <= work.lost_ms <= work.ran_ms, work
    assert 0 <= work.attempts <= work.epoch, work


def _illegal(work: Work, event: Event, why: str) -> IllegalTransition:
    name = type(event).__name__
    return IllegalTransition(f"{name} does not apply to {work.id} ({work.phase})", why=why)


def _after(work: Work, event: Event, now: Instant) -> Work:  # one arm an event
    match event:
        case Placed():
            return _placed(work, event, now)
        case Started():
            started_at = now if work.started_at is None else work.started_at
            return _enter(work, Phase.RUNNING, now, "", started_at=started_at)
        case Restored():
            return _enter(work, Phase.RUNNING, now, "")
        case RestoreFailed(reason):
            return _restore_failed(work, reason, now)
        case SaveOrdered(reason, by):
            if not work.suspendable:
                raise _illegal(work, event, "it cannot be saved")
            return _enter(_receipt(work, now, by, reason), Phase.SAVING, now, reason)
        case Saved():
            return _saved(work, event, now)
        case CutMade():
            return replace(work, cut=True)
        case SaveFailed(reason):
            return _save_failed(work, event, now)
        case StopOrdered(reason, by):
            if work.phase.is_placed:  # what gives way already goes on doing so for whom it does
                keeps = by is None and has_given_way(work)
                noted = work if keeps else _receipt(work, now, by, reason)
                return _enter(noted, Phase.STOPPING, now, reason)
            return _end(work, now, Outcome.CANCELLED, None, reason)
        case ProcessEnded(exit_code, reason):
            return _process_ended(work, exit_code, reason, now)
        case Lost(reason):
            return _lost(work, now, reason)
        case ImageLost(reason):
            return _fall_back(_outdated(work), now, reason, 0)
        case WantChanged(want):
            if work.want is Want.STOP and want is not Want.STOP:
                raise _illegal(work, event, "it is being stopped, which cannot be taken back")
            return replace(work, want=want)
        case _:
            return _arranged(work, event, now)


def _arranged(
    work: Work,
    event: Froze
    | Thawed
    | Resized
    | CheckpointOrdered
    | Checkpointed
    | CheckpointFailed
    | Readied
    | Promised
    | WidthWanted
    | MoveWanted,
    now: Instant,
) -> Work:
    """Events that end nothing and throw nothing away: the rest of `_after`."""
    match event:
        case Froze(reason, by):
            if work.kind is WorkKind.REPLICA:
                raise _illegal(work, event, "a replica has to answer")
            slots = tuple(replace(slot, devices=()) for slot in work.placement)
            noted = _receipt(work, now, by, reason)
            return _enter(noted, Phase.FROZEN, now, reason, placement=slots)
        case Thawed(placement):
            _must_stay(work, event, placement)
            return _enter(work, Phase.RUNNING, now, "", placement=placement)
        case Resized(placement):
            _must_stay(work, event, placement)
            return replace(work, placement=placement)
        case CheckpointOrdered():
            if not work.suspendable or work.making is not None:
                raise _illegal(work, event, "it cannot be saved, or is being saved already")
            return replace(work, making=Making(making_id(work), now), made=work.made + 1)
        case Checkpointed(image):
            return _checkpointed(work, event, image)
        case CheckpointFailed(reason):
            told = f"no image was made while it ran: {reason}"
            return _unsaved_again(replace(work, making=None, reason=told), now)
        case Readied():
            return changed(work, ready=True, phase_since=now)
        case Promised():
            return changed(work, promised=True)
        case WidthWanted(devices):
            return replace(work, width=devices)
        case MoveWanted(nodes, stranded, driven):
            driven = driven and (work.driven or not work.move_to)
            stranded = work.stranded or stranded
            return replace(work, move_to=nodes, driven=driven, stranded=stranded)
        case _:  # pragma: no cover - the type checker proves it
            assert_never(event)


def _enter(work: Work, phase: Phase, now: Instant, reason: str, **changes: Any) -> Work:
    """Change the phase, with what every change of phase brings about."""
    changes.setdefault("reason", reason)
    if work.phase is Phase.RUNNING:
        stretch = max(now - work.phase_since, 0)
        changes["ran_ms"] = work.ran_ms + stretch
        if stretch >= STABLE_MS:
            changes.setdefault("failures", 0)
    if phase is Phase.RUNNING:
        changes["receipts"] = _back(work.receipts, now)
    if phase in (Phase.RUNNING, Phase.ENDED):
        changes["stranded"] = False
    if not phase.is_placed:
        changes["placement"] = ()
    return changed(work, phase=phase, phase_since=now, making=None, cut=False, **changes)


def _has_devices(work: Work) -> bool:
    return any(slot.devices for slot in work.placement)


def _must_stay(work: Work, event: Event, placement: tuple[Slot, ...]) -> None:
    if [s.node_id for s in placement] != [s.node_id for s in work.placement]:
        raise _illegal(work, event, "its workers are on other nodes: it has to be saved to move")
    if not all(slot.devices for slot in placement):
        raise _illegal(work, event, "every worker needs a device")


def _receipt(work: Work, now: Instant, by: WorkId | None, reason: str) -> Work:
    """Note that it gives way, or is lost, unless its owner wants that, or it holds nothing."""
    if work.want is not Want.RUN or not _has_devices(work):
        return work
    held = len({device for slot in work.placement for device in slot.devices})
    receipts = (*work.receipts, Receipt(now, by, reason, held))
    return replace(work, receipts=receipts[-RECEIPTS_KEPT:])


def _is_open(receipts: tuple[Receipt, ...]) -> bool:
    """Whether it has not run since the last one."""
    return bool(receipts) and receipts[-1].back_at is None


def has_given_way(work: Work) -> bool:
    """Whether others have its place already, or will."""
    leaving = work.phase in (Phase.SAVING, Phase.FROZEN, Phase.STOPPING)
    return leaving and _is_open(work.receipts) and work.receipts[-1].by is not None


def _is_called_in(work: Work) -> bool:
    """Whether it was running, and is ended for others: its end says nothing of itself."""
    stopping = work.phase is Phase.STOPPING and has_given_way(work)
    return stopping and work.receipts[-1].at == work.phase_since


def _back(receipts: tuple[Receipt, ...], now: Instant) -> tuple[Receipt, ...]:
    if not _is_open(receipts):
        return receipts
    return (*receipts[:-1], replace(receipts[-1], back_at=now))


def _cost(receipts: tuple[Receipt, ...], lost_ms: int) -> tuple[Receipt, ...]:
    """Enter what was thrown away into the receipt that is open."""
    if not _is_open(receipts) or not lost_ms:
        return receipts
    last = receipts[-1]
    return (*receipts[:-1], replace(last, lost_ms=last.lost_ms + lost_ms))


def _placed(work: Work, event: Placed, now: Instant) -> Work:
    if event.restore != (work.phase is Phase.SUSPENDED):
        raise _illegal(work, event, "only suspended work is restored, only pending work started")
    if len(event.placement) != work.demand.workers:
        raise _illegal(work, event, f"a gang of {work.demand.workers} is placed whole or not")
    return _enter(
        work,
        Phase.RESTORING if event.restore else Phase.STARTING,
        now,
        "",
        epoch=Generation(work.epoch + 1),
        placement=event.placement,
        ran_on=tuple(slot.node_id for slot in event.placement),
        attempts=work.attempts + (0 if event.restore else 1),
        made=0,
        move_to=(),
    )


def _saved(work: Work, event: Saved, now: Instant) -> Work:
    if len(event.image.nodes) != work.demand.workers:
        raise _illegal(work, event, f"the image is not of {work.demand.workers} workers")
    lost_ms = min(max(event.lost_ms, 0), progress_ms(work))
    told = f"{work.reason}; {lost_ms} ms of its run are lost: it had not saved them itself"
    return _enter(
        work,
        Phase.SUSPENDED,
        now,
        told if lost_ms else work.reason,
        image=replace(event.image, ran_ms=progress_ms(work) - lost_ms),
        image_before=work.image,
        lost_ms=work.lost_ms + lost_ms,
        receipts=_cost(work.receipts, lost_ms),
        suspends=work.suspends + 1,
        failures=0,
        saves_failed=0,
        not_before=Instant(0),
    )


def _save_failed(work: Work, event: SaveFailed, now: Instant) -> Work:
    """It runs on, or stands still as it did before; where the pool wanted it is forgotten."""
    back = Phase.RUNNING if _has_devices(work) else Phase.FROZEN
    failed = _unsaved_again(_enter(work, back, now, f"not saved: {event.reason}"), now)
    return replace(failed, move_to=(), driven=False) if failed.driven else failed


def _checkpointed(work: Work, event: Checkpointed, image: Image) -> Work:
    """The image holds at least the run time until it was ordered."""
    making = work.making
    if making is None or image.id != making.id:
        raise _illegal(work, event, "it is not the image that was ordered last")
    if len(image.nodes) != work.demand.workers:
        raise _illegal(work, event, f"the image is not of {work.demand.workers} workers")
    ran_ms = progress_ms(work) + max(making.ordered_at - work.phase_since, 0)
    newest = replace(image, ran_ms=ran_ms)
    told = ""  # no more of a save that failed before
    return replace(
        work, image=newest, image_before=work.image, making=None, saves_failed=0, reason=told
    )


def _process_ended(work: Work, exit_code: int | None, reason: str, now: Instant) -> Work:
    stopping = work.phase is Phase.STOPPING
    if work.want is Want.STOP and stopping:
        return _end(work, now, Outcome.CANCELLED, exit_code, work.reason)
    if work.kind is WorkKind.JOB and _is_called_in(work):
        return _lost(work, now, work.reason)
    if work.kind is WorkKind.REPLICA and stopping:  # asked to make room: no failure of its own
        return _enter(work, Phase.PENDING, now, work.reason)
    if work.kind is WorkKind.REPLICA:
        if work.want is Want.STOP:
            return _end(work, now, Outcome.CANCELLED, exit_code, reason)
        return _failed_once(_enter(work, Phase.PENDING, now, f"its engine ended: {reason}"), now)
    if exit_code is None:
        return _lost(work, now, reason)
    if exit_code == 0:
        return _end(work, now, Outcome.SUCCEEDED, 0, reason or "exited with code 0")
    return _end(work, now, Outcome.FAILED, exit_code, reason or f"exited with code {exit_code}")


def _outdated(work: Work) -> Work:
    """What was reported of it so far is void, however late or often it is told."""
    return replace(work, epoch=Generation(work.epoch + 1))


def _lost(work: Work, now: Instant, reason: str) -> Work:
    work = replace(_outdated(work), stranded=not has_given_way(work))
    if work.want is Want.STOP:
        return _end(work, now, Outcome.CANCELLED, None, reason)
    if work.kind is WorkKind.REPLICA:
        return _failed_once(_enter(work, Phase.PENDING, now, reason), now)
    noted = work if _is_open(work.receipts) else _receipt(work, now, None, reason)
    return _fall_back(noted, now, reason, LOSSES_MAX)


def _restore_failed(work: Work, reason: str, now: Instant) -> Work:
    """What could not be brought back elsewhere is tried again where its image lies."""
    told = f"could not be restored: {reason}"
    back = _fall_back(_outdated(work), now, told, RESTORE_TRIES_MAX)
    if back.image is None or work.image is None or work.ran_on == work.image.nodes:
        return back
    return replace(back, move_to=back.image.nodes, driven=False)


def _fall_back(work: Work, now: Instant, reason: str, tries_max: int) -> Work:
    """Back to the newest image that is not used up, else to a fresh attempt, else the end."""
    ended = _enter(work, Phase.SUSPENDED, now, reason)  # adds up ran_ms
    failures = ended.failures + (0 if _is_called_in(work) else 1)
    image, image_before = work.image, work.image_before
    if failures >= tries_max:
        image, image_before, failures = image_before, None, 0
    kept_ms = 0 if image is None else image.ran_ms
    thrown_ms = max(progress_ms(ended) - kept_ms, 0)
    told = f"{reason}; {thrown_ms} ms of its run are lost" if thrown_ms else reason
    back = replace(
        ended,
        image=image,
        image_before=image_before,
        lost_ms=ended.lost_ms + thrown_ms,
        receipts=_cost(ended.receipts, thrown_ms),
        reason=told,
        failures=failures,
        saves_failed=0,
        not_before=Instant(now + backoff_ms(max(failures, 1))),
    )
    if image is not None:
        return back
    if work.attempts >= ATTEMPTS_MAX and not has_given_way(work):
        return _end(
            back, now, Outcome.FAILED, None, f"gave up after {work.attempts} starts: {told}"
        )
    return replace(back, phase=Phase.PENDING)


def _failed_once(work: Work, now: Instant) -> Work:
    failures = work.failures + 1
    return replace(work, failures=failures, not_before=Instant(now + backoff_ms(failures)))


def _unsaved_again(work: Work, now: Instant) -> Work:
    """A row of failed saves is not over because it has run for long since."""
    count = work.saves_failed + 1
    return replace(work, saves_failed=count, not_before=Instant(now + backoff_ms(count)))


def _end(work: Work, now: Instant, outcome: Outcome, exit_code: int | None, why_ended: str) -> Work:
    return _enter(
        work,
        Phase.ENDED,
        now,
        "",
        outcome=outcome,
        exit_code=exit_code,
        why_ended=why_ended or outcome.value,
        ended_at=now,
    )
