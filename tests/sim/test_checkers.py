"""The checkers see what they are there to see: each is shown a world that is wrong."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.fleets import a_job, placed
from tests.sim.test_faults import scenario

from onefleet.agent import deciding
from onefleet.agent.worker_machine import WorkerMachine
from onefleet.control import reconcile as control_reconcile
from onefleet.core import planner
from onefleet.core.index import Index
from onefleet.core.plan import Place, Plan
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.ids import DeviceId, Generation, Instant, NodeId, WorkId
from onefleet.domain.work import Slot, Work
from onefleet.sim.checkers import EXPLAINED_EACH_MS, Checkers
from onefleet.sim.programs import Program, Programs
from onefleet.sim.scenario import load
from onefleet.sim.timeline import HeapTimeline, run_now
from onefleet.sim.workers import SimWorkers
from onefleet.sim.world import World, simulate
from onefleet.store.base import State
from onefleet.store.memory import MemoryStore

EMPTY: dict[NodeId, Any] = {}
DEVICE = (DeviceId("n1/cpu0"),)


def state_of(*works: Work, generation: int = 1) -> State:
    return replace(
        run_now(MemoryStore().read()),
        generation=Generation(generation),
        works={work.id: work for work in works},
    )


def found(*states: State) -> list[str]:
    checkers = Checkers()
    programs = Programs(HeapTimeline(), lambda run, rank, node: None)
    for state in states:
        checkers.check(Instant(5), state, EMPTY, programs)
    assert all(violation.at == 5 for violation in checkers.found)
    return [violation.text for violation in checkers.found]


def test_a_sound_state_is_silent() -> None:
    assert found(state_of(placed(a_job("a"), ("n1", "0")), a_job("b"))) == []


def test_a_device_that_is_held_twice() -> None:
    twice = state_of(placed(a_job("a"), ("n1", "0")), placed(a_job("b"), ("n1", "0")))
    assert found(twice) == ["n1/cpu0 is held by a and by b"]


def test_half_a_gang() -> None:
    gang = placed(a_job("g", workers=2), ("n1", "0"), ("n1", "1"))
    assert found(state_of(replace(gang, placement=gang.placement[:1]))) == [
        "1 of 2 workers of g are placed"
    ]


def test_a_broken_lifecycle() -> None:
    broken = replace(placed(a_job("a"), ("n1", "0")), placement=())
    assert found(state_of(broken)) == ["a breaks a rule of its lifecycle in phase running"]


def test_what_falls() -> None:
    running = placed(a_job("a"), ("n1", "0"))
    fallen = replace(running, epoch=Generation(0), attempts=0)
    assert found(state_of(running, generation=2), state_of(fallen, generation=1)) == [
        "the generation fell from 2 to 1",
        "the epoch of a fell from 1 to 0",
    ]


def test_a_program_that_runs_twice_or_out_of_step() -> None:
    programs = Programs(HeapTimeline(), lambda run, rank, node: None)
    programs.add(Program(WorkId("a"), 1, 1_000, 0, 0))
    programs.add(Program(WorkId("g"), 2, 1_000, 0, 0))
    for epoch in (1, 2):
        programs.join(WorkId("a"), Generation(epoch), 0, NodeId("n1"), DEVICE, 0)
    programs.join(WorkId("g"), Generation(1), 0, NodeId("n1"), DEVICE, 10)
    programs.join(WorkId("g"), Generation(1), 1, NodeId("n1"), DEVICE, 20)
    checkers = Checkers()
    checkers.check(Instant(0), state_of(), EMPTY, programs)
    assert [violation.text for violation in checkers.found] == [
        "a runs twice, under epochs 1 and 2",
        "g.1 joins at 20, not 10",
    ]


# --- sabotage: the same worlds with a defect built in -----------------------------------------


def texts_of(world: World) -> list[str]:
    world.run()
    return [violation.text for violation in world.checkers.found]


def test_an_agent_that_starts_on_taken_devices_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerMachine, "_taken", lambda self, worker, order: False)
    slow = {"nodes": 1, "devices": 1, "stop_ms": 9_000}
    faults = [{"kind": "partition", "at_s": 10, "for_s": 40}]
    late = {"name": "j", "tier": "premium", "run_s": [20, 20], "submit_s": [30, 30]}
    service = {"name": "s", "replicas_min": 1}
    broken = scenario(fleet=slow, faults=faults, jobs=[late], deployments=[service])
    assert any("both have" in text for text in texts_of(World(broken, HeapTimeline())))


def test_an_agent_that_never_gives_up_its_lease_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "_retreat", lambda worker, node: None)
    monkeypatch.setattr(
        SimWorkers, "renew", lambda self, until: setattr(self, "lease_until", until)
    )
    faults = [{"kind": "partition", "node": 1, "at_s": 10, "for_s": 60}]
    jobs = [{"name": "j", "run_s": [100, 100], "count": 2}]
    broken = scenario(fleet={"nodes": 2, "devices": 2}, faults=faults, jobs=jobs, deployments=[])
    texts = texts_of(World(broken, HeapTimeline()))
    assert any("whose lease is over" in text for text in texts)
    assert any("runs twice" in text for text in texts)


def test_a_planner_that_gives_a_device_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(
        snapshot: Snapshot, policy: Policy, now: Instant, rng: random.Random, index: Index
    ) -> Plan:
        sound = planner.plan(snapshot, policy, now, rng, index)
        slot = Slot(NodeId("n0001"), (DeviceId("n0001/cpu0"),))
        bad = [
            replace(d, placement=(slot,)) if isinstance(d, Place) else d for d in sound.decisions
        ]
        return replace(sound, decisions=tuple(bad))

    monkeypatch.setattr(control_reconcile, "plan", careless)
    report = simulate(load("burst"))
    assert report.violations[0].text.startswith("the plan breaks ")
    assert "but " in report.violations[0].text and report.violations[0].at_ms > 0


def test_a_pool_that_gets_stuck_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(
        snapshot: Snapshot, policy: Policy, now: Instant, rng: random.Random, index: Index
    ) -> Plan:
        sound = planner.plan(snapshot, policy, now, rng, index)
        return replace(sound, decisions=(), works=())

    monkeypatch.setattr(control_reconcile, "plan", idle)
    monkeypatch.setattr(control_reconcile, "check_plan", lambda *_: [])
    texts = texts_of(World(scenario(horizon_s=100), HeapTimeline()))
    assert "standard-0001 never ended: it is pending ()" in texts
    assert any(text.endswith("requests to service were never answered") for text in texts)


def test_a_plan_without_reasons_is_caught() -> None:
    checkers = Checkers()
    state = state_of(a_job("a"))
    plan = Plan(state.generation, Instant(0), (), (), {WorkId("a"): ()})
    checkers.check_reasons(Instant(0), state, plan)
    assert [v.text for v in checkers.found] == ["a does not run, and nothing says why"]


@pytest.mark.parametrize(
    ("generation", "now", "found"),
    [(7, 1, False), (8, 1, True), (7, EXPLAINED_EACH_MS, True)],
)
def test_plans_of_one_state_are_looked_at_now_and_then(
    generation: int, now: int, found: bool
) -> None:
    checkers = Checkers()
    state = state_of(a_job("a"), generation=9)
    good = Plan(Generation(7), Instant(0), (), (), {})
    checkers.check_reasons(Instant(0), state, good)
    bad = Plan(Generation(generation), Instant(now), (), (), {WorkId("a"): ()})
    checkers.check_reasons(Instant(now), state, bad)
    assert bool(checkers.found) is found


@pytest.mark.parametrize(
    ("expect", "text"),
    [
        ({"suspends_min": 99}, "suspends: 1, expected at least 99"),
        ({"lost_ms_max": -1}, "lost_ms: 0, expected at most -1"),
    ],
)
def test_expectations_are_checked(expect: dict[str, int], text: str) -> None:
    burst = load("burst")
    wanted = msgspec.structs.replace(burst, expect=msgspec.convert(expect, type(burst.expect)))
    assert [breach.text for breach in simulate(wanted).violations] == [text]
