"""Packing: fractions of devices, devices of several products, and little left unusable.

`Packer` chooses places and keeps up with changes; `scores` are the ways to choose; `mix` learns
what is asked, `worth` what free devices are worth to it; `defragment` finds the few moves that are
worth their price. Nothing here knows of
works, tenants or time: a planner translates its demands into `Ask` and its nodes into `Host`.
"""

from __future__ import annotations

from onefleet.core.packing.mix import Mix
from onefleet.core.packing.packer import Host, Packer
from onefleet.core.packing.space import MILLI, Ask, Space, Spot
from onefleet.core.packing.worth import Worth

__all__ = ["MILLI", "Ask", "Host", "Mix", "Packer", "Space", "Spot", "Worth"]
