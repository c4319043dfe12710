"""Jobs: submit one or an array, look at them. What is done to them: `job_verbs.py`."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from onefleet.control import notes, views
from onefleet.control.api.demands import AFTER_MAX, demand_of, terms_of
from onefleet.control.api.existing import find_job, find_jobs, must_exist
from onefleet.control.auth import Caller
from onefleet.control.call import Call, good_name, one_of, within
from onefleet.control.spares import spares_of
from onefleet.core.index.spares import infeasible
from onefleet.domain.errors import (
    Conflict,
    Infeasible,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    TooLarge,
)
from onefleet.domain.fleet import CheckpointMode
from onefleet.domain.ids import Digest, Instant, TenantId, WorkId
from onefleet.domain.jobs import Job
from onefleet.domain.tiers import Tier
from onefleet.domain.work import Demand, Phase, Want, Work, WorkKind
from onefleet.store.base import Commit, Put, State
from onefleet.wire.api import JobView, NewArray, NewJob, Page

LIVE_JOBS_MAX = 10_000
WORDS_MAX = 1_024
#: Of the command and of the environment, each; the kernel takes about 128 KiB a word.
BYTES_MAX = 100_000
VARIABLES_MAX = 256
ARRAY_MAX = 5_000

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_CODE = re.compile(r"sha256:[0-9a-f]{64}")
_NETWORKS = ("cell", "gang", "host")


async def submit_job(call: Call) -> JobView:
    new = await call.body(NewJob)
    work_id = WorkId(call.pool.ids.new("job"))
    await _submit(call, new, [(work_id, _name(new, work_id), "", 0)])
    state = await call.pool.store.read()
    return views.job_view(state.jobs[work_id], call.pool.scene(state, call.caller))


async def submit_array(call: Call) -> Page[JobView]:
    array = await call.body(NewArray)
    size = within(array.size, 1, ARRAY_MAX, "size")
    ids = [WorkId(call.pool.ids.new("job")) for _ in range(size)]
    name = _name(array.job, ids[0])
    elements = [
        (work_id, good_name(f"{name}-{index}", "name"), name, index)
        for index, work_id in enumerate(ids)
    ]
    await _submit(call, array.job, elements)
    state = await call.pool.store.read()
    scene = call.pool.scene(state, call.caller)
    return Page(tuple(views.job_view(state.jobs[work_id], scene) for work_id in ids))


async def _submit(call: Call, new: NewJob, elements: list[tuple[WorkId, str, str, int]]) -> None:
    """Commit jobs that differ in (id, name, array, index) alone, all of them or none."""
    tenant_id = TenantId(new.tenant) if new.tenant is not None else call.caller.tenant_id
    call.caller.must_act_for(tenant_id)
    tier = one_of(Tier, new.tier, "tier")
    demand = demand_of(new)
    _check_command(new)
    _check_code(new.code, call)
    network = _network(new)

    def decide(state: State, now: Instant) -> tuple[Commit, None]:
        must_exist(state, tenant_id)
        _must_fit(state, demand)
        _must_be_new(state, tenant_id, [(name, array) for _, name, array, _ in elements])
        terms = terms_of(new, _after(state, call.caller, new.after), now)
        modes = [node.checkpoint_mode for node in state.nodes.values()]
        works = [
            Work(
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
                terms=terms,
                ready=not terms.after,
                promised=not tier.promise_permille,
            )
            for work_id, _, _, _ in elements
        ]
        jobs = [
            Job(
                id=work_id,
                name=name,
                tenant_id=tenant_id,
                command=new.command,
                environment=tuple(sorted(new.environment.items())),
                code=Digest(new.code) if new.code else None,
                network=network,
                submitted_at=now,
                array=array,
                index=index,
            )
            for work_id, name, array, index in elements
        ]
        noted = [note for work in works for note in notes.of_work(None, work, now)]
        return Commit([*(Put(job) for job in jobs), *(Put(work) for work in works)], noted), None

    await call.pool.change(decide)


def _network(new: NewJob) -> str:
    if new.network is None:
        return "gang" if new.workers > 1 else "cell"
    if new.network not in _NETWORKS:
        raise InvalidRequest(
            f'"network" is "{new.network[:40]}", not one of {", ".join(_NETWORKS)}', param="network"
        )
    return new.network


def _after(state: State, caller: Caller, names: tuple[str, ...]) -> tuple[WorkId, ...]:
    """The jobs that are to succeed first, by id; an array's name stands for all its elements."""
    if len(names) > AFTER_MAX:
        raise TooLarge(f'"after" names {len(names)} jobs, over {AFTER_MAX}', param="after")
    found: dict[WorkId, None] = {}
    for name in names:
        found.update((job.id, None) for job in find_jobs(state, caller, name))
    return tuple(found)


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
    words = [PurePosixPath(word) for word in (*new.command, "")]
    # What tells jobs of one author apart is the script, not who interprets it.
    script = next((word.stem for word in words[1:] if word.suffix in (".py", ".sh")), words[0].name)
    stem = re.sub(r"[^A-Za-z0-9]+", "-", script).strip("-")[:32]
    return f"{stem or 'job'}-{work_id[-5:]}"


def _must_fit(state: State, demand: Demand) -> None:
    """Raise Infeasible for what can never run here. An empty fleet may still grow: it waits."""
    if not state.nodes:
        return
    why = infeasible(demand, state.nodes.values(), spares_of(state.marks))
    if why is not None:
        raise Infeasible(
            "this job can never run on this fleet",
            why=why,
            hint="ask for what there is: onefleet device list, onefleet node list -o wide",
            param="devices_min",
        )


def _must_be_new(state: State, tenant_id: TenantId, new: list[tuple[str, str]]) -> None:
    """new: (name, array) of each job. A name stands for one live job or array of a tenant."""
    live = [job for job in state.jobs.values() if state.works[job.id].phase is not Phase.ENDED]
    if len(live) + len(new) > LIVE_JOBS_MAX:
        raise QuotaExceeded(
            f"{len(live)} jobs are waiting or running, and {LIVE_JOBS_MAX} is the limit",
            hint="wait for some to end, or cancel some",
        )
    wanted = dict.fromkeys(name for names in new for name in names if name)
    for job in live:
        if job.tenant_id != tenant_id:
            continue
        if job.array in wanted:
            raise Conflict(
                f'there is a live array "{job.array}" already',
                why=f"its job {job.name} ({job.id}) has not ended",
                hint=f"choose another --name, or: onefleet cancel {job.array}",
                param="name",
            )
        if job.name in wanted:
            raise Conflict(
                f'there is a live job "{job.name}" already ({job.id})',
                hint=f"choose another --name, or: onefleet cancel {job.id}",
                param="name",
            )


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
