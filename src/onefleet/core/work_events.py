"""What can happen to a work: the events of its lifecycle (`lifecycle.py` has the table)."""

from __future__ import annotations

from dataclasses import dataclass

from onefleet.domain.ids import NodeId, WorkId
from onefleet.domain.work import Image, Slot, Want


@dataclass(frozen=True, slots=True)
class Placed:
    """The planner gave it devices. restore: bring it back from its image, else start it fresh."""

    placement: tuple[Slot, ...]
    restore: bool


@dataclass(frozen=True, slots=True)
class Started:
    """All its workers run; a replica's engine answers."""


@dataclass(frozen=True, slots=True)
class Restored:
    """All its workers run again."""


@dataclass(frozen=True, slots=True)
class RestoreFailed:
    """It could not be brought back; nothing of it runs, and the image is kept."""

    reason: str


@dataclass(frozen=True, slots=True)
class SaveOrdered:
    """Its state shall be saved and its devices freed. by: the work that they are for."""

    reason: str
    by: WorkId | None = None


@dataclass(frozen=True, slots=True)
class CutMade:
    """All its workers stand still with a whole image: the save counts, and cannot fail any more."""


@dataclass(frozen=True, slots=True)
class Saved:
    """The image of all its workers is whole and durable; nothing of it runs.

    lost_ms: run time just before the save that is not in it: a program that is asked to save
    itself may not have done so.
    """

    image: Image
    lost_ms: int = 0


@dataclass(frozen=True, slots=True)
class SaveFailed:
    """It could not be saved; it runs on, unharmed."""

    reason: str


@dataclass(frozen=True, slots=True)
class StopOrdered:
    """Its processes shall end: for good when its owner wants that, else until there is room.

    by: the work that its devices are for.
    """

    reason: str
    by: WorkId | None = None


@dataclass(frozen=True, slots=True)
class ProcessEnded:
    """Nothing of it runs any more. exit_code: 128 + signal; None when the pool lost sight of it."""

    exit_code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A node that it ran on is lost, and with it what ran there."""

    reason: str


@dataclass(frozen=True, slots=True)
class ImageLost:
    """Its newest image cannot be had any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class WantChanged:
    """Its owner wants something else of it. Wanting it stopped cannot be taken back."""

    want: Want


@dataclass(frozen=True, slots=True)
class Froze:
    """It stands still and its devices are free; its memory stays. by: whom they are for."""

    reason: str
    by: WorkId | None = None


@dataclass(frozen=True, slots=True)
class Thawed:
    """It goes on, on the nodes where it stands, with these devices."""

    placement: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Resized:
    """It runs on, on the same nodes, with other devices."""

    placement: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class CheckpointOrdered:
    """An image shall be made of it while it runs on."""


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """The image that was ordered while it runs is whole and durable."""

    image: Image


@dataclass(frozen=True, slots=True)
class CheckpointFailed:
    """The image that was ordered while it runs could not be made; it runs on, unharmed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Readied:
    """What it comes after has succeeded."""


@dataclass(frozen=True, slots=True)
class Promised:
    """Its tier's promise fits beside what is promised already, and holds from now on."""


@dataclass(frozen=True, slots=True)
class WidthWanted:
    """Its owner wants it on so many devices; None: on as many as there are for it."""

    devices: int | None


@dataclass(frozen=True, slots=True)
class MoveWanted:
    """It shall be on these nodes (by rank, or one for all); empty: wherever it is. stranded: a
    device that it holds is out of use. driven: the pool has chosen the nodes, unless its owner did
    before."""

    nodes: tuple[NodeId, ...]
    stranded: bool = False
    driven: bool = False


Event = (
    Placed
    | Started
    | Restored
    | RestoreFailed
    | SaveOrdered
    | Saved
    | SaveFailed
    | StopOrdered
    | ProcessEnded
    | Lost
    | ImageLost
    | WantChanged
    | CutMade
    | Froze
    | Thawed
    | Resized
    | CheckpointOrdered
    | Checkpointed
    | CheckpointFailed
    | Readied
    | Promised
    | WidthWanted
    | MoveWanted
)
