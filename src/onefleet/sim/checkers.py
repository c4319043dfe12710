"""What must never be, looked for after every event; and what must be in the end.

Safety, in the pool's state: no device held twice, a gang whole or absent, no generation and no
epoch falls, everything that does not run has a reason. Safety, in the world: no two processes have
one device, no program runs twice, and no job runs where the lease is over. Liveness: when the
faults are over and nothing new comes, every job ends and every request is answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onefleet.core import lifecycle
from onefleet.core.explain import explain
from onefleet.core.plan import Plan
from onefleet.domain.errors import InternalError
from onefleet.domain.ids import DeviceId, Generation, Instant, NodeId, WorkId
from onefleet.domain.work import Phase, Want, Work, WorkKind
from onefleet.drivers.base import WorkerState
from onefleet.sim.gateway import SimGateway
from onefleet.sim.node import SimNode
from onefleet.sim.programs import Programs
from onefleet.store.base import State

#: Violations that are kept; the run ends at the limit.
VIOLATIONS_MAX = 10
#: Plans of one state differ by the time alone; to explain one costs several passes. One in so long
#: is looked at.
EXPLAINED_EACH_MS = 10_000


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken."""

    at: Instant
    text: str


class Checkers:
    """Remembers what it needs to see that things rise or stay. `found` is empty in a good run."""

    def __init__(self) -> None:
        self.found: list[Violation] = []
        self._told: dict[str, bool] = {}
        self._generation = Generation(0)
        self._epochs: dict[WorkId, Generation] = {}
        self._seen: State | None = None
        self._explained: tuple[Generation, Instant] | None = None  # of which state, and when

    def note(self, at: Instant, text: str) -> None:
        """A rule is broken; each breach is told once."""
        if text not in self._told and len(self.found) < VIOLATIONS_MAX:
            self._told[text] = True
            self.found.append(Violation(at, text))

    def check(
        self, now: Instant, state: State, nodes: Mapping[NodeId, SimNode], programs: Programs
    ) -> None:
        """Look at everything that may have changed."""
        if state is not self._seen:
            self._seen = state
            for text in self._state(state):
                self.note(now, text)
        for text in _world(now, nodes, programs):
            self.note(now, text)

    def check_reasons(self, now: Instant, state: State, plan: Plan | None) -> None:
        """Whatever the plan left waiting has a reason in words. Looks at a plan of every state."""
        if plan is None or plan.parent > state.generation:
            return
        if self._explained is not None:
            generation, at = self._explained
            if plan.parent == generation and now < at + EXPLAINED_EACH_MS:
                return
        self._explained = plan.parent, now
        for work_id, blockers in plan.blockers.items():
            work = state.works.get(work_id)
            if work is not None and not (blockers and explain(work, plan.blockers).summary):
                self.note(now, f"{work_id} does not run, and nothing says why")

    def check_end(self, now: Instant, state: State, gateway: SimGateway) -> None:
        """Everything came to its end."""
        for work in state.works.values():
            if work.kind is WorkKind.JOB and work.phase is not Phase.ENDED:
                self.note(now, f"{work.id} never ended: it is {work.phase} ({work.reason})")
            if work.phase is Phase.ENDED and not work.why_ended:
                self.note(now, f"{work.id} ended without a reason")
        for front in gateway.fronts.values():
            waiting = len(front.held) + sum(len(busy) for busy in front.busy.values())
            if waiting:
                self.note(now, f"{waiting} requests to {front.id} were never answered")

    def _state(self, state: State) -> Iterator[str]:
        if state.generation < self._generation:
            yield f"the generation fell from {self._generation} to {state.generation}"
        self._generation = state.generation
        holders: dict[DeviceId, WorkId] = {}
        for work in state.works.values():
            before = self._epochs.get(work.id, Generation(0))
            if work.epoch < before:
                yield f"the epoch of {work.id} fell from {before} to {work.epoch}"
            self._epochs[work.id] = work.epoch
            yield from _work(work)
            for slot in work.placement:
                for device in slot.devices:
                    other = holders.setdefault(device, work.id)
                    if other != work.id:
                        yield f"{device} is held by {other} and by {work.id}"


def _work(work: Work) -> Iterator[str]:
    if len(work.placement) not in (0, work.demand.workers):
        yield f"{len(work.placement)} of {work.demand.workers} workers of {work.id} are placed"
    try:
        lifecycle.check(work)
    except AssertionError:
        yield f"{work.id} breaks a rule of its lifecycle in phase {work.phase}"


def _world(now: Instant, nodes: Mapping[NodeId, SimNode], programs: Programs) -> Iterator[str]:
    for node in nodes.values():
        having: dict[DeviceId, WorkId] = {}
        for device, process in node.holders():
            other = having.setdefault(device, process.key.work_id)
            if other != process.key.work_id:
                yield f"processes of {other} and {process.key.work_id} both have {device}"
        until = node.workers.lease_until
        for process in node.workers.processes.values():
            runs = process.is_job and process.state is WorkerState.RUNNING
            if runs and until is not None and now > until:
                yield f"{process.key.work_id} runs on {node.id}, whose lease is over"
    running: dict[WorkId, Generation] = {}
    for run in programs.running():
        work_id = run.program.work_id
        if work_id in running:
            yield f"{work_id} runs twice, under epochs {running[work_id]} and {run.epoch}"
        running[work_id] = run.epoch
    yield from programs.uneven


def converged(state: State, gateway: SimGateway) -> bool:
    """Nothing is left to do: jobs are over, requests answered, deployments as they are wanted."""
    if not gateway.idle:
        return False
    for work in state.works.values():
        if work.kind is WorkKind.JOB and work.phase is not Phase.ENDED:
            return False
        if work.kind is WorkKind.REPLICA and work.want is not Want.STOP:
            if work.phase is not Phase.RUNNING:
                return False
        elif work.kind is WorkKind.REPLICA:
            return False
    return all(
        d.replicas_wanted == d.replicas_min and _replicas(state, d.id) == d.replicas_wanted
        for d in state.deployments.values()
    )


def _replicas(state: State, deployment_id: str) -> int:
    return sum(1 for r in state.replicas.values() if r.deployment_id == deployment_id)


def defect(error: InternalError) -> str:
    """A pass or a transition that our own rules refused."""
    return f"{error.what}: {error.why}" if error.why else error.what


Violations = Sequence[Violation]
