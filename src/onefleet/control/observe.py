"""What a node's report means for the state: a pure function from report to commit.

A report is level-triggered: it says what is true now, so a lost or repeated one does no harm.
Reports of an older epoch than the work's are of a placement that was given up, and are ignored.
A heartbeat that says nothing new gives an empty commit, which nobody writes: leases live in
memory (`leases.py`).
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onefleet.control import notes
from onefleet.core import lifecycle
from onefleet.domain.fleet import Cordon, Node, NodeState
from onefleet.domain.gang import CUT_LIMIT_MS
from onefleet.domain.ids import ImageId, Instant, WorkId
from onefleet.domain.serving import Replica
from onefleet.domain.work import Image, Making, Phase, Work, WorkKind
from onefleet.store.base import Commit, Note, Put, State
from onefleet.wire.agent import NodeReport, Observed, WorkerReport

Rank = tuple[WorkId, int]

#: A worker that is back: it runs, or stands still until all are.
_RESTORED = (Observed.RUNNING, Observed.RESTORE_HELD)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known besides the state. workers: of each rank that this report may be about, what
    the node that it is on reported last. vanished: works that this node should know and does not
    report."""

    workers: Mapping[Rank, WorkerReport]
    vanished: tuple[WorkId, ...] = ()


def observe(state: State, report: NodeReport, seen: Seen, lease: Instant, now: Instant) -> Commit:
    """The commit that makes the state agree with the report; empty when it does already.

    lease: until when the node may run its work, for a node that has to be written anyway.
    """
    changes: list[Put] = []
    found: list[Note] = []
    node = _node(state.nodes.get(report.node_id), report, lease, now)
    if node is not None:
        changes.append(Put(node))
        before = state.nodes.get(report.node_id)
        kind = "node.joined" if before is None or before.state is NodeState.LOST else "node.changed"
        found.append(Note(now, kind, node.id, f"{node.name}: {len(node.devices)} devices"))
    for work_id in _touched(report, seen):
        work = state.works.get(work_id)
        if work is None or work.phase in (Phase.PENDING, Phase.ENDED):
            continue
        after = _kept(state, work, report)
        if after == work:  # else what is known of it is looked at again with the next report
            after = _advanced(work, seen, now)
        if after != work:
            changes.append(Put(after))
            found.extend(notes.of_work(work, after, now))
        replica = _replica(state, after, seen)
        if replica is not None:
            changes.append(Put(replica))
    return Commit(changes=changes, notes=found)


def _touched(report: NodeReport, seen: Seen) -> Iterable[WorkId]:
    return dict.fromkeys(sorted([*(w.work_id for w in report.workers), *seen.vanished]))


def _node(known: Node | None, report: NodeReport, lease: Instant, now: Instant) -> Node | None:
    """The node's record if it has to be written, else None."""
    if known is None:
        return Node(
            id=report.node_id,
            name=report.name,
            state=NodeState.READY,
            devices=report.devices,
            memory_bytes=report.memory_bytes,
            checkpoint_mode=report.checkpoint_mode,
            checkpoint_reason=report.checkpoint_reason,
            lease_expires_at=lease,
            joined_at=now,
            region=report.region,
            zone=report.zone,
            address=report.address,
            cordons=_cordons((), report.cordons),
        )
    same = replace(
        known,
        name=report.name,
        state=NodeState.READY if known.state is NodeState.LOST else known.state,
        devices=report.devices,
        memory_bytes=report.memory_bytes,
        checkpoint_mode=report.checkpoint_mode,
        checkpoint_reason=report.checkpoint_reason,
        region=report.region,
        zone=report.zone,
        address=report.address,
        cordons=_cordons(known.cordons, report.cordons),
    )
    return None if same == known else replace(same, lease_expires_at=lease)


def _cordons(known: tuple[Cordon, ...], found: tuple[Cordon, ...]) -> tuple[Cordon, ...]:
    """A person's cordons stay; the agent's are as it says now, since when they first were."""
    kept = {cordon.device_id: cordon for cordon in known if cordon.until is None}
    before = {cordon.device_id: cordon for cordon in known}
    for cordon in found:
        old = before.get(cordon.device_id)
        since = old.since if old is not None and old.reason == cordon.reason else cordon.since
        kept.setdefault(cordon.device_id, replace(cordon, since=since))
    return tuple(kept[device_id] for device_id in sorted(kept))


def _kept(state: State, work: Work, report: NodeReport) -> Work:
    """The work with what this node has of its images."""
    image = work.image and _held(state, work, work.image, report)
    before = work.image_before and _held(state, work, work.image_before, report)
    if image is work.image and before is work.image_before:
        return work
    return replace(work, image=image, image_before=before)


