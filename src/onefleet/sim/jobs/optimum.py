"""The best schedule that there is, for instances of a few jobs: a time-indexed integer program.

It stands between the bounds and the policies, and so tells of a gap which of the two is to blame.
Needs HiGHS (`pip install onefleet[optimum]`); imported only when asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onefleet.domain.errors import InternalError, InvalidRequest, TimedOut, Unsupported
from onefleet.sim.jobs.job import Job

if TYPE_CHECKING:
    from highspy.highs import highs_var

#: The largest instance that is taken on: jobs x slots.
CELLS_MAX = 5_000


@dataclass(frozen=True, slots=True)
class Optimum:
    """mean_jct_ms: of the best schedule. runs: for each job, the slots in which it runs."""

    mean_jct_ms: float
    runs: tuple[tuple[int, ...], ...]


def optimum(
    jobs: Sequence[Job], devices: int, slot_ms: int, *, preempt: bool = True, limit_s: float = 60.0
) -> Optimum:
    """The schedule with the least mean JCT among those that change only at multiples of slot_ms.

    Every arrival and duration has to be such a multiple; then every policy that acts on events
    alone is such a schedule. preempt: whether a job may stop and go on later, at no price.
    Raises InvalidRequest when the instance is too large, TimedOut when the limit passes.
    """
    program = _Program(jobs, devices, slot_ms, limit_s)
    return program.solve(preempt)


class _Program:
    """x[j][t]: job j runs in slot t. z[j][t]: job j has ended before slot t begins."""

    def __init__(self, jobs: Sequence[Job], devices: int, slot_ms: int, limit_s: float) -> None:
        try:
            import highspy
        except ImportError as error:
            raise Unsupported(
                "the best schedule cannot be computed",
                why="HiGHS is not installed",
                hint="pip install 'onefleet[optimum]'",
            ) from error
        if any(job.arrived % slot_ms or job.duration_ms % slot_ms for job in jobs):
            raise InvalidRequest(f"not every time is a multiple of {slot_ms} ms")
        if any(job.devices > devices for job in jobs):
            raise InvalidRequest(f"a job wants more than {devices} devices")
        self._status = highspy.HighsModelStatus
        self._jobs, self._devices, self._slot_ms = jobs, devices, slot_ms
        self._lengths = [job.duration_ms // slot_ms for job in jobs]
        self._begins = [job.arrived // slot_ms for job in jobs]
        # One after the other behind the last arrival: no best schedule needs longer.
        self._slots = max(self._begins) + sum(self._lengths)
        if len(jobs) * self._slots > CELLS_MAX:
            raise InvalidRequest(
                f"{len(jobs)} jobs x {self._slots} slots are too many for an integer program",
                why=f"the limit is {CELLS_MAX}",
                hint="fewer jobs, or longer slots",
            )
        self._highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        self._highs.silent()
        self._highs.setOptionValue("threads", 1)
        self._highs.setOptionValue("mip_rel_gap", 0.0)
        self._highs.setOptionValue("time_limit", limit_s)
        self._x = [self._row(begin, self._slots) for begin in self._begins]
        self._z = [self._row(begin, self._slots + 1) for begin in self._begins]

    def solve(self, preempt: bool) -> Optimum:
        highs = self._highs
        self._finish()
        self._capacity()
        if not preempt:
            self._contiguous()
        slots = sum(len(row) for row in self._z)
        ended = [z for row in self._z for z in row.values()]
        highs.maximize(highs.qsum(ended))
        status = highs.getModelStatus()
        if status == self._status.kTimeLimit:
            raise TimedOut("the integer program did not finish in its time")
        if status != self._status.kOptimal:
            raise InternalError(f"the integer program ended as {status}")
        values = highs.getSolution().col_value
        runs = tuple(
            tuple(slot for slot, x in row.items() if values[x.index] > 0.5) for row in self._x
        )
        waited = slots - sum(round(values[z.index]) for z in ended)
        return Optimum(waited * self._slot_ms / len(self._jobs), runs)

    def _row(self, begin: int, end: int) -> dict[int, highs_var]:
        return {slot: self._highs.addBinary() for slot in range(begin, end)}

    def _finish(self) -> None:
        """Each job runs as long as it lasts, and has ended only when it has."""
        for row, done, length in zip(self._x, self._z, self._lengths, strict=True):
            self._highs.addConstr(self._highs.qsum(row.values()) == length)
            for slot, z in done.items():
                before = [x for other, x in row.items() if other < slot]
                self._highs.addConstr(length * z <= self._highs.qsum(before))

    def _capacity(self) -> None:
        for slot in range(self._slots):
            held = [
                job.devices * row[slot]
                for job, row in zip(self._jobs, self._x, strict=True)
                if slot in row
            ]
            if held:
                self._highs.addConstr(self._highs.qsum(held) <= self._devices)

    def _contiguous(self) -> None:
        """Once a job has stopped, it has ended: x[t] - x[t+1] <= z[t+1]."""
        for row, done in zip(self._x, self._z, strict=True):
            for slot, x in row.items():
                if slot + 1 in row:
                    self._highs.addConstr(x - row[slot + 1] <= done[slot + 1])
