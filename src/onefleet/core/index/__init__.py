"""The index: what a pass looks things up in, so that it need not look at everything.

`Index` (index.py) is the whole of it. `Fleet` has the nodes, each a `Room` on `Shelves`; `Roster`
has the works, those that wait in `Lines`.
"""

from __future__ import annotations

from onefleet.core.index.homes import Home, Kin, is_in_reach, missing_image
from onefleet.core.index.index import Index, Record
from onefleet.core.index.lines import Shape
from onefleet.core.index.room import NOW, SOON, Hold, Kept, Room, gone
from onefleet.core.index.roster import LEAVING

__all__ = [
    "LEAVING",
    "NOW",
    "SOON",
    "Hold",
    "Home",
    "Index",
    "Kept",
    "Kin",
    "Record",
    "Room",
    "Shape",
    "gone",
    "is_in_reach",
    "missing_image",
]
