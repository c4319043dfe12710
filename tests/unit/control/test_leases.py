"""Leases in memory, what a restart makes of them, and workers that a node lost."""

from __future__ import annotations

from dataclasses import replace

from tests.fleets import a_job, placed, suspended
from tests.unit.control.states import NOW, a_report, a_state, a_worker

from onefleet.control.leases import VANISHED_MS, Sightings, place
from onefleet.control.orders import LEASE_MS, Orders
from onefleet.domain.ids import Generation, Instant, NodeId
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
    sightings.told(Orders(STATE).of(N1), NOW)
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
    sightings.told(Orders(replace(STATE, generation=Generation(20))).of(N1), LATE)
    assert sightings.see(a_report("n1"), STATE, LATE).vanished == (RUNNING.id,)


def test_what_ran_under_an_older_epoch_may_still_have_to_end() -> None:
    old = a_worker(RUNNING, Observed.RUNNING, epoch=Generation(0))
    assert told().see(a_report("n1", [old]), STATE, LATE).vanished == ()


def test_suspended_and_moved_works_do_not_vanish() -> None:
    kept = a_state(suspended(a_job("job-1"), "n1"))
    sightings = Sightings(NOW)
    sightings.told(Orders(kept).of(N1), NOW)
    assert sightings.see(a_report("n1"), kept, LATE).vanished == ()
    moved = a_state(replace(RUNNING, epoch=Generation(5)))
    assert told().see(a_report("n1"), moved, LATE).vanished == ()
    assert told().see(a_report("n1"), a_state(), LATE).vanished == ()


def test_a_worker_is_what_the_node_says_that_it_is_on() -> None:
    sightings = Sightings(NOW)
    here, copy = a_worker(RUNNING, Observed.RUNNING), a_worker(RUNNING, Observed.SAVED)
    sightings.see(a_report("n1", [here]), STATE, NOW)
    seen = sightings.see(a_report("n2", [copy]), STATE, NOW)
    assert seen.workers == {(RUNNING.id, 0): here}
    assert sightings.worker(RUNNING, 0) == here
    assert sightings.worker(RUNNING, 1) is None


def test_a_suspended_worker_is_where_its_image_lies_first() -> None:
    sightings = Sightings(NOW)
    gang = suspended(a_job("gang", workers=2), "n1", "n2")
    state = a_state(gang)
    one, two = (a_worker(gang, Observed.SAVED, rank) for rank in (0, 1))
    sightings.see(a_report("n2", [one, two]), state, NOW)
    seen = sightings.see(a_report("n1", [one, two]), state, NOW)
    assert (place(gang, 0), place(gang, 1)) == ("n1", "n2")
    assert seen.workers == {(gang.id, 0): one, (gang.id, 1): two}
    assert place(a_job("new"), 0) is None
