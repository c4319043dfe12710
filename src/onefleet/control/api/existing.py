"""The records that a call names, by id or name; what is not there, or not the caller's, is not
found."""

from __future__ import annotations

from onefleet.control.auth import Caller
from onefleet.domain.errors import NotFound
from onefleet.domain.fleet import Node
from onefleet.domain.ids import Instant, NodeId, TenantId, WorkId
from onefleet.domain.jobs import Job
from onefleet.domain.work import Phase, Work
from onefleet.store.base import State


def must_exist(state: State, tenant_id: TenantId) -> None:
    """Raise NotFound unless there is such a tenant."""
    if tenant_id not in state.tenants:
        raise NotFound(
            f'there is no tenant "{tenant_id[:80]}"',
            hint=f"onefleet tenant create {tenant_id[:80]}",
            param="tenant",
        )


def find_job(state: State, caller: Caller, text: str) -> Job:
    """The job of that id or name: the caller's own tenant's, a live one, then the newest. Raises
    NotFound."""
    missing = NotFound(
        f'there is no job "{text[:80]}"', why="none has this id or name", hint="onefleet ps"
    )
    job = state.jobs.get(WorkId(text))
    if job is None:
        named = [j for j in state.jobs.values() if j.name == text and caller.sees(j.tenant_id)]
        own = [j for j in named if j.tenant_id == caller.tenant_id]
        job = max(own or named, key=lambda j: _liveness(state.works[j.id]), default=None)
    if job is None:
        raise missing
    caller.must_see(job.tenant_id, missing)
    return job


def _liveness(work: Work) -> tuple[bool, Instant, str]:
    return (work.phase is not Phase.ENDED, work.submitted_at, work.id)


def find_node(state: State, text: str) -> Node:
    """The node of that id or name. Raises NotFound."""
    node = state.nodes.get(NodeId(text))
    node = node or next((n for n in state.nodes.values() if n.name == text), None)
    if node is None:
        raise NotFound(f'there is no node "{text[:80]}"', hint="onefleet node list", param="node")
    return node
