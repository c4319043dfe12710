"""What is kept for the heads of the queue, and who may use it until they get it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.fleets import (
    GIB,
    NOW,
    a_job,
    a_node,
    a_replica,
    a_snapshot,
    after,
    decided,
    placed,
    places,
    planned,
)

from onefleet.domain.fleet import CheckpointMode
from onefleet.domain.ids import Instant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Terms, Work

LATE = Instant(NOW - 30_000)


def waiting(name: str, devices: int = 1, tier: Tier = Tier.BASIC, **more: Any) -> Work:
    return a_job(name, devices, tier, **({"submitted_at": NOW, "phase_since": NOW} | more))


def head(devices: int = 2, tier: Tier = Tier.PREMIUM, **more: Any) -> Work:
    return waiting("head", devices, tier, submitted_at=LATE, phase_since=LATE, **more)


def holder(tier: Tier = Tier.PREMIUM, **more: Any) -> Work:
    return placed(a_job("holder", tier=tier, **more), ("n1", "0"))


def test_lower_ranks_use_what_is_kept_if_they_give_it_back() -> None:
    nodes = [a_node("n1", 2)]
    plan = planned(a_snapshot(nodes, [holder(), head(), waiting("b")]))
    assert decided(plan) == ["start b on n1/cpu1"]
    for other in (
        waiting("fixed", suspendable=False),
        a_replica("r", tier=Tier.BASIC, submitted_at=NOW, phase_since=NOW),
        waiting("peer", tier=Tier.PREMIUM),
    ):
        assert not planned(a_snapshot(nodes, [holder(), head(), other])).decisions


def test_nobody_uses_it_where_jobs_have_to_save_themselves() -> None:
    nodes = [a_node("n1", 2, checkpoint_mode=CheckpointMode.COOPERATIVE)]
    assert not planned(a_snapshot(nodes, [holder(), head(), waiting("b")])).decisions


def test_the_head_takes_it_back_as_soon_as_that_suffices() -> None:
    nodes = [a_node("n1", 2)]
    borrower = placed(a_job("b", tier=Tier.BASIC), ("n1", "1"))
    assert not planned(a_snapshot(nodes, [holder(), head(), borrower])).decisions
    plan = planned(a_snapshot(nodes, [head(), borrower]))
    assert decided(plan) == ["suspend b: makes room for head (premium)"]


def test_peers_of_the_head_do_not_have_borrowers_leave_for_themselves() -> None:
    """They would not get what comes free: it is kept for the head, and lent again."""
    nodes = [a_node("n1", 2)]
    borrower = placed(a_job("b", tier=Tier.BASIC), ("n1", "1"))
    peer = waiting("peer", tier=Tier.PREMIUM)
    fixed = waiting("fixed", tier=Tier.STANDARD, suspendable=False)
    snapshot = a_snapshot(nodes, [holder(), head(), borrower, peer, fixed, waiting("c")])
    assert not planned(snapshot).decisions


def test_what_is_kept_stays_the_same_whoever_borrows_it() -> None:
    """Else who has a borrower leave sees what comes free kept for the head, and lent again."""
    nodes = [a_node("n1", 2), a_node("n2", 2), a_node("n3", 2)]
    held = [placed(a_job(f"p{n}", tier=Tier.PREMIUM), (f"n{n}", "0")) for n in (1, 2)]
    borrower = placed(a_job("b", 2, tier=Tier.BASIC), ("n3", "0 1"))
    replica = a_replica("r", tier=Tier.STANDARD, submitted_at=NOW, phase_since=NOW)
    gang = head(workers=2)
    snapshot = a_snapshot(nodes, [*held, borrower, gang, replica])
    assert decided(planned(snapshot)) == ["start r on n2/cpu1"]
    lent = a_snapshot(nodes, [*held, borrower, gang, placed(replica, ("n2", "1")), a_replica("q")])
    assert not planned(lent).decisions


def test_who_ranks_between_takes_them_over() -> None:
    nodes = [a_node("n1", 2)]
    borrower = placed(a_job("b", tier=Tier.BASIC), ("n1", "1"))
    between = waiting("s", tier=Tier.STANDARD)
    plan = planned(a_snapshot(nodes, [holder(), head(), borrower, between]))
    assert decided(plan) == ["suspend b: makes room for s (standard)"]


def test_nothing_is_kept_from_its_own_rank_while_higher_ranks_are_in_the_way() -> None:
    """The head gets nothing the sooner if its peers wait as well."""
    nodes = [a_node("n1", 2)]
    peer = waiting("peer", tier=Tier.BASIC)
    ahead = head(tier=Tier.BASIC)
    for tier, starts in ((Tier.PREMIUM, ["start peer on n1/cpu1"]), (Tier.BASIC, [])):
        plan = planned(a_snapshot(nodes, [holder(tier), ahead, peer]))
        assert decided(plan) == starts
        fixed = replace(peer, suspendable=False)
        assert not planned(a_snapshot(nodes, [holder(tier), ahead, fixed])).decisions


def test_nothing_is_kept_from_its_own_rank_for_what_is_not_in_sight() -> None:
    """What has run for an hour will hardly end in minutes, unless its owner says so."""
    nodes = [a_node("n1", 2)]
    peer = waiting("peer", tier=Tier.PREMIUM)
    since, never = Instant(NOW - 3_600_000), Terms(checkpoint_every_ms=0)
    lasts = placed(a_job("holder", tier=Tier.PREMIUM, terms=never), ("n1", "0"), at=since)
    assert decided(planned(a_snapshot(nodes, [lasts, head(), peer]))) == ["start peer on n1/cpu1"]
    ends = replace(lasts, terms=replace(never, estimate_ms=3_900_000))
    assert not planned(a_snapshot(nodes, [ends, head(), peer])).decisions


def test_memory_is_lent_as_well() -> None:
    nodes = [a_node("n1", 3, memory_bytes=4 * GIB)]
    ahead = head(1, memory_bytes=4 * GIB)
    held = holder(memory_bytes=GIB)
    plan = planned(a_snapshot(nodes, [held, ahead, waiting("b", memory_bytes=2 * GIB)]))
    assert list(places(plan)) == ["b"]
    fixed = waiting("fixed", memory_bytes=2 * GIB, suspendable=False)
    assert not planned(a_snapshot(nodes, [held, ahead, fixed])).decisions


def test_what_is_lent_once_is_not_lent_twice() -> None:
    nodes = [a_node("n1", 3)]
    borrowers = [waiting(name) for name in ("b", "c", "d")]
    snapshot = a_snapshot(nodes, [holder(), head(3), *borrowers])
    plan = planned(snapshot)
    assert len(places(plan)) == 2
    assert not planned(after(snapshot, plan)).decisions
