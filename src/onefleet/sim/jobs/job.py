"""What a simulation is given: jobs, the fleet, and the rules that hold there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from onefleet.domain.errors import InvalidRequest
from onefleet.domain.ids import Instant, Millis, TenantId
from onefleet.domain.tiers import Tier
from onefleet.sim.traces.philly import TraceJob


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it is, with what only the simulator and an oracle know. number: its place in the
    workload, which is in the order of arrival."""

    number: int
    tenant: TenantId
    tier: Tier
    devices: int
    arrived: Instant
    duration_ms: Millis

    @property
    def work(self) -> int:
        """Device-milliseconds."""
        return self.devices * self.duration_ms


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices, on nodes or as one flat pool.

    nodes: the size of each node; None: a flat pool, on which any free devices make a gang.
    scatter: whether a gang that would fit on one node may lie on several; else it waits for one.
    A gang larger than every node takes whole nodes, and a part of one for the rest.
    """

    devices: int
    nodes: tuple[int, ...] | None = None
    scatter: bool = False

    @classmethod
    def flat(cls, devices: int) -> Fleet:
        return cls(devices)

    @classmethod
    def of_nodes(cls, sizes: Iterable[int], *, scatter: bool = False) -> Fleet:
        nodes = tuple(sizes)
        return cls(sum(nodes), nodes, scatter)


@dataclass(frozen=True, slots=True)
class Price:
    """What it costs to move a job: its devices are held for so long without progress."""

    start_ms: int = 0
    save_ms: int = 0
    restore_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Periodic checkpoints: after every_ms of progress the job stands still for cost_ms."""

    every_ms: int
    cost_ms: int


@dataclass(frozen=True, slots=True)
class Failures:
    """Nodes fail by chance (exponential), each device once in device_mttf_ms on the mean."""

    device_mttf_ms: int
    repair_ms: int
    detect_ms: int = 0


@dataclass(frozen=True, slots=True)
class Team:
    """A tenant. reserved: devices that are guaranteed to its premium work. weight: its share.
    most: so many devices it may hold at most; None: no limit."""

    tenant: TenantId
    reserved: int = 0
    weight: int = 1
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """All that holds in a simulation, and all that a policy may know beforehand."""

    fleet: Fleet
    price: Price = field(default_factory=Price)
    teams: tuple[Team, ...] = ()
    checkpoints: Checkpoints | None = None
    failures: Failures | None = None

    def __post_init__(self) -> None:
        if self.fleet.devices < 1:
            raise InvalidRequest("a fleet needs at least one device")
        if sum(team.reserved for team in self.teams) > self.fleet.devices:
            raise InvalidRequest(f"more than {self.fleet.devices} devices are reserved")
        if self.failures is not None and self.fleet.nodes is None:
            raise InvalidRequest("failures are of nodes", hint="give the fleet nodes")


TierOf = Callable[[TraceJob], Tier]


def from_trace(trace: Iterable[TraceJob], tier_of: TierOf | None = None) -> tuple[Job, ...]:
    """A trace's jobs as a workload; all standard unless `tier_of` says otherwise."""
    return tuple(
        Job(
            number,
            TenantId(job.vc),
            tier_of(job) if tier_of else Tier.STANDARD,
            job.devices,
            job.arrived,
            job.duration_ms,
        )
        for number, job in enumerate(trace)
    )
