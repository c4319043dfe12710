"""The seam between the simulator and whoever decides.

A policy is an object with one method. The simulator calls it at each moment in which a job arrived,
ended or came back, or a node failed or was repaired, and when the policy asked to be woken:

    class FirstComeFirstServed:
        def decide(self, desk: Desk) -> None:
            for job in list(desk.waiting.values()):
                if not desk.fits(job.devices):
                    return
                desk.start(job)

    FCFS = Blind("fcfs", "in the order of arrival", lambda rules, rng: FirstComeFirstServed())
    outcome = simulate(jobs, Rules(Fleet.flat(512)), FCFS)

What a table shows is a `Blind` or a `Clairvoyant`. Only the maker of a clairvoyant one is given an
`Oracle`; the type of a policy thus says whether it could know a duration, and tables say so, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from onefleet.sim.jobs.desk import Desk, JobView
from onefleet.sim.jobs.job import Rules


class Policy(Protocol):
    """Decides who holds which devices."""

    def decide(self, desk: Desk) -> None:
        """Look at the desk, and start, suspend or kill by its methods. What it frees is free at
        once, within the same call, unless saving takes time."""
        ...


class Oracle(Protocol):
    """Knows what no scheduler can know. Policies that need it show what knowing would be worth."""

    def duration_ms(self, job: JobView) -> int:
        """The job's duration."""
        ...

    def remaining_ms(self, job: JobView, now: int) -> int:
        """What its progress still lacks."""
        ...


@dataclass(frozen=True, slots=True)
class Blind:
    """A policy that a real pool could run. rng: its own stream of chance."""

    name: str
    about: str
    make: Callable[[Rules, random.Random], Policy]


@dataclass(frozen=True, slots=True)
class Clairvoyant:
    """A policy that knows durations: a yardstick, and nothing that a pool could run."""

    name: str
    about: str
    make: Callable[[Rules, random.Random, Oracle], Policy]


Named = Blind | Clairvoyant
