"""Puts a scenario together and runs it: control plane, nodes, gateway, faults, checkers."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from time import perf_counter_ns

import msgspec

from onefleet.agent.protocol import WorkerKey
from onefleet.core.lifecycle import IllegalTransition
from onefleet.domain.errors import InternalError
from onefleet.domain.fleet import Device
from onefleet.domain.ids import (
    DeploymentId,
    DeviceId,
    Digest,
    Instant,
    ModelId,
    NodeId,
    ReservationId,
    TenantId,
    WorkId,
)
from onefleet.domain.jobs import Job
from onefleet.domain.serving import Deployment, DeploymentKind, Model, ModelShape, Purpose
from onefleet.domain.tenancy import DEFAULT_TENANT, Reservation, Tenant
from onefleet.domain.work import Demand, Phase, Want, Work, WorkKind
from onefleet.sim.checkers import VIOLATIONS_MAX, Checkers, converged, defect
from onefleet.sim.control import SimControl
from onefleet.sim.gateway import SimGateway
from onefleet.sim.node import SimNode
from onefleet.sim.programs import Program, Programs, Run
from onefleet.sim.report import Breach, Report, failovers_ms, quantiles, tier_reports
from onefleet.sim.scenario import DeploymentSpec, FaultSpec, JobsSpec, Scenario
from onefleet.sim.timeline import HeapTimeline, LoopTimeline, Timeline
from onefleet.store.base import Commit, Put, Record, State
from onefleet.wire.agent import Order

DRIVERS = ("heap", "asyncio")
MODEL = ModelId("simulated")
#: Before a submission that found no control plane is tried again.
RETRY_MS = 1_000


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A job that is submitted."""

    job: Job
    work: Work
    program: Program


