"""Which promises can be kept together: the admission of premium and standard jobs.

A tier promises a job a least device fraction. What is promised at one time has to fit the fleet,
on the classes of devices that each can use: a question of flow between demands and classes,
answered exactly. A job whose promise does not fit yet is no reason to refuse it: it waits, or runs
on what is free, without one, and gets it as soon as it fits; only what could not be promised on
the whole fleet with nobody else is refused. A promise that was given holds until the job ends.

A reservation is a promise of all its devices to a tenant, used or not, in each of its windows; the
premium work of the tenant, and of the tenants below it, is promised inside it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from onefleet.core.snapshot import Snapshot
from onefleet.domain.fleet import DeviceKind, Node, NodeState
from onefleet.domain.ids import Instant, TenantId
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


def capacity(nodes: Iterable[Node], kind: DeviceKind) -> dict[str, int]:
    """Thousandths of devices of each class that stay: no lost node, no cordoned device."""
    found: dict[str, int] = {}
    for node in nodes:
        if node.state is not NodeState.READY:
            continue
        out = dict.fromkeys(cordon.device_id for cordon in node.cordons)
        for device in node.devices:
            if device.kind is kind and device.id not in out:
                found[device.product] = found.get(device.product, 0) + WHOLE
    return found


def shortfall(snapshot: Snapshot, more: Iterable[Load], now: Instant) -> Shortfall | None:
    """What is missing, now or when a window opens, if `more` is promised as well; None: it fits."""
    extra = tuple(more)
    for kind in dict.fromkeys(load.kind for load in extra):
        room = capacity(snapshot.nodes.values(), kind)
        for at in moments(snapshot.reservations.values(), now):
            loads = [*promised_loads(snapshot, kind, at), *(x for x in extra if x.kind is kind)]
            missing = unmet(loads, room)
            if missing:
                total = sum(load.milli for load in loads)
                return Shortfall(kind, at, missing, total, sum(room.values()))
    return None


def promised_loads(snapshot: Snapshot, kind: DeviceKind, at: Instant) -> list[Load]:
    """All that is promised on devices of a kind at a time, reservations in full."""
    loads: list[Load] = []
    left: dict[TenantId, list[_Left]] = {}
    for reservation in snapshot.reservations.values():
        if reservation.kind is kind and holds(reservation, at):
            loads.append(reserved_load(reservation))
            line = left.setdefault(reservation.tenant_id, [])
            line.append(_Left(reservation.product, reservation.devices * WHOLE))
    for work in snapshot.works.values():
        if work.demand.kind is not kind or not bears_promise(work):
            continue
        load = load_of(work.demand, work.tier)
        if work.tier is Tier.PREMIUM:
            load = _outside(load, left, lineage(work.tenant_id, snapshot.tenants))
        if load.milli:
            loads.append(load)
    return loads


def bears_promise(work: Work) -> bool:
    """Whether something is promised to it now."""
    if not work.promised or not work.ready or not work.tier.promise_permille:
        return False
    return work.phase is not Phase.ENDED and work.want is Want.RUN


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