def _held(state: State, work: Work, image: Image, report: NodeReport) -> Image:
    """The image with what this node has of it.

    Where a worker's image lies first of all, the work is brought back from. If that node is lost,
    or has it no more, another that has it takes its place.
    """
    nodes = list(image.nodes)
    copies = [list(image.holders(rank)[1:]) for rank in range(len(nodes))]
    here = report.node_id
    for worker in report.workers:
        rank = worker.rank
        if worker.work_id != work.id or rank >= len(nodes):
            continue
        has = image.id in worker.images
        others = copies[rank]
        if has and here not in (nodes[rank], *others):
            others.append(here)
        if not has and here in others:
            others.remove(here)
        first = state.nodes.get(nodes[rank])
        if not has and here == nodes[rank] and others:
            nodes[rank] = others.pop(0)
        elif has and here in others and (first is None or first.state is NodeState.LOST):
            others[others.index(here)], nodes[rank] = nodes[rank], here
    found = tuple(tuple(others) for others in copies) if any(copies) else ()
    if (tuple(nodes), found) == (image.nodes, image.copies):
        return image
    return replace(image, nodes=tuple(nodes), copies=found)


def _advanced(work: Work, seen: Seen, now: Instant) -> Work:
    """The work after what its workers report, all ranks taken together."""
    if work.id in seen.vanished:
        if work.phase is Phase.SUSPENDED:
            return work
        reason = "its node knows nothing of it any more"
        return lifecycle.apply(work, lifecycle.ProcessEnded(None, reason), now)
    reports = [seen.workers.get((work.id, rank)) for rank in range(work.demand.workers)]
    current = [r for r in reports if r is not None and r.epoch == work.epoch]
    for event in _events(work, current, now):
        work = lifecycle.apply(work, event, now)
    return work


def _events(work: Work, current: list[WorkerReport], now: Instant) -> list[lifecycle.Event]:
    """The lifecycle events that the reports of the current epoch stand for."""
    whole = len(current) == work.demand.workers
    states = [r.observed for r in current]
    if work.phase is Phase.SUSPENDED:
        gone = [r for r in current if r.observed is Observed.RESTORE_FAILED]
        return [lifecycle.ImageLost(gone[0].reason)] if gone else []
    if Observed.ENDED in states:
        return _end_events(work, current, whole)
    if work.phase is Phase.STARTING and whole and _all(states, Observed.RUNNING):
        return [lifecycle.Started()]
    failed = [r for r in current if r.observed is Observed.RESTORE_FAILED]
    if failed and work.phase is Phase.RESTORING:
        return [lifecycle.RestoreFailed(failed[0].reason)]
    if failed and work.phase is not Phase.STOPPING:
        # Its agent saved it unasked, when it went down or heard nothing, and cannot bring it back.
        return [lifecycle.ProcessEnded(None, failed[0].reason)]
    if work.phase is Phase.RESTORING:
        return [lifecycle.Restored()] if whole and _all(states, *_RESTORED) else []
    if work.phase is Phase.SAVING:
        return _save_events(work, current, now)
    saved = whole and _all(states, Observed.SAVED)
    if saved and work.phase in (Phase.RUNNING, Phase.FROZEN) and _saved_unasked(work, current):
        return [
            lifecycle.SaveOrdered(
                "its node saved it by itself: it went down, or heard nothing of the pool"
            ),
            _saved(work, current, now),
        ]
    if work.phase is Phase.RUNNING and work.making is not None:
        return _making_events(work, work.making, current, now)
    return []


def _save_events(work: Work, current: list[WorkerReport], now: Instant) -> list[lifecycle.Event]:
    """A save counts from when the images of all workers are whole, as none of them has run on."""
    whole = len(current) == work.demand.workers
    states = [r.observed for r in current]
    saved = whole and _all(states, Observed.SAVED)
    if work.cut or (saved and work.demand.workers == 1):
        return [_saved(work, current, now)] if saved else []
    failed = [r for r in current if r.observed is Observed.SAVE_FAILED]
    if failed:
        return [lifecycle.SaveFailed(failed[0].reason)]
    wanted = lifecycle.image_id(work)
    others = [r for r in current if r.observed is Observed.SAVED and r.image != wanted]
    if others and work.demand.workers > 1:
        told = f"rank {others[0].rank} was saved by its node before that"
        return [lifecycle.SaveFailed(told)]
    if now - work.phase_since >= CUT_LIMIT_MS and work.demand.workers > 1:
        told = f"not all of its workers were saved within {CUT_LIMIT_MS // 1000} s"
        return [lifecycle.SaveFailed(told)]
    if whole and _all(states, Observed.SAVE_HELD, Observed.SAVED):
        cut: list[lifecycle.Event] = [lifecycle.CutMade()]
        return [*cut, _saved(work, current, now)] if saved else cut
    return []


