"""The planner's index, kept beside the store by what its commits wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from onefleet.core.index import Index, Record
from onefleet.core.policy import Policy
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import Node
from onefleet.domain.ids import Generation, Instant
from onefleet.domain.serving import Deployment, Replica
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.work import Work
from onefleet.store.base import Store

#: The tables that the planner looks at.
TABLES: Mapping[str, type[Record]] = {
    "tenants": Tenant,
    "reservations": Reservation,
    "nodes": Node,
    "deployments": Deployment,
    "replicas": Replica,
    "works": Work,
}


class Mirror:
    """Keeps one index. Losing it, or a commit, costs the time to build it anew."""

    def __init__(self) -> None:
        self._index: Index | None = None
        self._generation = Generation(0)

    def follow(self, store: Store, snapshot: Snapshot, policy: Policy, now: Instant) -> Index:
        """The index of this snapshot, whose records are those of the store at its generation."""
        index = self._index
        written = store.changed(self._generation, snapshot.generation)
        if index is None or written is None or index.policy != policy or index.now > now:
            index = Index.of(snapshot, policy, now)
        else:
            for change in written:
                kind = TABLES.get(change.table)
                if kind is None:
                    continue
                if change.new is None:
                    index.remove(kind, change.id)
                else:
                    index.put(cast(Record, change.new))
            index.advance(now, snapshot.leases)
        self._index, self._generation = index, snapshot.generation
        return index

    def forget(self) -> None:
        """Start anew: what was followed may have been another's."""
        self._index = None
