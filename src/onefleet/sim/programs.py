"""The programs that jobs run, as far as a simulation needs them: how long, and how far they are.

A gang makes progress only while all its workers run; the state of each worker's process is that
progress, so that images of one moment hold the same. A program may run more than once at a time
if the pool makes a mistake; each run is counted by its epoch, so that the checkers see it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from onefleet.domain.ids import DeviceId, Generation, Instant, NodeId, WorkId
from onefleet.domain.work import WHOLE
from onefleet.sim.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Program:
    """What a job's command does. device_ms: for each worker, on `devices` devices or more."""

    work_id: WorkId
    workers: int
    device_ms: int
    state_bytes: int  # of one worker
    exit_code: int


class Place(NamedTuple):
    """Where a worker runs. milli: the share of each device."""

    node: NodeId
    devices: tuple[DeviceId, ...]
    milli: int


@dataclass(slots=True)
class Run:
    """One run of a program under one epoch. ranks: what each running worker has."""

    program: Program
    epoch: Generation
    done_device_ms: int = 0
    ranks: dict[int, Place] = field(default_factory=dict)
    since: Instant | None = None
    version: int = 0

    @property
    def whole(self) -> bool:
        return len(self.ranks) == self.program.workers

    @property
    def pace(self) -> int:
        """Thousandths of a device that its slowest worker has, which sets the pace. Workers of it
        that share a device take turns on it."""
        sharers = Counter(d for place in self.ranks.values() for d in place.devices)
        return max(
            min(sum(p.milli // sharers[d] for d in p.devices) for p in self.ranks.values()), 1
        )

    def progress(self, now: Instant) -> int:
        """Device-milliseconds that each worker has done."""
        if self.since is None:
            return self.done_device_ms
        return self.done_device_ms + (now - self.since) * self.pace // WHOLE


Exited = Callable[[Run, int, NodeId], None]


class Programs:
    """All runs of all programs. `exited` is called for each rank when its program is through."""

    def __init__(self, timeline: Timeline, exited: Exited) -> None:
        self._timeline = timeline
        self._exited = exited
        self._programs: dict[WorkId, Program] = {}
        self.runs: dict[tuple[WorkId, Generation], Run] = {}
        self.uneven: list[str] = []  # gangs that were put together of different moments
        self.useful_device_ms = 0

    def add(self, program: Program) -> None:
        self._programs[program.work_id] = program

    def program(self, work_id: WorkId) -> Program:
        return self._programs[work_id]

    def join(
        self,
        work_id: WorkId,
        epoch: Generation,
        rank: int,
        node: NodeId,
        devices: tuple[DeviceId, ...],
        at_ms: int,
        milli: int = WHOLE,
    ) -> None:
        """A worker runs from now on; its state holds `at_ms` of progress."""
        run = self.runs.setdefault((work_id, epoch), Run(self._programs[work_id], epoch))
        if run.ranks and run.done_device_ms != at_ms:
            self.uneven.append(f"{work_id}.{rank} joins at {at_ms}, not {run.done_device_ms}")
        run.done_device_ms = at_ms
        run.ranks[rank] = Place(node, devices, milli)
        if run.whole:
            now = self._timeline.now()
            run.since = now
            run.version += 1
            version = run.version
            left = run.program.device_ms - run.done_device_ms

            async def end() -> None:
                if run.version == version:
                    self._end(run)

            self._timeline.at(Instant(now + max(-(-left * WHOLE // run.pace), 0)), end)

    def leave(self, work_id: WorkId, epoch: Generation, rank: int) -> int:
        """A worker stands still or is gone; return the progress that its state holds."""
        run = self.runs.get((work_id, epoch))
        if run is None or rank not in run.ranks:
            return 0
        self._pause(run)
        del run.ranks[rank]
        if not run.ranks:
            del self.runs[work_id, epoch]
        return run.done_device_ms

    def running(self) -> list[Run]:
        """Runs that make progress now."""
        return [run for run in self.runs.values() if run.since is not None]

    def _pause(self, run: Run) -> None:
        if run.since is not None:
            done = run.progress(self._timeline.now())
            self.useful_device_ms += (done - run.done_device_ms) * run.program.workers
            run.done_device_ms = done
            run.since = None
            run.version += 1

    def _end(self, run: Run) -> None:
        self._pause(run)
        for rank, place in sorted(run.ranks.items()):
            self._exited(run, rank, place.node)
