"""Leases in memory, what a restart makes of them, and workers that a node lost."""

from __future__ import annotations

from dataclasses import replace

from tests.fleets import a_job, placed, suspended
from tests.unit.control.states import NOW, a_report, a_state, a_worker

from onefleet.control.leases import VANISHED_MS, Sightings
from onefleet.control.orders import LEASE_MS, orders_for
from onefleet.domain.ids import Generation, Instant, NodeId, WorkId
from onefleet.wire.agent import Observed

N1 = NodeId("n1")
RUNNING = placed(a_job("job-1"), ("n1", "0"))
STATE = a_state(RUNNING)
LATE = Instant(NOW + VANISHED_MS)


def test_a_restart_gives_every_node_a_whole_lease() -> None:
    sightings = Sightings(NOW)
    assert sightings.lease_of(N1) == NOW + LEASE_MS


def test_each_word_renews() -> None:
    sightings = Sightings(NOW)
    assert sightings.renew(N1, Instant(NOW + 5)) == NOW + 5 + LEASE_MS
    assert sightings.lease_of(N1) == NOW + 5 + LEASE_MS


def told() -> Sightings:
    """The node was told of the running job."""
    sightings = Sightings(NOW)
    sightings.told(orders_for(STATE, N1), NOW)
    return sightings


def test_a_worker_that_is_not_reported_for_long_has_vanished() -> None:
    seen = told().see(a_report("n1", seen=Generation(9)), STATE, LATE)
    assert seen.vanished == (RUNNING.id,)


def test_it_has_not_while_it_is_reported_or_the_orders_are_young_or_unseen() -> None:
    reported = a_report("n1", [a_worker(RUNNING, Observed.STARTING)])
    assert told().see(reported, STATE, LATE).vanished == ()
    assert told().see(a_report("n1"), STATE, Instant(LATE - 1)).vanished == ()
    assert told().see(a_report("n1", seen=Generation(8)), STATE, LATE).vanished == ()
    assert Sightings(NOW).see(a_report("n1"), STATE, LATE).vanished == ()


def test_it_counts_from_when_the_node_was_first_told() -> None:
    sightings = told()
    sightings.told(orders_for(replace(STATE, generation=Generation(20)), N1), LATE)
    assert sightings.see(a_report("n1"), STATE, LATE).vanished == (RUNNING.id,)


def test_what_ran_under_an_older_epoch_may_still_have_to_end() -> None:
    old = a_worker(RUNNING, Observed.RUNNING, epoch=Generation(0))
    assert told().see(a_report("n1", [old]), STATE, LATE).vanished == ()


def test_suspended_and_moved_works_do_not_vanish() -> None:
    kept = a_state(suspended(a_job("job-1"), "n1"))
    sightings = Sightings(NOW)
    sightings.told(orders_for(kept, N1), NOW)
    assert sightings.see(a_report("n1"), kept, LATE).vanished == ()
    moved = a_state(replace(RUNNING, epoch=Generation(5)))
    assert told().see(a_report("n1"), moved, LATE).vanished == ()
    assert told().see(a_report("n1"), a_state(), LATE).vanished == ()


def test_the_highest_epochs_report_of_a_worker_counts() -> None:
    sightings = Sightings(NOW)
    new = a_worker(RUNNING, Observed.RUNNING, epoch=Generation(3))
    sightings.see(a_report("n2", [new]), STATE, NOW)
    old = a_worker(RUNNING, Observed.SAVED, epoch=Generation(2))
    seen = sightings.see(a_report("n1", [old]), STATE, NOW)
    assert seen.workers[WorkId("job-1"), 0] == new
    assert sightings.worker(WorkId("job-1"), 0) == new
    assert sightings.worker(WorkId("job-1"), 1) is None
