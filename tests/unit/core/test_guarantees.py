"""Work that cannot be suspended leaves alone what is reserved for others, now or before it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fleets import NOW, a_job, a_node, a_reservation, a_snapshot, a_tenant, placed, planned

from onefleet.core.plan import Place
from onefleet.domain.fleet import Node
from onefleet.domain.ids import Instant, ReservationId
from onefleet.domain.tenancy import Reservation
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Speed, Terms, Work

HOUR_MS = 3_600_000


def window(devices: int, in_ms: int = HOUR_MS, **changes: Any) -> Reservation:
    """Of tenant v; it opens and closes again."""
    starts_at = Instant(NOW + in_ms)
    found = a_reservation("v", devices)
    return replace(found, starts_at=starts_at, ends_at=Instant(starts_at + HOUR_MS), **changes)


def fixed(name: str, devices: int = 1, estimate_ms: int | None = None, **changes: Any) -> Work:
    """A job that cannot be suspended."""
    terms = Terms(estimate_ms=estimate_ms, checkpoint_every_ms=0)
    return a_job(name, devices, **{"suspendable": False, "terms": terms, **changes})


def starts(*works: Work, reserved: list[Reservation], nodes: list[Node] | None = None) -> list[str]:
    nodes = nodes or [a_node("n1", 4)]
    tenants = [a_tenant("v"), a_tenant("t", "v")]
    decided = planned(a_snapshot(nodes, works, reservations=reserved, tenants=tenants)).decisions
    return sorted(d.work_id for d in decided if isinstance(d, Place))


def test_nobody_knows_when_it_ends_so_it_leaves_what_the_window_needs() -> None:
    assert starts(fixed("j", 2), reserved=[window(2)]) == ["j"]
    assert starts(fixed("j", 3), reserved=[window(2)]) == []
    assert starts(fixed("j", 3, suspendable=True), reserved=[window(2)]) == ["j"]
    assert starts(fixed("j", 3), reserved=[window(2, in_ms=-3 * HOUR_MS)]) == ["j"]
    assert starts(fixed("j", 3), reserved=[a_reservation("v", 2)]) == []


def test_one_that_ends_before_the_window_may_have_its_devices_until_then() -> None:
    assert starts(fixed("j", 4, HOUR_MS), reserved=[window(4)]) == ["j"]
    assert starts(fixed("j", 4, HOUR_MS + 1), reserved=[window(4)]) == []
    assert starts(fixed("j", 4, 1), reserved=[a_reservation("v", 1)]) == []


def test_what_such_jobs_hold_already_counts_and_what_can_leave_does_not() -> None:
    held = placed(fixed("h", 1), ("n1", "0"))
    assert starts(held, fixed("j", 1), reserved=[window(2)]) == ["j"]
    assert starts(held, fixed("j", 2), reserved=[window(2)]) == []
    assert starts(fixed("i", 1), fixed("j", 2), reserved=[window(2)]) == ["i"]
    lent = placed(a_job("h", 2, terms=Terms(checkpoint_every_ms=0)), ("n1", "0 1"))
    assert starts(lent, fixed("j", 2), reserved=[window(2)]) == ["j"]


def test_who_holds_the_reservation_is_exempt_with_its_premium_work() -> None:
    mine: dict[str, Any] = {"tenant_id": "t", "tier": Tier.PREMIUM}
    assert starts(fixed("j", 4, **mine), reserved=[window(4)]) == ["j"]
    assert starts(fixed("j", 4, tenant_id="t"), reserved=[window(4)]) == []
    held = placed(fixed("h", 2, **mine), ("n1", "0 1"))
    assert starts(held, fixed("j", 2), reserved=[window(2)]) == ["j"]


def test_only_the_product_that_is_needed_is_left_alone() -> None:
    def of(name: str, product: str) -> Node:
        node = a_node(name, 2)
        return replace(node, devices=tuple(replace(d, product=product) for d in node.devices))

    nodes, needed = [of("n1", "old"), of("n2", "new")], window(2, product="new")
    snapshot = a_snapshot(nodes, [fixed("j", 2)], reservations=[needed], tenants=[a_tenant("v")])
    (place,) = [d for d in planned(snapshot).decisions if isinstance(d, Place)]
    assert place.placement[0].node_id == "n1"
    assert starts(fixed("j", 2, speeds=(Speed("new"),)), reserved=[needed], nodes=nodes) == []
    any_product = replace(window(2), id=ReservationId("any"))
    assert starts(fixed("j", 2), reserved=[any_product], nodes=nodes) == ["j"]
    assert starts(fixed("j", 2), reserved=[needed, any_product], nodes=nodes) == []


def test_it_is_told_and_nothing_is_kept_for_it() -> None:
    works = [fixed("j", 4, submitted_at=Instant(0)), a_job("k", 2, Tier.BASIC)]
    snapshot = a_snapshot([a_node("n1", 4)], works, reservations=[window(4)])
    decided = planned(snapshot)
    assert [d.work_id for d in decided.decisions if isinstance(d, Place)] == ["k"]
    assert any("cannot be suspended" in b.text for b in decided.blockers[works[0].id])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_what_cannot_leave_never_stands_in_the_way_of_a_window(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    nodes = [a_node(f"n{i}", size) for i, size in enumerate(sizes)]
    reserved = data.draw(st.integers(0, sum(sizes)))
    works = [
        fixed(f"j{i}", data.draw(st.integers(1, 3)), suspendable=data.draw(st.booleans()))
        for i in range(data.draw(st.integers(1, 8)))
    ]
    names = starts(*works, reserved=[window(reserved)] if reserved else [], nodes=nodes)
    held = sum(w.demand.least for w in works if w.id in names and not w.suspendable)
    assert held <= sum(sizes) - reserved
