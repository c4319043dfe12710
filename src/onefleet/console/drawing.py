"""Charts as SVG, drawn here: they need no script and are pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onefleet.wire.api import UtilisationView

WIDTH = 1000


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a bar. x and width in thousandths of it; style: a class of the style sheet."""

    label: str
    style: str
    x: int
    width: int
    percent: str


def utilisation_parts(used: UtilisationView) -> Sequence[Part]:
    """Device time by tier and kind of work, then what was free; together WIDTH."""
    if used.capacity_device_ms <= 0:
        return ()
    held = [(label, ms) for label, ms in sorted(used.held_device_ms.items()) if ms > 0]
    free = used.capacity_device_ms - sum(ms for _, ms in held)
    whole = max(used.capacity_device_ms, used.capacity_device_ms - free)
    parts, x = [], 0
    for label, ms in [*held, ("free", max(free, 0))]:
        width = round(ms * WIDTH / whole)
        width = min(width, WIDTH - x)
        if width or label == "free":
            style = label.replace(".", "-")
            parts.append(Part(label.replace(".", " "), style, x, width, f"{ms / whole:.0%}"))
        x += width
    return tuple(parts)
