"""How many spares the pool keeps: a setting of its administrators, which outlives the process.

It is kept as marks of the store, one a kind of device, and becomes part of the planner's policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onefleet.core.policy import Policy
from onefleet.domain.fleet import DeviceKind
from onefleet.store.base import State

Wanted = tuple[tuple[DeviceKind, int], ...]


def mark_of(kind: DeviceKind) -> str:
    """The name of the mark that says how many nodes with this kind are kept."""
    return f"spares.{kind}"


def spares_of(marks: Mapping[str, int]) -> Wanted:
    """The kinds of which spares are kept, with how many."""
    found = ((kind, marks.get(mark_of(kind), 0)) for kind in sorted(DeviceKind))
    return tuple((kind, count) for kind, count in found if count)


def sparing(policy: Policy, state: State) -> Policy:
    """The policy with the spares that the state says; its own where it says nothing."""
    wanted = spares_of(state.marks)
    return replace(policy, spares=wanted) if wanted else policy
