"""Seeded imitations of the public traces, so that tests and first tries need no download.

They keep what schedulers feel: heavy-tailed run times, many small and few large gangs, bursts,
days and weeks, teams of very different size, prompts that share beginnings. Each table is measured
on the trace that it imitates (quantiles, counts); a draw runs between two quantiles in the
logarithm. An imitation is not the trace: figures measured on one are no figures of the other.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Generic, TypeVar

from onefleet.domain.ids import Instant, Millis
from onefleet.sim.traces.openb import WHOLE_GPU, OpenbNode, OpenbPod, PodPhase
from onefleet.sim.traces.philly import StepJob, TraceJob
from onefleet.sim.traces.requests import BLOCK_TOKENS, TraceRequest

KeyT = TypeVar("KeyT")

DAY_MS = 86_400_000
HOUR_MS = 3_600_000

#: Where the quantiles of a table of run times, and of a table of tokens, lie.
_RUN_AT = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995,
           0.999, 1)  # fmt: skip
_TOKENS_AT = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)

#: Philly: seconds of run time by least gang size.
_PHILLY_RUN_S = {
    1: (1, 30, 52, 62, 76, 215, 600, 1117, 1728, 2464, 3754, 8512, 19137, 68259, 135404, 266986,
        868927, 3256045),
    2: (2, 5, 9, 11, 15, 17, 19, 21, 25, 33, 150, 73625, 197392, 343945, 526030, 810065, 1521148,
        2582803),
    4: (1, 30, 80, 157, 535, 2335, 9484, 20999, 48786, 91658, 163742, 242280, 429400, 703936,
        1025908, 1413375, 2655194, 4628226),
}  # fmt: skip
_PHILLY_GANGS = {1: 76_627, 2: 1_818, 4: 1_870, 8: 1_643, 12: 7, 16: 199, 24: 7, 32: 67, 64: 6,
                 128: 3}  # fmt: skip
_PHILLY_VCS = (41_226, 16_091, 9_953, 7_423, 1_934, 1_511, 1_435, 1_137, 723, 422, 374, 8, 4, 3, 3)
#: Arrivals by hour of the day and by day of the week, from Monday.
_PHILLY_HOURS = (4367, 3374, 3835, 3780, 2400, 3950, 5732, 7159, 3802, 3447, 3510, 2979, 2567, 2415,
                 2185, 2224, 3021, 2289, 2744, 2496, 3483, 3142, 3885, 3461)  # fmt: skip
_PHILLY_WEEK = (10_136, 12_528, 13_370, 15_114, 16_954, 7_157, 6_988)
#: The spread of a day's number of jobs (of its logarithm), and the chance that a job comes right
#: behind another one of its team.
_DAY_SIGMA = 1.0
_BURST = 0.2
_BURST_MS = 20_000

_GAVEL_GANGS = {1: 10_480, 2: 463, 4: 2_044, 8: 1_857, 16: 255, 32: 91, 64: 1}
#: Median and greatest steps of a few of the models.
_GAVEL_STEPS = {
    "A3C": (129_727, 39_018_929),
    "CycleGAN": (79_059, 24_063_917),
    "LM (batch size 80)": (958_503, 207_940_934),
    "Recommendation (batch size 1024)": (7_292, 2_489_792),
    "ResNet-18 (batch size 64)": (842_176, 231_657_976),
    "ResNet-50 (batch size 32)": (215_365, 51_092_453),
    "Transformer (batch size 128)": (93_280, 24_941_724),
}

#: openb: (cpu_milli, memory_mib, GPUs, model) -> nodes of 1,523.
_OPENB_NODES = {
    (96_000, 393_216, 8, "G2"): 549,
    (104_000, 524_288, 2, "T4"): 387,
    (32_000, 262_144, 0, ""): 129,
    (16_000, 122_880, 2, "P100"): 107,
    (96_000, 524_288, 0, ""): 111,
    (128_000, 786_432, 8, "G3"): 39,
    (32_000, 131_072, 4, "V100M16"): 28,
    (96_000, 786_432, 8, "V100M32"): 21,
    (8_000, 32_768, 1, "V100M16"): 19,
    (128_000, 1_048_576, 1, "A10"): 2,
}
_OPENB_GPUS = {0: 1_088, 1: 6_989, 2: 16, 4: 15, 8: 44}
_OPENB_MILLI = {1000: 3_911, 810: 1_078, 470: 750, 320: 328, 650: 253, 230: 140, 460: 128, 590: 75,
                160: 74, 550: 72, 220: 62, 370: 47, 110: 24}  # fmt: skip
_OPENB_SHAPES = {(3152, 5600): 1592, (11300, 49152): 857, (11908, 47104): 778, (8000, 30517): 649,
                 (11400, 48128): 534, (12500, 57344): 364, (32000, 49152): 284,
                 (4000, 22888): 189}  # fmt: skip
_OPENB_QOS = {"LS": 4_647, "BE": 3_398, "Burstable": 100, "Guaranteed": 7}
_OPENB_PHASES = {PodPhase.RUNNING: 5_193, PodPhase.FAILED: 1_870, PodPhase.PENDING: 897,
                 PodPhase.SUCCEEDED: 192}  # fmt: skip
_OPENB_SPAN_S = 12_901_761

#: Prompt and answer tokens at _TOKENS_AT.
_AZURE = (
    (2, 181, 207, 387, 403, 703, 1020, 1071, 1130, 1315, 2735, 4083, 4142, 14050),
    (7, 41, 54, 77, 91, 103, 129, 177, 384, 400, 424, 451, 601, 1000),
)
_MOONCAKE = (
    (891, 901, 964, 1662, 3263, 4993, 6909, 9570, 13196, 17869, 27367, 39552, 85401, 126195),
    (1, 10, 24, 100, 213, 291, 350, 399, 447, 504, 597, 698, 1120, 2000),
)
_LMSYS = (
    (2, 2, 5, 10, 16, 24, 40, 68, 124, 215, 432, 656, 929, 1021),
    (2, 10, 18, 43, 85, 141, 211, 309, 400, 511, 513, 513, 785, 977),
)
_AIBRIX = (
    (8, 74, 100, 145, 182, 223, 264, 302, 348, 418, 525, 650, 790, 2415),
    (1, 6, 9, 14, 20, 25, 34, 46, 66, 101, 179, 267, 562, 925),
)
_LMSYS_CLIENTS = (296, 262, 199, 120, 67, 66, 56, 46, 44, 43, 40, 36, 31, 26, 25, 23, 22, 22, 19,
                  19, 12, 11, 7, 3, 2, 2, 1)  # fmt: skip
#: Requests of AIBrix's scenario in each half minute: up, and down again.
_AIBRIX_SHAPE = (48, 41, 52, 95, 87, 212, 214, 340, 320, 203, 153, 84, 69, 61, 33, 14)
#: The chance that a Mooncake prompt goes on where an earlier one ended.
_CONTINUES = 0.37


class Pick(Generic[KeyT]):
    """Draws a key as often as its weight says."""

    def __init__(self, weights: Mapping[KeyT, float]) -> None:
        self._keys = tuple(weights)
        self._sums = tuple(accumulate(weights.values()))

    def draw(self, rng: random.Random) -> KeyT:
        return self._keys[bisect_right(self._sums, rng.random() * self._sums[-1])]


def slots(weights: Sequence[float]) -> Pick[int]:
    """Draws a position as often as the weight there says."""
    return Pick(dict(enumerate(weights)))


def philly(seed: int, jobs: int = 82_247, days: int = 109) -> tuple[TraceJob, ...]:
    """A training cluster over `days` days from a Monday on, in the order of arrival."""
    rng = random.Random(f"{seed}/imitate/philly")
    weights = [_PHILLY_WEEK[day % 7] * math.exp(rng.gauss(0.0, _DAY_SIGMA)) for day in range(days)]
    pick_day, pick_hour, pick_vc = slots(weights), slots(_PHILLY_HOURS), slots(_PHILLY_VCS)
    pick_gang = Pick(_PHILLY_GANGS)
    found: list[TraceJob] = []
    while len(found) < jobs:
        if found and rng.random() < _BURST:  # a sweep: its team's next job, much like this one
            last = found[-1]
            at, vc, devices = last.arrived + rng.randrange(_BURST_MS), last.vc, last.devices
        else:
            day, hour = pick_day.draw(rng), pick_hour.draw(rng)
            at = day * DAY_MS + hour * HOUR_MS + rng.randrange(HOUR_MS)
            vc, devices = f"vc{pick_vc.draw(rng):02d}", pick_gang.draw(rng)
        at = at // 1000 * 1000  # the trace knows whole seconds
        found.append(TraceJob(Instant(at), _run_ms(rng, devices), devices, vc))
    found.sort(key=lambda job: job.arrived)
    first = found[0].arrived
    return tuple(
        TraceJob(Instant(job.arrived - first), job.duration_ms, job.devices, job.vc)
        for job in found
    )


def gavel(seed: int, jobs_per_vc: int = 200, vcs: int = 15) -> tuple[StepJob, ...]:
    """Jobs by steps, of several teams, in the order of arrival."""
    rng = random.Random(f"{seed}/imitate/gavel")
    pick_gang = Pick(_GAVEL_GANGS)
    types = tuple(_GAVEL_STEPS)
    found: list[StepJob] = []
    for number in range(vcs):
        at_ms = 0.0
        for _ in range(jobs_per_vc):
            job_type = rng.choice(types)
            median, most = _GAVEL_STEPS[job_type]
            steps = min(round(median * math.exp(rng.gauss(0.0, 1.6))), most)
            command = f"python3 train.py {job_type.split(' ')[0].lower()}"
            devices = pick_gang.draw(rng)
            arrived = Instant(round(at_ms) // 1000 * 1000)
            vc = f"vc{number:02d}"
            found.append(StepJob(arrived, job_type, command, True, max(steps, 1), devices, vc))
            at_ms += rng.expovariate(1 / (2 * HOUR_MS))
    found.sort(key=lambda job: job.arrived)
    return tuple(found)


def openb_nodes(seed: int, nodes: int = 1_523) -> tuple[OpenbNode, ...]:
    """Machines in the trace's proportions; every kind is there once `nodes` allows it."""
    rng = random.Random(f"{seed}/imitate/openb/nodes")
    pick = Pick(_OPENB_NODES)
    shapes = list(_OPENB_NODES)[:nodes]
    shapes += [pick.draw(rng) for _ in range(nodes - len(shapes))]
    return tuple(OpenbNode(f"node-{number:04d}", *shape) for number, shape in enumerate(shapes))


