"""Elastic work gives back what it was lent, before anything is suspended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.fleets import NOW, a_job, a_node, a_snapshot, placed, planned

from onefleet.core.plan import Decision, Place, Resize, Suspend
from onefleet.domain.fleet import Node
from onefleet.domain.ids import Instant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Terms, Work

NEVER = Terms(checkpoint_every_ms=0)
LATER = Instant(NOW + 60_000)


def elastic(name: str, node: str, devices: str, tier: Tier = Tier.STANDARD, **more: Any) -> Work:
    job = a_job(
        name, tier=tier, devices_max=len(devices.split()), terms=NEVER, submitted_at=NOW, **more
    )
    return placed(job, (node, devices))


def new(devices: int = 1, tier: Tier = Tier.STANDARD, **more: Any) -> Work:
    return a_job("new", devices, tier, submitted_at=LATER, phase_since=LATER, **more)


def decided(nodes: list[Node], *works: Work) -> tuple[Decision, ...]:
    lasting = [replace(node, lease_expires_at=Instant(LATER + 60_000)) for node in nodes]
    return planned(a_snapshot(lasting, works), now=LATER).decisions


def told(decisions: tuple[Decision, ...]) -> list[tuple[str, str]]:
    """What has which devices of n1 or others from now on."""
    found = []
    for decision in decisions:
        assert isinstance(decision, Resize | Place), decision
        devices = dict.fromkeys(d for s in decision.placement for d in s.devices)
        found.append((decision.work_id, " ".join(d.replace("/cpu", ".") for d in devices)))
    return found


def test_it_gives_back_as_much_as_is_needed_and_the_work_starts_at_once() -> None:
    nodes, wide = [a_node("n1", 4)], elastic("wide", "n1", "0 1 2 3")
    decisions = decided(nodes, wide, new())
    assert told(decisions) == [("wide", "n1.0 n1.1 n1.2"), ("new", "n1.3")]
    first = decisions[0]
    assert isinstance(first, Resize) and first.for_work == "new"
    assert first.reason == "lends new (standard) what it has above its least"
    assert told(decided(nodes, wide, new(3))) == [("wide", "n1.0"), ("new", "n1.1 n1.2 n1.3")]
    assert decided(nodes, wide, new(4)) == ()


def test_the_promise_of_premium_work_is_not_lent_and_nobody_lends_to_lower_ranks() -> None:
    nodes = [a_node("n1", 4)]
    for wide, waits, lends in (
        (Tier.PREMIUM, Tier.PREMIUM, False),
        (Tier.PREMIUM, Tier.BASIC, False),
        (Tier.STANDARD, Tier.BASIC, False),
        (Tier.BASIC, Tier.BASIC, True),
        (Tier.STANDARD, Tier.PREMIUM, True),
        (Tier.BASIC, Tier.PREMIUM, True),
    ):
        decisions = decided(nodes, elastic("wide", "n1", "0 1 2 3", wide), new(tier=waits))
        assert bool(decisions) is lends, (wide, waits)
        assert not any(isinstance(decision, Suspend) for decision in decisions)


def test_what_its_owner_asked_for_is_not_lent() -> None:
    wide = replace(elastic("wide", "n1", "0 1 2 3"), width=4)
    assert decided([a_node("n1", 4)], wide, new()) == ()


def test_only_those_that_are_needed_lend_lowest_rank_first() -> None:
    works = (
        elastic("a", "n1", "0 1 2"),
        elastic("b", "n1", "3 4 5", Tier.BASIC),
        elastic("c", "n2", "0 1 2 3 4 5"),
    )
    nodes = [a_node("n1", 6), a_node("n2", 6)]
    assert told(decided(nodes, *works, new(2))) == [
        ("c", "n2.0 n2.1 n2.2 n2.3"),
        ("new", "n2.4 n2.5"),
    ]
    here = (works[0], works[1])
    assert told(decided(nodes[:1], *here, new(2))) == [("b", "n1.3"), ("new", "n1.4 n1.5")]
    lent = told(decided(nodes[:1], *here, new(3)))
    assert lent == [("b", "n1.3"), ("a", "n1.0 n1.1"), ("new", "n1.2 n1.4 n1.5")]


def test_a_gang_is_dealt_to_fewer_devices_and_lends_to_a_gang() -> None:
    job = a_job("wide", workers=4, pack=4, terms=NEVER, submitted_at=NOW)
    wide = placed(job, *(("n1", str(n)) for n in range(4)))
    gang = new(workers=2)
    assert told(decided([a_node("n1", 4)], wide, gang)) == [
        ("wide", "n1.0 n1.1"),
        ("new", "n1.2 n1.3"),
    ]
    others = [a_node("n1", 2), a_node("n2", 2)]
    lenders = (elastic("a", "n1", "0 1"), elastic("b", "n2", "0 1"))
    assert told(decided(others, *lenders, gang)) == [
        ("a", "n1.0"), ("b", "n2.0"), ("new", "n1.1 n2.1"),
    ]  # fmt: skip


def test_who_has_lent_is_not_suspended_as_well() -> None:
    wide = elastic("wide", "n1", "0 1", Tier.BASIC)
    first = a_job("first", 1, Tier.PREMIUM, submitted_at=LATER, phase_since=LATER)
    decisions = decided([a_node("n1", 2)], wide, first, replace(new(), tier=Tier.PREMIUM))
    assert told(decisions) == [("wide", "n1.0"), ("first", "n1.1")]
