"""The diagrams of the docs, drawn from the table of `lifecycle`; a test holds the docs to them.

`diagram` is the whole table, in the names of the code. The others each show a part, and say what
happens in plain words: `life_diagram` what a job goes through, `moving_diagram` how it moves,
`cut_diagram` how all workers of a job are saved as one, `failure_diagram` what becomes of it when
something fails.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from onefleet.core.lifecycle import TRANSITIONS, VOID_AFTER_CUT
from onefleet.core.work_events import (
    Checkpointed,
    CheckpointFailed,
    CheckpointOrdered,
    CutMade,
    Event,
    Froze,
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
)
from onefleet.domain.work import Phase

#: What has happened, for readers who do not know the code.
WORDS: Mapping[type[Event], str] = {
    Placed: "it gets devices",
    Started: "all its workers run",
    Restored: "all its workers run again",
    RestoreFailed: "it could not be brought back",
    SaveOrdered: "it is to make room for others or to move",
    CutMade: "every worker stands still with a whole image",
    Saved: "its image is whole, nothing of it runs",
    SaveFailed: "it could not be saved, and is unharmed",
    StopOrdered: "it is told to stop",
    ProcessEnded: "its program ended",
    Lost: "a node that it ran on is lost",
    ImageLost: "its image cannot be had",
    Froze: "it is to make room for a moment",
    Thawed: "it gets devices on the same nodes",
    Resized: "it gets more or fewer devices",
    CheckpointOrdered: "an image is due",
    Checkpointed: "the image is whole",
    CheckpointFailed: "no image could be made",
}

#: Those that are nobody's failure, and end nothing.
_WELL = (
    Placed, Started, Froze, Thawed, Resized, CheckpointOrdered, Checkpointed, SaveOrdered, CutMade,
    Saved, SaveFailed, Restored,
)  # fmt: skip
#: The phases between which a job moves.
_MOVING = (Phase.RUNNING, Phase.FROZEN, Phase.SAVING, Phase.SUSPENDED, Phase.RESTORING)
#: Those that throw it back, and what it comes down to.
_BAD = (Lost, RestoreFailed, ImageLost)
_THEN: Mapping[str, str] = {
    Phase.SUSPENDED: "an image of it can be used",
    Phase.PENDING: "none can, it starts anew",
    Phase.ENDED: "none can, after too many starts",
}
_HOLDS, _CUT, _FAILED = "holds", "cut", "failed"

_Edge = tuple[str, str, type[Event]]


def diagram() -> str:
    """The whole table."""
    lines = [f"[*] --> {Phase.PENDING}"]
    for (phase, event), targets in TRANSITIONS.items():
        if targets != (phase,):
            lines.extend(f"{phase} --> {target}: {event.__name__}" for target in targets)
    lines.append(f"{Phase.ENDED} --> [*]")
    return _page(lines)


def life_diagram() -> str:
    """What a job goes through when nothing fails."""
    well = (*_WELL, StopOrdered, ProcessEnded)
    ways = [
        (phase, target, event)
        for phase, target, event in _edges(well)
        if phase != target and event is not SaveFailed
        # A program may end wherever it runs; shown where it is meant to.
        if event is not ProcessEnded
        or (phase, target)
        in (
            (Phase.RUNNING, Phase.ENDED),
            (Phase.STOPPING, Phase.ENDED),
        )
    ]
    return _page([f"[*] --> {Phase.PENDING}", *_told(ways), f"{Phase.ENDED} --> [*]"])


def moving_diagram() -> str:
    """How a job moves: without starts, ends and losses."""
    return _page(_told((a, b, event) for a, b, event in _edges(_WELL) if a in _MOVING))


def cut_diagram() -> str:
    """How a job is saved: the phase saving before and after its cut, and what ends it."""
    lines = [
        f'state "{Phase.SAVING}: each worker that is saved stands still and waits" as {_HOLDS}',
        f'state "{Phase.SAVING}: the cut is made, all are given up" as {_CUT}',
    ]
    ways: list[_Edge] = []
    for phase, target, event in _edges((*_WELL, StopOrdered)):
        if target == Phase.SAVING != phase:
            ways.append((phase, _HOLDS, event))
        elif event is CutMade:
            ways.append((_HOLDS, _CUT, event))
        elif phase == Phase.SAVING:
            ways.append((_HOLDS, target, event))
            if event not in VOID_AFTER_CUT:
                ways.append((_CUT, target, event))
    return _page([*lines, *_told(ways)])


def failure_diagram() -> str:
    """Where a job is after a failure: on its newest usable image, at its start, or at its end."""
    lines = [f"state {_FAILED} <<choice>>"]
    onward: dict[str, None] = {}
    for event in _BAD:
        phases = [p for p, known in TRANSITIONS if known is event and p is not Phase.STOPPING]
        name = event.__name__
        lines.append(f'state "{", ".join(phases)}" as {name}')
        lines.append(f"{name} --> {_FAILED}: {WORDS[event]}")
        onward |= dict.fromkeys(t for phase in phases for t in TRANSITIONS[phase, event])
    return _page([*lines, *(f"{_FAILED} --> {target}: {_THEN[target]}" for target in onward)])


def _edges(events: Collection[type[Event]]) -> list[_Edge]:
    return [
        (phase, target, event)
        for (phase, event), targets in TRANSITIONS.items()
        for target in targets
        if event in events
    ]


def _told(edges: Iterable[_Edge]) -> list[str]:
    """An arrow for each two ends; what leads along it, in words."""
    words: dict[tuple[str, str], list[str]] = {}
    for phase, target, event in edges:
        words.setdefault((phase, target), []).append(WORDS[event])
    return [f"{a} --> {b}: {', or '.join(some)}" for (a, b), some in words.items()]


def _page(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in ("stateDiagram-v2", *(f"    {x}" for x in lines)))
