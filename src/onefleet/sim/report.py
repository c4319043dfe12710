"""What a simulation found out, as one value that people and programs read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from onefleet.core.steps.pieces import MOVES
from onefleet.domain.ids import Instant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Outcome, Work, WorkKind


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of `count` values in milliseconds; all 0 when there are none."""

    count: int
    p50_ms: int
    p95_ms: int
    max_ms: int


class TierReport(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs of one tier. queue: from submission to the first run. fraction_permille: device
    fraction, the mean over the ended jobs of ideal run time / time from submission to end."""

    jobs: int
    succeeded: int
    failed: int
    queue: Quantiles
    suspends: int
    lost_ms: int
    fraction_permille: int


class Breach(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that was broken, and when."""

    at_ms: int
    text: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Everything but `took_ms` and `driver` is the same for the same scenario.

    held_permille: device time held by work, of all there was; useful_permille: device time in
    which programs got on or engines were up. failovers: of jobs that lost their place by a failure,
    from when the pool knew until they ran again. simulated: no figure here was measured on devices.
    """

    scenario: str
    driver: str
    seed: int
    simulated: bool
    ended_at_ms: int
    events: int
    passes_decided: int
    decisions: int
    decision_hash: str
    held_permille: int
    useful_permille: int
    tiers: dict[str, TierReport]
    requests_answered: int
    requests_interrupted: int
    requests_wait: Quantiles
    suspends: int
    resumes: int
    node_losses: int
    failovers: Quantiles
    calls_harmed: int
    violations: tuple[Breach, ...]
    took_ms: int

    @property
    def ok(self) -> bool:
        return not self.violations


def quantiles(values: Sequence[int]) -> Quantiles:
    """By the nearest rank."""
    if not values:
        return Quantiles(count=0, p50_ms=0, p95_ms=0, max_ms=0)
    ordered = sorted(values)

    def rank(percent: int) -> int:
        return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)]

    return Quantiles(count=len(ordered), p50_ms=rank(50), p95_ms=rank(95), max_ms=ordered[-1])


def failovers_ms(works: Iterable[Work]) -> list[int]:
    """How long it took each job that lost its place to run again; without those that never did."""
    receipts = (r for work in works for r in work.receipts if work.kind is WorkKind.JOB)
    lost = (r for r in receipts if r.by is None and not r.reason.startswith(MOVES))
    return [r.back_at - r.at for r in lost if r.back_at is not None]


def tier_reports(works: Sequence[Work], now: Instant) -> dict[str, TierReport]:
    """The jobs, tier by tier; a tier without jobs is left out."""
    reports = {}
    for tier in Tier:
        jobs = [w for w in works if w.kind is WorkKind.JOB and w.tier is tier]
        if not jobs:
            continue
        waits = [(w.started_at if w.started_at is not None else now) - w.submitted_at for w in jobs]
        fractions = [
            1000 * (w.ran_ms - w.lost_ms) // max((w.ended_at or now) - w.submitted_at, 1)
            for w in jobs
        ]
        reports[tier.value] = TierReport(
            jobs=len(jobs),
            succeeded=sum(1 for w in jobs if w.outcome is Outcome.SUCCEEDED),
            failed=sum(1 for w in jobs if w.outcome is Outcome.FAILED),
            queue=quantiles(waits),
            suspends=sum(w.suspends for w in jobs),
            lost_ms=sum(w.lost_ms for w in jobs),
            fraction_permille=sum(fractions) // len(fractions),
        )
    return reports


def table(report: Report) -> str:
    """The short table that a person reads."""
    lines = [
        f"scenario       {report.scenario}, seed {report.seed} (simulated, {report.driver} driver)",
        f"ended after    {report.ended_at_ms / 1000:.1f} s, {report.events} events",
        f"utilisation    {report.held_permille / 10:.1f} % held, "
        f"{report.useful_permille / 10:.1f} % useful",
    ]
    for name, tier in report.tiers.items():
        lines.append(
            f"{name:<14} {tier.jobs} jobs, {tier.succeeded} succeeded, {tier.failed} failed; "
            f"queue p50 {_s(tier.queue.p50_ms)}, p95 {_s(tier.queue.p95_ms)}; "
            f"{tier.suspends} suspends, {_s(tier.lost_ms)} lost; "
            f"fraction {tier.fraction_permille / 1000:.2f}"
        )
    wait = report.requests_wait
    lines += [
        f"requests       {report.requests_answered} answered, {report.requests_interrupted} "
        f"interrupted; wait p50 {_s(wait.p50_ms)}, p95 {_s(wait.p95_ms)}, max {_s(wait.max_ms)}",
        f"pool           {report.suspends} suspends, {report.resumes} resumes, "
        f"{report.node_losses} nodes lost, {report.calls_harmed} calls harmed",
        f"failovers      {report.failovers.count} jobs ran again, p50 "
        f"{_s(report.failovers.p50_ms)}, max {_s(report.failovers.max_ms)} after they were lost",
        f"decisions      {report.decisions} in {report.passes_decided} passes, "
        f"hash {report.decision_hash[:16]}",
    ]
    for breach in report.violations:
        lines.append(f"VIOLATION      at {breach.at_ms / 1000:.3f} s: {breach.text}")
    lines.append(
        "result         " + ("ok" if report.ok else f"{len(report.violations)} violations")
    )
    return "\n".join(lines)


def _s(duration_ms: int) -> str:
    return f"{duration_ms / 1000:.1f} s"
