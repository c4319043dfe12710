"""Orders: one verb a phase, at the right node, with the right image."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fleets import a_job, a_replica, placed, suspended
from tests.unit.control.states import NOW, a_state

from onefleet.control.orders import LEASE_MS, orders_for
from onefleet.core import lifecycle
from onefleet.domain.ids import NodeId
from onefleet.domain.work import Image, Work
from onefleet.wire.agent import Order, OrderVerb


def orders(work: Work, node: str = "n1") -> list[Order]:
    return list(orders_for(a_state(work), NodeId(node)).orders)


STARTING = placed(a_job("job-1"), ("n1", "0"), running=False)
RUNNING = placed(a_job("job-1"), ("n1", "0"))
SAVING = lifecycle.apply(RUNNING, lifecycle.SaveOrdered("room"), NOW)
SUSPENDED = suspended(a_job("job-1"), "n1")
RESTORING = lifecycle.apply(SUSPENDED, lifecycle.Placed(RUNNING.placement, True), NOW)
RESTORED = lifecycle.apply(RESTORING, lifecycle.Restored(), NOW)
SAVING_AGAIN = lifecycle.apply(RESTORED, lifecycle.SaveOrdered("room"), NOW)
STOPPING = lifecycle.apply(RUNNING, lifecycle.StopOrdered("room"), NOW)


@pytest.mark.parametrize(
    ("work", "verb", "image", "keep"),
    [
        (STARTING, OrderVerb.RUN, None, ()),
        (RUNNING, OrderVerb.RUN, None, ()),
        (SAVING, OrderVerb.SAVE, "job-1.1", ()),
        (SUSPENDED, OrderVerb.KEEP, "job-1.1", ()),
        (RESTORING, OrderVerb.RUN, "job-1.1", ()),
        (RESTORED, OrderVerb.RUN, "job-1.1", ()),
        (SAVING_AGAIN, OrderVerb.SAVE, "job-1.2", ("job-1.1",)),
        (STOPPING, OrderVerb.STOP, None, ()),
    ],
)
def test_each_phase_has_its_verb(
    work: Work, verb: OrderVerb, image: str | None, keep: tuple[str, ...]
) -> None:
    (order,) = orders(work)
    assert (order.verb, order.image, order.keep) == (verb, image, keep)
    assert (order.work_id, order.rank, order.epoch) == (work.id, 0, work.epoch)
    assert order.job is not None and order.engine is None
    assert orders(work, "n2") == []


def test_the_image_to_fall_back_to_is_kept() -> None:
    image = SAVING_AGAIN.image
    assert image is not None
    newer = replace(image, id=lifecycle.image_id(SAVING_AGAIN))
    saved = lifecycle.apply(SAVING_AGAIN, lifecycle.Saved(newer), NOW)
    (order,) = orders(saved)
    assert (order.image, order.keep) == ("job-1.2", ("job-1.1",))


def test_pending_and_ended_works_are_named_nowhere() -> None:
    ended = lifecycle.apply(RUNNING, lifecycle.ProcessEnded(0, "done"), NOW)
    for work in (a_job("job-1"), ended):
        assert orders(work) == orders(work, "n2") == []


def test_a_gang_has_each_rank_at_its_node() -> None:
    gang = placed(a_job("job-1", workers=2), ("n1", "0"), ("n2", "1"))
    (one,), (two,) = orders(gang, "n1"), orders(gang, "n2")
    assert (one.rank, one.devices) == (0, ("n1/cpu0",))
    assert (two.rank, two.devices) == (1, ("n2/cpu1",))
    assert one.job is not None and one.job.workers == 2


def test_a_suspended_gang_is_kept_where_its_images_are() -> None:
    gang = suspended(a_job("job-1", workers=2), "n1", "n2")
    assert [o.rank for o in orders(gang, "n1")] == [0]
    assert [o.rank for o in orders(gang, "n2")] == [1]
    both = replace(gang, image=replace(gang.image or _none(), nodes=(NodeId("n1"),) * 2))
    assert [o.rank for o in orders(both, "n1")] == [0, 1]


def _none() -> Image:
    raise AssertionError("it has an image")


def test_a_replica_gets_its_engine() -> None:
    (order,) = orders(placed(a_replica("rep-1"), ("n1", "0")))
    assert order.job is None and order.engine is not None
    assert (order.engine.engine, order.engine.served_name) == ("simulated", "dep-1")
    assert (order.engine.slots, order.engine.context_length) == (4, 1024)


def test_the_same_state_gives_the_same_orders() -> None:
    state = a_state(RUNNING, placed(a_job("job-2"), ("n1", "1")))
    first, again = orders_for(state, NodeId("n1")), orders_for(state, NodeId("n1"))
    assert first == again
    assert (first.generation, first.lease_ms) == (9, LEASE_MS)
    assert [o.work_id for o in first.orders] == ["job-1", "job-2"]
