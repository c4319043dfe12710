"""Room that others made for a work is its own, whoever else waits in its rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fleets import a_job, a_snapshot, after, decided, placed, planned, suspended
from tests.unit.core.test_planner import saved_now
from tests.unit.core.test_ranks import lasting_node

from onefleet.core import lifecycle
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.ids import Instant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Phase, Terms, Want, Work

MINUTE = 60_000
HOUR = 60 * MINUTE
NOON = Instant(12 * HOUR)
SOON = Instant(NOON + MINUTE)
POLICY = Policy(patience_ms=30_000, node_mttf_ms=0)
SAVING = "suspend r1: makes room for w (basic), which has had less device time"


def basic(name: str, at: Instant = NOON, devices: int = 1, **changes: object) -> Work:
    never = Terms(checkpoint_every_ms=0)
    return a_job(name, devices, Tier.BASIC, submitted_at=at, phase_since=at, terms=never, **changes)


def asked(devices: int = 1) -> Snapshot:
    """One of two that have run for hours has been asked to make room for one that is new."""
    held = [
        placed(basic(f"r{n}", served_ms=16**n * HOUR), ("n1", str(n)), at=NOON) for n in range(2)
    ]
    snapshot = a_snapshot([lasting_node("n1", 2)], [*held, basic("w", devices=devices)])
    plan = planned(snapshot, POLICY, SOON)
    assert SAVING in decided(plan)
    return after(snapshot, plan, SOON)


def with_(snapshot: Snapshot, *works: Work) -> Snapshot:
    return replace(snapshot, works={**snapshot.works, **{work.id: work for work in works}})


def told(snapshot: Snapshot, now: int = SOON) -> list[str]:
    return decided(planned(snapshot, POLICY, Instant(now)))


STARTED = "start w on n1/cpu1"


def starved() -> Work:
    """Work that goes before all others of its rank."""
    return basic("a", Instant(NOON - 100 * HOUR))


def test_who_goes_before_it_and_has_waited_less_does_not_take_its_room() -> None:
    newer = replace(basic("a"), submitted_at=Instant(NOON - 1), phase_since=SOON)  # older: first
    freed = with_(saved_now(asked(), "r1", SOON), newer)
    assert told(freed) == [STARTED]


def test_who_has_waited_has_room_of_its_own_made_and_not_its() -> None:
    waiting = with_(asked(), starved())
    other = "suspend r0: makes room for a (basic), which has had next to nothing of its time"
    assert told(waiting) == [other]
    both = after(waiting, planned(waiting, POLICY, SOON), SOON)
    assert told(both) == []
    one = saved_now(both, "r1", SOON)
    assert told(one) == ["start a on n1/cpu1"]
    one = after(one, planned(one, POLICY, SOON), SOON)
    assert told(saved_now(one, "r0", SOON)) == ["start w on n1/cpu0"]


def test_a_higher_rank_takes_it_all_the_same() -> None:
    premium = a_job("p", 1, Tier.PREMIUM, submitted_at=SOON, phase_since=SOON)
    freed = with_(saved_now(asked(), "r1", SOON), premium)
    assert "start p on n1/cpu1" in told(freed)
    assert STARTED not in told(freed)


@pytest.mark.parametrize("want", [Want.SUSPEND, Want.STOP])
def test_nothing_is_kept_for_what_is_not_wanted_any_more(want: Want) -> None:
    freed = saved_now(asked(), "r1", SOON)
    freed = with_(freed, replace(freed.works["w"], want=want), starved())
    assert "start a on n1/cpu1" in told(freed)


def test_nothing_is_kept_for_what_has_run_since_it_was_made_room_for() -> None:
    freed = saved_now(asked(), "r1", SOON)
    later = Instant(SOON + 10 * MINUTE)
    ran = replace(suspended(basic("w"), "n1", at=SOON), phase_since=later)
    freed = with_(freed, ran, starved())
    assert "start a on n1/cpu1" in told(freed, later + MINUTE)


def test_room_that_is_made_piece_by_piece_is_kept_whole() -> None:
    both = asked(devices=2)
    one = saved_now(both, "r0", SOON)
    assert told(with_(one, starved())) == []
    two = saved_now(one, "r1", SOON)
    assert told(with_(two, starved())) == ["start w on n1/cpu0 n1/cpu1"]


def test_what_ended_in_the_moment_in_which_it_was_asked_made_room_too() -> None:
    saving = asked()
    ended = lifecycle.apply(saving.works["r1"], lifecycle.ProcessEnded(0, ""), SOON)
    assert STARTED in told(with_(saving, ended, starved()))


def test_the_free_part_of_a_device_that_leaves_for_it_is_nobody_else_s() -> None:
    half = [
        replace(basic(f"s{n}", milli=500, served_ms=(n + 1) * HOUR), phase=Phase.PENDING)
        for n in range(2)
    ]
    snapshot = a_snapshot([lasting_node("n1", 1)], half)
    snapshot = after(snapshot, planned(snapshot, POLICY, NOON), NOON)
    run = [lifecycle.apply(snapshot.works[work.id], lifecycle.Started(), NOON) for work in half]
    snapshot = with_(snapshot, *run, basic("w"))
    both = after(snapshot, planned(snapshot, POLICY, SOON), SOON)
    one = saved_now(both, "s0", SOON)
    assert told(one, SOON + 2_000) == []
    assert told(saved_now(one, "s1", SOON), SOON + 2_000) == ["start w on n1/cpu0"]
