"""Quotas hold, and queues keep their promises, whatever comes when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onefleet.core.admission import Bucket, HoldQueue, TenantQuota
from onefleet.domain.ids import Instant, Millis

LIMITS = st.integers(0, 10_000)
STEPS = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 3_000)), max_size=80)


@given(LIMITS, STEPS)
def test_no_window_admits_more_than_a_full_bucket_and_what_flows_in(
    limit: int, steps: list[tuple[int, int]]
) -> None:
    bucket = Bucket(limit, Instant(0))
    now = 0
    admitted: list[tuple[int, int]] = []
    for wait, cost in steps:
        now += wait
        if bucket.has(cost, Instant(now)):
            bucket.take(cost)
            admitted.append((now, cost))
    for first in range(len(admitted)):
        total = 0
        for at, cost in admitted[first:]:
            total += cost
            assert total * 60_000 <= limit * 60_000 + limit * (at - admitted[first][0])


@given(st.integers(1, 10_000), STEPS)
def test_who_waits_as_long_as_told_passes_and_not_a_millisecond_earlier(
    limit: int, steps: list[tuple[int, int]]
) -> None:
    bucket = Bucket(limit, Instant(0))
    now = 0
    for wait, cost in steps:
        now += wait
        cost = min(cost, limit)
        needed = bucket.wait_ms(cost, Instant(now))
        if needed:
            assert not bucket.has(cost, Instant(now + needed - 1))
        now += needed
        assert bucket.has(cost, Instant(now))
        bucket.take(cost)


@given(
    st.integers(1, 5_000),
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 5_000)), max_size=50),
)
def test_settling_leaves_what_was_really_used(limit: int, calls: list[tuple[int, int]]) -> None:
    """With no time passing, the bucket holds its limit less all that was really used."""
    quota = TenantQuota()
    quota.change(None, limit, Instant(0))
    assert quota.tokens is not None
    used = 0
    for estimate, actual in calls:
        if quota.admit(estimate, Instant(0)) is None:
            quota.settle(estimate, actual, Instant(0))
            used += actual
    assert quota.tokens.available(Instant(0)) == limit - used


@given(LIMITS, LIMITS, STEPS)
def test_a_refusal_takes_nothing(requests: int, tokens: int, steps: list[tuple[int, int]]) -> None:
    quota = TenantQuota()
    quota.change(requests, tokens, Instant(0))
    assert quota.requests is not None
    assert quota.tokens is not None
    now = Instant(0)
    for wait, cost in steps:
        now = Instant(now + wait)
        before = (quota.requests.available(now), quota.tokens.available(now))
        refusal = quota.admit(cost, now)
        after = (quota.requests.available(now), quota.tokens.available(now))
        if refusal is None:
            assert after == (before[0] - 1, before[1] - cost)
        else:
            assert after == before
            assert (refusal.wait_ms == 0) is (refusal.cost > refusal.limit)


@given(
    st.integers(0, 6),
    st.integers(1, 100),
    st.lists(
        st.tuples(st.sampled_from(["offer", "remove", "first", "tick"]), st.integers(0, 30)),
        max_size=100,
    ),
)
def test_the_queue_agrees_with_a_list(limit: int, hold: int, steps: list[tuple[str, int]]) -> None:
    queue: HoldQueue[int] = HoldQueue(limit, Millis(hold))
    model: list[tuple[int, int]] = []
    now = 0
    for number, (verb, value) in enumerate(steps):
        now += value
        if verb == "offer":
            assert queue.offer(number, Instant(now)) is (len(model) < limit)
            if len(model) < limit:
                model.append((number, now + hold))
        elif verb == "remove":
            assert queue.remove(value) is any(one == value for one, _ in model)
            model = [pair for pair in model if pair[0] != value]
        elif verb == "tick":
            assert queue.expired(Instant(now)) == [one for one, end in model if end <= now]
            model = [pair for pair in model if pair[1] > now]
        assert queue.first() == (model[0][0] if model else None)
        assert len(queue) == len(model)
