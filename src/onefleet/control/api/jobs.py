"""Jobs: submit, look, suspend, resume, cancel."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from onefleet.control import notes, views
from onefleet.control.api.tenants import must_exist
from onefleet.control.auth import Caller
from onefleet.control.call import Call, good_name, one_of, within
from onefleet.core import lifecycle
from onefleet.core.feasibility import feasibility
from onefleet.domain.errors import (
    Conflict,
    Infeasible,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    TooLarge,
)
from onefleet.domain.fleet import CheckpointMode, DeviceKind
from onefleet.domain.ids import Digest, Instant, TenantId, WorkId
from onefleet.domain.jobs import Job
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Demand, Phase, Want, Work, WorkKind
from onefleet.store.base import Commit, Put, State
from onefleet.wire.api import JobView, NewJob, Page

LIVE_JOBS_MAX = 10_000
WORDS_MAX = 1_024
#: Of the command and of the environment, each; the kernel takes about 128 KiB a word.
BYTES_MAX = 100_000
VARIABLES_MAX = 256
DEVICES_MAX = 100_000
MEMORY_BYTES_MAX = 2**50

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_CODE = re.compile(r"sha256:[0-9a-f]{64}")
_NETWORKS = ("cell", "host")


async def submit_job(call: Call) -> JobView:
    new = await call.body(NewJob)
    tenant_id = TenantId(new.tenant) if new.tenant is not None else call.caller.tenant_id
    call.caller.must_act_for(tenant_id)
    tier = one_of(Tier, new.tier, "tier")
    demand = _demand(new)
    _check_command(new)
    _check_code(new.code, call)
    work_id = WorkId(call.pool.ids.new("job"))
    name = _name(new, work_id)

    def decide(state: State, now: Instant) -> tuple[Commit, None]:
        must_exist(state, tenant_id)
        _must_fit(state, demand)
        _must_be_new(state, tenant_id, name)
        job = Job(
            id=work_id,
            name=name,
            tenant_id=tenant_id,
            command=new.command,
            environment=tuple(sorted(new.environment.items())),
            code=Digest(new.code) if new.code else None,
            network=new.network,
            submitted_at=now,
        )
        modes = [node.checkpoint_mode for node in state.nodes.values()]
        work = Work(
            id=work_id,
            kind=WorkKind.JOB,
            tenant_id=tenant_id,
            tier=tier,
            demand=demand,
            want=Want.RUN,
            phase=Phase.PENDING,
            submitted_at=now,
            phase_since=now,
            suspendable=not modes or any(mode is not CheckpointMode.NONE for mode in modes),
        )
        return Commit([Put(job), Put(work)], notes.of_work(None, work, now)), None

    await call.pool.change(decide)
    state = await call.pool.store.read()
    return views.job_view(state.jobs[work_id], call.pool.scene(state, call.caller))


def _demand(new: NewJob) -> Demand:
    low = within(new.devices_min, 1, DEVICES_MAX, "devices_min")
    high = within(new.devices_max, 1, DEVICES_MAX, "devices_max")
    if high < low:
        raise InvalidRequest(
            f'"devices_max" is {high}, less than "devices_min" ({low})', param="devices_max"
        )
    return Demand(
        kind=one_of(DeviceKind, new.device_kind, "device_kind"),
        devices_min=low,
        devices_max=high,
        memory_bytes=within(new.memory_bytes, 0, MEMORY_BYTES_MAX, "memory_bytes"),
    )


def _check_command(new: NewJob) -> None:
    if not new.command or not new.command[0]:
        raise InvalidRequest(
            "the command is empty", hint="onefleet run -- python train.py", param="command"
        )
    if len(new.command) > WORDS_MAX or _size(new.command) > BYTES_MAX:
        raise TooLarge(
            f"the command has {len(new.command)} words of {_size(new.command)} bytes",
            why=f"at most {WORDS_MAX} words of {BYTES_MAX} bytes together can be started",
            hint="put it into a script in the code folder",
            param="command",
        )
    words = [*new.environment, *new.environment.values()]
    if len(new.environment) > VARIABLES_MAX or _size(words) > BYTES_MAX:
        raise TooLarge(
            f"the environment has {len(new.environment)} variables of {_size(words)} bytes",
            why=f"at most {VARIABLES_MAX} variables of {BYTES_MAX} bytes together can be passed",
            param="environment",
        )
    if any("\0" in word for word in (*new.command, *words)):
        raise InvalidRequest("a word of the command or environment has a NUL", param="command")
    for name in new.environment:
        if not _VARIABLE.fullmatch(name):
            raise InvalidRequest(
                f'"{name[:80]}" is not the name of an environment variable', param="environment"
            )
    if new.network not in _NETWORKS:
        raise InvalidRequest(
            f'"network" is "{new.network[:40]}", not one of {", ".join(_NETWORKS)}', param="network"
        )


def _size(words: tuple[str, ...] | list[str]) -> int:
    return sum(len(word.encode("utf-8", "surrogatepass")) + 1 for word in words)


def _check_code(code: str | None, call: Call) -> None:
    if code is None:
        return
    if not _CODE.fullmatch(code):
        raise InvalidRequest(
            f'"code" is "{code[:80]}", not the digest of an uploaded folder', param="code"
        )
    if not (call.pool.layout.blobs / code.removeprefix("sha256:")).is_file():
        raise NotFound(
            f"there is no packaged code {code}",
            hint="upload it first: POST /api/v1/code",
            param="code",
        )


def _name(new: NewJob, work_id: WorkId) -> str:
    if new.name is not None:
        return good_name(new.name, "name")
    stem = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(new.command[0]).name).strip("-")[:32]
    return f"{stem or 'job'}-{work_id[-5:]}"


def _must_fit(state: State, demand: Demand) -> None:
    """Raise Infeasible for what can never run here. An empty fleet may still grow: it waits."""
    if not state.nodes:
        return
    why = feasibility(demand, state.nodes.values())
    if why is not None:
        raise Infeasible(
            "this job can never run on this fleet",
            why=why,
            hint="ask for less (--devices), or see what there is: onefleet device list",
            param="devices_min",
        )


def _must_be_new(state: State, tenant_id: TenantId, name: str) -> None:
    live = [job for job in state.jobs.values() if state.works[job.id].phase is not Phase.ENDED]
    if len(live) >= LIVE_JOBS_MAX:
        raise QuotaExceeded(
            f"{len(live)} jobs are waiting or running, which is the limit",
            hint="wait for some to end, or cancel some",
        )
    for job in live:
        if job.tenant_id == tenant_id and job.name == name:
            raise Conflict(
                f'there is a live job "{name}" already ({job.id})',
                hint=f"choose another --name, or: onefleet cancel {job.id}",
                param="name",
            )


def find_job(state: State, caller: Caller, text: str) -> Job:
    """The job of that id or name: a live one first, then the newest. Raises NotFound."""
    missing = NotFound(
        f'there is no job "{text[:80]}"', why="none has this id or name", hint="onefleet ps"
    )
    job = state.jobs.get(WorkId(text))
    if job is None:
        named = [j for j in state.jobs.values() if j.name == text and caller.sees(j.tenant_id)]
        job = max(named, key=lambda j: _liveness(state.works[j.id]), default=None)
    if job is None:
        raise missing
    caller.must_see(job.tenant_id, missing)
    return job


def _liveness(work: Work) -> tuple[bool, Instant, str]:
    return (work.phase is not Phase.ENDED, work.submitted_at, work.id)


async def list_jobs(call: Call) -> Page[JobView]:
    state = await call.pool.store.read()
    scene = call.pool.scene(state, call.caller)
    seen = (job for job in state.jobs.values() if call.caller.sees(job.tenant_id))
    ordered = sorted(seen, key=lambda job: (job.submitted_at, job.id))
    return Page(tuple(views.job_view(job, scene) for job in ordered))


async def show_job(call: Call) -> JobView:
    state = await call.pool.store.read()
    job = find_job(state, call.caller, call.path("id"))
    return views.job_view(job, call.pool.scene(state, call.caller))


async def suspend_job(call: Call) -> JobView:
    return await _want(call, Want.SUSPEND)


async def resume_job(call: Call) -> JobView:
    return await _want(call, Want.RUN)


async def cancel_job(call: Call) -> JobView:
    return await _want(call, Want.STOP)


async def _want(call: Call, want: Want) -> JobView:
    """Say what its owner wants of a job; saying it twice changes nothing."""

    def decide(state: State, now: Instant) -> tuple[Commit, Job]:
        job = find_job(state, call.caller, call.path("id"))
        work = state.works[job.id]
        if work.phase is Phase.ENDED:
            raise Conflict(f'job "{job.name}" ({job.id}) has ended already', why=work.why_ended)
        if work.want is Want.STOP and want is not Want.STOP:
            raise Conflict(
                f'job "{job.name}" ({job.id}) is being cancelled',
                why="that cannot be taken back",
                hint="submit it again",
            )
        if want is Want.SUSPEND and not work.suspendable:
            raise Conflict(
                f'job "{job.name}" ({job.id}) cannot be suspended',
                why="no node of this fleet can save a job's state",
                hint="onefleet doctor says why",
            )
        after = lifecycle.apply(work, lifecycle.WantChanged(want), now)
        if after == work:
            return Commit(), job
        return Commit([Put(after)], notes.of_work(work, after, now)), job

    job = await call.pool.change(decide)
    state = await call.pool.store.read()
    return views.job_view(state.jobs[job.id], call.pool.scene(state, call.caller))
