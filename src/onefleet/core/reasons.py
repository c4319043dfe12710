"""The blockers of a plan, found when somebody asks.

A pass decides; why each of thousands of works waits is asked of a few. So a plan carries the
question instead of all answers: the pass is run again on the same snapshot, this time looking at
everything, and what it left behind is explained. Asking costs as much as the world is large, once
a plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from onefleet.core.blockers import Blockers
from onefleet.core.index import Index
from onefleet.core.plan import Blocker, Gate
from onefleet.core.policy import Policy
from onefleet.core.recipe import work_off
from onefleet.core.scratch import Scratch
from onefleet.core.snapshot import Snapshot
from onefleet.domain.ids import Instant, NodeId, WorkId
from onefleet.domain.work import Phase


class Reasons(Mapping[WorkId, tuple[Blocker, ...]]):
    """Of each work that does not run after the plan, everything that holds it up; never empty."""

    def __init__(self, snapshot: Snapshot, policy: Policy, now: Instant) -> None:
        self._asked = (snapshot, policy, now)
        self._finder: Blockers | None = None
        self._absent: Mapping[WorkId, NodeId] = {}
        self._known: dict[WorkId, tuple[Blocker, ...]] = {}

    def __getitem__(self, work_id: WorkId) -> tuple[Blocker, ...]:
        found = self._known.get(work_id)
        if found is None:
            finder = self._find()
            work = finder.after.works[work_id]
            waits = work.phase not in (Phase.RUNNING, Phase.ENDED)
            missing = self._absent.get(work_id)
            if not waits and missing is None:
                raise KeyError(work_id)
            found = finder.of(work) if waits else ()
            if missing is not None:
                text = (
                    f"its node {missing} is lost; it is waited for, as no other node could run it"
                )
                found = (Blocker(Gate.START, text), *found)
            self._known[work_id] = found
        return found

    def __iter__(self) -> Iterator[WorkId]:
        for work in self._find().after.works.values():
            if work.phase not in (Phase.RUNNING, Phase.ENDED) or work.id in self._absent:
                yield work.id

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _find(self) -> Blockers:
        if self._finder is None:
            snapshot, policy, now = self._asked
            index = Index.of(snapshot, policy, now)
            this = Scratch(index, policy, now)
            placing = work_off(this, thorough=True)
            after = replace(snapshot, nodes=dict(index.fleet.nodes), works=dict(index.roster.works))
            self._absent = this.absent
            self._finder = Blockers(after, this.capacity, placing.waiting, policy, now)
        return self._finder
