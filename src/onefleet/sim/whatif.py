"""What would have been: a pool's own past, or a trace, replayed under other circumstances.

Pure: what is known of jobs goes in, one line of figures a case comes out. The line "as it was" is
counted from the past itself; all others are simulated, and "replayed" is the one that says how well
the simulation fits: the pool as it is, with its own planner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from types import MappingProxyType

from onefleet.domain.ids import Instant, Millis, TenantId
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.bounds import bounds
from onefleet.sim.jobs.catalog import ONEFLEET, SILOS
from onefleet.sim.jobs.job import Fleet, Job, Price, Rules, Team
from onefleet.sim.jobs.outcome import Outcome
from onefleet.sim.jobs.policy import Clairvoyant, Named
from onefleet.sim.jobs.simulate import simulate
from onefleet.sim.jobs.teams import reservations, with_tiers
from onefleet.sim.traces.philly import TraceJob
from onefleet.wire.api import JobView, ReservationView, TenantView

#: What going on from an image is assumed to cost: in history, and in traces of large machines.
HISTORY_PRICE = Price(restore_ms=1_000)
TRACE_PRICE = Price(restore_ms=60_000)


@dataclass(frozen=True, slots=True)
class Past:
    """What there is to replay. was: how it went, None for a trace, which does not say.
    left_out: jobs that cannot be replayed, and dropped: those beyond the number asked for."""

    jobs: tuple[Job, ...]
    rules: Rules
    was: Outcome | None = None
    left_out: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """rules: made when it is replayed, for they may be impossible, and only this case is then."""

    name: str
    policy: Named
    rules: Callable[[], Rules]


@dataclass(frozen=True, slots=True)
class Line:
    """One row. jct_s: mean time from arrival to end. queue_s, tier_jct_s: means by tier, of tiers
    that have jobs. utilisation: of all device time from the first arrival to the last end, the part
    that jobs held. kept: the part of the jobs that got what their tier promises. ratio: jct_s over
    what no schedule can be below. clairvoyant: the policy knew how long jobs take."""

    case: str
    policy: str
    simulated: bool
    clairvoyant: bool
    seed: int
    devices: int
    jobs: int
    jct_s: float
    tier_jct_s: dict[str, float]
    queue_s: dict[str, float]
    utilisation: float
    suspends: int
    kills: int
    wasted_device_s: float
    kept: float
    ratio: float


def of_history(
    views: Sequence[JobView], rules: Rules, owner: Callable[[str], TenantId], most: int
) -> Past:
    """The newest jobs that ended and had run. owner: who is asked for devices for a tenant's work.

    Left out are those that have not ended, those that made no progress, and those wider than the
    pool is now.
    """
    usable = [
        view
        for view in views
        if view.started_at is not None
        and view.ended_at is not None
        and view.ran_ms > view.lost_ms
        and view.devices_max <= rules.fleet.devices
    ]
    usable.sort(key=lambda view: (view.submitted_at, view.id))
    kept = usable[-most:]
    jobs = tuple(
        Job(
            number,
            owner(view.tenant),
            Tier(view.tier),
            view.devices_max,
            Instant(view.submitted_at),
            Millis(view.ran_ms - view.lost_ms),
        )
        for number, view in enumerate(kept)
    )
    lost = sum(view.lost_ms * view.devices_max for view in kept)
    was = Outcome(
        policy="",
        jobs=jobs,
        started=[view.started_at or 0 for view in kept],
        ended=[view.ended_at or 0 for view in kept],
        held=sum(view.ran_ms * view.devices_max for view in kept),
        wasted=lost,
        lost=lost,
        suspends=sum(view.suspends for view in kept),
        kills=0,
        failures=0,
        decisions=0,
        moments=0,
        policy_cpu_ns=0,
    )
    return Past(jobs, rules, was, len(views) - len(usable), len(usable) - len(kept))


def of_trace(trace: Sequence[TraceJob], devices: int, price: Price, most: int, seed: int) -> Past:
    """The first jobs of a trace, with tiers and reservations as `sim.jobs.teams` makes them."""
    kept = trace[:most]
    teams = reservations(kept, devices)
    rules = Rules(Fleet.flat(devices), price, teams)
    return Past(with_tiers(kept, teams, seed), rules, dropped=len(trace) - len(kept))


def teams_of(
    tenants: Sequence[TenantView], reserved: Sequence[ReservationView]
) -> tuple[tuple[Team, ...], Callable[[str], TenantId]]:
    """The pool's tenants as teams, and who of them answers for a tenant's work.

    Tenants nest there, and teams do not: below a tenant with a reservation all are that one.
    """
    held: dict[str, int] = {}
    for entry in reserved:
        if entry.state == "open":
            held[entry.tenant] = held.get(entry.tenant, 0) + entry.devices
    parents = {tenant.id: tenant.parent for tenant in tenants}
    part = gcd(*(tenant.weight for tenant in tenants)) or 1
    teams = tuple(
        Team(TenantId(tenant.id), held.get(tenant.id, 0), tenant.weight // part)
        for tenant in sorted(tenants, key=lambda tenant: tenant.id)
    )

    def owner(tenant: str) -> TenantId:
        above: str | None = tenant
        while above is not None and above not in held:
            above = parents.get(above)
        return TenantId(tenant if above is None else above)

    return teams, owner


def kept(sizes: Sequence[int], spares: int) -> int:
    """The devices of so many spares, of the most common size; one node is left. sizes: of all
    nodes, in devices."""
    counts = Counter(sizes)
    ordered = sorted(sizes, key=lambda size: (-counts[size], size))
    return sum(ordered[: min(spares, len(ordered) - 1)])


def cases(
    past: Past,
    policies: Sequence[Named],
    devices: Sequence[int],
    *,
    walls: bool,
    spares: Mapping[int, int] = MappingProxyType({}),
) -> tuple[Case, ...]:
    """The pool as it is, then each change by itself. spares: numbers of them, with the devices that
    are left. No node fails in a replay, so that it shows what spares cost, and not what for."""
    rules = past.rules

    def wide(count: int) -> Callable[[], Rules]:
        return lambda: replace(rules, fleet=Fleet.flat(count))

    def walled() -> Rules:
        brought = [TraceJob(j.arrived, j.duration_ms, j.devices, j.tenant) for j in past.jobs]
        return replace(rules, teams=reservations(brought, rules.fleet.devices))

    found = [Case("replayed", ONEFLEET, lambda: rules)]
    found += [Case(f"policy {named.name}", named, lambda: rules) for named in policies]
    found += [Case(f"{count} devices", ONEFLEET, wide(count)) for count in devices]
    found += [Case(f"{number} spares", ONEFLEET, wide(left)) for number, left in spares.items()]
    if walls:
        found.append(Case("team walls", SILOS, walled))
    return tuple(found)


def as_it_was(past: Past, was: Outcome, seed: int) -> Line:
    """What is known, counted as the replays are."""
    return _line("as it was", was, past.rules.fleet.devices, seed, simulated=False)


def replay(case: Case, past: Past, seed: int, progress: Callable[[float], None]) -> Line:
    """Simulate one case. progress: is told the part of the work that is done.

    Raises CallerError for a case that cannot be: more devices are reserved than it has, it has no
    place for a gang, or walls leave no room for one: they share out all devices by the work that
    each team brought.
    """
    rules = case.rules()
    total, done = sum(job.work for job in past.jobs), 0

    def observe(job: Job, begin: int, end: int) -> None:
        nonlocal done
        done += (end - begin) * job.devices
        progress(min(done / total, 1.0))

    outcome = simulate(past.jobs, rules, case.policy, seed=seed, observe=observe)
    line = _line(case.name, outcome, rules.fleet.devices, seed, simulated=True)
    return replace(line, clairvoyant=isinstance(case.policy, Clairvoyant))


def _line(name: str, outcome: Outcome, devices: int, seed: int, *, simulated: bool) -> Line:
    by_tier = {tier.value: outcome.of(tier) for tier in Tier}
    present = {name: of for name, of in by_tier.items() if of.jobs}
    least_s = bounds(outcome.jobs, devices).mean_jct_ms / 1000
    return Line(
        case=name,
        policy=outcome.policy,
        simulated=simulated,
        clairvoyant=False,
        seed=seed,
        devices=devices,
        jobs=len(outcome.jobs),
        jct_s=outcome.mean_jct_s,
        tier_jct_s={name: of.mean_jct_s for name, of in present.items()},
        queue_s={name: of.mean_queue_s for name, of in present.items()},
        utilisation=outcome.held / (devices * outcome.makespan_ms),
        suspends=outcome.suspends,
        kills=outcome.kills,
        wasted_device_s=outcome.wasted / 1000,
        kept=outcome.kept_promises(),
        ratio=outcome.mean_jct_s / least_s,
    )
