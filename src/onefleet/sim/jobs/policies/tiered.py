"""Tiers: premium before standard before basic, and three ways to make room for a higher one."""

from __future__ import annotations

from enum import StrEnum

from onefleet.domain.tiers import Tier
from onefleet.sim.jobs.desk import Desk, JobView
from onefleet.sim.jobs.policies.lines import Lines, newcomers
from onefleet.sim.jobs.policies.queues import by_arrival


class Taking(StrEnum):
    """How devices are taken from a lower tier."""

    NEVER = "never"
    KILL = "kill"  # and requeue: its progress is lost
    SUSPEND = "suspend"


class Tiered:
    """First fit by tier, then arrival. Who does not fit takes devices from lower tiers: the lowest
    first, and there from those that were placed last. For a flat pool."""

    def __init__(self, taking: Taking) -> None:
        self._taking = taking
        self._lines = {tier.rank: Lines() for tier in Tier}
        self._placed: dict[int, list[tuple[int, int]]] = {tier.rank: [] for tier in Tier}
        self._devices = {tier.rank: 0 for tier in Tier}  # held
        self._places = 0
        self._place: dict[int, int] = {}  # of running jobs: how many were placed before

    def decide(self, desk: Desk) -> None:
        for job in newcomers(desk):
            self._lines[job.tier.rank].push(by_arrival(job), job)
        for job in (*desk.ended, *desk.returned):
            self._left(job)
        for rank, lines in self._lines.items():
            while lines.count:
                below = desk.free + self._below(rank)
                best = lines.best(below)
                if best is None:
                    break
                if not desk.fits(best[1].devices) and not self._make_room(desk, best[1]):
                    break
                job = lines.pop(best[1].devices)
                desk.start(job)
                self._start(job)

    def _below(self, rank: int) -> int:
        if self._taking is Taking.NEVER:
            return 0
        return sum(devices for lower, devices in self._devices.items() if lower > rank)

    def _make_room(self, desk: Desk, job: JobView) -> bool:
        """Whether it fits now: it does not yet if saving takes time."""
        missing = job.devices - desk.free - desk.leaving
        for rank in sorted(self._placed, reverse=True):
            placed = self._placed[rank]
            while missing > 0 and placed and rank > job.tier.rank:
                place, number = placed.pop()
                victim = desk.running.get(number)
                if victim is None or self._place.get(number) != place:
                    continue  # it is gone, or was placed again later
                missing -= victim.devices
                self._left(victim)
                if self._taking is Taking.KILL:
                    desk.kill(victim)
                else:
                    desk.suspend(victim)
                if victim.number in desk.waiting:
                    self._lines[rank].push(by_arrival(victim), victim)
        return desk.fits(job.devices)

    def _start(self, job: JobView) -> None:
        rank = job.tier.rank
        self._places += 1
        self._place[job.number] = self._places
        self._placed[rank].append((self._places, job.number))
        self._devices[rank] += job.devices

    def _left(self, job: JobView) -> None:
        if self._place.pop(job.number, None) is not None:
            self._devices[job.tier.rank] -= job.devices