def openb_pods(seed: int, pods: int = 8_152) -> tuple[OpenbPod, ...]:
    """Pods in the order of their creation; few come in the first two thirds of the time."""
    rng = random.Random(f"{seed}/imitate/openb/pods")
    pick_gpus, pick_milli, pick_shape = Pick(_OPENB_GPUS), Pick(_OPENB_MILLI), Pick(_OPENB_SHAPES)
    pick_qos, pick_phase = Pick(_OPENB_QOS), Pick(_OPENB_PHASES)
    times = sorted(
        round(_OPENB_SPAN_S * (1 - rng.random() * (0.22 if rng.random() < 0.9 else 1)))
        for _ in range(pods)
    )
    found = []
    for number, created_s in enumerate(times):
        gpus, phase = pick_gpus.draw(rng), pick_phase.draw(rng)
        cpu_milli, memory_mib = pick_shape.draw(rng)
        pod = OpenbPod(
            name=f"pod-{number:04d}",
            cpu_milli=cpu_milli,
            memory_mib=memory_mib,
            gpus=gpus,
            gpu_milli={0: 0, 1: pick_milli.draw(rng)}.get(gpus, WHOLE_GPU),
            models=(),
            qos=pick_qos.draw(rng),
            phase=phase,
            created_s=created_s,
            deleted_s=created_s + round(math.exp(rng.gauss(8.0, 2.0))),
            scheduled_s=None if phase is PodPhase.PENDING else created_s,
        )
        found.append(pod)
    return tuple(found)


