"""Which promises can be kept together: the admission of premium and standard jobs.

A tier promises a job a least device fraction. What is promised at one time has to fit the fleet,
on the classes of devices that each can use: a question of flow between demands and classes,
answered exactly. A job whose promise does not fit yet is no reason to refuse it: it waits, or runs
on what is free, without one, and gets it as soon as it fits; only what could not be promised on
the whole fleet with nobody else is refused. A promise that was given holds until the job ends.
Nobody is promised what one of a higher tier, or an older one, waits for: small jobs would otherwise
take all that comes free from a large one, and keep it.

A reservation is a promise of all its devices to a tenant, used or not, in each of its windows; the
premium work of the tenant, and of the tenants below it, is promised inside it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import DeviceKind, Node, NodeState
from onefleet.domain.ids import Instant, ReservationId, TenantId
from onefleet.domain.tenancy import Reservation, Tenant
from onefleet.domain.tiers import Tier
from onefleet.domain.work import WHOLE, Demand, Phase, Want, Work

#: The classes of one kind that a demand can use, sorted; empty: any class of the kind.
Classes = tuple[str, ...]


class Load(NamedTuple):
    """Thousandths of devices that are promised, and on which classes."""

    kind: DeviceKind
    classes: Classes
    milli: int


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Promises that do not fit: at `at`, so many thousandths of devices of the kind are missing."""

    kind: DeviceKind
    at: Instant
    missing_milli: int
    promised_milli: int
    capacity_milli: int


def load_of(demand: Demand, tier: Tier) -> Load:
    """What a job of this tier is promised: the fraction of the devices that it asks for."""
    devices = demand.most if demand.milli == WHOLE else 1
    milli = devices * demand.milli * tier.promise_permille // 1_000
    return Load(demand.kind, tuple(sorted(speed.product for speed in demand.speeds)), milli)


def reserved_load(reservation: Reservation) -> Load:
    """What a reservation is promised while its window is open: all of its devices."""
    classes = (reservation.product,) if reservation.product else ()
    return Load(reservation.kind, classes, reservation.devices * WHOLE)


class Bearer(NamedTuple):
    """Whose promises are alike: what one of them is promised can be added to another's."""

    tenant_id: TenantId
    tier: Tier
    kind: DeviceKind
    classes: Classes


@dataclass(frozen=True, slots=True)
class Book:
    """All that is promised, and what there is to keep it with.

    promised: thousandths of devices. stock: thousandths of devices by kind and class.
    """

    promised: Mapping[Bearer, int]
    reservations: Mapping[ReservationId, Reservation]
    tenants: Mapping[TenantId, Tenant]
    stock: Mapping[tuple[DeviceKind, str], int]

    @classmethod
    def of(cls, snapshot: Snapshot) -> Book:
        """Read off a snapshot."""
        promised: dict[Bearer, int] = {}
        for work in snapshot.works.values():
            if bears_promise(work):
                bearer, milli = promise_of(work)
                promised[bearer] = promised.get(bearer, 0) + milli
        stock: dict[tuple[DeviceKind, str], int] = {}
        for node in snapshot.nodes.values():
            for key, milli in stock_of(node).items():
                stock[key] = stock.get(key, 0) + milli
        return cls(promised, snapshot.reservations, snapshot.tenants, stock)

    def and_of(self, work: Work) -> Book:
        """The same, with what the tier of the work promises it."""
        bearer, milli = promise_of(work)
        promised = {**self.promised, bearer: self.promised.get(bearer, 0) + milli}
        return replace(self, promised=promised)


def bears_promise(work: Work) -> bool:
    """Whether something is promised to it now."""
    if not work.promised or not work.ready or not work.tier.promise_permille:
        return False
    return work.phase is not Phase.ENDED and work.want is Want.RUN


def promise_of(work: Work) -> tuple[Bearer, int]:
    """What its tier promises the work, and whose promises that is like."""
    load = load_of(work.demand, work.tier)
    return Bearer(work.tenant_id, work.tier, load.kind, load.classes), load.milli


def stock_of(node: Node) -> dict[tuple[DeviceKind, str], int]:
    """Thousandths of devices that stay: none of a lost or draining node, no cordoned device."""
    found: dict[tuple[DeviceKind, str], int] = {}
    if node.state is not NodeState.READY:
        return found
    out = dict.fromkeys(cordon.device_id for cordon in node.cordons)
    for device in node.devices:
        if device.id not in out:
            key = (device.kind, device.product)
            found[key] = found.get(key, 0) + WHOLE
    return found


def capacity(stock: Mapping[tuple[DeviceKind, str], int], kind: DeviceKind) -> dict[str, int]:
    """Thousandths of devices of each class of one kind."""
    return {product: milli for (of, product), milli in stock.items() if of is kind}


def shortfall(book: Book, work: Work, now: Instant) -> Shortfall | None:
    """What is missing, now or when a window opens, if the work is promised, too; None: it fits, or
    takes nothing from others, as inside a reservation: then it does not wait for what is missing to
    them.
    """
    kind = work.demand.kind
    room = capacity(book.stock, kind)
    promised = book.and_of(work)
    for at in moments(book.reservations.values(), now):
        loads = promised_loads(promised, kind, at)
        missing = unmet(loads, room)
        if missing and missing > unmet(promised_loads(book, kind, at), room):
            total = sum(load.milli for load in loads)
            return Shortfall(kind, at, missing, total, sum(room.values()))
    return None


