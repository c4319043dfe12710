"""When a running job is saved: Young's and Daly's interval, and what overrides it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.fleets import NOW, a_job, a_replica, placed

from onefleet.core.checkpointing import (
    INTERVAL_MS_MIN,
    PRIOR_NODE_MS,
    Failures,
    SaveCost,
    cost_ms,
    daly_ms,
    due_at,
    interval_ms,
)
from onefleet.core.lifecycle import Checkpointed, CheckpointOrdered, apply
from onefleet.domain.ids import ImageId, Instant, NodeId
from onefleet.domain.work import Image, Phase, Terms, Want, Work

COST = SaveCost(fixed_ms=300, bytes_per_ms=500_000)
CALM = Failures().node_mttf_ms()


def running(**changes: object) -> Work:
    work = placed(a_job("j", memory_bytes=350_000_000), ("n1", "0"))
    return replace(work, **{"phase_since": NOW, "ran_ms": 0, "lost_ms": 0, **changes})


@pytest.mark.parametrize(("cost", "mttf"), [(60_000, 28_440_000), (300, 10**10), (5_000, 20_000)])
def test_the_interval_is_daly_s(cost: int, mttf: int) -> None:
    half = cost / (2 * mttf)
    expected = math.sqrt(2 * cost * mttf) * (1 + math.sqrt(half) / 3 + half / 9) - cost
    assert daly_ms(cost, mttf) == pytest.approx(expected, rel=1e-3, abs=3)


def test_the_figure_for_1024_devices_is_the_one_in_the_literature() -> None:
    assert daly_ms(60_000, 28_440_000) == pytest.approx(1_807_000, rel=0.01)  # Young: 1,847 s


def test_a_save_that_costs_more_than_the_time_between_failures_is_made_once_in_that_time() -> None:
    assert daly_ms(10_000, 4_000) == 4_000


def test_a_measured_cost_goes_before_an_estimated_one() -> None:
    image = Image(ImageId("i"), (NodeId("n1"),), 1_000_000_000, NOW)
    assert cost_ms(running(), COST) == 300 + 700
    assert cost_ms(running(image=image), COST) == 300 + 2_000
    assert cost_ms(running(image=replace(image, took_ms=140)), COST) == 140


def test_failures_are_learnt_and_more_of_them_make_it_more_frequent() -> None:
    assert PRIOR_NODE_MS * 2 // 3 < CALM <= PRIOR_NODE_MS
    bad = Failures(watched_ms=24 * 3_600_000, lost=50)
    often = interval_ms(running(), bad.node_mttf_ms(), COST)
    seldom = interval_ms(running(), CALM, COST)
    assert bad.node_mttf_ms() < PRIOR_NODE_MS // 40
    assert often is not None and seldom is not None and often < seldom


def test_a_gang_on_many_nodes_is_saved_more_often() -> None:
    wide = placed(a_job("g", workers=4), ("n1", "0"), ("n2", "0"), ("n3", "0"), ("n4", "0"))
    one, four = interval_ms(running(), CALM, COST), interval_ms(wide, CALM, COST)
    assert one is not None and four is not None and four < one


def test_what_the_owner_chose_counts_but_not_less_than_the_least() -> None:
    def chosen(every_ms: int) -> int | None:
        return interval_ms(running(terms=Terms(checkpoint_every_ms=every_ms)), CALM, COST)

    assert chosen(0) is None
    assert chosen(90_000) == 90_000
    assert chosen(1) == INTERVAL_MS_MIN


def test_what_cannot_be_saved_or_does_not_run_is_never_due() -> None:
    assert due_at(replace(running(), suspendable=False), CALM, COST) is None
    assert due_at(placed(a_replica("r"), ("n1", "0")), CALM, COST) is None
    assert due_at(replace(running(), want=Want.SUSPEND), CALM, COST) is None
    assert due_at(replace(running(), phase=Phase.STARTING), CALM, COST) is None
    assert due_at(apply(running(), CheckpointOrdered(), NOW), CALM, COST) is None


def test_the_time_since_the_last_image_counts_over_suspends() -> None:
    terms = Terms(checkpoint_every_ms=60_000)
    image = Image(ImageId("i"), (NodeId("n1"),), 1, NOW, ran_ms=100_000)
    fresh = running(terms=terms)
    assert due_at(fresh, CALM, COST) == NOW + 60_000
    behind = running(terms=terms, ran_ms=145_000, image=image)
    assert due_at(behind, CALM, COST) == NOW + 15_000
    failed = replace(behind, not_before=Instant(NOW + 20_000))
    assert due_at(failed, CALM, COST) == NOW + 20_000


def test_the_next_image_is_due_an_interval_after_the_last_one_of_the_same_stretch() -> None:
    work = running(terms=Terms(checkpoint_every_ms=60_000), ran_ms=5_000)
    for number in range(1, 4):
        due = due_at(work, CALM, COST)
        assert due is not None and due == NOW + 60_000 * number - 5_000
        ordered = apply(work, CheckpointOrdered(), due)
        assert ordered.making is not None
        image = Image(ordered.making.id, (NodeId("n1"),), 1, Instant(due + 900))
        work = apply(ordered, Checkpointed(image), Instant(due + 900))
