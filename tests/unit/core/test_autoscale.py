"""How many replicas are wanted, and which go."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fleets import NOW, a_deployment, a_replica, placed

from onefleet.core.autoscale import DemandNow, scale, wanted
from onefleet.core.policy import Policy
from onefleet.domain.ids import Instant
from onefleet.domain.work import Want

POLICY = Policy()


def now_wanted(current: int, active: int, waiting: int, idle_ms: int = 0, **limits: int) -> int:
    deployment = a_deployment("d", replicas_wanted=current, **limits)
    asked = DemandNow(active, waiting, Instant(NOW - idle_ms))
    return wanted(deployment, asked, current, NOW, POLICY)


@pytest.mark.parametrize(
    ("current", "active", "waiting", "idle_ms", "expected"),
    [
        (0, 0, 1, 0, 1),  # the first request wakes it
        (0, 0, 9, 0, 3),  # 9 requests, 4 slots each
        (1, 4, 5, 0, 3),
        (1, 4, 0, 0, 1),  # full, but nobody waits
        (2, 1, 0, 0, 2),  # busy enough to stay
        (2, 0, 0, 4_999, 2),
        (2, 0, 0, 5_000, 1),  # quiet for long enough: one at a time
        (1, 0, 0, 5_000, 0),
        (0, 0, 0, 5_000, 0),
        (4, 0, 99, 0, 4),  # the maximum
    ],
)
def test_wanted(current: int, active: int, waiting: int, idle_ms: int, expected: int) -> None:
    assert now_wanted(current, active, waiting, idle_ms) == expected


def test_limits_and_removal() -> None:
    assert now_wanted(0, 0, 0, 60_000, replicas_min=2) == 2
    assert now_wanted(9, 0, 0, 0, replicas_max=3) == 3
    removed = a_deployment("d", replicas_wanted=2, replicas_min=1, removed_at=NOW)
    assert wanted(removed, DemandNow(1, 1, NOW), 2, NOW, POLICY) == 0


def test_what_is_on_its_way_must_show_first_that_it_does_not_suffice() -> None:
    deployment = a_deployment("d", replicas_wanted=1)
    asked = DemandNow(0, 12, NOW)
    assert wanted(deployment, asked, 0, NOW, POLICY) == 1
    assert wanted(deployment, asked, 1, NOW, POLICY) == 3


def test_what_runs_longest_is_stopped_last() -> None:
    old = placed(a_replica("old", submitted_at=Instant(1)), ("n1", "0"))
    young = placed(a_replica("young", submitted_at=Instant(2)), ("n1", "1"))
    starting = placed(a_replica("starting", submitted_at=Instant(0)), ("n1", "2"), running=False)
    pending = a_replica("pending", submitted_at=Instant(0))
    leaving = replace(placed(a_replica("leaving"), ("n1", "3")), want=Want.STOP)
    works = [old, young, starting, pending, leaving]
    assert scale(4, works) == (0, ())
    assert scale(0, works).stop == ("pending", "starting", "young", "old")
    assert scale(3, works).stop == ("pending",)
    assert scale(6, works) == (2, ())
