"""The simulator: a heap of events, and for each job what only nature knows.

What a policy may see is in `desk.Desk`, and nothing here is reachable from there. What it reads
back from a policy are the acts that the desk wrote down; its own records say what is true.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Sequence
from typing import assert_never

from onefleet.domain.errors import Infeasible, InternalError
from onefleet.domain.work import Phase
from onefleet.sim.jobs.desk import Act, Desk, JobView
from onefleet.sim.jobs.job import Checkpoints, Job, Rules
from onefleet.sim.jobs.outcome import Outcome
from onefleet.sim.jobs.policy import Blind, Clairvoyant, Named, Policy
from onefleet.sim.jobs.room import Nodes, Where, room_for

#: Called with each time in which a job held its devices: (job, from, to).
Observe = Callable[[Job, int, int], None]

# What happens, in the order in which it does within one millisecond.
_END, _SAVED, _REPAIRED, _FAILED, _NOTICED, _WAKE = range(6)
_NEVER = 1 << 62
#: So many moments one after the other in which nothing runs and nobody comes: it will stay so.
STALLED_MAX = 10_000


def simulate(
    jobs: Sequence[Job],
    rules: Rules,
    named: Named,
    *,
    seed: int = 0,
    observe: Observe | None = None,
    measure: bool = False,
) -> Outcome:
    """Run a workload to its end under a policy.

    jobs: in the order of arrival, numbered from 0. seed: of the policy's chance and of the
    failures. measure: the CPU time that the policy takes, which is a system call each time it is
    asked, and the one thing that differs between two runs.

    Raises Infeasible for a gang that can never fit, InternalError for a policy that does what
    cannot be done or leaves jobs waiting for nothing.
    """
    for number, job in enumerate(jobs):
        if job.number != number or (number and job.arrived < jobs[number - 1].arrived):
            raise InternalError(f"job {job.number} is not in its place {number} by arrival")
        if job.devices < 1 or job.duration_ms < 1:
            raise InternalError(f"job {number} has {job.devices} devices, {job.duration_ms} ms")
    world = _World(jobs, rules, named, seed, observe)
    world.clock = time.thread_time_ns if measure else _no_clock
    world.run()
    return world.outcome(named.name)


class _Run:
    """A job as it is.

    progress: what it had when it was given its devices, or has while it holds none. fallback: what
    is left if the save that is under way fails. since: from when on it makes progress. held_from:
    from when on it holds devices, and where. saved: there is something to restore it from. cedes:
    it left for a higher tier. makes_up_until: until then it gets back to where it was before that.
    saving: it holds what it has until its image is whole. What a view says too is kept here as
    well, because a policy could write to its views.
    """

    __slots__ = (
        "broken", "cedes", "end", "epoch", "fallback", "held_from", "job", "kills",
        "makes_up_until", "progress", "saved", "saving", "since", "started", "suspends", "view",
        "where",
    )  # fmt: skip

    def __init__(self, job: Job, view: JobView) -> None:
        self.job = job
        self.view = view
        self.progress = 0
        self.fallback = 0
        self.since = _NEVER
        self.held_from = _NEVER
        self.where: Where = ()
        self.epoch = 0
        self.saved = self.saving = self.cedes = False
        self.makes_up_until = 0
        self.broken = False  # a node of it has failed, and nobody has noticed yet
        self.started = self.end = -1
        self.suspends = self.kills = 0


class _Oracle:
    """Knows the durations; see `policy.Oracle`."""

    def __init__(self, runs: Sequence[_Run], checkpoints: Checkpoints | None) -> None:
        self._runs = runs
        self._checkpoints = checkpoints

    def duration_ms(self, job: JobView) -> int:
        return self._runs[job.number].job.duration_ms

    def remaining_ms(self, job: JobView, now: int) -> int:
        run = self._runs[job.number]
        made, _ = progress_in(now - run.since, self._checkpoints)
        return run.job.duration_ms - run.progress - made


def progress_in(wall_ms: int, checkpoints: Checkpoints | None) -> tuple[int, int]:
    """Progress within so much time, and the part of it that the last checkpoint holds."""
    if wall_ms <= 0:
        return 0, 0
    if checkpoints is None:
        return wall_ms, 0
    whole, rest = divmod(wall_ms, checkpoints.every_ms + checkpoints.cost_ms)
    kept = whole * checkpoints.every_ms
    return kept + min(rest, checkpoints.every_ms), kept


def wall_for(progress_ms: int, checkpoints: Checkpoints | None) -> int:
    """The time that so much progress takes, checkpoints in between included."""
    if checkpoints is None or progress_ms <= 0:
        return progress_ms
    return progress_ms + (progress_ms - 1) // checkpoints.every_ms * checkpoints.cost_ms


class _World:
    """One simulation."""

    def __init__(
        self, jobs: Sequence[Job], rules: Rules, named: Named, seed: int, observe: Observe | None
    ) -> None:
        self.jobs, self.rules, self.observe = jobs, rules, observe
        self.room = room_for(rules.fleet)
        for job in jobs:
            if not self.room.fits(job.devices):
                raise Infeasible(
                    f"job {job.number} wants {job.devices} devices",
                    why=f"the fleet of {rules.fleet.devices} has no place for such a gang",
                )
        self.desk = Desk(self.room, rules.price.save_ms)
        self.runs = [
            _Run(job, JobView(job.number, job.tenant, job.tier, job.devices, job.arrived))
            for job in jobs
        ]
        self.policy = _make(named, rules, random.Random(f"{seed}/policy"), self.runs)
        self.heap: list[tuple[int, int, int, int]] = []  # time, what, number or node, epoch
        self.chance = random.Random(f"{seed}/failures")
        self.left = list(rules.fleet.nodes or (rules.fleet.devices,))  # by node: what is not held
        self.out: dict[int, None] = {}  # nodes out of service
        self.lying: list[dict[int, None]] = [{} for _ in self.left]  # by node: the jobs there
        if rules.failures is not None:
            for node in range(len(self.left)):
                self._fail_later(0, node)
        self.clock: Callable[[], int] = _no_clock
        self.unfinished = len(jobs)
        self.wakes = 0  # to come
        self.held = self.wasted = self.lost = self.ceded = 0
        self.failures = self.decisions = self.moments = self.policy_cpu_ns = 0

    def run(self) -> None:
        """Until every job has ended."""
        jobs, heap, desk = self.jobs, self.heap, self.desk
        arriving, count = 0, len(jobs)
        stalled = 0
        while self.unfinished:
            now = jobs[arriving].arrived if arriving < count else _NEVER
            if heap and heap[0][0] < now:
                now = heap[0][0]
            if now == _NEVER:
                raise InternalError(f"{self.unfinished} jobs wait, and nothing more will happen")
            desk.now = now
            news = False
            while heap and heap[0][0] == now:
                _, what, number, epoch = heapq.heappop(heap)
                news = self._happen(now, what, number, epoch) or news
            while arriving < count and jobs[arriving].arrived == now:
                view = self.runs[arriving].view
                desk.waiting[arriving] = view
                desk.arrived.append(view)
                arriving += 1
                news = True
            if news:
                self._ask(now)
                still = arriving == count and self.room.free == self.room.devices
                stalled = stalled + 1 if still else 0
                if self.unfinished and still and (stalled > STALLED_MAX or self._idle()):
                    raise InternalError(f"{len(desk.waiting)} jobs are left waiting for nothing")

    def _idle(self) -> bool:
        """Whether everything is in service, and the policy did not ask for more."""
        return not self.out and not self.wakes

    def outcome(self, policy: str) -> Outcome:
        """Add everything up."""
        return Outcome(
            policy=policy,
            jobs=self.jobs,
            started=[run.started for run in self.runs],
            ended=[run.end for run in self.runs],
            held=self.held,
            wasted=self.wasted,
            lost=self.lost,
            ceded=self.ceded,
            suspends=sum(run.suspends for run in self.runs),
            kills=sum(run.kills for run in self.runs),
            failures=self.failures,
            decisions=self.decisions,
            moments=self.moments,
            policy_cpu_ns=self.policy_cpu_ns,
        )

    def _ask(self, now: int) -> None:
        desk = self.desk
        began = self.clock()
        self.policy.decide(desk)
        self.policy_cpu_ns += self.clock() - began
        self.moments += 1
        self.decisions += len(desk.acts)
        for act, view in desk.acts:
            run = self.runs[view.number]
            if act is Act.START:
                self._start(run, now)
            elif act is Act.SUSPEND:
                self._suspend(run, now)
            else:
                self._kill(run, now)
        for at in desk.wakes:
            heapq.heappush(self.heap, (at, _WAKE, 0, 0))
            self.wakes += 1
        desk.acts.clear()
        desk.ceding.clear()
        desk.wakes.clear()
        desk.arrived.clear()
        desk.returned.clear()
        desk.ended.clear()
        desk.fell.clear()
        desk.rose.clear()

    # --- what a policy had done -------------------------------------------------------------------

    def _start(self, run: _Run, now: int) -> None:
        price, view = self.rules.price, run.view
        self._take(run)
        if run.started < 0:
            run.started = view.started = now
        run.held_from = now
        run.since = view.since = now + (price.restore_ms if run.saved else price.start_ms)
        run.makes_up_until = run.since if run.cedes else now
        run.cedes = False
        run.epoch += 1
        end = run.since + wall_for(run.job.duration_ms - run.progress, self.rules.checkpoints)
        heapq.heappush(self.heap, (end, _END, run.job.number, run.epoch))

    def _take(self, run: _Run) -> None:
        """Give it its devices, by the simulator's own count: a policy could have written to the
        desk. Raises InternalError where they are not free."""
        flat = self.rules.fleet.nodes is None
        run.where = ((0, run.job.devices),) if flat else run.view.where
        for node, part in run.where:
            self.left[node] -= part
            self.lying[node][run.job.number] = None
            if part < 1 or self.left[node] < 0 or node in self.out:
                raise InternalError(f"job {run.job.number} was started on {part} of node {node}")
        if run.held_from != _NEVER or sum(part for _, part in run.where) != run.job.devices:
            raise InternalError(f"job {run.job.number} was started as what it is not")

    def _suspend(self, run: _Run, now: int) -> None:
        """Freeze it. What it holds is free once it is saved."""
        self._freeze(run, now, keep=True)
        price = self.rules.price
        run.suspends += 1
        run.view.suspends = run.suspends
        if self._cedes(run):
            self.ceded += price.save_ms * run.job.devices
        if price.save_ms:
            run.saving = True
            at = now + price.save_ms
            heapq.heappush(self.heap, (at, _SAVED, run.job.number, run.epoch))
        else:
            self._imaged(run, now)

    def _kill(self, run: _Run, now: int) -> None:
        lost = self.lost
        self._freeze(run, now, keep=False)
        if self._cedes(run):
            self.ceded += self.lost - lost
        run.kills += 1
        run.view.kills = run.kills
        self._let_go(run, now)

    def _cedes(self, run: _Run) -> bool:
        """Whether it leaves now for a higher tier."""
        run.cedes = run.job.number in self.desk.ceding
        return run.cedes

    # --- what happens by itself -------------------------------------------------------------------

    def _happen(self, now: int, what: int, number: int, epoch: int) -> bool:
        """Whether it was news."""
        if what == _WAKE:
            self.wakes -= 1
            return True
        if what == _FAILED:
            return self._fail(now, number)
        if what == _REPAIRED:
            assert isinstance(self.room, Nodes)
            self.room.repair(number)
            del self.out[number]
            self.desk.rose.append(number)
            self._fail_later(now, number)
            return True
        run = self.runs[number]
        if run.epoch != epoch:
            return False
        if what == _END:
            self._end(run, now)
        elif what == _SAVED:
            self._saved(run, now)
        else:
            self._noticed(run, now)
        return True

    def _end(self, run: _Run, now: int) -> None:
        desk, view = self.desk, run.view
        run.end = now
        run.epoch += 1
        self._let_go(run, now)
        self.wasted -= run.job.work  # all that it held was counted as wasted so far
        del desk.running[view.number]
        view.attained_ms += max(now - view.since, 0)
        self._free(run, Phase.ENDED)
        desk.ended.append(view)
        self.unfinished -= 1

    def _imaged(self, run: _Run, now: int) -> None:
        """It is saved, and lets go. Of a gang that broke unnoticed there is no new image."""
        run.saved = run.saved or not run.broken
        self._let_go(run, now)

    def _saved(self, run: _Run, now: int) -> None:
        self._imaged(run, now)
        self.desk.leaving -= run.job.devices
        self._back(run, Phase.SUSPENDED)

    def _fail(self, now: int, node: int) -> bool:
        rules, room = self.rules.failures, self.room
        assert rules is not None and isinstance(room, Nodes)
        self.failures += 1
        room.lose(node)
        self.out[node] = None
        self.desk.fell.append(node)
        heapq.heappush(self.heap, (now + rules.repair_ms, _REPAIRED, node, 0))
        for number in tuple(self.lying[node]):
            run = self.runs[number]
            if run.broken:
                continue
            run.broken = True
            if run.saving:  # its image was not finished
                self.lost += (run.progress - run.fallback) * run.job.devices
                run.progress = run.fallback
                run.epoch += 1
                self.desk.leaving -= run.job.devices
            else:
                self._freeze(run, now, keep=False)
            heapq.heappush(self.heap, (now + rules.detect_ms, _NOTICED, number, run.epoch))
        return True

    def _noticed(self, run: _Run, now: int) -> None:
        view = run.view
        self._let_go(run, now)
        if self.desk.running.pop(view.number, None) is not None and now > view.since:
            view.attained_ms += now - view.since
        view.failures += 1
        self._back(run, Phase.PENDING)

    def _fail_later(self, now: int, node: int) -> None:
        assert self.rules.failures is not None and self.rules.fleet.nodes is not None
        rate = self.rules.fleet.nodes[node] / self.rules.failures.device_mttf_ms
        at = now + max(round(self.chance.expovariate(rate)), 1)
        heapq.heappush(self.heap, (at, _FAILED, node, 0))

    # --- bookkeeping ------------------------------------------------------------------------------

    def _freeze(self, run: _Run, now: int, *, keep: bool) -> None:
        """It makes no progress from now on. keep: all that it made, else what checkpoints hold.

        Raises InternalError where it holds nothing, which only a policy can bring about.
        """
        if run.held_from == _NEVER or run.saving:
            raise InternalError(f"job {run.job.number} was taken off its devices, and runs on none")
        made, held = progress_in(now - run.since, self.rules.checkpoints)
        run.saved = run.saved or held > 0
        run.fallback = run.progress + held
        run.progress += made if keep else held
        self.lost += 0 if keep else (made - held) * run.job.devices
        run.since = _NEVER
        run.epoch += 1

    def _let_go(self, run: _Run, now: int) -> None:
        """Count what it held until now."""
        held = (now - run.held_from) * run.job.devices
        self.held += held
        self.wasted += held
        made_up = min(now, run.makes_up_until) - run.held_from
        self.ceded += max(made_up, 0) * run.job.devices
        run.broken = run.saving = False
        for node, part in run.where:
            self.left[node] += part
            self.lying[node].pop(run.job.number, None)
        if self.observe is not None and held:
            self.observe(run.job, run.held_from, now)
        run.held_from = _NEVER

    def _free(self, run: _Run, phase: Phase) -> None:
        self.room.give(run.job.devices, run.where)
        run.view.where = ()
        run.view.phase = phase

    def _back(self, run: _Run, phase: Phase) -> None:
        self._free(run, phase)
        self.desk.waiting[run.job.number] = run.view
        self.desk.returned.append(run.view)


def _no_clock() -> int:
    return 0


def _make(named: Named, rules: Rules, rng: random.Random, runs: Sequence[_Run]) -> Policy:
    match named:
        case Blind():
            return named.make(rules, rng)
        case Clairvoyant():
            return named.make(rules, rng, _Oracle(runs, rules.checkpoints))
        case _:  # pragma: no cover - the type checker proves it
            assert_never(named)
