"""The two workloads that Kueue measures its scheduler with, by their figures.

Queues in cohorts; each queue creates three classes of workloads, one after the other at a fixed
interval, all classes side by side. A workload holds its CPUs for a fixed time. A queue has a
nominal quota, and may borrow what others of its cohort leave idle; a higher priority takes from
lower ones. From `test/performance/scheduler/configs` of kubernetes-sigs/kueue, `large-scale` in
the edition with 1,000 queues (commit f6517b0c).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KueueClass:
    """`count` workloads of `cpus`, created each interval_ms, that run for run_ms."""

    name: str
    count: int
    interval_ms: int
    run_ms: int
    priority: int
    cpus: int


@dataclass(frozen=True, slots=True)
class KueueShape:
    """cohorts of queues; every queue creates all classes. nominal, borrow: CPUs of a queue.

    measured_s: what Kueue itself took (wall time of its own test, mean of its published runs).
    admitted_after_s: by class, its mean time from creation to admission; empty: not published.
    """

    name: str
    cohorts: int
    queues: int
    nominal: int
    borrow: int
    classes: tuple[KueueClass, ...]
    measured_s: float
    admitted_after_s: tuple[tuple[str, float], ...] = ()

    @property
    def workloads(self) -> int:
        return self.cohorts * self.queues * sum(one.count for one in self.classes)


BASELINE = KueueShape(
    name="baseline",
    cohorts=5,
    queues=6,
    nominal=20,
    borrow=100,
    classes=(
        KueueClass("small", 350, 100, 200, 50, 1),
        KueueClass("medium", 100, 500, 500, 100, 5),
        KueueClass("large", 50, 1_200, 1_000, 200, 20),
    ),
    measured_s=351.1,
    admitted_after_s=(("small", 215.5), ("medium", 76.8), ("large", 6.7)),
)
LARGE_SCALE = KueueShape(
    name="large-scale",
    cohorts=10,
    queues=100,
    nominal=20,
    borrow=100,
    classes=(
        KueueClass("small", 35, 60, 150, 50, 1),
        KueueClass("medium", 11, 300, 350, 100, 5),
        KueueClass("large", 4, 700, 700, 200, 20),
    ),
    measured_s=1_179.4,
)
SHAPES = {shape.name: shape for shape in (BASELINE, LARGE_SCALE)}


@dataclass(frozen=True, slots=True)
class KueueWorkload:
    """One workload. queue: its name, which is unique in all cohorts."""

    cohort: int
    queue: str
    kind: KueueClass
    created_ms: int


def workloads(shape: KueueShape, cohort: int) -> tuple[KueueWorkload, ...]:
    """One cohort's workloads in the order of their creation.

    Kueue creates the first of a class after one interval, and so does this.
    """
    found = [
        KueueWorkload(cohort, f"cohort-{cohort}/queue-{queue}", one, number * one.interval_ms)
        for queue in range(shape.queues)
        for one in shape.classes
        for number in range(1, one.count + 1)
    ]
    found.sort(key=lambda workload: workload.created_ms)
    return tuple(found)
