"""The scratch copy of one pass: what it has decided so far, tried out on the index at once.

So each step sees what the steps before it did. Nothing is remembered between passes: what is kept
for whom follows from the snapshot alone, and so the same plan follows from the same snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onefleet.core.capacity import Capacity
from onefleet.core.index import Index
from onefleet.core.plan import (
    Decision,
    Fence,
    GivePromise,
    Ready,
    StepReport,
    WorkDecision,
    applied,
)
from onefleet.core.policy import Policy
from onefleet.core.preemption import Victims
from onefleet.domain.ids import Instant, NodeId, WorkId
from onefleet.domain.work import Work


class Scratch:
    """What the steps share.

    absent: works that wait for a lost node, and which. placed: works that this pass placed, with
    the number of the decision and the work before it. touched: works that this pass has decided
    about, but for what goes with any other decision.
    """

    def __init__(self, index: Index, policy: Policy, now: Instant) -> None:
        self.index = index
        self.policy = policy
        self.now = now
        self.decisions: list[Decision] = []
        self.steps: list[StepReport] = []
        self.absent: dict[WorkId, NodeId] = {}
        self.placed: dict[WorkId, tuple[int, Work]] = {}
        self.touched: dict[WorkId, None] = {}
        self.capacity = Capacity(index)
        self.victims = Victims(index, self.capacity)

    @property
    def works(self) -> Mapping[WorkId, Work]:
        """The works as they are by now."""
        return self.index.roster.works

    def decide(self, decision: WorkDecision) -> None:
        """Decide about a work, and see it done."""
        if not isinstance(decision, Ready | GivePromise):
            self.touched[decision.work_id] = None
        self.decisions.append(decision)
        self.index.put(applied(self.works[decision.work_id], decision, self.now))

    def replace(self, number: int, decision: WorkDecision, before: Work) -> None:
        """Decide otherwise. before: the work without the decision that is taken back."""
        self.decisions[number] = decision
        self.index.put(applied(before, decision, self.now))

    def changed(self) -> Iterable[WorkId]:
        """The works that it has decided about, in the order of the decisions."""
        return dict.fromkeys(d.work_id for d in self.decisions if not isinstance(d, Fence))

    def report(self, step: str, text: str) -> None:
        """Say what a step did, or why it did nothing."""
        self.steps.append(StepReport(step, text))

    def waited_ms(self, work: Work) -> int:
        """For how long it has been waiting."""
        return self.now - work.phase_since
