"""The control plane in a simulation: its own passes, observations and orders around a store that
forgets. What a live process adds (HTTP, the long poll's waiting, logs) is left out; what decides
is imported from it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from onefleet.control.demand import Demands
from onefleet.control.leases import Sightings
from onefleet.control.mirror import Mirror
from onefleet.control.observe import observe
from onefleet.control.orders import OrderBook
from onefleet.control.pool import BATCH_MS, CAS_TRIES, PASS_MS
from onefleet.control.reconcile import Inputs, reconcile
from onefleet.control.utilisation import Utilisation
from onefleet.core.plan import Plan, describe
from onefleet.core.policy import Policy
from onefleet.domain.errors import StaleGeneration
from onefleet.domain.ids import CountingIds, Generation, Instant, NodeId
from onefleet.sim.timeline import Timeline
from onefleet.store.base import Commit, State
from onefleet.store.memory import MemoryStore
from onefleet.wire.agent import NodeOrders, NodeReport
from onefleet.wire.gateway import DemandReport

Reply = Callable[[NodeOrders], None]
Decide = Callable[[State, Instant], Commit]


@dataclass(frozen=True, slots=True)
class _Poll:
    """A node's call that is held until there is news."""

    number: int
    seen: Generation
    reply: Reply


class SimControl:
    """Takes reports and demand, runs passes when something happened and each second."""

    def __init__(self, timeline: Timeline, policy: Policy, seed: int) -> None:
        self.store = MemoryStore()
        self.ids = CountingIds()
        self.sightings = Sightings(Instant(0))
        self.demands = Demands(Instant(0))
        self.utilisation = Utilisation(Instant(0))
        self.policy = policy
        self.log: list[str] = []  # every decision, with its time
        self.last_plan: Plan | None = None
        self.decisions = 0
        self.state: State | None = None
        self.on_change: Callable[[State], None] = lambda state: None
        self._timeline = timeline
        self._rng = random.Random(f"{seed}/planner")
        self._mirror = Mirror()
        self._polls: dict[NodeId, _Poll] = {}
        self._orders = OrderBook()
        self._number = 0
        self._hinted = False
        self.lives = True

    def kill(self) -> None:
        """The process dies: what it knew besides the store is gone, calls that it held as well."""
        self.lives = False
        self._polls.clear()
        self._orders = OrderBook()

    def restart(self) -> None:
        """A new process reads the store and knows nothing else."""
        now = self._timeline.now()
        self.lives = True
        self.sightings = Sightings(now)
        self.demands = Demands(now)
        self._mirror = Mirror()
        self.hint()

    async def start(self, commit: Commit) -> None:
        """Write the first state and begin to run passes."""
        await self.store.commit(commit)
        await self._advance()
        self._timeline.at(Instant(0), self._tick)

    async def change(self, decide: Decide) -> None:
        """Commit what is decided from the newest state, and tell whoever waits for it."""
        for _ in range(CAS_TRIES):
            state = await self.store.read()
            commit = decide(state, self._timeline.now())
            if not commit.changes:
                return
            try:
                await self.store.commit(replace(commit, parent=state.generation))
            except StaleGeneration:
                continue
            await self._advance()
            return
        raise StaleGeneration(f"lost the race {CAS_TRIES} times")

    async def sync(self, report: NodeReport, reply: Reply) -> None:
        """A node's call; it is answered when there is something that it has not seen."""
        if not self.lives:
            return
        lease = self.sightings.renew(report.node_id, self._timeline.now())

        def decide(state: State, now: Instant) -> Commit:
            seen = self.sightings.see(report, state, now)
            return observe(state, report, seen, lease, now)

        await self.change(decide)
        self._number += 1
        poll = _Poll(self._number, report.seen, reply)
        self._polls[report.node_id] = poll
        await self._answer(report.node_id, force=False)

        async def give_up() -> None:
            if self._polls.get(report.node_id) is poll:
                await self._answer(report.node_id, force=True)

        self._timeline.at(Instant(self._timeline.now() + report.wait_ms), give_up)

    def demand(self, reports: tuple[DemandReport, ...]) -> None:
        """A gateway's call."""
        if self.lives and self.demands.take("gateway", reports, self._timeline.now()):
            self.hint()

    def hint(self) -> None:
        """Something happened that the next pass should see soon."""
        if not self._hinted:
            self._hinted = True
            self._timeline.at(Instant(self._timeline.now() + BATCH_MS), self._pass)

    async def _tick(self) -> None:
        self.hint()
        self._timeline.at(Instant(self._timeline.now() + PASS_MS), self._tick)

    async def _pass(self) -> None:
        self._hinted = False
        if not self.lives:
            return
        now = self._timeline.now()
        state = await self.store.read()
        leases = {name: self.sightings.lease_of(name) for name in state.nodes}
        inputs = Inputs(leases=leases, demand=self.demands.now(now))
        done = await reconcile(
            self.store,
            self.policy,
            now,
            self._rng,
            ids=self.ids,
            inputs=inputs,
            mirror=self._mirror,
        )
        self.last_plan = done.plan
        for decision in done.plan.decisions:
            self.log.append(f"{now} {describe(decision)}")
            self.decisions += 1
        if done.committed:
            await self._advance()

    async def _advance(self) -> None:
        self.state = await self.store.read()
        self.utilisation.advance(self.state, self._timeline.now())
        self.on_change(self.state)
        self.hint()
        for node_id in sorted(self._polls):
            await self._answer(node_id, force=False)

    async def _answer(self, node_id: NodeId, *, force: bool) -> None:
        poll = self._polls[node_id]
        state = await self.store.read()
        known = self._orders.of(state, node_id)
        if not force and known.generation == poll.seen:
            return
        del self._polls[node_id]
        now = self._timeline.now()
        self.sightings.renew(node_id, now)
        self.sightings.told(known, now)
        poll.reply(known)
