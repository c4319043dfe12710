"""Policies that never take devices from a running job."""

from __future__ import annotations

import heapq
import random
from bisect import insort
from collections import deque
from collections.abc import Callable

from onefleet.domain.ids import TenantId
from onefleet.sim.jobs.desk import Desk, JobView
from onefleet.sim.jobs.job import Rules, Team
from onefleet.sim.jobs.policies.lines import FirstAtMost, Key, Lines, fill, newcomers
from onefleet.sim.jobs.policy import Oracle

_UNKNOWN = Team(TenantId(""))


class HeadOfLine:
    """In the order of arrival; who does not fit holds up everybody behind."""

    def __init__(self) -> None:
        self._line: deque[JobView] = deque()

    def decide(self, desk: Desk) -> None:
        self._line.extend(newcomers(desk))
        while self._line and desk.fits(self._line[0].devices):
            desk.start(self._line.popleft())


class FirstFit:
    """In the order of a key, and who does not fit is passed over."""

    def __init__(self, key: Callable[[JobView], Key]) -> None:
        self._key = key
        self._lines = Lines()

    def decide(self, desk: Desk) -> None:
        for job in newcomers(desk):
            self._lines.push(self._key(job), job)
        fill(desk, self._lines)


def by_arrival(job: JobView) -> Key:
    return (job.arrived, job.number)


def by_chance(rng: random.Random) -> Callable[[JobView], Key]:
    """In no order at all."""
    return lambda job: (rng.random(),)


def by_duration(oracle: Oracle) -> Callable[[JobView], Key]:
    """Shortest first."""
    return lambda job: (oracle.duration_ms(job), job.number)


class Easy:
    """EASY backfilling: the head of the line gets the earliest start that the run times of those
    that run allow, and others may pass it only where that start is not delayed.

    Lifka, "The ANL/IBM SP scheduling system", 1995; with perfect estimates, and a flat pool.
    """

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._line: deque[JobView] = deque()
        self._sizes: dict[int, FirstAtMost] = {}
        self._places: dict[int, int] = {}  # of waiting jobs, in the line of their size
        self._ends: list[tuple[int, int, int]] = []  # of running jobs: end, number, devices

    def decide(self, desk: Desk) -> None:
        for job in newcomers(desk):
            self._line.append(job)
            line = self._sizes.setdefault(job.devices, FirstAtMost())
            self._places[job.number] = line.append(self._oracle.remaining_ms(job, desk.now), job)
        while self._ends and self._ends[0][1] not in desk.running:
            self._ends.pop(0)
        while self._line:
            head = self._line[0]
            if head.number in self._places:
                if not desk.fits(head.devices):
                    break
                self._start(desk, head)
            self._line.popleft()
        if self._line and desk.free:
            self._backfill(desk, self._line[0])

    def _backfill(self, desk: Desk, head: JobView) -> None:
        at, spare = self._reservation(desk, head)
        while desk.free:
            best: JobView | None = None
            for devices, line in self._sizes.items():
                if devices > desk.free:
                    continue
                most = float("1e18") if devices <= spare else at - desk.now
                found = line.first(most)
                if found is not None and (best is None or found[1].number < best.number):
                    best = found[1]
            if best is None:
                return
            if self._start(desk, best) > at:
                spare -= best.devices

    def _reservation(self, desk: Desk, head: JobView) -> tuple[int, int]:
        """When the head will start, and the devices that it will leave free then."""
        free, at = desk.free, 1 << 62  # a failure or the like: nothing can be promised
        for end, number, devices in self._ends:
            if end > at:
                break
            if number in desk.running:
                free += devices
                at = end if free >= head.devices else at
        return at, max(free - head.devices, 0)

    def _start(self, desk: Desk, job: JobView) -> int:
        """Return when it will end."""
        self._sizes[job.devices].remove(self._places.pop(job.number))
        desk.start(job)
        end = desk.now + self._oracle.remaining_ms(job, desk.now)
        insort(self._ends, (end, job.number, job.devices))
        return end


class FairShares:
    """Dominant resource fairness, of which one resource is left: the team that holds the least of
    its weight goes first (among equals the one that waits longest), and of its jobs the first that
    fits, by tier and arrival. No team holds more than its limit.

    Ghodsi et al., "Dominant resource fairness", NSDI 2011.
    """

    def __init__(self, rules: Rules) -> None:
        self._teams = {team.tenant: team for team in rules.teams}
        self._lines: dict[TenantId, Lines] = {}
        self._held: dict[TenantId, int] = {}

    def decide(self, desk: Desk) -> None:
        for job in newcomers(desk):
            key = (job.tier.rank, job.arrived, job.number)
            self._lines.setdefault(job.tenant, Lines()).push(key, job)
        for job in (*desk.ended, *desk.returned):
            self._held[job.tenant] -= job.devices
        if not desk.free:
            return
        order = [entry for tenant in self._lines if (entry := self._entry(tenant, desk))]
        heapq.heapify(order)
        while order and desk.free:
            _, _, tenant, devices = heapq.heappop(order)
            if devices <= desk.free and desk.fits(devices):
                job = self._lines[tenant].pop(devices)
                self._held[tenant] = self._held.get(tenant, 0) + devices
                desk.start(job)
            if entry := self._entry(tenant, desk):
                heapq.heappush(order, entry)

    def _entry(self, tenant: TenantId, desk: Desk) -> tuple[float, Key, TenantId, int] | None:
        """The team's share, and its first job that fits now."""
        lines = self._lines[tenant]
        if not lines.count:
            return None
        held, team = self._held.get(tenant, 0), self._teams.get(tenant, _UNKNOWN)
        most = desk.free if team.most is None else min(desk.free, team.most - held)
        found = lines.best(most, desk.fits)
        return None if found is None else (held / team.weight, found[0], tenant, found[1].devices)


class Silos:
    """Walls between teams: each has the devices reserved to it, and no others.

    A team without a reservation has what nobody reserved, together with all others like it.
    """

    def __init__(self, rules: Rules) -> None:
        self._left: dict[str, int] = {team.tenant: team.reserved for team in rules.teams}
        self._left[""] = rules.fleet.devices - sum(team.reserved for team in rules.teams)
        self._lines = {name: Lines() for name in self._left}

    def decide(self, desk: Desk) -> None:
        for job in (*desk.ended, *desk.returned):
            self._left[self._silo(job)] += job.devices
        for job in newcomers(desk):
            self._lines[self._silo(job)].push(by_arrival(job), job)
        for name, lines in self._lines.items():
            while lines.count and self._left[name]:
                best = lines.best(self._left[name], desk.fits)
                if best is None:
                    break
                job = lines.pop(best[1].devices)
                self._left[name] -= job.devices
                desk.start(job)

    def _silo(self, job: JobView) -> str:
        return job.tenant if job.tenant in self._left else ""
