"""Token buckets and the hold queue."""

from __future__ import annotations

from onefleet.core.admission import Bucket, HoldQueue, Refusal, TenantQuota
from onefleet.domain.ids import Instant, Millis


def at(ms: int) -> Instant:
    return Instant(ms)


def test_a_bucket_starts_full_and_fills_evenly() -> None:
    bucket = Bucket(60, at(0))
    bucket.take(60)
    assert not bucket.has(1, at(999))
    assert bucket.has(1, at(1_000))
    assert bucket.wait_ms(10, at(1_000)) == 9_000
    assert bucket.available(at(30_000)) == 30
    assert bucket.available(at(10**9)) == 60
    assert bucket.state(at(10**9)) == (60, 0)


def test_a_debt_is_waited_for_and_a_refund_never_overfills() -> None:
    bucket = Bucket(100, at(0))
    bucket.take(50)
    bucket.settle(50, 150, at(0))
    assert bucket.available(at(0)) == -50
    assert bucket.wait_ms(1, at(0)) == 51 * 600
    bucket.settle(500, 0, at(0))
    assert bucket.available(at(0)) == 100


def test_a_clock_that_steps_back_gives_nothing_and_takes_nothing() -> None:
    bucket = Bucket(60, at(10_000))
    bucket.take(60)
    assert bucket.available(at(0)) == 0
    assert bucket.available(at(11_000)) == 1


def test_a_new_limit_keeps_what_is_used() -> None:
    bucket = Bucket(100, at(0))
    bucket.take(80)
    bucket.change(50, at(0))
    assert bucket.available(at(0)) == -30
    bucket.change(200, at(0))
    assert bucket.available(at(0)) == 120


def test_a_limit_of_zero_lets_nothing_pass() -> None:
    quota = TenantQuota()
    quota.change(0, None, at(0))
    assert quota.admit(1, at(10**9)) == Refusal("requests", 0, 1, Millis(0))
    assert Bucket(0, at(0)).state(at(0)) == (0, 60_000)


def test_an_admission_takes_both_or_neither() -> None:
    quota = TenantQuota()
    quota.change(2, 100, at(0))
    assert quota.admit(90, at(0)) is None
    assert quota.admit(20, at(0)) == Refusal("tokens", 100, 20, Millis(6_000))
    assert quota.requests is not None
    assert quota.requests.available(at(0)) == 1  # the refused one took no request
    assert quota.admit(1_000, at(0)) == Refusal("tokens", 100, 1_000, Millis(0))
    quota.settle(90, 10, at(0))
    assert quota.admit(20, at(0)) is None
    refusal = quota.admit(1, at(0))
    assert refusal is not None
    assert (refusal.kind, refusal.wait_ms) == ("requests", 30_000)


def test_unlimited_is_unlimited() -> None:
    quota = TenantQuota()
    assert all(quota.admit(10**12, at(0)) is None for _ in range(1_000))
    quota.change(1, 1, at(0))
    quota.change(None, None, at(0))
    assert quota.admit(10**12, at(0)) is None


def test_the_queue_is_first_come_first_served_and_bounded() -> None:
    queue: HoldQueue[str] = HoldQueue(2, Millis(100))
    assert queue.first() is None
    assert queue.offer("a", at(0))
    assert queue.offer("b", at(50))
    assert not queue.offer("c", at(50))
    assert queue.first() == "a"
    assert queue.remove("a")
    assert not queue.remove("a")
    assert queue.offer("c", at(60))
    queue.put_back("a", at(100))  # over the limit: it was let in before
    assert (queue.first(), len(queue)) == ("a", 3)
    assert queue.expired(at(99)) == []
    assert queue.expired(at(150)) == ["a", "b"]
    assert (queue.first(), "c" in queue) == ("c", True)
