"""Small workloads for the job simulator, and a check of what a schedule may be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from onefleet.domain.ids import Instant, Millis, TenantId
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.job import Job
from onefleet.sim.jobs.outcome import Outcome


def jobs_of(rows: Iterable[tuple[int, int, int]], tiers: Sequence[Tier] = ()) -> tuple[Job, ...]:
    """Jobs from (arrived, devices, duration), in order; tenants t0, t1, t2 in turn."""
    return tuple(
        Job(
            n,
            TenantId(f"t{n % 3}"),
            tiers[n] if tiers else Tier.STANDARD,
            devices,
            Instant(arrived),
            Millis(duration),
        )
        for n, (arrived, devices, duration) in enumerate(rows)
    )


@st.composite
def workloads(draw, devices=4, jobs_max=12, unit=1, until=20, longest=12):
    """Up to jobs_max jobs whose times are multiples of the unit."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, until), st.integers(1, devices), st.integers(1, longest)),
            min_size=1,
            max_size=jobs_max,
        )
    )
    tiers = draw(st.lists(st.sampled_from(list(Tier)), min_size=len(rows), max_size=len(rows)))
    return jobs_of(((a * unit, g, d * unit) for a, g, d in sorted(rows)), tiers)


class Schedule:
    """Records which job held its devices when; give `observe` to the simulator."""

    def __init__(self) -> None:
        self.pieces: list[tuple[Job, int, int]] = []

    def observe(self, job: Job, begin: int, end: int) -> None:
        self.pieces.append((job, begin, end))

    def check(self, devices: int, outcome: Outcome) -> None:
        """Nobody holds what is not there, before it came, twice, or for less than it needs."""
        changes: list[tuple[int, int]] = []
        held = dict.fromkeys((job.number for job in outcome.jobs), 0)
        last: dict[int, int] = {}
        for job, begin, end in sorted(self.pieces, key=lambda p: (p[1], p[2])):
            assert job.arrived <= begin < end <= outcome.ended[job.number]
            assert last.get(job.number, 0) <= begin
            last[job.number] = end
            held[job.number] += end - begin
            changes += [(begin, job.devices), (end, -job.devices)]
        now = 0
        for _, change in sorted(changes):  # at one time, what is given back comes first
            now += change
            assert 0 <= now <= devices
        for job in outcome.jobs:
            assert last[job.number] == outcome.ended[job.number]
            assert held[job.number] >= job.duration_ms
        total = sum(held[job.number] * job.devices for job in outcome.jobs)
        assert outcome.held == total
        assert outcome.wasted == total - sum(job.work for job in outcome.jobs)
