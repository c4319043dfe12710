"""Requests and the gateway that holds them while no replica has a free slot.

A request is a number: when it came, how long an engine is busy with it. One that an engine drops
because it died goes back to the front of the queue, as the gateway does with what it has not begun
to answer.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log

from onefleet.domain.ids import DeploymentId, Instant, WorkId
from onefleet.sim.scenario import DeploymentSpec, LoadSpec
from onefleet.sim.timeline import Timeline
from onefleet.wire.gateway import DemandReport

#: Demand is told at most this often, and at least each second.
GATHER_MS = 10
REPEAT_MS = 1_000
_NEVER = Instant(0)


@dataclass(slots=True)
class Request:
    """arrived: when. service_ms: how long an engine takes. begun: when one first did."""

    arrived: Instant
    service_ms: int
    begun: Instant | None = None


@dataclass(slots=True)
class Front:
    """One deployment as the gateway sees it. busy: the requests that each replica has."""

    id: DeploymentId
    slots: int
    held: deque[Request] = field(default_factory=deque)
    busy: dict[WorkId, list[Request]] = field(default_factory=dict)
    last_request_at: Instant = _NEVER
    sources: int = 0  # loads that go on


class SimGateway:
    """All deployments' requests. endpoints: replicas of a deployment that answer now."""

    def __init__(
        self,
        timeline: Timeline,
        tell: Callable[[tuple[DemandReport, ...]], None],
        endpoints: Callable[[DeploymentId], Sequence[WorkId]],
        seed: int,
    ) -> None:
        self._timeline = timeline
        self._tell_demand = tell
        self._endpoints = endpoints
        self._seed = seed
        self._telling = False
        self.fronts: dict[DeploymentId, Front] = {}
        self.answered = 0
        self.interrupted = 0
        self.waits_ms: list[int] = []

    def add(self, deployment_id: DeploymentId, spec: DeploymentSpec) -> None:
        """Begin to take requests for a deployment."""
        front = Front(deployment_id, spec.slots)
        self.fronts[deployment_id] = front
        for number, load in enumerate(spec.load):
            rng = random.Random(f"{self._seed}/requests/{spec.name}/{number}")
            front.sources += 1
            self._next(front, load, Instant(round(load.from_s * 1000)), rng)
        self._timeline.at(Instant(0), self._repeat)

    @property
    def idle(self) -> bool:
        """Nothing is asked any more, and everything is answered."""
        return not any(f.sources or f.held or any(f.busy.values()) for f in self.fronts.values())

    def update(self) -> None:
        """Replicas came or went: give out what is held, take back what they dropped."""
        for front in self.fronts.values():
            alive = dict.fromkeys(self._endpoints(front.id), True)
            for replica in [name for name in front.busy if name not in alive]:
                dropped = front.busy.pop(replica)
                self.interrupted += len(dropped)
                front.held.extendleft(reversed(dropped))
            self._give_out(front)
        self._tell()

    def _next(self, front: Front, load: LoadSpec, after: Instant, rng: random.Random) -> None:
        gap_ms = -log(1.0 - rng.random()) * 60_000 / load.per_minute
        due = Instant(after + max(round(gap_ms), 1))
        if due >= load.to_s * 1000:
            front.sources -= 1
            return

        async def arrive() -> None:
            low, high = load.service_ms
            request = Request(due, max(round(rng.uniform(low, high)), 1))
            front.last_request_at = due
            front.held.append(request)
            self._next(front, load, due, rng)
            self._give_out(front)
            self._tell()

        self._timeline.at(due, arrive)

    def _give_out(self, front: Front) -> None:
        now = self._timeline.now()
        for replica in self._endpoints(front.id):
            busy = front.busy.setdefault(replica, [])
            while front.held and len(busy) < front.slots:
                request = front.held.popleft()
                if request.begun is None:
                    request.begun = now
                    self.waits_ms.append(now - request.arrived)
                busy.append(request)
                self._serve(front, replica, request)

    def _serve(self, front: Front, replica: WorkId, request: Request) -> None:
        async def answered() -> None:
            busy = front.busy.get(replica, [])
            if not any(other is request for other in busy):
                return  # it was dropped; somebody else answers it
            front.busy[replica] = [other for other in busy if other is not request]
            self.answered += 1
            front.last_request_at = self._timeline.now()
            self._give_out(front)
            self._tell()

        self._timeline.at(Instant(self._timeline.now() + request.service_ms), answered)

    def _tell(self) -> None:
        if not self._telling:
            self._telling = True
            self._timeline.at(Instant(self._timeline.now() + GATHER_MS), self._send)

    async def _repeat(self) -> None:
        self.update()  # an engine may be heard again without anything having changed
        self._timeline.at(Instant(self._timeline.now() + REPEAT_MS), self._repeat)

    async def _send(self) -> None:
        self._telling = False
        self._tell_demand(
            tuple(
                DemandReport(
                    deployment_id=front.id,
                    active=sum(len(busy) for busy in front.busy.values()),
                    waiting=len(front.held),
                    last_request_at=front.last_request_at,
                )
                for front in self.fronts.values()
            )
        )
