"""Demand is added up over gateways, and a silent gateway's is forgotten."""

from __future__ import annotations

from onefleet.control.demand import SILENT_MS, Demands
from onefleet.domain.ids import DeploymentId, Instant
from onefleet.wire.gateway import DemandReport

DEP = DeploymentId("dep-1")
START = Instant(1_000)


def asked(active: int, waiting: int = 0, last: int = 0) -> DemandReport:
    return DemandReport(
        deployment_id=DEP, active=active, waiting=waiting, last_request_at=Instant(last)
    )


def test_it_is_added_up_over_gateways() -> None:
    demands = Demands(START)
    assert demands.take("gw-1", [asked(1, 2, 1_500)], Instant(2_000))
    assert demands.take("gw-2", [asked(3, 4, 1_700)], Instant(2_000))
    now = demands.now(Instant(2_001))[DEP]
    assert (now.active, now.waiting, now.last_request_at) == (4, 6, 2_000)


def test_only_what_differs_is_news() -> None:
    demands = Demands(START)
    assert demands.take("gw", [asked(1)], Instant(2_000))
    assert not demands.take("gw", [asked(1)], Instant(3_000))
    assert demands.take("gw", [], Instant(4_000))


def test_a_restart_is_no_reason_to_take_replicas_away_at_once() -> None:
    demands = Demands(START)
    demands.take("gw", [asked(0, 0, 0)], Instant(1_001))
    assert demands.of(DEP).last_request_at == START
    assert demands.of(DeploymentId("never")).last_request_at == START


def test_the_last_request_survives_its_gateway_and_never_falls() -> None:
    demands = Demands(START)
    demands.take("gw", [asked(0, 0, 5_000)], Instant(6_000))
    demands.take("new", [asked(0, 0, 0)], Instant(7_000))
    assert demands.of(DEP).last_request_at == 5_000
    demands.now(Instant(6_000 + SILENT_MS + 1))
    assert demands.of(DEP).last_request_at == 5_000


def test_a_gateway_with_a_fast_clock_asks_nothing_in_the_future() -> None:
    demands = Demands(START)
    demands.take("gw", [asked(0, 0, 10**12)], Instant(6_000))
    assert demands.of(DEP).last_request_at == 6_000


def test_a_silent_gateway_counts_as_gone() -> None:
    demands = Demands(START)
    demands.take("gw", [asked(5)], Instant(2_000))
    assert demands.seen_at() == 2_000
    assert demands.now(Instant(2_000 + SILENT_MS))[DEP].active == 5
    assert demands.now(Instant(2_001 + SILENT_MS))[DEP].active == 0
    assert demands.seen_at() is None


def test_deployments_that_are_no_more_are_forgotten() -> None:
    demands = Demands(START)
    demands.take("gw", [asked(0)], Instant(2_000))
    demands.forget({})
    assert demands.now(Instant(2_000)) == {}
