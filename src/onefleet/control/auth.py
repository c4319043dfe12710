"""Who calls, and what they may do. Every route names its permission in the table of `routes.py`."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from onefleet.domain.errors import Forbidden, NotFound, Unauthenticated
from onefleet.domain.ids import Digest, KeyId, TenantId
from onefleet.domain.tenancy import ApiKey, Role
from onefleet.store.base import State

#: A longer key text is refused unread.
KEY_CHARACTERS_MAX = 256
#: The end of a key that is at least this long may be shown.
SHOWN_FROM = 20
#: The peers that may use /internal: the pool's own processes on this machine.
LOOPBACK = ("127.0.0.1", "::1")


class Permission(Enum):
    """Who may use a route."""

    OPEN = "open"  # anybody
    MEMBER = "member"  # a member sees its tenant's things and those below, an admin everything
    ADMIN = "admin"
    INTERNAL = "internal"  # the pool's own processes
    NODE = "node"  # agents of machines that have joined


@dataclass(frozen=True, slots=True)
class Caller:
    """The key that a call came with. below: the tenants nested in its own, however deep."""

    key_id: KeyId
    tenant_id: TenantId
    role: Role
    below: Mapping[TenantId, None] = field(default_factory=dict)

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN

    def sees(self, tenant_id: TenantId) -> bool:
        """Whether things of this tenant exist for the caller."""
        return self.is_admin or tenant_id == self.tenant_id or tenant_id in self.below

    def must_act_for(self, tenant_id: TenantId) -> None:
        """Raise Forbidden unless the caller may make things for this tenant."""
        if not self.sees(tenant_id):
            raise Forbidden(
                f'this key belongs to tenant "{self.tenant_id}", not to "{tenant_id}"',
                why="members act for their own tenant, and for those below it",
                hint="use a key of that tenant, or leave the tenant out",
                param="tenant",
            )

    def must_see(self, tenant_id: TenantId, missing: NotFound) -> None:
        """Raise `missing` unless the caller sees this tenant's things."""
        if not self.sees(tenant_id):
            raise missing


def digest_of(key: str) -> Digest:
    """How a key is stored."""
    return Digest("sha256:" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest())


def caller_of(header: str | None, state: State) -> Caller:
    """The caller of an Authorization header. Raises Unauthenticated."""
    scheme, _, text = (header or "").partition(" ")
    text = text.strip()
    if scheme.lower() != "bearer" or not text or len(text) > KEY_CHARACTERS_MAX:
        raise Unauthenticated(
            "this call needs an API key",
            why="there is no header `authorization: Bearer of-...`"
            if header is None
            else "its authorization header holds no key",
            hint="the administrator's key is in the data folder's file `credentials`",
        )
    digest = digest_of(text)
    key = next((k for k in state.keys.values() if hmac.compare_digest(k.digest, digest)), None)
    if key is None or key.revoked_at is not None:
        ending = f" ending in ...{text[-4:]}" if len(text) >= SHOWN_FROM else ""
        raise Unauthenticated(
            f"the API key{ending} is not good",
            why="no key of this pool has this text" if key is None else "it was revoked",
            hint="make one with: onefleet key create",
        )
    return Caller(key.id, key.tenant_id, key.role, tenants_below(state, key.tenant_id))


def tenants_below(state: State, tenant_id: TenantId) -> Mapping[TenantId, None]:
    """The teams of a department, and theirs."""
    found: dict[TenantId, None] = {}
    fresh = [tenant_id]
    while fresh:
        above = fresh.pop()
        teams = [t.id for t in state.tenants.values() if t.parent == above and t.id not in found]
        found.update(dict.fromkeys(teams))
        fresh += teams
    return found


def must_have(permission: Permission, caller: Caller) -> None:
    """Raise Forbidden unless the caller's role has the permission."""
    allowed = {
        Permission.MEMBER: (Role.ADMIN, Role.MEMBER),
        Permission.ADMIN: (Role.ADMIN,),
        Permission.NODE: (Role.NODE,),
    }.get(permission, ())
    if caller.role not in allowed:
        raise Forbidden(
            f"a key of role {caller.role} may not do this; it needs role {permission.value}",
            hint=f"ask an administrator for a key: onefleet key create --role {permission.value}",
        )


def must_be_internal(header: str | None, peer: str | None, token: str) -> None:
    """Raise Unauthenticated unless the call comes from one of the pool's own processes."""
    good = header is not None and hmac.compare_digest(header.encode("latin-1"), token.encode())
    if not good or peer not in LOOPBACK:
        raise Unauthenticated("this route is for the pool's own processes", why="no good token")


def last_admin(state: State, key: ApiKey) -> bool:
    """Whether without this key nobody could administer the pool."""
    others = (k for k in state.keys.values() if k.id != key.id and k.revoked_at is None)
    return key.role is Role.ADMIN and not any(k.role is Role.ADMIN for k in others)