def simulate(scenario: Scenario, driver: str = "heap", seed: int | None = None) -> Report:
    """Run a scenario to its end.

    driver: heap or asyncio; both decide the same. seed: in place of the scenario's own.
    """
    if seed is not None:
        scenario = msgspec.structs.replace(scenario, seed=seed)
    began = perf_counter_ns()
    timeline: Timeline = HeapTimeline() if driver == "heap" else LoopTimeline()
    world = World(scenario, timeline)
    world.run()
    return world.report(driver, (perf_counter_ns() - began) // 1_000_000)


class World:
    """One simulated pool. The same scenario and seed give the same history."""

    def __init__(self, scenario: Scenario, timeline: Timeline) -> None:
        self.scenario = scenario
        self.timeline = timeline
        self.checkers = Checkers()
        self.control = SimControl(timeline, scenario.planner_policy(), scenario.seed)
        self.programs = Programs(timeline, self._exited)
        self.gateway = SimGateway(timeline, self.control.demand, self._endpoints, scenario.seed)
        self.nodes: dict[NodeId, SimNode] = {}
        self.events = 0
        self.node_losses = 0
        self._faults_left = len(scenario.faults)
        self._arrivals_left = 0
        self._loads_ms: dict[str, int] = {}
        self._checked_plan: object = None

    def run(self) -> None:
        """Run until everything came to its end, the horizon, or too many violations."""
        scenario = self.scenario
        self.timeline.at(Instant(0), self._start)
        for spec in scenario.deployments:
            self.gateway.add(DeploymentId(spec.name), spec)
        for arrival in self._arrivals():
            self._submit_later(arrival)
        for fault in scenario.faults:
            self._inject_later(fault)
        horizon = Instant(round(scenario.horizon_s * 1000))
        try:
            self.timeline.run(horizon, self._after_event)
        except (InternalError, IllegalTransition) as error:
            self.checkers.note(self.timeline.now(), defect(error))
        except AssertionError as error:
            self.checkers.note(self.timeline.now(), f"an invariant is broken: {error}")
        state = self.control.state
        if state is not None and not self.checkers.found:
            self.checkers.check_end(self.timeline.now(), state, self.gateway)
            self._check_expectations(state)

    # --- the beginning ---------------------------------------------------------------------------

    async def _start(self) -> None:
        fleet = self.scenario.fleet
        records: list[Record] = [_tenant(DEFAULT_TENANT)]
        for spec in self.scenario.tenants:
            tenant_id = TenantId(spec.id)
            if tenant_id != DEFAULT_TENANT:
                records.append(_tenant(tenant_id))
            if spec.reserved:
                name = ReservationId(f"res-{spec.id}")
                records.append(Reservation(name, tenant_id, fleet.kind, spec.reserved, Instant(0)))
        if self.scenario.deployments:
            records.append(_model())
        for deployment in self.scenario.deployments:
            self._loads_ms[deployment.name] = deployment.load_ms
            records.append(_deployment(deployment))
        self.control.on_change = self._state_changed
        await self.control.start(Commit(changes=[Put(record) for record in records]))
        for number in range(1, fleet.nodes + 1):
            node = self._node(NodeId(f"n{number:04d}"))
            self.nodes[node.id] = node
            node.boot()

    def _node(self, node_id: NodeId) -> SimNode:
        fleet = self.scenario.fleet
        memory = (fleet.memory_gib << 30) // fleet.devices
        devices = tuple(
            Device(DeviceId(f"{node_id}/{fleet.kind}{i}"), fleet.kind, i, "simulated", memory, True)
            for i in range(fleet.devices)
        )
        node = SimNode(
            node_id,
            devices,
            fleet,
            self.scenario.reports,
            self.timeline,
            self.programs,
            self.control.sync,
            random.Random(f"{self.scenario.seed}/network/{node_id}"),
            self._load_ms,
            self.nodes.get,
        )
        node.changed = self.gateway.update
        return node

    def _load_ms(self, order: Order) -> int:
        return self._loads_ms[order.engine.served_name] if order.engine else 0

    def _arrivals(self) -> list[_Arrival]:
        found = []
        for spec in self.scenario.jobs:
            rng = random.Random(f"{self.scenario.seed}/jobs/{spec.name}")
            for number in range(1, spec.count + 1):
                found.append(_arrival(spec, number, self.scenario, rng))
        return found

    def _submit_later(self, arrival: _Arrival) -> None:
        self._arrivals_left += 1
        self.programs.add(arrival.program)

        async def submit() -> None:
            if not self.control.lives:  # its owner tries again
                self.timeline.at(Instant(self.timeline.now() + RETRY_MS), submit)
                return
            self._arrivals_left -= 1
            changes = [Put(arrival.job), Put(arrival.work)]
            await self.control.change(lambda state, now: Commit(changes=changes))

        self.timeline.at(arrival.job.submitted_at, submit)

    # --- faults ----------------------------------------------------------------------------------

    def _inject_later(self, fault: FaultSpec) -> None:
        at = Instant(round(fault.at_s * 1000))
        node_id = NodeId(f"n{fault.node:04d}")

        async def begin() -> None:
            node = self.nodes[node_id]
            match fault.kind:
                case "node_loss":
                    self.node_losses += 1
                    node.lose_power()
                case "partition":
                    self.node_losses += 1
                    node.line.reachable = False
                case "engine_crash":
                    node.crash_engines()
                case "save_fails":
                    node.workers.saves_fail = True
                case "agent_restart":
                    node.kill_agent()
                case "control_restart":
                    self.control.kill()

        async def end() -> None:
            self._faults_left -= 1
            node = self.nodes[node_id]
            match fault.kind:
                case "node_loss" | "agent_restart":
                    node.boot()
                case "partition":
                    node.line.reachable = True
                case "save_fails":
                    node.workers.saves_fail = False
                case "control_restart":
                    self.control.restart()
                case "engine_crash":
                    pass

        self.timeline.at(at, begin)
        self.timeline.at(Instant(at + round(fault.for_s * 1000)), end)

    # --- what the parts ask of each other --------------------------------------------------------

    def _exited(self, run: Run, rank: int, node_id: NodeId) -> None:
        self.nodes[node_id].exited(WorkerKey(run.program.work_id, rank), run.epoch)

    def _endpoints(self, deployment_id: DeploymentId) -> tuple[WorkId, ...]:
        """Replicas that the control plane says run, and whose engine still answers."""
        state = self.control.state
        if state is None:
            return ()
        found = []
        for replica in state.replicas.values():
            work = state.works[replica.id]
            if replica.deployment_id != deployment_id or work.phase is not Phase.RUNNING:
                continue
            node = self.nodes[work.placement[0].node_id]
            for process in node.workers.processes.values():
                if process.key.work_id == work.id and process.ready and node.line.reachable:
                    found.append(work.id)
        return tuple(found)

    def _state_changed(self, state: State) -> None:
        self.gateway.update()

    # --- looking on ------------------------------------------------------------------------------

    def _after_event(self) -> bool:
        self.events += 1
        state, now = self.control.state, self.timeline.now()
        if state is None:
            return False
        self.checkers.check(now, state, self.nodes, self.programs)
        if self.control.last_plan is not self._checked_plan:
            self._checked_plan = self.control.last_plan
            self.checkers.check_reasons(now, state, self.control.last_plan)
        if len(self.checkers.found) >= VIOLATIONS_MAX:
            return True
        return not (self._faults_left or self._arrivals_left) and converged(state, self.gateway)

    def _check_expectations(self, state: State) -> None:
        expect, now = self.scenario.expect, self.timeline.now()
        jobs = [w for w in state.works.values() if w.kind is WorkKind.JOB]
        suspends = sum(w.suspends for w in jobs)
        failed = sum(1 for w in jobs if w.outcome is not None and w.exit_code != 0)
        lost_ms = sum(w.lost_ms for w in jobs)
        waited_ms = max(self.gateway.waits_ms, default=0)
        failover_ms = max(failovers_ms(jobs), default=0)
        for name, value, least, most in (
            ("suspends", suspends, expect.suspends_min, None),
            ("jobs failed", failed, None, expect.jobs_failed_max),
            ("lost_ms", lost_ms, None, expect.lost_ms_max),
            ("longest wait of a request in ms", waited_ms, None, expect.requests_waiting_ms_max),
            ("nodes lost", self.node_losses, expect.node_losses_min, None),
            ("longest failover in ms", failover_ms, None, expect.failover_ms_max),
        ):
            if least is not None and value < least:
                self.checkers.note(now, f"{name}: {value}, expected at least {least}")
            if most is not None and value > most:
                self.checkers.note(now, f"{name}: {value}, expected at most {most}")

    def report(self, driver: str, took_ms: int) -> Report:
        """Add everything up."""
        now, control = self.timeline.now(), self.control
        state = control.state
        works = tuple(state.works.values()) if state else ()
        capacity = self.scenario.fleet.nodes * self.scenario.fleet.devices * max(now, 1)
        totals = control.utilisation.totals(Instant(0), now)
        replicas_ms = sum(
            held for label, held in totals.held_device_ms.items() if label.endswith("replica")
        )
        held_ms = sum(totals.held_device_ms.values())
        log = "\n".join(control.log)
        return Report(
            scenario=self.scenario.name,
            driver=driver,
            seed=self.scenario.seed,
            simulated=True,
            ended_at_ms=now,
            events=self.events,
            passes_decided=len({line.split(" ", 1)[0] for line in control.log}),
            decisions=control.decisions,
            decision_hash=hashlib.sha256(log.encode()).hexdigest(),
            held_permille=1000 * held_ms // capacity,
            useful_permille=1000 * (self.programs.useful_device_ms + replicas_ms) // capacity,
            tiers=tier_reports(works, now),
            requests_answered=self.gateway.answered,
            requests_interrupted=self.gateway.interrupted,
            requests_wait=quantiles(self.gateway.waits_ms),
            suspends=totals.suspends,
            resumes=totals.resumes,
            node_losses=self.node_losses,
            failovers=quantiles(failovers_ms(works)),
            calls_harmed=sum(node.line.harmed for node in self.nodes.values()),
            violations=tuple(Breach(at_ms=v.at, text=v.text) for v in self.checkers.found),
            took_ms=took_ms,
        )


def _tenant(tenant_id: TenantId) -> Tenant:
    return Tenant(tenant_id, None, None, None, Instant(0))


def _model() -> Model:
    shape = ModelShape("simulated", 0, 1, 4096, 1, 1, 1)
    return Model(
        id=MODEL,
        family="simulated",
        purpose=Purpose.CHAT,
        revision=Digest("sha256:0"),
        format="simulated",
        path="",
        size_bytes=0,
        shape=shape,
        source="simulated",
        licence="none",
        created_at=Instant(0),
    )


def _deployment(spec: DeploymentSpec) -> Deployment:
    return Deployment(
        id=DeploymentId(spec.name),
        name=spec.name,
        tenant_id=TenantId(spec.tenant),
        model_id=MODEL,
        kind=DeploymentKind.PAYGO,
        tier=spec.tier,
        engine="simulated",
        replicas_min=spec.replicas_min,
        replicas_max=spec.replicas_max,
        replicas_wanted=spec.replicas_min,
        devices_per_replica=spec.devices,
        slots=spec.slots,
        context_length=4096,
        memory_bytes=0,
        created_at=Instant(0),
    )


def _arrival(spec: JobsSpec, number: int, scenario: Scenario, rng: random.Random) -> _Arrival:
    work_id = WorkId(f"{spec.name}-{number:04d}")
    at = Instant(round(rng.uniform(*spec.submit_s) * 1000))
    run_ms = max(round(rng.uniform(*spec.run_s) * 1000), 1)
    state_bytes = round(rng.uniform(*spec.state_mib) * 2**20)
    job = Job(work_id, spec.name, TenantId(spec.tenant), ("simulated",), (), None, "cell", at)
    work = Work(
        id=work_id,
        kind=WorkKind.JOB,
        tenant_id=job.tenant_id,
        tier=spec.tier,
        demand=Demand(
            scenario.fleet.kind,
            spec.devices,
            max(spec.devices, spec.devices_max),
            spec.workers,
        ),
        want=Want.RUN,
        phase=Phase.PENDING,
        submitted_at=at,
        phase_since=at,
        suspendable=spec.suspendable,
    )
    program = Program(work_id, spec.workers, run_ms * spec.devices, state_bytes, spec.exit_code)
    return _Arrival(job, work, program)
