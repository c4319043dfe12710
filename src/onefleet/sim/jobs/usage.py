"""Who held how many devices when, and who waited meanwhile: what utilisation is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onefleet.sim.jobs.job import Job
from onefleet.sim.jobs.outcome import Outcome


class Usage:
    """Give `observe` to the simulator. Device time by label, for each bin from `begin` on."""

    def __init__(self, begin: int, bin_ms: int, label: Callable[[Job], str]) -> None:
        self.begin = begin
        self.bin_ms = bin_ms
        self._label = label
        self._held: dict[str, dict[int, int]] = {}

    def observe(self, job: Job, begin: int, end: int) -> None:
        bins = self._held.setdefault(self._label(job), {})
        at, width = begin - self.begin, self.bin_ms
        last = end - self.begin
        while at < last:
            number = at // width
            until = min((number + 1) * width, last)
            bins[number] = bins.get(number, 0) + (until - at) * job.devices
            at = until

    def mean_devices(self, label: str, bins: int) -> list[float]:
        """The mean number of devices that the label held in each of the first bins."""
        held = self._held.get(label, {})
        return [held.get(number, 0) / self.bin_ms for number in range(bins)]

    def device_ms(self, bins: int) -> int:
        """All that was held in the first bins."""
        return sum(
            ms for held in self._held.values() for number, ms in held.items() if number < bins
        )


@dataclass(frozen=True, slots=True)
class Idleness:
    """Of the time until a horizon. waiting_ms: somebody waited. held: device time held in it.
    stranded: device time that idled while that many devices or more were waited for (B10)."""

    waiting_ms: int
    held: int
    stranded: int


class Demand:
    """Give `observe` to the simulator: what was held, beside what was waited for."""

    def __init__(self) -> None:
        self._changes: list[tuple[int, int, int]] = []  # time, held, wanted

    def observe(self, job: Job, begin: int, end: int) -> None:
        self._changes.append((begin, job.devices, 0))
        self._changes.append((end, -job.devices, 0))

    def idleness(self, outcome: Outcome, devices: int, until: int) -> Idleness:
        """Look back on it. Who has arrived and not ended wants its devices, held or not."""
        for job in outcome.jobs:
            self._changes.append((job.arrived, 0, job.devices))
            self._changes.append((outcome.ended[job.number], 0, -job.devices))
        self._changes.sort()
        now = held = wanted = waiting_ms = held_then = stranded = 0
        for at, held_change, wanted_change in self._changes:
            passed = min(at, until) - now
            if wanted > held and passed > 0:
                waiting_ms += passed
                held_then += held * passed
                stranded += min(wanted - held, devices - held) * passed
            now = min(at, until)
            held += held_change
            wanted += wanted_change
        return Idleness(waiting_ms, held_then, stranded)
