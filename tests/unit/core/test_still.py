"""Victims stand still where their memory is not in the way, and are saved where it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.fleets import GIB, NOW, a_job, a_node, a_snapshot, after, placed, planned

from onefleet.core import lifecycle
from onefleet.core.plan import Decision, Freeze, Place, Suspend, Thaw
from onefleet.domain.fleet import CheckpointMode, DeviceKind, Node
from onefleet.domain.ids import Instant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Phase, Terms, Work

NEVER = Terms(checkpoint_every_ms=0)
LATER = Instant(NOW + 5_000)


def a_pool(**changes: Any) -> Node:
    lasting = {"memory_bytes": 8 * GIB, "lease_expires_at": Instant(1 << 50)}
    return a_node("n1", 1, **{**lasting, **changes})


def holder(memory: int = 4, **changes: Any) -> Work:
    job = a_job("held", 1, Tier.BASIC, memory_bytes=memory * GIB, terms=NEVER, **changes)
    return placed(job, ("n1", "0"), at=NOW)


def urgent(memory: int = 4, **changes: Any) -> Work:
    since = {"submitted_at": LATER, "phase_since": LATER}
    return a_job("urgent", 1, Tier.PREMIUM, memory_bytes=memory * GIB, **since, **changes)


def decided(node: Node, *works: Work, now: Instant = LATER) -> tuple[Decision, ...]:
    return planned(a_snapshot([node], works), now=now).decisions


def test_it_stands_still_and_the_other_starts_in_the_same_pass() -> None:
    freeze, place = decided(a_pool(), holder(), urgent())
    assert freeze == Freeze("held", "makes room for urgent (premium)", "urgent")
    assert isinstance(place, Place) and place.work_id == "urgent"


@pytest.mark.parametrize(
    ("node", "held", "waits"),
    [
        (a_pool(), holder(5), urgent(4)),  # together more than the node has
        (a_pool(), holder(0), urgent(4)),
        (a_pool(), holder(4), urgent(0)),
        (a_pool(checkpoint_mode=CheckpointMode.COOPERATIVE), holder(), urgent()),
    ],
)
def test_it_is_saved_where_its_memory_is_or_may_be_in_the_way(
    node: Node, held: Work, waits: Work
) -> None:
    (decision,) = decided(node, held, waits)
    assert isinstance(decision, Suspend) and decision.for_work == "urgent"


def test_what_a_device_remembers_is_in_the_way() -> None:
    node = a_pool(kind=DeviceKind.GPU, device_bytes=80 * GIB)
    gpu = {"kind": DeviceKind.GPU}
    (decision,) = decided(node, holder(**gpu), urgent(**gpu))
    assert isinstance(decision, Suspend)


def test_it_goes_on_when_the_other_has_ended_and_is_saved_when_that_takes_long() -> None:
    snapshot = a_snapshot([a_pool()], [holder(), urgent()])
    then = after(snapshot, planned(snapshot, now=LATER), LATER)
    held, other = then.works["held"], then.works["urgent"]
    assert held.phase is Phase.FROZEN and other.phase is Phase.STARTING
    (receipt,) = held.receipts
    assert (receipt.by, receipt.lost_ms) == ("urgent", 0)
    soon, late = Instant(LATER + 10_000), Instant(LATER + 61_000)
    other = lifecycle.apply(other, lifecycle.Started(), LATER)
    assert decided(a_pool(), held, replace(other, terms=NEVER), now=soon) == ()
    ended = lifecycle.apply(other, lifecycle.ProcessEnded(0, "it ended"), soon)
    (thaw,) = decided(a_pool(), held, ended, now=soon)
    assert isinstance(thaw, Thaw)
    (suspend,) = decided(a_pool(), held, replace(other, terms=NEVER), now=late)
    assert isinstance(suspend, Suspend)
