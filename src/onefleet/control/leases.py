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
from onefleet.domain.work import Phase, Work
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
        self._workers: dict[NodeId, dict[Rank, WorkerReport]] = {}
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

    def worker(self, work: Work, rank: int) -> WorkerReport | None:
        """What the node that this worker is on reported of it last."""
        node_id = place(work, rank)
        return self._workers.get(node_id, {}).get((work.id, rank)) if node_id else None

    def see(self, report: NodeReport, state: State, now: Instant) -> Seen:
        """Take a report; return what is now known of the workers that it may be about."""
        self._reports[report.node_id] = report
        self._workers[report.node_id] = {(w.work_id, w.rank): w for w in report.workers}
        workers: dict[Rank, WorkerReport] = {}
        for work_id in dict.fromkeys(w.work_id for w in report.workers):
            work = state.works.get(work_id)
            for rank in range(work.demand.workers if work else 0):
                if work is not None and (worker := self.worker(work, rank)) is not None:
                    workers[work_id, rank] = worker
        return Seen(MappingProxyType(workers), self._vanished(report, state, now))

    def told(self, orders: NodeOrders, now: Instant) -> None:
        """The node is sent these orders."""
        known = self._ordered.get(orders.node_id, {})
        first = _Ordered(orders.generation, now)
        spots = [(o.work_id, o.rank, o.epoch) for o in orders.orders]
        self._ordered[orders.node_id] = {spot: known.get(spot, first) for spot in spots}

    def _vanished(self, report: NodeReport, state: State, now: Instant) -> tuple[WorkId, ...]:
        """Works of this node that it was told of long enough ago and does not know."""
        # Under any epoch: what ran there before may have to end before the ordered one starts.
        reported = {(w.work_id, w.rank): True for w in report.workers}
        gone = []
        for spot, first in self._ordered.get(report.node_id, {}).items():
            work = state.works.get(spot[0])
            if work is None or work.epoch != spot[2] or work.phase is Phase.SUSPENDED:
                continue
            heard = report.seen >= first.generation and now - first.at >= VANISHED_MS
            here = place(work, spot[1]) == report.node_id
            if spot[:2] not in reported and heard and here:
                gone.append(spot[0])
        return tuple(gone)


def place(work: Work, rank: int) -> NodeId | None:
    """The node that a worker is on: where its processes are, or the image that it comes back from.

    Other nodes may have copies of the image; what they say of it is no state of the worker.
    """
    if rank < len(work.placement):
        return work.placement[rank].node_id
    if work.phase is Phase.SUSPENDED and work.image is not None and rank < len(work.image.nodes):
        return work.image.nodes[rank]
    return None
