"""What a policy sees and what it can do: never more than a real scheduler.

Everything here is plain data. A policy gets no reference, however indirect, to the workload, to the
simulator or to a duration; what it does is written down, and carried out when it has returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from onefleet.domain.errors import InternalError
from onefleet.domain.ids import TenantId
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Phase
from onefleet.sim.jobs.room import Flat, Nodes, Where


class JobView:
    """A job as a scheduler knows it.

    arrived, started (its first start), since (from when on it has made progress in this run):
    instants; a run's restore counts as RUNNING, with `since` in the future. attained_ms: progress
    made in earlier runs, thrown away or not. where: its nodes, empty in a flat pool.
    """

    __slots__ = (
        "arrived", "attained_ms", "devices", "failures", "kills", "number", "phase", "since",
        "started", "suspends", "tenant", "tier", "where",
    )  # fmt: skip

    def __init__(
        self, number: int, tenant: TenantId, tier: Tier, devices: int, arrived: int
    ) -> None:
        self.number = number
        self.tenant = tenant
        self.tier = tier
        self.devices = devices
        self.arrived = arrived
        self.phase = Phase.PENDING
        self.started: int | None = None
        self.since = 0
        self.attained_ms = 0
        self.suspends = 0
        self.kills = 0
        self.failures = 0
        self.where: Where = ()

    def attained(self, now: int) -> int:
        """The time in which it has made progress so far, thrown away or not."""
        if self.phase is Phase.RUNNING and now > self.since:
            return self.attained_ms + now - self.since
        return self.attained_ms

    def __repr__(self) -> str:
        return f"JobView({self.number}, {self.devices} devices, {self.phase})"


class Act(IntEnum):
    START = 0
    SUSPEND = 1
    KILL = 2


class Desk:
    """The pool at one moment. It is the same object at every moment; `now` moves.

    waiting, running: by number, in the order in which they came to be so. Running jobs hold
    devices. `arrived`, `returned` (suspended, killed or thrown back by a failure, without this
    moment's own doing) and `ended` say what has changed since the last moment; `fell` and `rose`,
    which nodes went out of service and came back.
    """

    def __init__(self, room: Flat | Nodes, save_ms: int) -> None:
        self.now = 0
        self.waiting: dict[int, JobView] = {}
        self.running: dict[int, JobView] = {}
        self.arrived: list[JobView] = []
        self.returned: list[JobView] = []
        self.ended: list[JobView] = []
        self.fell: list[int] = []
        self.rose: list[int] = []
        self.leaving = 0  # devices of jobs that are being saved
        self.acts: list[tuple[Act, JobView]] = []
        self.ceding: dict[int, None] = {}  # of these acts, who makes room for a higher tier
        self.wakes: list[int] = []
        self._room = room
        self._save_ms = save_ms

    @property
    def devices(self) -> int:
        """Devices in service."""
        return self._room.devices

    @property
    def free(self) -> int:
        """Devices in service that nobody holds."""
        return self._room.free

    def fits(self, devices: int) -> bool:
        """Whether a gang of so many devices has a place now."""
        return self._room.fits(devices)

    def free_by_node(self) -> Sequence[int]:
        """Free devices of each node that is in service, by node; of a flat pool, the only one."""
        room = self._room
        if isinstance(room, Flat):
            return (room.free,)
        return [room.free_on(node) for node in range(len(room.sizes))]

    def start(self, job: JobView, where: Where = ()) -> None:
        """Give a waiting job its devices. where: which; the room chooses when it is empty."""
        if self.waiting.pop(job.number, None) is None:
            raise InternalError(f"{job} was started, and does not wait")
        job.where = self._room.take(job.devices, where)
        job.phase = Phase.RUNNING
        self.running[job.number] = job
        self.acts.append((Act.START, job))

    def suspend(self, job: JobView, whom: JobView | None = None) -> None:
        """Save a running job. Its devices are free at once, or after the time that a save takes.

        whom: it makes room for; only for the tables.
        """
        self._leave(job, whom)
        self.acts.append((Act.SUSPEND, job))
        if self._save_ms:
            job.phase = Phase.SAVING
            self.leaving += job.devices
        else:
            self._free(job, Phase.SUSPENDED)

    def kill(self, job: JobView, whom: JobView | None = None) -> None:
        """End a running job's processes; it waits again, with what its last image holds."""
        self._leave(job, whom)
        self.acts.append((Act.KILL, job))
        self._free(job, Phase.PENDING)

    def wake(self, at: int) -> None:
        """Ask again then, whatever happens in between."""
        if at <= self.now:
            raise InternalError(f"a policy wants to be woken at {at}, and it is {self.now}")
        self.wakes.append(at)

    def _leave(self, job: JobView, whom: JobView | None) -> None:
        if whom is not None and whom.tier.rank < job.tier.rank:
            self.ceding[job.number] = None
        if self.running.pop(job.number, None) is None:
            raise InternalError(f"{job} was taken off its devices, and holds none")
        if job.phase is Phase.RUNNING and self.now > job.since:
            job.attained_ms += self.now - job.since

    def _free(self, job: JobView, phase: Phase) -> None:
        self._room.give(job.devices, job.where)
        job.where = ()
        job.phase = phase
        self.waiting[job.number] = job
