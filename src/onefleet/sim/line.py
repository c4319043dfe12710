"""The line between a node's agent and the control plane: one call at a time, held until there is
news, over a network that may lose, double and delay what goes over it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

from onefleet.domain.ids import Instant
from onefleet.sim.scenario import ReportsSpec
from onefleet.sim.timeline import Timeline
from onefleet.wire.agent import NodeOrders, NodeReport

#: When a call without an answer is given up.
CALL_TIMEOUT_MS = 13_000
#: Changes that come together are told together.
GATHER_MS = 10

Sync = Callable[[NodeReport, Callable[[NodeOrders], None]], Coroutine[Any, Any, None]]


class Line:
    """One agent's calls. report: makes the next one. take: is given the orders that
    come back, and when the call began."""

    def __init__(
        self,
        timeline: Timeline,
        network_ms: int,
        faults: ReportsSpec,
        sync: Sync,
        rng: random.Random,
        report: Callable[[], NodeReport],
        take: Callable[[NodeOrders, Instant], None],
    ) -> None:
        self.reachable = True
        self.harmed = 0
        self._timeline = timeline
        self._network_ms = network_ms
        self._faults = faults
        self._sync = sync
        self._rng = rng
        self._report = report
        self._take = take
        self._life = 0
        self._call = 0
        self._telling = False

    def hang_up(self) -> None:
        """The agent is gone: what is under way comes to nothing."""
        self._life += 1
        self._telling = False

    def tell(self) -> None:
        """Call the control plane; what changes until then is told with it."""
        if not self._telling:
            self._telling = True
            self._later(GATHER_MS, self._send)

    def _send(self) -> None:
        self._telling = False
        self._call += 1
        call = self._call
        report = self._report()
        for delay_ms in self._deliveries():
            self._carry(report, call, delay_ms)

        def again() -> None:
            if self._call == call:
                self._send()

        self._later(CALL_TIMEOUT_MS, again)

    def _carry(self, report: NodeReport, call: int, delay_ms: int) -> None:
        life = self._life

        asked_at = self._timeline.now()

        def reply(orders: NodeOrders) -> None:
            for back_ms in self._deliveries():
                self._later(back_ms, lambda: self._receive(orders, call, asked_at), life)

        async def arrive() -> None:
            if self.reachable:
                await self._sync(report, reply)

        self._timeline.at(Instant(self._timeline.now() + delay_ms), arrive)

    def _receive(self, orders: NodeOrders, call: int, asked_at: Instant) -> None:
        if self.reachable:
            self._take(orders, asked_at)
            if call == self._call:
                self.tell()

    def _later(self, after_ms: int, then: Callable[[], None], life: int | None = None) -> None:
        """Something of one life of the agent."""
        mine = self._life if life is None else life

        async def do() -> None:
            if self._life == mine:
                then()

        self._timeline.at(Instant(self._timeline.now() + after_ms), do)

    def _deliveries(self) -> tuple[int, ...]:
        """When copies of a message arrive, in milliseconds from now; none: it is lost."""
        normal, faults = self._network_ms, self._faults
        if self._timeline.now() >= faults.until_s * 1000:
            return (normal,)
        drawn = self._rng.randrange(1000)
        for permille, deliveries in (
            (faults.lost_permille, ()),
            (faults.duplicated_permille, (normal, normal + self._rng.randrange(1, 100))),
            (faults.delayed_permille, (normal + faults.delay_ms,)),
        ):
            if drawn < permille:
                self.harmed += 1
                return deliveries
            drawn -= permille
        return (normal,)
