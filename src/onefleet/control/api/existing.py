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
    NotFound, which says so where the name is that of an array."""
    jobs = find_jobs(state, caller, text)
    if is_array(jobs, text):
        raise NotFound(
            f'there is no job "{text[:80]}"',
            why=f"that is an array of {len(jobs)} jobs, and this is about one",
            hint=f"one of them, such as {jobs[0].name}; all: onefleet ps --array {text}",
        )
    return jobs[0]


def find_jobs(state: State, caller: Caller, text: str) -> tuple[Job, ...]:
    """What an id or a name stands for: a job, or all elements of an array, ended ones too. Of
    several the caller's own tenant's, what lives, then the newest. Raises NotFound."""
    missing = NotFound(
        f'there is no job "{text[:80]}"', why="none has this id or name", hint="onefleet ps"
    )
    job = state.jobs.get(WorkId(text))
    if job is not None:
        caller.must_see(job.tenant_id, missing)
        return (job,)
    named = [
        j
        for j in state.jobs.values()
        if (j.name == text or (j.array and j.array == text)) and caller.sees(j.tenant_id)
    ]
    own = [j for j in named if j.tenant_id == caller.tenant_id]
    job = max(own or named, key=lambda j: _liveness(state.works[j.id]), default=None)
    if job is None:
        raise missing
    if job.name == text:
        return (job,)
    once = (job.tenant_id, job.array, job.submitted_at)  # submitted whole, and so at one moment
    elements = [j for j in named if (j.tenant_id, j.array, j.submitted_at) == once]
    return tuple(sorted(elements, key=lambda j: j.index))


def is_array(jobs: tuple[Job, ...], text: str) -> bool:
    """Whether what `find_jobs` found by this text is an array, be it of one."""
    return text not in (jobs[0].id, jobs[0].name)


def _liveness(work: Work) -> tuple[bool, Instant, str]:
    return (work.phase is not Phase.ENDED, work.submitted_at, work.id)


def find_node(state: State, text: str) -> Node:
    """The node of that id or name. Raises NotFound."""
    node = state.nodes.get(NodeId(text))
    node = node or next((n for n in state.nodes.values() if n.name == text), None)
    if node is None:
        raise NotFound(f'there is no node "{text[:80]}"', hint="onefleet node list", param="node")
    return node
