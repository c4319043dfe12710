"""Until when each node may run its work, and what its workers were last seen to do.

Both are kept in memory only: a heartbeat every few seconds a node is not worth a disk write each.
So a control plane that restarts knows no lease. It takes every node's lease to have been renewed
at its own start: a node is given up only after a whole lease (and the planner's grace) in which
the new control plane could have heard of it and did not. That errs on the safe side, because
agents count their lease from the answer, which came earlier.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from onefleet.control.observe import Rank, Seen
from onefleet.control.orders import LEASE_MS
from onefleet.domain.ids import Generation, Instant, NodeId, WorkId
from onefleet.domain.work import Phase
from onefleet.store.base import State
from onefleet.wire.agent import NodeOrders, NodeReport, WorkerReport

#: A worker that its node was ordered to have and does not report is given up after this long.
VANISHED_MS = 5_000


@dataclass(frozen=True, slots=True)
class _Ordered:
    """Since when a node has been told of a worker, first with orders of this generation."""

    generation: Generation
    at: Instant


class Sightings:
    """What nodes last said, and their leases. started_at: when this control plane started."""

    def __init__(self, started_at: Instant) -> None:
        self.started_at = started_at
        self._leases: dict[NodeId, Instant] = {}
        self._reports: dict[NodeId, NodeReport] = {}
        self._ordered: dict[NodeId, dict[tuple[WorkId, int, Generation], _Ordered]] = {}

    def renew(self, node_id: NodeId, now: Instant) -> Instant:
        """The node was heard or answered: its lease is whole again. Returns when it runs out."""
        self._leases[node_id] = Instant(now + LEASE_MS)
        return self._leases[node_id]

    def lease_of(self, node_id: NodeId) -> Instant:
        """When its lease runs out."""
        return self._leases.get(node_id, Instant(self.started_at + LEASE_MS))

    def report_of(self, node_id: NodeId) -> NodeReport | None:
        """The node's newest report to this control plane."""
        return self._reports.get(node_id)

    def worker(self, work_id: WorkId, rank: int) -> WorkerReport | None:
        """The newest report of one worker, by the node that knows its highest epoch."""
        found = [w for r in self._reports.values() for w in r.workers if w.work_id == work_id]
        of_rank = [w for w in found if w.rank == rank]
        return max(of_rank, key=lambda w: w.epoch, default=None)

    def see(self, report: NodeReport, state: State, now: Instant) -> Seen:
        """Take a report; return what is now known of all workers."""
        self._reports[report.node_id] = report
        workers: dict[Rank, WorkerReport] = {}
        for known in self._reports.values():
            for worker in known.workers:
                place = (worker.work_id, worker.rank)
                if place not in workers or workers[place].epoch < worker.epoch:
                    workers[place] = worker
        return Seen(MappingProxyType(workers), self._vanished(report, state, now))

    def told(self, orders: NodeOrders, now: Instant) -> None:
        """The node is sent these orders."""
        known = self._ordered.get(orders.node_id, {})
        first = _Ordered(orders.generation, now)
        places = [(o.work_id, o.rank, o.epoch) for o in orders.orders]
        self._ordered[orders.node_id] = {place: known.get(place, first) for place in places}

    def _vanished(self, report: NodeReport, state: State, now: Instant) -> tuple[WorkId, ...]:
        """Works of this node that it was told of long enough ago and does not know."""
        # Under any epoch: what ran there before may have to end before the ordered one starts.
        reported = {(w.work_id, w.rank): True for w in report.workers}
        gone = []
        for place, first in self._ordered.get(report.node_id, {}).items():
            work = state.works.get(place[0])
            if work is None or work.epoch != place[2] or work.phase is Phase.SUSPENDED:
                continue
            heard = report.seen >= first.generation and now - first.at >= VANISHED_MS
            held = work.phase.holds_devices and place[1] < len(work.placement)
            if place[:2] not in reported and heard and held:
                gone.append(place[0])
        return tuple(gone)