def missing_to(book: Book, first: Work, now: Instant) -> dict[Instant, int]:
    """What is missing, now and when windows open, to the promise that the first waits for."""
    kind, promised = first.demand.kind, book.and_of(first)
    room = capacity(book.stock, kind)
    times = moments(book.reservations.values(), now)
    return {at: unmet(promised_loads(promised, kind, at), room) for at in times}


def delays(book: Book, work: Work, first: Work, missing: Mapping[Instant, int]) -> bool:
    """Whether more is missing to the promise that the first waits for, on the same kind of device,
    if the work is promised, too. missing: as `missing_to` has it."""
    kind, both = first.demand.kind, book.and_of(first).and_of(work)
    room = capacity(book.stock, kind)
    return any(unmet(promised_loads(both, kind, at), room) > milli for at, milli in missing.items())


def promised_loads(book: Book, kind: DeviceKind, at: Instant) -> list[Load]:
    """All that is promised on devices of a kind at a time, reservations in full."""
    loads: list[Load] = []
    left: dict[TenantId, list[_Left]] = {}
    for reservation in book.reservations.values():
        if reservation.kind is kind and holds(reservation, at):
            loads.append(reserved_load(reservation))
            line = left.setdefault(reservation.tenant_id, [])
            line.append(_Left(reservation.product, reservation.devices * WHOLE))
    for bearer in sorted(b for b in book.promised if b.kind is kind):
        load = Load(kind, bearer.classes, book.promised[bearer])
        if bearer.tier is Tier.PREMIUM:
            load = _outside(load, left, lineage(bearer.tenant_id, book.tenants))
        if load.milli:
            loads.append(load)
    return loads


def holds(reservation: Reservation, at: Instant) -> bool:
    """Whether it is inside its window."""
    begun = reservation.starts_at is None or reservation.starts_at <= at
    return begun and (reservation.ends_at is None or at < reservation.ends_at)


def lineage(tenant_id: TenantId, tenants: Mapping[TenantId, Tenant]) -> list[TenantId]:
    """The tenant and those above it, nearest first; a circle is walked once."""
    found: dict[TenantId, None] = {}
    at: TenantId | None = tenant_id
    while at is not None and at not in found:
        found[at] = None
        tenant = tenants.get(at)
        at = tenant.parent if tenant is not None else None
    return list(found)


def unmet(loads: Sequence[Load], room: Mapping[str, int]) -> int:
    """Thousandths of devices that cannot be given, at the best distribution over the classes.

    Equal sets of classes are one; then each set is filled along augmenting paths, smallest sets
    first, which ends at the maximal flow (Ford and Fulkerson, 1956). Both sides are few.
    """
    wanted: dict[Classes, int] = {}
    for load in loads:
        classes = load.classes or tuple(sorted(room))
        wanted[classes] = wanted.get(classes, 0) + load.milli
    left = dict(room)
    given: dict[tuple[Classes, str], int] = {}
    missing = 0
    for classes in sorted(wanted, key=lambda c: (len(c), c)):
        need = wanted[classes]
        while need:
            path = _path(classes, left, given)
            if not path:
                break
            need -= _push(path, need, left, given)
        missing += need
    return missing


def _path(
    start: Classes, left: Mapping[str, int], given: Mapping[tuple[Classes, str], int]
) -> list[tuple[Classes, str]]:
    """Edges from a set of classes to a class with room, over classes that another set gives up."""
    came: dict[Classes, tuple[Classes, str] | None] = {start: None}
    line = [start]
    for at in line:
        for product in at:
            if left.get(product, 0) > 0:
                edges = [(at, product)]
                step = came[at]
                while step is not None:
                    edges.append(step)
                    step = came[step[0]]
                return edges[::-1]
            for (other, used), milli in given.items():
                if used == product and milli and other not in came:
                    came[other] = (at, product)
                    line.append(other)
    return []


def _push(
    path: Sequence[tuple[Classes, str]],
    need: int,
    left: dict[str, int],
    given: dict[tuple[Classes, str], int],
) -> int:
    """Send as much along the path as it takes; each set on it moves what it had one class on."""
    amount = min(need, left[path[-1][1]])
    for (_, product), (other, _) in pairwise(path):
        amount = min(amount, given[other, product])
    for edge in path:
        given[edge] = given.get(edge, 0) + amount
    for (_, product), (other, _) in pairwise(path):
        given[other, product] -= amount
    left[path[-1][1]] -= amount
    return amount


def moments(reservations: Iterable[Reservation], now: Instant) -> list[Instant]:
    """Now, and when windows open: what is promised only grows at these."""
    starts = [r.starts_at for r in reservations if r.starts_at is not None and r.starts_at > now]
    return [now, *sorted(dict.fromkeys(starts))]


@dataclass(slots=True)
class _Left:
    """What of a reservation no premium work has used yet."""

    product: str
    milli: int


def _outside(
    load: Load, left: Mapping[TenantId, Sequence[_Left]], line: Sequence[TenantId]
) -> Load:
    """What of a premium load no reservation of its line of tenants covers; takes what it uses."""
    milli = load.milli
    for tenant_id in line:
        for entry in left.get(tenant_id, ()):
            if entry.product and load.classes and entry.product not in load.classes:
                continue
            used = min(entry.milli, milli)
            entry.milli -= used
            milli -= used
    return load._replace(milli=milli)
