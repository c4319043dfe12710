"""Reservations: devices that are guaranteed to a tenant, always or in a window of time."""

from __future__ import annotations

from onefleet.control import views
from onefleet.control.api.existing import must_exist
from onefleet.control.api.spares import room_beside
from onefleet.control.call import Call, good_text, one_of, within
from onefleet.control.spares import spares_of
from onefleet.core.promise import holds, moments, reserved_load, unmet
from onefleet.domain.errors import Infeasible, InvalidRequest, NotFound, QuotaExceeded
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import Instant, ReservationId, TenantId
from onefleet.domain.quantities import counted, duration
from onefleet.domain.tenancy import WITHIN_MS_LEAST, WITHIN_MS_MOST, Reservation
from onefleet.domain.work import WHOLE
from onefleet.store.base import Commit, Delete, Note, Put, State
from onefleet.wire.api import NewReservation, Page, ReservationView

RESERVED_MAX = 100_000
RESERVATIONS_MAX = 10_000


async def create_reservation(call: Call) -> ReservationView:
    new = await call.body(NewReservation)
    kind = one_of(DeviceKind, new.device_kind, "device_kind")
    devices = within(new.devices, 1, RESERVED_MAX, "devices")
    product = good_text(new.product, 200, "product")
    within_ms = within(new.within_ms, WITHIN_MS_LEAST, WITHIN_MS_MOST, "within_ms")
    reservation_id = ReservationId(call.pool.ids.new("res"))

    def decide(state: State, now: Instant) -> tuple[Commit, Reservation]:
        tenant_id = TenantId(new.tenant)
        must_exist(state, tenant_id)
        if len(state.reservations) >= RESERVATIONS_MAX:
            raise QuotaExceeded(f"there are {RESERVATIONS_MAX} reservations, which is the limit")
        starts_at, ends_at = _window(new, now)
        made = Reservation(
            reservation_id, tenant_id, kind, devices, now, product, starts_at, ends_at, within_ms
        )
        must_be_free(state, made, now)
        note = Note(now, "reservation.created", made.id, f"{devices} {kind} for {tenant_id}")
        return Commit([Put(made)], [note]), made

    made = await call.pool.change(decide)
    return views.reservation_view(made, call.pool.clock.now())


async def list_reservations(call: Call) -> Page[ReservationView]:
    state = await call.pool.store.read()
    now = call.pool.clock.now()
    seen = (r for r in state.reservations.values() if call.caller.sees(r.tenant_id))
    ordered = sorted(seen, key=lambda r: (r.created_at, r.id))
    return Page(tuple(views.reservation_view(r, now) for r in ordered))


async def remove_reservation(call: Call) -> ReservationView:
    wanted = ReservationId(call.path("id"))

    def decide(state: State, now: Instant) -> tuple[Commit, Reservation]:
        found = state.reservations.get(wanted)
        if found is None:
            raise NotFound(
                f'there is no reservation "{wanted[:80]}"', hint="onefleet reservation list"
            )
        note = Note(now, "reservation.removed", found.id, f"of {found.tenant_id}")
        return Commit([Delete(found)], [note]), found

    removed = await call.pool.change(decide)
    return views.reservation_view(removed, call.pool.clock.now())


def must_be_free(state: State, more: Reservation, now: Instant) -> None:
    """Raise Infeasible when, at any time of its window, the fleet has not so many devices left."""
    if not state.nodes:
        return  # nobody knows yet what the fleet has
    room = room_beside(state, spares_of(state.marks), more.kind)
    kept = [r for r in state.reservations.values() if r.kind is more.kind]
    for at in moments([more, *kept], now):
        if not holds(more, at):
            continue
        held = [r for r in kept if holds(r, at)]
        missing = unmet([reserved_load(r) for r in [*held, more]], room)
        if missing:
            product = f" of class {more.product}" if more.product else ""
            total = sum(v for name, v in room.items() if more.product in ("", name)) // WHOLE
            taken = sum(r.devices for r in held)
            beside = " beside its spares" if spares_of(state.marks) else ""
            most = max(more.devices - -(-missing // WHOLE), 0)
            raise Infeasible(
                f"{counted(more.devices, f'{more.kind} device')}{product} cannot be guaranteed",
                why=f"the fleet has {total}{beside}, and {taken} of the kind are reserved already",
                hint=f"reserve {most} at most, or another window"
                if most
                else "another window, or see who has them: onefleet reservation list",
                param=f"reservations.{more.kind}",
            )


def _window(new: NewReservation, now: Instant) -> tuple[Instant | None, Instant | None]:
    starts_at, ends_at = new.starts_at, new.ends_at
    if ends_at is not None and ends_at <= max(now, starts_at or 0):
        opens = f", and opens {_when(starts_at, now)}" if starts_at and starts_at > now else ""
        raise InvalidRequest(
            f"its window closes {_when(ends_at, now)}{opens}",
            why="it has to close after it opens, and after now",
            hint="--until +2h; in the API, milliseconds since 1970",
            param="ends_at",
        )
    return (
        None if starts_at is None else Instant(starts_at),
        None if ends_at is None else Instant(ends_at),
    )


def _when(at_ms: int, now: Instant) -> str:
    return f"in {duration(at_ms - now)}" if at_ms > now else f"{duration(now - at_ms)} ago"
