"""Works are readied, promised and saved while they run, besides being placed."""

from __future__ import annotations

from dataclasses import replace

from tests.fleets import NOW, a_job, a_node, a_reservation, a_snapshot, after, placed, planned

from onefleet.core.lifecycle import CheckpointOrdered, ProcessEnded, apply, image_id
from onefleet.core.plan import Checkpoint, GivePromise, Place, Ready, Stop
from onefleet.domain.fleet import Node
from onefleet.domain.ids import Instant, NodeId, TenantId, WorkId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Image, Terms, Work


def dependent(name: str, *others: str) -> Work:
    terms = Terms(after=tuple(WorkId(other) for other in others))
    return a_job(name, tier=Tier.BASIC, ready=False, terms=terms)


def ended(name: str, exit_code: int = 0) -> Work:
    return apply(placed(a_job(name), ("n1", "0")), ProcessEnded(exit_code, ""), NOW)


def decided(kind: type, *works: Work, devices: int = 4, now: Instant = NOW) -> list[str]:
    snapshot = a_snapshot([a_node("n1", devices)], works)
    return [d.work_id for d in planned(snapshot, now=now).decisions if isinstance(d, kind)]


def test_work_is_readied_and_placed_when_all_that_it_comes_after_has_succeeded() -> None:
    works = [ended("a"), ended("b"), dependent("c", "a", "b")]
    assert decided(Ready, *works) == ["c"]
    assert decided(Place, *works) == ["c"]
    assert decided(Place, ended("a"), a_job("b"), dependent("c", "a", "b")) == ["b"]


def test_work_that_comes_after_what_failed_ends_and_says_so() -> None:
    snapshot = a_snapshot([a_node("n1")], [ended("a", 3), dependent("c", "a"), dependent("d", "c")])
    first = planned(snapshot)
    assert [d.work_id for d in first.decisions if isinstance(d, Stop)] == ["c"]
    then = after(snapshot, first)
    assert "a, which it comes after, failed: exited with code 3" in then.works["c"].why_ended
    assert [d.work_id for d in planned(then).decisions if isinstance(d, Stop)] == ["d"]


def test_what_is_not_known_any_more_is_not_waited_for() -> None:
    assert decided(Stop, dependent("c", "gone")) == ["c"]


def test_promises_are_given_while_they_fit_premium_first() -> None:
    standard = [a_job(f"s{i}", 2, promised=False, submitted_at=Instant(i)) for i in range(3)]
    premium = a_job("p", 1, Tier.PREMIUM, promised=False, submitted_at=Instant(9))
    assert decided(GivePromise, *standard, premium) == ["p", "s0", "s1"]  # 0.95 + 2 x 1.4 of 4
    running = [
        replace(placed(w, ("n1", f"{2 * i} {2 * i + 1}")), promised=True)
        for i, w in enumerate(standard[:2])
    ]
    assert decided(GivePromise, *running, standard[2]) == []
    over = apply(running[0], ProcessEnded(0, ""), NOW)
    assert decided(GivePromise, over, running[1], standard[2]) == ["s2"]


def test_nobody_is_promised_what_an_older_one_waits_for() -> None:
    """Else small jobs would keep a large one from its promise for ever."""
    holds = replace(placed(a_job("holds", 2, Tier.PREMIUM), ("n1", "0 1")), promised=True)
    big = a_job("big", 4, Tier.PREMIUM, promised=False, submitted_at=Instant(1))
    small = a_job("small", 1, Tier.PREMIUM, promised=False, submitted_at=Instant(2))
    later = a_job("later", 1, promised=False, submitted_at=Instant(0))
    assert decided(GivePromise, holds, big, small, later) == []
    assert decided(GivePromise, holds, small, later) == ["small", "later"]
    assert decided(GivePromise, apply(holds, ProcessEnded(0, ""), NOW), big, small) == ["big"]
    owner = replace(small, tenant_id=TenantId("owner"))
    snapshot = a_snapshot([a_node("n1", 4)], [big, owner], reservations=[a_reservation("owner", 1)])
    given = [d.work_id for d in planned(snapshot).decisions if isinstance(d, GivePromise)]
    assert given == ["small"]  # its tenant's reservation has it anyway


def test_a_job_runs_without_a_promise_where_there_is_room() -> None:
    held = replace(placed(a_job("s", 4), ("n1", "0 1 2 3")), promised=True)
    extra = a_job("x", 2, promised=False)
    snapshot = a_snapshot([a_node("n1", 4), a_node("n2", 1)], [held, extra])
    assert not any(isinstance(d, Place) for d in planned(snapshot).decisions)
    wide = a_snapshot([a_node("n1", 6)], [replace(held, tier=Tier.PREMIUM), extra])
    assert [type(d) for d in planned(wide).decisions] == [GivePromise, Place]


def test_running_works_are_saved_when_their_image_is_old_one_at_a_time_on_a_node() -> None:
    terms = Terms(checkpoint_every_ms=60_000)
    one, two = (placed(a_job(f"j{i}", terms=terms), ("n1", str(i))) for i in range(2))
    later = Instant(NOW + 60_000)
    snapshot = a_snapshot([a_node("n1", lease_expires_at=Instant(NOW + 10**6))], [one, two])
    assert [type(d) for d in planned(snapshot, now=NOW).decisions] == []
    first = planned(snapshot, now=later)
    assert [d.work_id for d in first.decisions if isinstance(d, Checkpoint)] == ["j0"]
    then = after(snapshot, first, later)
    assert then.works["j0"] == apply(one, CheckpointOrdered(), later)
    assert planned(then, now=later).decisions == ()
    elsewhere = placed(a_job("j2", terms=terms), ("n2", "0"))
    far = a_node("n2", lease_expires_at=Instant(NOW + 10**6))
    both = a_snapshot([*snapshot.nodes.values(), far], [one, elsewhere])
    assert [d.work_id for d in planned(both, now=later).decisions] == ["j0", "j2"]


def test_no_image_before_the_last_one_could_have_got_to_another_node() -> None:
    every_10s = a_job("a", terms=Terms(checkpoint_every_ms=10_000))
    running = placed(every_10s, ("n1", "0"), at=Instant(NOW - 30_000))
    nodes = (NodeId("n1"),)
    image = Image(image_id(running), nodes, 2_500_000_000, Instant(NOW - 12_000), ran_ms=18_000)
    saved = replace(running, image=image)  # at 1 Gbit/s it takes 20.5 s to another node
    alone = [a_node("n1", address="n1:1")]
    two = [*alone, a_node("n2", address="n2:1")]

    def orders(work: Work, nodes: list[Node], now: Instant = NOW) -> int:
        found = planned(a_snapshot(nodes, [work]), now=now).decisions
        return sum(isinstance(d, Checkpoint) for d in found)

    assert orders(saved, alone) == 1
    assert orders(saved, two) == 0
    assert orders(saved, two, Instant(NOW + 8_500)) == 1
    copied = replace(saved, image=replace(image, copies=((NodeId("n2"),),)))
    assert orders(copied, two) == 1
