"""The control plane's hub: the store, what is known besides it, and the loop of passes.

Handlers change the state through `Pool.change` alone: read, decide, commit by compare-and-swap,
and again when somebody else was first. Each commit wakes the long polls and the next pass.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from time import perf_counter_ns
from typing import Any, Protocol, TypeVar

import structlog

from onefleet.control.auth import Caller
from onefleet.control.demand import Demands
from onefleet.control.failures import WATCHED, Watch, learnt
from onefleet.control.gateway_table import same_content, table_for, with_generation
from onefleet.control.leases import Sightings
from onefleet.control.mirror import Mirror
from onefleet.control.orders import OrderBook
from onefleet.control.reconcile import Inputs, Pass, reconcile
from onefleet.control.signal import Signal
from onefleet.control.spares import sparing
from onefleet.control.utilisation import LOOK_BACK_MS, Utilisation
from onefleet.control.views import Scene
from onefleet.core.checkpointing import Failures
from onefleet.core.plan import Plan
from onefleet.core.policy import Policy
from onefleet.domain.errors import OnefleetError, Overloaded, StaleGeneration
from onefleet.domain.fleet import Node
from onefleet.domain.ids import IdSource, Instant, NodeId
from onefleet.domain.layout import Layout
from onefleet.domain.serving import Model
from onefleet.store.base import Commit, State, Store
from onefleet.wire.gateway import RouteTable

#: A pass at least this often, whether anything happened or not.
PASS_MS = 1_000
#: At least this long between passes, so that a burst of changes is decided together.
BATCH_MS = 20
#: How often a change that lost its race is decided again.
CAS_TRIES = 16
#: Models that may be added at one time.
TASKS_MAX = 4
#: Code folders that are taken at one time, each held in memory; further ones wait.
UPLOADS_MAX = 2
#: Held device time is written this often.
HELD_WRITE_MS = 60_000

ResultT = TypeVar("ResultT")


class Clock(Protocol):
    def now(self) -> Instant: ...


@dataclass(frozen=True, slots=True)
class LastPass:
    """What the newest pass did. plan: the newest that was made; None before the first."""

    at: Instant
    took_us: int
    result: str
    plan: Plan | None


#: Called with (bytes done, bytes in all; 0: not known), from any thread.
Tell = Callable[[int, int], None]


class AddModel(Protocol):
    """Brings a model into the pool's folder: checks that it fits one of the nodes, fetches,
    verifies and describes it. Raises OnefleetError."""

    async def __call__(
        self, source: str, name: str | None, nodes: Sequence[Node], tell: Tell
    ) -> Model: ...


class Pool:
    """Everything that the handlers and the passes share. Made by `Pool.load`."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        clock: Clock,
        ids: IdSource,
        policy: Policy,
        utilisation: Utilisation,
        add_model: AddModel,
    ) -> None:
        self.store = store
        self.layout = layout
        self.clock = clock
        self.ids = ids
        self.policy = policy
        self.utilisation = utilisation
        self.add_model = add_model
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.started_at = clock.now()
        self.sightings = Sightings(self.started_at)
        self.demands = Demands(self.started_at)
        self.changed = Signal()
        self.last_pass = LastPass(Instant(0), 0, "no pass yet", None)
        #: Held while a model's file is checked and its record written, or it is deleted.
        self.model_files = asyncio.Lock()
        self.uploads = asyncio.Semaphore(UPLOADS_MAX)
        self.closing = False
        self._turns: dict[str, int] = {}
        self._hint = asyncio.Event()
        self._rng = random.Random("control/passes")
        self._mirror = Mirror()
        self.orders = OrderBook(secrets.token_hex(32))
        self._table: RouteTable | None = None
        self._held_written_at = self.started_at
        self._watch = Watch(self.started_at)
        self._log = structlog.get_logger("control")

    @classmethod
    async def load(
        cls,
        store: Store,
        layout: Layout,
        clock: Clock,
        ids: IdSource,
        policy: Policy,
        add_model: AddModel,
    ) -> Pool:
        """Read everything back before anything is decided."""
        now = clock.now()
        past = await store.held(Instant(now - LOOK_BACK_MS))
        pool = cls(store, layout, clock, ids, policy, Utilisation(now, past), add_model)
        pool.utilisation.advance(await store.read(), now)
        return pool

    # --- changing the state --------------------------------------------------------------------

    async def commit(self, commit: Commit) -> None:
        """Write, and wake whoever waits for changes. Raises StaleGeneration, StorageFull."""
        await self.store.commit(commit)
        await self._advance()

    async def change(self, decide: Callable[[State, Instant], tuple[Commit, ResultT]]) -> ResultT:
        """Read, decide and commit until the race is won, a bounded number of times.

        `decide` raises what the caller is told; an empty commit is not written.
        """
        for _ in range(CAS_TRIES):
            state = await self.store.read()
            commit, result = decide(state, self.clock.now())
            if not (commit.changes or commit.notes or commit.usage or commit.marks):
                return result
            try:
                await self.commit(replace(commit, parent=state.generation))
            except StaleGeneration:
                continue
            return result
        raise StaleGeneration(
            f"others changed the state {CAS_TRIES} times while this change was made",
            hint="try again",
            retry_after_ms=200,
        )

    def hint(self) -> None:
        """Something that the planner should look at happened."""
        self._hint.set()

    async def _advance(self) -> None:
        state, now = await self.store.read(), self.clock.now()
        self.utilisation.advance(state, now)
        self._watch.advance(state, now)
        self.changed.notify()
        self.hint()

    # --- passes --------------------------------------------------------------------------------

    async def next_pass(self) -> None:
        """Run one pass, then wait until another is due: something happened, or a second passed."""
        self._hint.clear()
        await self.run_pass()
        try:
            await asyncio.wait_for(self._hint.wait(), PASS_MS / 1000)
        except TimeoutError:
            return
        await asyncio.sleep(BATCH_MS / 1000)

    async def run_pass(self) -> None:
        """One pass. What goes wrong is logged and shown; the next pass tries again."""
        now = self.clock.now()
        began = perf_counter_ns()
        try:
            done = await self._reconcile(now)
            await self._write_held(now)
        except OnefleetError as error:
            if error.what not in self.last_pass.result:  # said once, not each second
                self._log.error("pass failed", what=error.what, why=error.why)
            self.failed_pass(now, error.what)
            return
        self.last_pass = LastPass(now, _us_since(began), done.result, done.plan)
        if done.committed:
            self._log.info("pass", took_us=_us_since(began), result=done.result)
            await self._advance()

    def failed_pass(self, now: Instant, what: str) -> None:
        """A pass came to nothing; the plan before it stays the newest."""
        self.last_pass = LastPass(now, 0, f"failed: {what}", self.last_pass.plan)

    async def _reconcile(self, now: Instant) -> Pass:
        state = await self.store.read()
        leases = {name: self.sightings.lease_of(name) for name in state.nodes}
        self.demands.forget(state.deployments)
        self._watch.advance(state, now)
        failures = self._watch.failures(state)
        inputs = Inputs(leases=leases, demand=self.demands.now(now), failures=failures)
        return await reconcile(
            self.store,
            self.policy,
            now,
            self._rng,
            ids=self.ids,
            inputs=inputs,
            mirror=self._mirror,
        )

    async def _write_held(self, now: Instant, *, force: bool = False) -> None:
        if now - self._held_written_at < HELD_WRITE_MS and not force:
            return
        held = self.utilisation.unwritten(now)
        watched_ms = self._watch.unwritten_ms
        if held or watched_ms:
            seen = self._watch.failures(await self.store.read())
            await self.store.commit(Commit(held=held, marks={WATCHED: seen.watched_ms}))
            self.utilisation.written()
            self._watch.unwritten_ms = 0
        self._held_written_at = now

    async def close(self) -> None:
        """Write what is only in memory, and let go of the store."""
        await self._write_held(self.clock.now(), force=True)
        await self.store.close()

    def background(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        """Run something that outlives the call that asked for it."""
        if len(self._tasks) >= TASKS_MAX:
            work.close()
            raise Overloaded(f"{TASKS_MAX} models are being added already", retry_after_ms=5_000)
        task = asyncio.ensure_future(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def stop_waiting(self) -> None:
        """The process goes down: whoever is held is answered now."""
        self.closing = True
        self.changed.notify()

    # --- what the handlers look at -------------------------------------------------------------

    def scene(self, state: State, viewer: Caller | None = None) -> Scene:
        """All that a view may depend on, now, for this viewer (None: for one who may see all)."""
        plan = self.last_pass.plan
        blockers = plan.blockers if plan else {}
        now = self.clock.now()
        policy = self.policy_of(state)
        scene = (state, self.sightings, self.demands, blockers, now, viewer, policy)
        return Scene(*scene, self.spares)

    @property
    def spares(self) -> tuple[NodeId, ...]:
        """The nodes that are kept as spares, as of the last plan."""
        plan = self.last_pass.plan
        return plan.spares if plan else ()

    def failures(self, state: State) -> Failures:
        """What was seen of the fleet's failures."""
        return self._watch.failures(state)

    def policy_of(self, state: State) -> Policy:
        """The policy, with what the fleet has taught and what administrators have set."""
        return sparing(learnt(self.policy, self.failures(state)), state)

    def take_turn(self, peer: str) -> tuple[str, int]:
        """A peer's newest call has the turn; an older one that is still held lets go of it."""
        self._turns[peer] = self._turns.get(peer, 0) + 1
        self.changed.notify()
        return peer, self._turns[peer]

    def has_turn(self, turn: tuple[str, int]) -> bool:
        """Whether this call is still its peer's newest, and may be held on."""
        return self._turns[turn[0]] == turn[1] and not self.closing

    # --- what agents and gateways are told -----------------------------------------------------

    def route_table(self, state: State) -> RouteTable:
        """The gateway's table; its generation rises when its content changes."""
        plan = self.last_pass.plan
        fresh = table_for(state, plan.blockers if plan else {})
        known = self._table
        if known is not None and same_content(known, fresh, state.generation):
            # Words of why it waits may differ: they alone do not raise the state's generation.
            fresh = with_generation(fresh, known.generation)
        self._table = fresh
        return fresh


def _us_since(began_ns: int) -> int:
    return (perf_counter_ns() - began_ns) // 1000
