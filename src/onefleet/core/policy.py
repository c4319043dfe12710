"""The numbers that steer the planner and the autoscaler. One frozen value; no number hides in code.

Durations are in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from onefleet.core.checkpointing import PRIOR_NODE_MS, SaveCost
from onefleet.domain.fleet import DeviceKind


@dataclass(frozen=True, slots=True)
class Policy:
    """How the pool decides.

    lease_grace_ms: after a node's lease ran out, wait so long before its work is given up; it is
    longer than an agent takes to notice that its lease ran out and to end what it runs.
    resume_hold_ms: suspended work stays so for this long, so that work does not bounce.
    patience_ms: for this long younger work may pass a bigger, older one of its tier; then it may
    take its turn, and devices are kept for it.
    image_wait_ms: a lost node is waited for this long, at most, by the images on it, and by jobs
    that no other node could run; then they are given up.
    level_ms: device-milliseconds that a work has had when it leaves the first level of its rank,
    and for how long devices may be kept from its rank for one that will have all of them by then;
    level_doublings: so often it doubles until it leaves the next one, and so on.
    floor_permille: a job that has had less of its time than this part, and lacks a level to that,
    goes first in its rank until it has had twice as much.
    slack_ms, slack_permille: a job with a deadline goes first in its rank when it has no more slack
    than this, and than this part of the run time that its owner said.
    promise_window_ms: over this long, and the hours that it begins in, promises are looked at;
    promise_margin_permille: what runs is held to have less than was promised until it had so much
    more, so that it is not taken off at once.
    idle_ms: a deployment without a request for this long may lose a replica.
    scale_up_waiting: held requests a ready replica, from which on one more is wanted.
    save_fixed_ms, save_bytes_per_ms, replica_start_ms: what suspending work costs, to choose the
    cheapest victims: a fixed part, its state's bytes twice (out and in), loading a model again.
    move_fixed_ms, move_bytes_per_ms: how long an image takes to another node (1 Gbit/s); suspended
    work waits for so long before it goes on where its image is not.
    moves_max, move_rest_ms: so many jobs move at once, at most, to make one piece of what is free;
    each after having run for so long. 0 of them: none ever does.
    tidy_max: so many jobs move at once, at most, while nothing waits, to make room for what is
    usually asked. 0: none ever does.
    freeze_ms: work that stands still and wants to run is saved after this long, so that it can go
    on elsewhere.
    node_mttf_ms: the time between two failures of one node, for periodic checkpoints.
    spares: of these kinds so many nodes are kept empty for work that loses its place by a failure
    (`index/spares.py`).
    """

    lease_grace_ms: int = 5_000
    resume_hold_ms: int = 1_000
    patience_ms: int = 30_000
    image_wait_ms: int = 600_000
    level_ms: int = 600_000
    level_doublings: int = 2
    floor_permille: int = 20
    slack_ms: int = 60_000
    slack_permille: int = 250
    promise_window_ms: int = 3_600_000
    promise_margin_permille: int = 200
    idle_ms: int = 5_000
    scale_up_waiting: int = 1
    save_fixed_ms: int = 300
    save_bytes_per_ms: int = 500_000
    replica_start_ms: int = 3_000
    move_fixed_ms: int = 500
    move_bytes_per_ms: int = 125_000
    moves_max: int = 4
    move_rest_ms: int = 900_000
    tidy_max: int = 4
    freeze_ms: int = 60_000
    node_mttf_ms: int = PRIOR_NODE_MS
    spares: tuple[tuple[DeviceKind, int], ...] = ()

    def hold_ms(self, moves: bool) -> int:
        """How long suspended work stays so; what was suspended in order to move does not wait."""
        return 0 if moves else self.resume_hold_ms

    @property
    def save_cost(self) -> SaveCost:
        """What a save costs where it was not measured."""
        return SaveCost(self.save_fixed_ms, self.save_bytes_per_ms)


DEFAULT_POLICY = Policy()
