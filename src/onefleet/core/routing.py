"""Which replica answers: the one that has the prompt's beginning, unless it is too busy.

A replica keeps the keys and values of prompts that it has seen, so a prompt that starts like an
earlier one is cheaper there. The index remembers which replica last took each prefix (a hash of
the prompt's first 256, 512, 1,024, ... bytes), and the longest known prefix wins. So that one
popular prefix does not drown one replica, affinity holds only while the replica's load is within
a quarter of the mean ("consistent hashing with bounded loads", Mirrokni et al., 2016); otherwise,
and for unknown prefixes, the replica with the fewest requests in flight is taken, and among those
the one that has answered fewest. Same calls, same choices: no clock, no chance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from onefleet.domain.ids import Instant

#: A replica keeps its prefixes while it has at most this many percent of the mean load.
BOUND_PERCENT = 125

#: Lengths in bytes of the prefixes that are remembered.
PREFIX_BYTES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class Backend:
    """What a choice needs to know of one replica.

    slots: requests that it answers at once. in_flight: counted here, never asked for. served: how
    many it was given so far. shunned_until: not chosen before, because it refused a connection.
    """

    __slots__ = ("in_flight", "replica_id", "served", "shunned_until", "slots")

    def __init__(self, replica_id: str, slots: int) -> None:
        self.replica_id = replica_id
        self.slots = slots
        self.in_flight = 0
        self.served = 0
        self.shunned_until = Instant(0)


class PrefixIndex:
    """Which replica last took a prefix. Holds the `limit` most recently used prefixes."""

    __slots__ = ("_home", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._home: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._home)

    def home(self, prefixes: Sequence[int]) -> str | None:
        """The replica of the longest known prefix. prefixes: hashes, shortest first."""
        for prefix in reversed(prefixes):
            replica = self._home.get(prefix)
            if replica is not None:
                return replica
        return None

    def note(self, prefixes: Sequence[int], replica_id: str) -> None:
        """That replica takes a prompt with these prefixes."""
        home = self._home
        for prefix in prefixes:
            home[prefix] = replica_id
            home.move_to_end(prefix)
        while len(home) > self.limit:
            home.popitem(last=False)


def choose(backends: Sequence[Backend], home: str | None, now: Instant) -> Backend | None:
    """The replica to take, or None when each is full or shunned.

    backends: in a fixed order (by id). home: the replica that has the prompt's prefix, if any.
    """
    best: Backend | None = None
    affine: Backend | None = None
    total = count = 0
    for backend in backends:
        if backend.shunned_until > now:
            continue
        load = backend.in_flight
        total += load
        count += 1
        if load >= backend.slots:
            continue
        if backend.replica_id == home:
            affine = backend
        if best is None or (load, backend.served) < (best.in_flight, best.served):
            best = backend
    if affine is not None and affine.in_flight * count * 100 < (total + 1) * BOUND_PERCENT:
        return affine
    return best