def azure(seed: int, requests: int = 19_366, seconds: int = 3_500) -> tuple[TraceRequest, ...]:
    """One service whose rate doubles and falls again over the time."""
    rng = random.Random(f"{seed}/imitate/azure")
    shape = [3.0 + 4.0 * math.sin(math.pi * slot / 60) ** 2 for slot in range(60)]
    return _plain(rng, _times(rng, requests, shape, seconds * 1000), _AZURE)


def aibrix(seed: int, requests: int = 2_026) -> tuple[TraceRequest, ...]:
    """Eight minutes, up and down."""
    rng = random.Random(f"{seed}/imitate/aibrix")
    times = _times(rng, requests, _AIBRIX_SHAPE, len(_AIBRIX_SHAPE) * 30_000)
    return tuple(
        replace(request, prompt_chars=request.prompt_tokens * 9 // 2)
        for request in _plain(rng, times, _AIBRIX)
    )


def lmsys(seed: int, requests: int = 1_500) -> tuple[TraceRequest, ...]:
    """Twenty-seven tenants, of which the largest asks three hundred times as often as the least."""
    rng = random.Random(f"{seed}/imitate/lmsys")
    pick = slots(_LMSYS_CLIENTS)
    times = _times(rng, requests, (1,), 600_000)
    return tuple(
        replace(request, client=str(pick.draw(rng))) for request in _plain(rng, times, _LMSYS)
    )


def mooncake(seed: int, requests: int = 12_031, seconds: int = 3_537) -> tuple[TraceRequest, ...]:
    """Conversations: every prompt begins with one block that all share; some go on an earlier one.

    As in the trace, requests come in batches, each three seconds.
    """
    rng = random.Random(f"{seed}/imitate/mooncake")
    fresh = 1
    talks: list[tuple[int, ...]] = []
    found = []
    for at in _times(rng, requests, (1,), seconds * 1000):
        prompt, answer = _tokens(rng, _MOONCAKE[0]), _tokens(rng, _MOONCAKE[1])
        blocks: tuple[int, ...] = (0,)
        if talks and rng.random() < _CONTINUES:
            blocks = talks.pop(rng.randrange(len(talks)))
        wanted = max(-(-prompt // BLOCK_TOKENS), len(blocks) + 1)
        more = wanted - len(blocks)
        blocks += tuple(range(fresh, fresh + more))
        fresh += more
        talks.append(blocks)
        prompt = (len(blocks) - 1) * BLOCK_TOKENS + 1 + (prompt - 1) % BLOCK_TOKENS
        arrived = Instant(at // 3_000 * 3_000)
        found.append(TraceRequest(arrived, prompt, answer, blocks=blocks))
    return tuple(found)


def between(rng: random.Random, at: Sequence[float], values: Sequence[int]) -> float:
    """A draw from the distribution with these quantiles; log-linear in between."""
    u = rng.random()
    upper = min(bisect_right(at, u), len(at) - 1)
    low, high = max(values[upper - 1], 1), max(values[upper], 1)
    part = (u - at[upper - 1]) / (at[upper] - at[upper - 1])
    return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))


def _run_ms(rng: random.Random, devices: int) -> Millis:
    table = _PHILLY_RUN_S[max(least for least in _PHILLY_RUN_S if least <= devices)]
    return Millis(round(between(rng, _RUN_AT, table)) * 1000)


def _tokens(rng: random.Random, table: Sequence[int]) -> int:
    return round(between(rng, _TOKENS_AT, table))


def _times(rng: random.Random, count: int, shape: Sequence[float], span_ms: int) -> list[int]:
    """Times in order; `shape` says how many come in each of its equal slots."""
    pick, slot_ms = slots(shape), span_ms / len(shape)
    return sorted(round((pick.draw(rng) + rng.random()) * slot_ms) for _ in range(count))


def _plain(
    rng: random.Random, times: Sequence[int], tables: tuple[Sequence[int], Sequence[int]]
) -> tuple[TraceRequest, ...]:
    return tuple(
        TraceRequest(Instant(at), _tokens(rng, tables[0]), _tokens(rng, tables[1])) for at in times
    )
