"""Everything that a pass looks things up in, kept up to date by what changed.

An index is derived from records alone: bringing it up to date gives what building it anew would
(`tests/property/test_index_properties.py`), so that a lost one costs time and nothing else. `put`
and `remove` take records in any order; `advance` lets time pass. A pass tries things out on the
index itself: `mark` before, `rollback` after, and it is as it was.

Little is worked out before somebody looks: a change marks what it touches, and `settle` works
through the marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from onefleet.core.index.fleet import Fleet
from onefleet.core.index.room import Kept
from onefleet.core.index.roster import Roster
from onefleet.core.packing import Worth
from onefleet.core.policy import Policy
from onefleet.core.promise import Book, lineage, stock_of
from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import DeviceKind, Node
from onefleet.domain.ids import Instant, NodeId, ReservationId, TenantId
from onefleet.domain.serving import Deployment, Replica
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.work import WHOLE, Work

Record = Work | Node | Tenant | Reservation | Deployment | Replica


class Index:
    """The planner's records, and what follows from them (`fleet`, `roster`)."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.now = Instant(0)
        self.tenants: dict[TenantId, Tenant] = {}
        self.reservations: dict[ReservationId, Reservation] = {}
        self._stock: dict[tuple[DeviceKind, str], int] = {}
        self.fleet = Fleet(policy.spares)
        self.roster = Roster(policy, self.fleet, self.tenants, self.reservations)
        self._tables: dict[type, Mapping[str, Record]] = {
            Work: cast(Mapping[str, Record], self.roster.works),
            Node: cast(Mapping[str, Record], self.fleet.nodes),
            Tenant: cast(Mapping[str, Record], self.tenants),
            Reservation: cast(Mapping[str, Record], self.reservations),
            Deployment: cast(Mapping[str, Record], self.roster.surplus.deployments),
            Replica: cast(Mapping[str, Record], self.roster.surplus.replicas),
        }
        self._journal: list[tuple[type, str, object]] | None = None
        self._marks = 0

    @classmethod
    def of(cls, snapshot: Snapshot, policy: Policy, now: Instant) -> Index:
        """Build it anew."""
        index = cls(policy)
        index.advance(now, snapshot.leases)
        for records in (
            snapshot.tenants,
            snapshot.reservations,
            snapshot.deployments,
            snapshot.replicas,
            snapshot.nodes,
            snapshot.works,
        ):
            for record in cast(Mapping[str, Record], records).values():
                index.put(record)
        return index

    # --- what changes ------------------------------------------------------------------------

    def put(self, record: Record) -> None:
        """The record is now like this."""
        old = self.get(type(record), record.id)
        if old is record:
            return
        self._note(type(record), record.id, old)
        match record:
            case Work():
                self.roster.put(record)
            case Node():
                self._count(old, -1)
                self._count(record, 1)
                self.fleet.put(record)
                self._turn()
                if isinstance(old, Node) and _matters(old) == _matters(record):
                    return
                self._see_works_anew(record.id)
            case Tenant():
                self.tenants[record.id] = record
                self.roster.usage.put_tenant(record, lineage(record.id, self.tenants))
                self._regroup(old, record)
            case Reservation():
                self.reservations[record.id] = record
                self._reserve_anew(old)
                self._reserve_anew(record)
            case Deployment():
                self.roster.surplus.put_deployment(record)
            case Replica():
                self.roster.surplus.put_replica(record)

    def remove(self, kind: type[Record], name: str) -> None:
        """There is no such record any more."""
        old = self.get(kind, name)
        if old is None:
            return
        self._note(kind, name, old)
        match old:
            case Work():
                self.roster.remove(old.id)
            case Node():
                self._count(old, -1)
                self.fleet.remove(old.id)
                self._turn()
                self._see_works_anew(old.id)
            case Tenant():
                del self.tenants[old.id]
                self.roster.usage.remove_tenant(old.id)
                self._regroup(old, None)
            case Reservation():
                del self.reservations[old.id]
                self._reserve_anew(old)
            case Deployment():
                self.roster.surplus.remove_deployment(old.id)
            case Replica():
                self.roster.surplus.remove_replica(old.id)

    def keep(self, node_id: NodeId, kept: Kept, sign: int = 1) -> None:
        """Keep something for a work that waits, or do so no more (sign -1), until the rollback."""
        self._note(Kept, node_id, (kept, sign))
        self.fleet.keep(node_id, kept, sign)

    def advance(self, now: Instant, leases: Mapping[NodeId, Instant]) -> None:
        """It is later now. leases: as in `Snapshot`."""
        assert now >= self.now, "time does not run backwards"
        self.now = now
        self.fleet.advance(now, leases)
        self._turn()
        self.roster.advance(now)

    def settle(self) -> None:
        """Work through the marks, the ranks' as well."""
        self.roster.settle_ranks()
        self.settle_rooms()

    def settle_rooms(self) -> None:
        """Work through the marks, but leave ranks alone: a pass gives each work one rank."""
        self.roster.surplus.settle()
        self.fleet.settle()

    @property
    def stock(self) -> Mapping[tuple[DeviceKind, str], int]:
        """Thousandths of devices by kind and class, but for those of spares."""
        kept = self.fleet.spares.stock()
        if not kept:
            return self._stock
        return {key: milli - kept.get(key, 0) for key, milli in self._stock.items()}

    def worth(self, kind: DeviceKind) -> Worth:
        """What free devices of a kind are worth to what is asked of the fleet."""
        stock = self.stock
        capacity = {product: milli // WHOLE for (of, product), milli in stock.items() if of is kind}
        return self.roster.asked.worth(kind, capacity)

    def book(self) -> Book:
        """All that is promised now, and what there is to keep it with."""
        promised = self.roster.errands.promised
        return Book(promised, self.reservations, self.tenants, self.stock)

    # --- trying out --------------------------------------------------------------------------

    def mark(self) -> int:
        """A point to roll back to, once: nothing that changes from here on stays then."""
        self._marks += 1
        if self._journal is None:
            self._journal = []
        return len(self._journal)

    def rollback(self, mark: int) -> None:
        """Undo everything since the mark."""
        journal, self._journal = self._journal, None
        assert journal is not None, "there is no mark"
        while len(journal) > mark:
            kind, name, old = journal.pop()
            if kind is Kept:
                kept, sign = cast(tuple[Kept, int], old)
                self.fleet.keep(NodeId(name), kept, -sign)
            elif old is None:
                self.remove(kind, name)
            else:
                self.put(cast(Record, old))
        self._marks -= 1
        self._journal = journal if self._marks else None

    # --- how ---------------------------------------------------------------------------------

    def get(self, kind: type[Record], name: str) -> Record | None:
        """The record of this kind and id."""
        return self._tables[kind].get(name)

    def _note(self, kind: type, name: str, old: object) -> None:
        if self._journal is not None:
            self._journal.append((kind, name, old))

    def _count(self, node: object, sign: int) -> None:
        if isinstance(node, Node):
            for key, milli in stock_of(node).items():
                left = self._stock.get(key, 0) + sign * milli
                if left:
                    self._stock[key] = left
                else:
                    del self._stock[key]

    def _turn(self) -> None:
        """Where works go on whose images lie on nodes that turned is seen anew."""
        for node_id in self.fleet.turned:
            self._see_homes_anew(node_id)
        self.fleet.turned.clear()

    def _see_works_anew(self, node_id: NodeId) -> None:
        """Works that are there, or go on there, are entered as the node is by now."""
        for hold in tuple(self.fleet.works_on(node_id)):
            self.roster.refresh(hold.work.id)
        self._see_homes_anew(node_id)

    def _see_homes_anew(self, node_id: NodeId) -> None:
        for work_id in tuple(self.fleet.images.get(node_id, ())):
            self.roster.refresh(work_id)

    def _reserve_anew(self, reservation: Record | None) -> None:
        if isinstance(reservation, Reservation):
            self.roster.coverage.look_at(reservation)

    def _regroup(self, old: Record | None, new: Record | None) -> None:
        parents = [r.parent if isinstance(r, Tenant) else None for r in (old, new)]
        if parents[0] != parents[1]:
            self.roster.regroup()


def _matters(node: Node) -> tuple[object, ...]:
    """What of a node's record matters to the works on it."""
    return (node.state, node.cordons, node.checkpoint_mode, node.devices)
