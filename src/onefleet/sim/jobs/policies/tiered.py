"""Tiers: premium before standard before basic, and three ways to make room for a higher one.

With reservations there is a level more: premium work inside its team's reservation comes before
all else, so that what a team left idle and others borrowed can be called in.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from onefleet.domain.ids import TenantId
from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.desk import Desk, JobView
from onefleet.sim.jobs.job import Rules
from onefleet.sim.jobs.policies.lines import Lines, newcomers
from onefleet.sim.jobs.policies.queues import by_arrival

#: Premium work inside its team's reservation; the tiers follow.
RESERVED = 0
LEVELS = (RESERVED, *(tier.rank + 1 for tier in Tier))


class Taking(StrEnum):
    """How devices are taken from a lower level."""

    NEVER = "never"
    KILL = "kill"  # and requeue: its progress is lost
    SUSPEND = "suspend"


class Placed:
    """Who holds devices, by level; the last to be placed is the first to make room."""

    def __init__(self) -> None:
        self._stacks: dict[int, list[tuple[int, JobView]]] = {level: [] for level in LEVELS}
        self._devices = dict.fromkeys(LEVELS, 0)
        self._now: dict[int, tuple[int, int]] = {}  # by job: its level, and its place there
        self._places = 0

    def put(self, job: JobView, level: int) -> None:
        self._places += 1
        self._now[job.number] = (level, self._places)
        self._stacks[level].append((self._places, job))
        self._devices[level] += job.devices

    def remove(self, job: JobView) -> int | None:
        """Return its level, or None if it was not here."""
        level, _ = self._now.pop(job.number, (None, 0))
        if level is not None:
            self._devices[level] -= job.devices
        return level

    def below(self, level: int) -> int:
        """Devices held by lower levels."""
        return sum(devices for lower, devices in self._devices.items() if lower > level)

    def victims(self, level: int) -> Iterator[tuple[JobView, int]]:
        """Those below a level with theirs, the lowest first, and there the last placed. They are
        not here any more once they were given out."""
        for lower in reversed(LEVELS):
            stack = self._stacks[lower]
            while lower > level and stack:
                place, job = stack.pop()
                if self._now.get(job.number) == (lower, place):
                    self.remove(job)
                    yield job, lower


class Tiered:
    """First fit by level, then arrival. Who does not fit takes devices from lower levels: the
    lowest first, and there from those that were placed last. For a flat pool.

    Without teams that reserve anything there are the three tiers and nothing else.
    """

    def __init__(self, rules: Rules, taking: Taking) -> None:
        self._taking = taking
        self._left = {team.tenant: team.reserved for team in rules.teams if team.reserved}
        self._lines = {level: Lines() for level in LEVELS[2:]}
        self._premium: dict[TenantId, Lines] = {}  # both levels, by team
        self._borrowing: dict[TenantId, dict[int, JobView]] = {name: {} for name in self._left}
        self._placed = Placed()

    def decide(self, desk: Desk) -> None:
        for job in (*desk.ended, *desk.returned):
            self._gone(job, self._placed.remove(job))
        for job in newcomers(desk):
            self._wait(job)
        for tenant in self._left:
            self._promote(tenant)
            self._fill(desk, self._premium.get(tenant), RESERVED, self._left[tenant])
        self._fill_premium(desk)
        for level, lines in self._lines.items():
            self._fill(desk, lines, level, desk.devices)

    def _fill_premium(self, desk: Desk) -> None:
        """Premium work that borrows, of all teams, by arrival."""
        level = RESERVED + 1
        while True:
            most = self._most(desk, level)
            heads = [
                (best[0], tenant)
                for tenant, lines in self._premium.items()
                if lines.count and (best := lines.best(most)) is not None
            ]
            if not heads:
                return
            if not self._fill(desk, self._premium[min(heads)[1]], level, desk.devices, once=True):
                return

    def _fill(
        self, desk: Desk, lines: Lines | None, level: int, limit: int, *, once: bool = False
    ) -> bool:
        """Start from the line what fits or can be made to; False when somebody has to wait."""
        while lines is not None and lines.count:
            best = lines.best(min(self._most(desk, level), limit))
            if best is None:
                return True
            job = best[1]
            if not desk.fits(job.devices) and not self._make_room(desk, job, level):
                return False
            desk.start(lines.pop(job.devices))
            self._placed.put(job, level)
            limit -= job.devices
            if level == RESERVED:
                self._left[job.tenant] -= job.devices
            elif job.tier is Tier.PREMIUM and job.tenant in self._left:
                self._borrowing[job.tenant][job.number] = job
            if once:
                return True
        return True

    def _most(self, desk: Desk, level: int) -> int:
        """So many devices are free, or could be made so."""
        return desk.free + (0 if self._taking is Taking.NEVER else self._placed.below(level))

    def _make_room(self, desk: Desk, job: JobView, level: int) -> bool:
        """Whether it fits now: it does not yet if saving takes time."""
        missing = job.devices - desk.free - desk.leaving
        victims = self._placed.victims(level)
        while missing > 0:
            victim, lower = next(victims)
            missing -= victim.devices
            self._gone(victim, lower)
            if self._taking is Taking.KILL:
                desk.kill(victim, job)
            else:
                desk.suspend(victim, job)
            if victim.number in desk.waiting:
                self._wait(victim)
        return desk.fits(job.devices)

    def _promote(self, tenant: TenantId) -> None:
        """Premium work that borrowed moves inside the reservation as room comes free there."""
        borrowing = self._borrowing[tenant]
        for job in tuple(borrowing.values()):
            if job.devices <= self._left[tenant]:
                self._placed.remove(job)
                self._placed.put(job, RESERVED)
                self._left[tenant] -= job.devices
                del borrowing[job.number]

    def _wait(self, job: JobView) -> None:
        if job.tier is Tier.PREMIUM:
            self._premium.setdefault(job.tenant, Lines()).push(by_arrival(job), job)
        else:
            self._lines[job.tier.rank + 1].push(by_arrival(job), job)

    def _gone(self, job: JobView, level: int | None) -> None:
        if level == RESERVED:
            self._left[job.tenant] += job.devices
        elif job.tenant in self._borrowing:
            self._borrowing[job.tenant].pop(job.number, None)
