"""Who may ask now, and who waits: token buckets a tenant, and the bounded queue of held requests.

Integers only. A bucket counts in *units*: one request or token is 60,000 units, so that a bucket
of `limit` a minute gains exactly `limit` units each millisecond and nothing is ever rounded away.
Everything here is O(1) a call.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

from onefleet.domain.ids import Instant, Millis

#: Units of one request or token: the milliseconds of a minute.
UNITS = 60_000

WaiterT = TypeVar("WaiterT")


class Bucket:
    """A bucket that holds at most `limit` and fills evenly at `limit` a minute. Starts full.

    It may go below zero by `settle`, when an answer cost more than its estimate: a debt that
    later requests wait for. A clock that steps back gives nothing and takes nothing.
    """

    __slots__ = ("_at", "_level", "limit")

    def __init__(self, limit: int, now: Instant) -> None:
        self.limit = limit
        self._level = limit * UNITS
        self._at = now

    def available(self, now: Instant) -> int:
        """How much could be taken now, in whole requests or tokens; negative: a debt."""
        self._fill(now)
        return self._level // UNITS

    def has(self, cost: int, now: Instant) -> bool:
        """`cost` can be taken now."""
        if now > self._at:
            self._fill(now)
        return self._level >= cost * UNITS

    def state(self, now: Instant) -> tuple[int, Millis]:
        """What could be taken now, and how long until the bucket is full again."""
        if now > self._at:
            self._fill(now)
        missing = self.limit * UNITS - self._level
        wait = -(-missing // self.limit) if self.limit else UNITS
        return self._level // UNITS, Millis(wait)

    def wait_ms(self, cost: int, now: Instant) -> Millis:
        """How long until `cost` could be taken if nobody else takes any; `cost` <= `limit`."""
        self._fill(now)
        missing = cost * UNITS - self._level
        if missing <= 0:
            return Millis(0)
        return Millis(-(-missing // self.limit)) if self.limit else Millis(UNITS)

    def take(self, cost: int) -> None:
        """Take it; the caller has asked `wait_ms` at the same instant."""
        self._level -= cost * UNITS

    def settle(self, estimate: int, actual: int, now: Instant) -> None:
        """Replace an estimate that was taken by what it really cost."""
        self._fill(now)
        self._level = min(self._level + (estimate - actual) * UNITS, self.limit * UNITS)

    def change(self, limit: int, now: Instant) -> None:
        """A new limit: what is used stays used."""
        self._fill(now)
        used = self.limit * UNITS - self._level
        self.limit = limit
        self._level = limit * UNITS - used

    def _fill(self, now: Instant) -> None:
        if now > self._at:
            self._level = min(self._level + self.limit * (now - self._at), self.limit * UNITS)
            self._at = now


class Refusal(NamedTuple):
    """Why a request may not pass now. wait_ms 0: it never can, it is over the whole limit."""

    kind: str  # "requests" or "tokens"
    limit: int  # a minute
    cost: int
    wait_ms: Millis


class TenantQuota:
    """One tenant's requests and tokens a minute; None is unlimited."""

    __slots__ = ("requests", "tokens")

    def __init__(self) -> None:
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None

    def change(self, requests: int | None, tokens: int | None, now: Instant) -> None:
        """Take new limits; what was used of the old ones stays used."""
        self.requests = _changed(self.requests, requests, now)
        self.tokens = _changed(self.tokens, tokens, now)

    def admit(self, estimate: int, now: Instant) -> Refusal | None:
        """Take one request and `estimate` tokens, or take nothing and say why not."""
        requests, tokens = self.requests, self.tokens
        if requests is not None and not requests.has(1, now):
            return Refusal("requests", requests.limit, 1, _wait(requests, 1, now))
        if tokens is not None:
            if not tokens.has(estimate, now):
                return Refusal("tokens", tokens.limit, estimate, _wait(tokens, estimate, now))
            tokens.take(estimate)
        if requests is not None:
            requests.take(1)
        return None

    def settle(self, estimate: int, actual: int, now: Instant) -> None:
        """An admitted request ended and used `actual` tokens."""
        if self.tokens is not None:
            self.tokens.settle(estimate, actual, now)


def _changed(bucket: Bucket | None, limit: int | None, now: Instant) -> Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit, now)
    if bucket.limit != limit:
        bucket.change(limit, now)
    return bucket


def _wait(bucket: Bucket, cost: int, now: Instant) -> Millis:
    """0: it never can be taken. Else how long to wait."""
    return Millis(0) if cost > bucket.limit else bucket.wait_ms(cost, now)


class HoldQueue(Generic[WaiterT]):
    """First come, first served, at most `limit`, each for at most `hold_ms`.

    A waiter that is put back (its replica turned out to be gone) keeps its place at the front and
    its deadline.
    """

    __slots__ = ("hold_ms", "limit", "waiters")

    def __init__(self, limit: int, hold_ms: Millis) -> None:
        self.limit = limit
        self.hold_ms = hold_ms
        self.waiters: OrderedDict[WaiterT, Instant] = OrderedDict()  # with their deadlines

    def __len__(self) -> int:
        return len(self.waiters)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self.waiters

    def offer(self, waiter: WaiterT, now: Instant) -> bool:
        """Queue it at the end. False: the queue is full."""
        if len(self.waiters) >= self.limit:
            return False
        self.waiters[waiter] = Instant(now + self.hold_ms)
        return True

    def put_back(self, waiter: WaiterT, deadline: Instant) -> None:
        """Queue it at the front, even when the queue is full: it was let in before."""
        self.waiters[waiter] = deadline
        self.waiters.move_to_end(waiter, last=False)

    def first(self) -> WaiterT | None:
        """The one whose turn it is; it stays queued. None when nobody waits."""
        return next(iter(self.waiters), None)

    def remove(self, waiter: WaiterT) -> bool:
        """It gave up. False: it does not wait here."""
        return self.waiters.pop(waiter, None) is not None

    def expired(self, now: Instant) -> list[WaiterT]:
        """Those whose time is over, removed, longest first. O(waiters): call it on a tick."""
        over = [waiter for waiter, deadline in self.waiters.items() if deadline <= now]
        for waiter in over:
            del self.waiters[waiter]
        return over
