"""Works that share a core, on a core that is simulated a millisecond at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from onefleet.core.slices import (
    Effect,
    Event,
    Renew,
    Seen,
    Sharer,
    SliceRules,
    Slices,
    Used,
)
from onefleet.core.turns import (
    Run,
    RunFailed,
    Running,
    Tick,
    TurnRules,
    Yield,
    Yielded,
    YieldFailed,
)
from onefleet.domain.ids import DeviceId, Instant, Millis

CORE, OTHER = DeviceId("n/cpu0"), DeviceId("n/cpu1")
RULES = SliceRules()
LOOK_MS = 200
SWITCH_MS = 4


@dataclass
class Program:
    """Computes for `works_ms`, then waits for something else for `rests_ms`, and so on."""

    core: DeviceId = CORE
    milli: int = 500
    works_ms: int = 1
    rests_ms: int = 0
    used_ms: int = 0
    kept_ms: int = 0
    left_ms: int = 0  # of what it does now
    rests: bool = False
    paused_until: int = 0

    last_on: int = 0

    def wants_core(self) -> bool:
        """What it does now begins, if the last thing is done; whether that needs the core."""
        if self.left_ms == 0:
            self.rests = bool(self.rests_ms) and not self.rests
            self.left_ms = self.rests_ms if self.rests else self.works_ms
        return not self.rests

    def step(self, is_on: bool) -> None:
        self.left_ms -= is_on or self.rests
        self.used_ms += is_on
        self.kept_ms += not is_on and not self.rests


@dataclass
class Node:
    """Cores that the ready take in turns of a millisecond, and an agent that is `Slices`."""

    programs: dict[str, Program]
    machine: Slices[str] = field(default_factory=lambda: Slices(RULES))
    now: int = 0
    answers: list[tuple[int, Event[str]]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)  # that the agent may tell to wait
    effects: list[Effect[str]] = field(default_factory=list)
    holds_fast: set[str] = field(default_factory=set)
    switch_ms: int = SWITCH_MS

    def __post_init__(self) -> None:
        self.seen = set(self.programs)

    def tell(self, event: Event[str]) -> None:
        effects = self.machine.handle(event, Instant(self.now))
        self.machine.check()
        self.effects += effects
        for effect in effects:
            worker, at = effect.worker, self.now + self.switch_ms
            match effect:
                case Yield() if worker in self.holds_fast:
                    self.answers.append((at, YieldFailed(worker, "it waits for a disk")))
                case Yield():
                    self.answers.append((at, Yielded(worker, Millis(self.switch_ms))))
                case Run() if worker in self.holds_fast:
                    self.answers.append((at, RunFailed(worker, "nobody answers")))
                case Run():
                    self.answers.append((at, Running(worker, Millis(self.switch_ms))))
                case Renew():
                    self.programs[worker].paused_until = self.now + RULES.pause_ms

    def agent(self) -> None:
        due = [event for at, event in self.answers if at <= self.now]
        self.answers = [(at, event) for at, event in self.answers if at > self.now]
        for event in due:
            if isinstance(event, Yielded | Running):
                waits = isinstance(event, Yielded)
                program = self.programs[event.worker]
                program.paused_until = self.now + RULES.pause_ms if waits else 0
            self.tell(event)
        if self.now % LOOK_MS == 0:
            named = [(n, p) for n, p in sorted(self.programs.items()) if n in self.seen]
            self.tell(Seen(tuple(Sharer(n, p.core, p.milli) for n, p in named)))
            for name, program in named:
                self.tell(Used(name, program.used_ms, program.kept_ms))
        deadline = self.machine.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.tell(Tick())

    def run(self, ms: int, agent: bool = True) -> dict[str, int]:
        """So long; what each has used meanwhile."""
        before = {name: p.used_ms for name, p in self.programs.items()}
        for _ in range(ms):
            if agent:
                self.agent()
            for core in (CORE, OTHER):
                here = [p for p in self.programs.values() if p.core == core]
                awake = [p for p in here if p.paused_until <= self.now]
                ready = [p for p in awake if p.wants_core()]
                first = min(ready, key=lambda p: p.last_on, default=None)
                if first is not None:
                    first.last_on = self.now
                for program in awake:
                    program.step(program is first)
            self.now += 1
        return {name: p.used_ms - before[name] for name, p in self.programs.items()}

    def takers(self) -> dict[str, int]:
        return {name: self.machine.takers(name) for name in self.programs}


def near(got: dict[str, int], ms: int, **shares: float) -> bool:
    return all(abs(got[name] / ms - share) < 0.04 for name, share in shares.items())


def test_two_that_could_use_all_of_a_core_take_turns_on_it_by_their_shares() -> None:
    node = Node({"large": Program(milli=750), "small": Program(milli=250)})
    assert near(node.run(400), 400, large=0.5, small=0.5), "the kernel knows no shares"
    node.run(2_000)
    assert node.takers() == {"large": 2, "small": 2}
    got = node.run(20_000)
    assert near(got, 20_000, large=0.75, small=0.25)
    assert got["large"] + got["small"] > 0.95 * 20_000
    turns = [e.worker for e in node.effects if isinstance(e, Run)]
    assert turns == ["large", "small"] * (len(turns) // 2) + ["large"] * (len(turns) % 2) or (
        turns == ["small", "large"] * (len(turns) // 2) + ["small"] * (len(turns) % 2)
    )


def test_who_is_alone_on_its_core_is_never_disturbed() -> None:
    node = Node({"a": Program(), "b": Program(core=OTHER)})
    assert near(node.run(5_000), 5_000, a=1.0, b=1.0)
    assert node.effects == []
    assert node.takers() == {"a": 0, "b": 0}


def test_who_often_waits_is_free_and_loses_nothing_by_the_turns_of_others() -> None:
    waits = Program(works_ms=2, rests_ms=8)
    node = Node({"a": Program(), "b": Program(), "waits": waits})
    node.run(3_000)
    got = node.run(10_000)
    assert node.takers() == {"a": 2, "b": 2, "waits": 0}
    assert near(got, 10_000, waits=0.18)
    assert abs(got["a"] - got["b"]) < 400
    assert sum(got.values()) > 0.95 * 10_000
    assert not [e for e in node.effects if e.worker == "waits"]


def test_a_program_is_what_it_would_be_alone_however_many_others_there_are() -> None:
    half = Program(works_ms=5, rests_ms=5)
    node = Node({"half": half, **{f"b{n}": Program() for n in range(4)}})
    node.run(10_000)
    assert node.takers()["half"] == 0 and node.takers()["b0"] == 4


def test_who_turns_to_waiting_leaves_the_turns_and_comes_back() -> None:
    node = Node({"a": Program(), "b": Program()})
    node.run(3_000)
    assert node.takers() == {"a": 2, "b": 2}
    node.programs["b"].rests_ms = 9
    node.run(3_000)
    assert node.takers() == {"a": 0, "b": 0}
    assert node.run(4_000)["a"] > 0.85 * 4_000
    node.programs["b"].rests_ms = 0
    node.run(3_000)
    assert node.takers() == {"a": 2, "b": 2}


def test_who_is_saved_or_ended_is_out_of_the_turns_at_once() -> None:
    node = Node({"a": Program(), "b": Program(), "c": Program()})
    node.run(5_000)
    for gone in ("a", "b"):
        node.seen.discard(gone)
        del node.programs[gone]
        node.answers = [(at, e) for at, e in node.answers if e.worker != gone]  # type: ignore[union-attr]
        node.tell(Seen(tuple(Sharer(n, CORE, 500) for n in sorted(node.programs))))
        node.run(400)
    before = len(node.effects)
    assert near(node.run(5_000), 5_000, c=1.0)
    assert len(node.effects) == before


def test_whoever_waits_long_is_told_again_and_goes_on_by_itself_when_nobody_does() -> None:
    node = Node({f"w{n}": Program(milli=1 if n == 0 else 300) for n in range(4)})
    node.run(10_000)
    got = node.run(60_000)
    assert [e for e in node.effects if isinstance(e, Renew)]
    assert 0 < got["w0"] < got["w1"] / 10, "none stood up by itself"
    node.run(RULES.pause_ms, agent=False)  # the agent is dead
    got = node.run(4_000, agent=False)
    assert all(used > 0.2 * 4_000 for used in got.values())


def test_who_cannot_be_let_stand_still_runs_on_beside_the_others() -> None:
    node = Node({"a": Program(), "b": Program(), "fast": Program()}, holds_fast={"fast"})
    node.run(10_000)
    assert node.takers() == {"a": 2, "b": 2, "fast": 0}
    node.holds_fast.add("a")
    node.run(10_000)
    assert node.takers() == {"a": 0, "b": 0, "fast": 0}
    node.holds_fast.clear()
    node.run(RULES.rest_ms + 5_000)
    assert node.takers() == {"a": 3, "b": 3, "fast": 3}


def test_an_answer_that_comes_late_leaves_nobody_behind() -> None:
    machine: Slices[str] = Slices(SliceRules(window_ms=100, turns=TurnRules(slice_ms=100)))
    sharers = tuple(Sharer(n, CORE, 500) for n in ("a", "b"))

    def told(now: int, *events: Event[str]) -> list[Effect[str]]:
        effects = [e for event in events for e in machine.handle(event, Instant(now))]
        machine.check()
        return effects

    def used(ms: int, kept: int, *names: str) -> list[Event[str]]:
        return [Used(name, ms, kept) for name in names]

    told(0, Seen(sharers), *used(0, 0, "a", "b"))
    assert told(200, *used(100, 100, "a", "b")) == [Yield("b")]
    assert told(201, Seen(sharers[:1]), Yielded("b", Millis(1))) == []  # something is done with it
    assert told(300, Seen(sharers), Yielded("b", Millis(1))) == [Run("b")]
    assert told(301, Running("b", Millis(1))) == []
    told(302, *used(100, 100, "b"))
    assert told(500, *used(200, 198, "b")) == [Yield("b")]
    assert told(510, *used(100, 100, "b")) == []  # some of its threads have ended
    assert told(511, Yielded("b", Millis(11))) == [Yield("a")]
    assert told(512, Yielded("a", Millis(1))) == [Run("b")]
    assert machine.takers("a") == 2


def test_a_history_is_the_same_each_time() -> None:
    def play() -> list[Effect[str]]:
        node = Node({f"w{n}": Program(milli=100 * (n + 1)) for n in range(3)})
        node.run(10_000)
        return node.effects

    once: Callable[[], list[Effect[str]]] = play
    assert once() == play() and play()
