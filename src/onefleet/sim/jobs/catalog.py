"""The policies by name: what tables choose their rows from."""

from __future__ import annotations

from onefleet.core.policy import DEFAULT_POLICY
from onefleet.sim.jobs.policies import preemptive, queues
from onefleet.sim.jobs.policies.preemptive import Preemptive
from onefleet.sim.jobs.policies.tiered import Taking, Tiered
from onefleet.sim.jobs.policy import Blind, Clairvoyant, Named
from onefleet.sim.jobs.pool import Pool

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
QUANTUM_MS = 10 * MINUTE_MS
#: Tiresias' queues: device time of an hour and of ten.
THRESHOLDS_MS = (HOUR_MS, 10 * HOUR_MS)

FIFO = Blind("fifo", "order of arrival, head of line", lambda rules, rng: queues.HeadOfLine())
FIRST_FIT = Blind(
    "first-fit",
    "order of arrival, who does not fit is passed over",
    lambda rules, rng: queues.FirstFit(queues.by_arrival),
)
RANDOM = Blind(
    "random",
    "no order, who does not fit is passed over",
    lambda rules, rng: queues.FirstFit(queues.by_chance(rng)),
)
EASY = Clairvoyant(
    "easy",
    "EASY backfilling, perfect estimates",
    lambda rules, rng, oracle: queues.Easy(oracle),
)
DRF = Blind(
    "drf", "max-min share between teams, first fit", lambda rules, rng: queues.FairShares(rules)
)
SILOS = Blind(
    "silos", "walls between teams, first fit inside", lambda rules, rng: queues.Silos(rules)
)
SJF = Clairvoyant(
    "sjf",
    "shortest first, never preempts",
    lambda rules, rng, oracle: queues.FirstFit(queues.by_duration(oracle)),
)
SRTF = Clairvoyant(
    "srtf",
    "shortest remaining time first",
    lambda rules, rng, oracle: Preemptive(rules, preemptive.least_remaining(oracle)),
)
SRSF = Clairvoyant(
    "srsf",
    "least remaining device time first",
    lambda rules, rng, oracle: Preemptive(rules, preemptive.least_remaining_service(oracle)),
)
LAS = Blind(
    "2d-las",
    "least attained device time first, 10 min quantum",
    lambda rules, rng: Preemptive(rules, preemptive.least_attained(QUANTUM_MS), QUANTUM_MS),
)
TIRESIAS = Blind(
    "tiresias",
    "three queues by attained device time (1 h, 10 h)",
    lambda rules, rng: Preemptive(rules, preemptive.attained_queues(THRESHOLDS_MS), QUANTUM_MS),
)
TIERS_WAIT = Blind(
    "tiers, no preemption", "tier, then arrival", lambda rules, rng: Tiered(rules, Taking.NEVER)
)
TIERS_KILL = Blind(
    "tiers, kill and requeue",
    "tier, then arrival; lower tiers are killed",
    lambda rules, rng: Tiered(rules, Taking.KILL),
)
TIERS_SUSPEND = Blind(
    "tiers, suspend",
    "tier, then arrival; lower tiers are suspended",
    lambda rules, rng: Tiered(rules, Taking.SUSPEND),
)

ONEFLEET = Blind(
    "onefleet",
    "the pool's own planner with its default policy",
    lambda rules, rng: Pool(rules, DEFAULT_POLICY, rng),
)

BASELINES: tuple[Named, ...] = (
    FIFO, EASY, FIRST_FIT, RANDOM, DRF, LAS, TIRESIAS, SJF, SRTF, SRSF,
)  # fmt: skip
TIERS: tuple[Named, ...] = (TIERS_WAIT, TIERS_KILL, TIERS_SUSPEND)
POLICIES: dict[str, Named] = {named.name: named for named in (*BASELINES, SILOS, *TIERS, ONEFLEET)}
