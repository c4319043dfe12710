"""What the event log says of a change, in a person's words."""

from __future__ import annotations

from onefleet.domain.ids import Instant
from onefleet.domain.quantities import size
from onefleet.domain.work import Phase, Want, Work
from onefleet.store.base import Note

_WANTED = {
    Want.RUN: "running",
    Want.SUSPEND: "suspended",
    Want.FREEZE: "frozen",
    Want.STOP: "stopped",
}


def of_work(before: Work | None, after: Work, now: Instant) -> tuple[Note, ...]:
    """The notes of a work's change of phase and of what its owner wants; none for other changes."""
    if before is None:
        submitted = Note(now, f"{after.kind}.submitted", after.id, f"{after.tier} tier")
        if after.phase is Phase.PENDING:
            return (submitted,)
        return (submitted, Note(now, f"{after.kind}.{after.phase}", after.id, _text(after)))
    if before.phase is not after.phase:
        return (Note(now, f"{after.kind}.{after.phase}", after.id, _text(after)),)
    if before.want is not after.want:
        text = f"its owner wants it {_WANTED[after.want]}"
        return (Note(now, f"{after.kind}.want_{after.want}", after.id, text),)
    return ()


def _text(after: Work) -> str:
    if after.phase is Phase.ENDED:
        return f"{after.outcome}: {after.why_ended}"
    where = " ".join(device for slot in after.placement for device in slot.devices)
    if after.phase in (Phase.STARTING, Phase.RESTORING):
        return f"on {where}"
    if after.phase is Phase.SUSPENDED and after.image is not None and after.image.size_bytes:
        return f"{after.reason}; its image has {size(after.image.size_bytes)}"
    return after.reason or (f"on {where}" if where else "")
