"""Tenants, their reservations, and keys."""

from __future__ import annotations

import secrets
from dataclasses import replace

from onefleet.control import views
from onefleet.control.api.existing import must_exist
from onefleet.control.api.reservations import RESERVED_MAX, must_be_free
from onefleet.control.auth import digest_of, last_admin
from onefleet.control.call import Call, good_name, good_text, one_of, within
from onefleet.core.index.usage import usage_of
from onefleet.domain.errors import Conflict, InvalidRequest, NotFound, QuotaExceeded
from onefleet.domain.fleet import DeviceKind
from onefleet.domain.ids import Instant, KeyId, ReservationId, TenantId
from onefleet.domain.tenancy import ApiKey, Reservation, Role, Tenant
from onefleet.store.base import Commit, Note, Put, State
from onefleet.wire.agent import LOCAL_NODE
from onefleet.wire.api import KeyView, NewKey, NewTenant, Page, TenantView

TENANTS_MAX = 10_000
KEYS_MAX = 100_000
RATE_MAX = 10**12
WEIGHT_MAX = 1_000_000

#: Bytes of chance in a key.
KEY_BYTES = 24


async def create_tenant(call: Call) -> TenantView:
    new = await call.body(NewTenant)
    tenant_id = TenantId(good_name(new.id, "id"))
    for param, rate in (
        ("tokens_per_minute", new.tokens_per_minute),
        ("requests_per_minute", new.requests_per_minute),
    ):
        if rate is not None:
            within(rate, 0, RATE_MAX, param)

    def decide(state: State, now: Instant) -> tuple[Commit, TenantView]:
        if tenant_id in state.tenants:
            raise Conflict(
                f'there is a tenant "{tenant_id}" already',
                why="an id is given once",
                hint="choose another id, or see: onefleet tenant list",
                param="id",
            )
        if len(state.tenants) >= TENANTS_MAX:
            raise QuotaExceeded(f"there are {TENANTS_MAX} tenants already, which is the limit")
        parent = TenantId(new.parent) if new.parent else None
        if parent is not None:
            must_exist(state, parent)
        tenant = Tenant(
            id=tenant_id,
            parent=parent,
            tokens_per_minute=new.tokens_per_minute,
            requests_per_minute=new.requests_per_minute,
            created_at=now,
            weight=within(new.weight, 1, WEIGHT_MAX, "weight"),
        )
        reserved = _reservations(new, call, state, now)
        puts = [Put(tenant), *(Put(r) for r in reserved)]
        note = Note(now, "tenant.created", tenant.id, "")
        view = TenantView(
            id=tenant.id,
            parent=parent,
            tokens_per_minute=tenant.tokens_per_minute,
            requests_per_minute=tenant.requests_per_minute,
            reservations={r.kind.value: r.devices for r in reserved},
            created_at=now,
            weight=tenant.weight,
        )
        return Commit(changes=puts, notes=[note]), view

    return await call.pool.change(decide)


def _reservations(new: NewTenant, call: Call, state: State, now: Instant) -> list[Reservation]:
    found = []
    for name, devices in sorted(new.reservations.items()):
        kind = one_of(DeviceKind, name, "reservations")
        if not within(devices, 0, RESERVED_MAX, f"reservations.{name}"):
            continue
        reservation_id = ReservationId(call.pool.ids.new("res"))
        made = Reservation(reservation_id, TenantId(new.id), kind, devices, now)
        must_be_free(state, made, now)
        found.append(made)
    return found


async def list_tenants(call: Call) -> Page[TenantView]:
    state, now = await call.pool.store.read(), call.pool.clock.now()
    usage = usage_of(state.tenants, state.works.values(), now)
    seen = (t for t in state.tenants.values() if call.caller.sees(t.id))
    ordered = sorted(seen, key=lambda t: (t.created_at, t.id))
    return Page(tuple(views.tenant_view(t, state, usage, now) for t in ordered))


async def create_key(call: Call) -> KeyView:
    new = await call.body(NewKey)
    role = one_of(Role, new.role, "role")
    name = good_text(new.name, 100, "name")
    if role is Role.NODE and good_name(name, "name") == LOCAL_NODE:
        raise InvalidRequest(
            f'"{LOCAL_NODE}" is the pool\'s own machine', hint="choose another name", param="name"
        )
    text = new_key_text()

    def decide(state: State, now: Instant) -> tuple[Commit, KeyView]:
        must_exist(state, TenantId(new.tenant))
        if len(state.keys) >= KEYS_MAX:
            raise QuotaExceeded(f"there are {KEYS_MAX} keys already, which is the limit")
        key_id = KeyId(call.pool.ids.new("key"))
        key = new_key(key_id, TenantId(new.tenant), name, role, text, now)
        note = Note(now, "key.created", key.id, f"role {role} of tenant {new.tenant}")
        return Commit(changes=[Put(key)], notes=[note]), views.key_view(key, text)

    return await call.pool.change(decide)


def new_key_text() -> str:
    """The text of a fresh key."""
    return "of-" + secrets.token_hex(KEY_BYTES)


def new_key(
    key_id: KeyId, tenant_id: TenantId, name: str, role: Role, text: str, now: Instant
) -> ApiKey:
    """The record of a key; its text is not in it."""
    return ApiKey(key_id, tenant_id, name, role, digest_of(text), text[-4:], now)


async def list_keys(call: Call) -> Page[KeyView]:
    state = await call.pool.store.read()
    ordered = sorted(state.keys.values(), key=lambda k: (k.created_at, k.id))
    return Page(tuple(views.key_view(key) for key in ordered))


async def revoke_key(call: Call) -> KeyView:
    key_id = KeyId(call.path("id"))

    def decide(state: State, now: Instant) -> tuple[Commit, KeyView]:
        key = state.keys.get(key_id)
        if key is None:
            raise NotFound(f'there is no key "{key_id[:80]}"', hint="onefleet key list")
        if key.revoked_at is not None:
            return Commit(), views.key_view(key)
        if last_admin(state, key):
            raise Conflict(
                f"{key_id} is the last administrator's key",
                why="without it nobody could administer this pool",
                hint="make another first: onefleet key create --role admin",
            )
        revoked = replace(key, revoked_at=now)
        note = Note(now, "key.revoked", key.id, "")
        return Commit(changes=[Put(revoked)], notes=[note]), views.key_view(revoked)

    return await call.pool.change(decide)
