"""Admission of promises: what fits together, on which classes of devices."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fleets import NOW, START, a_job, a_node, a_snapshot

from onefleet.core.promise import Book, Load, capacity, lineage, load_of, shortfall, unmet
from onefleet.domain.fleet import Cordon, DeviceKind, NodeState
from onefleet.domain.ids import DeviceId, Instant, ReservationId, TenantId
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Speed, Work

CPU = DeviceKind.CPU


def reserved(tenant: str, devices: int, **changes: object) -> Reservation:
    made = Reservation(ReservationId(f"r-{tenant}"), TenantId(tenant), CPU, devices, START)
    return replace(made, **changes)


def premium(name: str, devices: int, tenant: str = "a") -> Work:
    return replace(a_job(name, devices, Tier.PREMIUM), tenant_id=TenantId(tenant))


def missing(nodes: list, works: list, job: Work, **parts: list) -> int:
    found = shortfall(Book.of(a_snapshot(nodes=nodes, works=works, **parts)), job, NOW)
    return found.missing_milli if found else 0


def test_standard_is_promised_seventy_percent_and_basic_nothing() -> None:
    assert load_of(a_job("j", 4).demand, Tier.STANDARD).milli == 2_800
    assert load_of(a_job("j", 4).demand, Tier.PREMIUM).milli == 3_800
    assert load_of(a_job("j", 4).demand, Tier.BASIC).milli == 0
    assert load_of(a_job("j", 1, milli=300).demand, Tier.PREMIUM).milli == 285


def test_promises_are_kept_apart_from_each_other() -> None:
    nodes, works = [a_node("n1", 4)], [a_job("s1", 4)]
    assert missing(nodes, works, a_job("s2", 1)) == 0  # 2.8 + 0.7 of 4
    assert missing(nodes, works, a_job("s2", 2)) == 200
    assert missing(nodes, [replace(works[0], promised=False)], a_job("s2", 2)) == 0


def test_a_reservation_is_promised_in_full_and_its_tenant_s_premium_is_inside_it() -> None:
    nodes, held = [a_node("n1", 4)], [reserved("a", 2)]
    assert missing(nodes, [], premium("p", 3, "b"), reservations=held) == 850
    assert missing(nodes, [premium("p1", 2)], premium("p2", 2, "b"), reservations=held) == 0
    assert missing(nodes, [premium("p1", 4)], premium("p2", 1, "b"), reservations=held) == 750


def test_inside_a_reservation_it_does_not_wait_for_what_is_missing_to_others() -> None:
    nodes, held = [a_node("n1", 4)], [reserved("a", 2)]
    more_than_there_is = [a_job("s1", 6)]  # 4.2 and 2, since a node was lost
    assert missing(nodes, more_than_there_is, premium("p", 2), reservations=held) == 0
    assert missing(nodes, more_than_there_is, premium("p", 3), reservations=held) > 0
    assert missing(nodes, more_than_there_is, premium("p", 1, "b"), reservations=held) > 0


def test_a_department_s_reservation_serves_its_teams() -> None:
    teams = [
        Tenant(TenantId("dept"), None, None, None, START),
        Tenant(TenantId("team"), TenantId("dept"), None, None, START),
    ]
    nodes, held = [a_node("n1", 4)], [reserved("dept", 4)]
    inside = [premium("p1", 4, "team")]
    assert missing(nodes, inside, a_job("s", 1), reservations=held, tenants=teams) == 700
    assert missing(nodes, [], a_job("s", 1), reservations=held, tenants=teams) == 700
    assert lineage(TenantId("team"), {t.id: t for t in teams}) == ["team", "dept"]
    circle = {t.id: replace(t, parent=TenantId("team")) for t in teams}
    assert lineage(TenantId("team"), circle) == ["team"]


def test_a_window_counts_while_it_is_open_and_from_before_it_opens() -> None:
    nodes = [a_node("n1", 4)]
    soon = [reserved("a", 4, starts_at=Instant(NOW + 1), ends_at=Instant(NOW + 2))]
    past = [reserved("a", 4, starts_at=START, ends_at=NOW)]
    assert missing(nodes, [], a_job("s", 4), reservations=soon) == 2_800
    assert missing(nodes, [], a_job("s", 4), reservations=past) == 0


def test_lost_nodes_and_cordoned_devices_promise_nothing() -> None:
    lost = a_node("n1", 4, state=NodeState.LOST)
    half = a_node("n2", 2, cordons=(Cordon(DeviceId("n2/cpu0"), "ECC errors", START),))
    assert capacity(Book.of(a_snapshot([lost, half], [])).stock, CPU) == {"simulated": 1_000}


def test_a_demand_that_can_use_one_class_takes_it_from_one_that_can_use_any() -> None:
    loads = [Load(CPU, (), 3), Load(CPU, ("x",), 2)]
    assert unmet(loads, {"x": 2, "y": 3}) == 0
    assert unmet(loads, {"x": 1, "y": 4}) == 1
    picky = a_job("p", 1, speeds=(Speed("absent"),))
    assert missing([a_node("n1", 4)], [], picky) == 700


CLASSES = ("a", "b", "c", "d")
sets = st.lists(st.sampled_from(CLASSES), unique=True, min_size=1).map(lambda c: tuple(sorted(c)))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(sets, st.integers(0, 9)), max_size=7),
    st.fixed_dictionaries({name: st.integers(0, 9) for name in CLASSES}),
)
def test_what_is_unmet_is_the_worst_deficit_of_hall_s_condition(
    wanted: list[tuple[tuple[str, ...], int]], room: dict[str, int]
) -> None:
    """Max-flow min-cut: the most that any set of classes is asked for beyond what it has."""
    deficits = [
        sum(milli for classes, milli in wanted if all(c in chosen for c in classes))
        - sum(room[c] for c in chosen)
        for size in range(len(CLASSES) + 1)
        for chosen in combinations(CLASSES, size)
    ]
    assert unmet([Load(CPU, c, milli) for c, milli in wanted], room) == max(deficits)