def _making_events(
    work: Work, making: Making, current: list[WorkerReport], now: Instant
) -> list[lifecycle.Event]:
    """What became of the image that was ordered while it runs."""
    made = [r.made for r in current if r.made is not None and r.made.image == making.id]
    failed = [m for m in made if m.error]
    if failed:
        return [lifecycle.CheckpointFailed(failed[0].error)]
    if work.demand.workers > 1 and now - making.ordered_at >= CUT_LIMIT_MS:
        told = f"not all of its workers were saved within {CUT_LIMIT_MS // 1000} s"
        return [lifecycle.CheckpointFailed(told)]
    if len(made) < work.demand.workers:
        return []
    image = Image(
        id=making.id,
        nodes=tuple(slot.node_id for slot in work.placement),
        size_bytes=sum(m.image_bytes for m in made),
        saved_at=now,
        took_ms=max(m.took_ms for m in made),
    )
    return [lifecycle.Checkpointed(image)]


def _saved_unasked(work: Work, current: list[WorkerReport]) -> bool:
    """Whether it is as good as saved by order: its agent went down, or heard nothing for a lease.

    A gang whose agents saved it under different names has no common image; each brings back its
    own worker.
    """
    return work.suspendable and all(r.image == current[0].image for r in current)


def _saved(work: Work, current: list[WorkerReport], now: Instant) -> lifecycle.Saved:
    lost_ms = max(r.image_lost_ms for r in current)
    return lifecycle.Saved(_image(work, current, now), lost_ms)


def _end_events(work: Work, current: list[WorkerReport], whole: bool) -> list[lifecycle.Event]:
    """A worker ended. A gang ends together: the others are stopped, and then it is over."""
    ended = [r for r in current if r.observed is Observed.ENDED]
    failed = [r for r in ended if r.exit_code != 0]
    first = _to_blame(work, failed) if failed else ended[0]
    events: list[lifecycle.Event] = []
    if work.kind is WorkKind.JOB and work.phase is Phase.STARTING and _ran(first):
        events.append(lifecycle.Started())
    if whole and len(ended) == len(current):
        return [*events, lifecycle.ProcessEnded(first.exit_code, first.reason)]
    if failed and work.phase is not Phase.STOPPING:
        return [*events, lifecycle.StopOrdered(_told(first))]
    told = f"rank {first.rank} has come to its end"
    if work.phase is Phase.SAVING and not work.cut:
        return [lifecycle.SaveFailed(told)]
    if work.phase is Phase.RUNNING and work.making is not None:
        return [lifecycle.CheckpointFailed(told)]
    return []


def _to_blame(work: Work, failed: Sequence[WorkerReport]) -> WorkerReport:
    """Which of several failures says why the gang ended.

    The one for which the others were stopped. Else one that the pool made (None); then one by a
    signal, as the others of the gang fail when they miss it; then a program's own. A gang that is
    being stopped has its signals from that, and they are the last to say anything.
    """
    stopping = work.phase is Phase.STOPPING

    def order(report: WorkerReport) -> tuple[bool, int, int]:
        code = report.exit_code
        by_signal = code in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
        kind = 0 if code is None else 2 if by_signal is stopping else 1
        return _told(report) != work.reason, kind, report.rank

    return min(failed, key=order)


def _told(report: WorkerReport) -> str:
    return f"rank {report.rank} ended: {report.reason}"


def _ran(report: WorkerReport) -> bool:
    """Whether its command ever ran; 126 and 127 say that it could not be started."""
    return report.exit_code is not None and report.exit_code not in (126, 127)


def _all(states: list[Observed], *wanted: Observed) -> bool:
    return all(state in wanted for state in states)


def _image(work: Work, current: list[WorkerReport], now: Instant) -> Image:
    """The image that the workers made together; each holds its own part under the same id."""
    return Image(
        id=ImageId(current[0].image or lifecycle.image_id(work)),
        nodes=tuple(slot.node_id for slot in work.placement),
        size_bytes=sum(r.image_bytes for r in current),
        saved_at=now,
        took_ms=max(r.image_took_ms for r in current),
    )


def _replica(state: State, work: Work, seen: Seen) -> Replica | None:
    """The replica's record with the address that its engine answers at, if that is news."""
    replica = state.replicas.get(work.id)
    report = seen.workers.get((work.id, 0))
    if replica is None or report is None or work.phase is not Phase.RUNNING:
        return None
    if report.epoch != work.epoch or not report.port:
        return None
    if (replica.host, replica.port) == (report.host, report.port):
        return None
    return replace(replica, host=report.host, port=report.port)
