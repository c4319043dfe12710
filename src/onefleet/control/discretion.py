"""Says nothing of one tenant to another: the planner's reasons name whoever holds what is wanted.

An administrator reads them as they are. A member of a tenant reads what is its own, or of a tenant
below; of the rest that it is another tenant's work, of which tier and in which phase, and not whose
or which.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from onefleet.domain.ids import TenantId, WorkId
from onefleet.store.base import State

ANOTHERS = "another tenant's"

_WORK = re.compile(r"\b(?:job|rep)-[0-9a-z]+\b")
#: An id that is made by the pool has this many characters; such a work may be forgotten already.
_ID_CHARACTERS = 17
_TENANT = re.compile(r"\btenant ([A-Za-z0-9][A-Za-z0-9._-]*)")


def discreet(text: str, state: State, sees: Callable[[TenantId], bool]) -> str:
    """The text as somebody may read it who sees only some tenants' things."""

    def work(found: re.Match[str]) -> str:
        known = state.works.get(WorkId(found[0]))
        if known is None:
            return found[0] if len(found[0]) != _ID_CHARACTERS else f"{ANOTHERS} work"
        return found[0] if sees(known.tenant_id) else f"{ANOTHERS} work"

    def tenant(found: re.Match[str]) -> str:
        name = found[1].rstrip(".")
        other = TenantId(name) in state.tenants and not sees(TenantId(name))
        return "another tenant" + found[1][len(name) :] if other else found[0]

    return _TENANT.sub(tenant, _WORK.sub(work, text))
