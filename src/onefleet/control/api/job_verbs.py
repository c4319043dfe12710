"""What is done to a job: suspend, freeze, resume, cancel, migrate, scale, checkpoint.

Each can be done to a job and, at once, to all jobs of an array. It says what its owner wants; the
next pass of the planner, or the job's agents, bring it about.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from onefleet.control import notes, views
from onefleet.control.api.existing import find_job, find_jobs, find_node, is_array
from onefleet.control.call import Call
from onefleet.core import lifecycle
from onefleet.core.ordering import can_be_resized
from onefleet.core.snapshot import usable
from onefleet.domain.errors import CallerError, Conflict, Infeasible, InvalidRequest, NotFound
from onefleet.domain.ids import Instant
from onefleet.domain.jobs import Job
from onefleet.domain.work import Demand, Phase, Want, Work
from onefleet.store.base import Commit, Note, Put, State
from onefleet.wire.api import ArrayAnswer, JobView, MigrateJob, Refusal, ScaleJob

#: What a call means for a job; None: nothing changes. Raises what the owner did wrong.
Meaning = Callable[[State, Job, Work, Instant], lifecycle.Event | None]
#: What a verb means, as the body of its call has it. Raises InvalidRequest.
Verb = Callable[[Call], Awaitable[Meaning]]
#: Of an array: the jobs that were asked, how many had ended, and which cannot be asked and why.
_Asked = tuple[list[Job], int, list[tuple[Job, CallerError]]]


async def ask_job(verb: Verb, call: Call) -> JobView:
    """Do it to the job of the call."""
    meaning = await verb(call)

    def decide(state: State, now: Instant) -> tuple[Commit, Job]:
        job = find_job(state, call.caller, call.path("id"))
        work = state.works[job.id]
        if work.phase is Phase.ENDED:
            raise Conflict(f'job "{job.name}" ({job.id}) has ended already', why=work.why_ended)
        event = meaning(state, job, work, now)
        if event is None:
            return Commit(), job
        after = lifecycle.apply(work, event, now)
        return Commit([Put(after)], notes.of_work(work, after, now)), job

    job = await call.pool.change(decide)
    state = await call.pool.store.read()
    return views.job_view(state.jobs[job.id], call.pool.scene(state, call.caller))


async def ask_array(verb: Verb, call: Call) -> ArrayAnswer:
    """Do it to every job of an array to which it can be done, but for those that have ended.

    Raises what was wrong with the first job if nothing can be done to any.
    """
    name, meaning = call.path("id"), await verb(call)

    def decide(state: State, now: Instant) -> tuple[Commit, _Asked]:
        jobs = find_jobs(state, call.caller, name)
        if not is_array(jobs, name):
            raise NotFound(f'"{name[:80]}" is a job, and no array', hint="POST /api/v1/jobs/...")
        live = [job for job in jobs if state.works[job.id].phase is not Phase.ENDED]
        if not live:
            raise Conflict(f'all {len(jobs)} jobs of "{name[:80]}" have ended already')
        asked, refused = list[Job](), list[tuple[Job, CallerError]]()
        changes, noted = list[Put](), list[Note]()
        for job in live:
            work = state.works[job.id]
            try:
                event = meaning(state, job, work, now)
            except CallerError as error:
                refused.append((job, error))
                continue
            asked.append(job)
            if event is not None:
                after = lifecycle.apply(work, event, now)
                changes.append(Put(after))
                noted.extend(notes.of_work(work, after, now))
        if not asked:
            raise refused[0][1]
        return Commit(changes, noted), (asked, len(jobs) - len(live), refused)

    asked, ended, refused = await call.pool.change(decide)
    state = await call.pool.store.read()
    scene = call.pool.scene(state, call.caller)
    return ArrayAnswer(
        name=name,
        data=tuple(views.job_view(state.jobs[job.id], scene) for job in asked),
        ended=ended,
        refused=tuple(
            Refusal(id=job.id, name=job.name, what=error.what, why=error.why)
            for job, error in refused
        ),
    )


async def _migrate(call: Call) -> Meaning:
    """Have it go on at a node; null: wherever the planner says."""
    pool, wanted = call.pool, (await call.body(MigrateJob)).node

    def meaning(state: State, job: Job, work: Work, now: Instant) -> lifecycle.Event | None:
        if wanted is None:
            return lifecycle.MoveWanted(())
        node = find_node(state, wanted)
        _must_be_saveable(job, work)
        lease = pool.sightings.lease_of(node.id)  # the record has it as of its last change
        if not usable(replace(node, lease_expires_at=lease), now):
            raise Infeasible(
                f'job "{job.name}" ({job.id}) cannot move to {node.name}',
                why=f"the node is {node.state}, or its lease ran out",
                hint="onefleet node list",
            )
        if node.id in pool.spares:
            raise Conflict(
                f'job "{job.name}" ({job.id}) cannot move to {node.name}',
                why="the node is kept as a spare for work that loses its place by a failure",
                hint="another node, or fewer spares: onefleet spare set N",
            )
        there = work.placement and all(slot.node_id == node.id for slot in work.placement)
        wish = () if there else (node.id,)
        same = work.move_to == wish and not work.driven
        return None if same else lifecycle.MoveWanted(wish)

    return meaning


async def _scale(call: Call) -> Meaning:
    """Have it run on that many devices; null: on as many as there are for it."""
    devices = (await call.body(ScaleJob)).devices

    def meaning(state: State, job: Job, work: Work, now: Instant) -> lifecycle.Event | None:
        if devices is not None:
            _must_be_a_width(job, work.demand, devices)
        _must_be_resizable(state, job, work)
        return None if work.width == devices else lifecycle.WidthWanted(devices)

    return meaning


def _must_be_resizable(state: State, job: Job, work: Work) -> None:
    if not can_be_resized(work, state.nodes):
        raise Conflict(
            f'job "{job.name}" ({job.id}) keeps its {work.demand.kind} devices while it runs',
            why="its state on them cannot be saved from outside on its nodes",
            hint="onefleet doctor says why; suspend it, scale it, and resume it",
        )


async def _checkpoint(call: Call) -> Meaning:
    return _imaged


def _imaged(state: State, job: Job, work: Work, now: Instant) -> lifecycle.Event | None:
    """Have an image made now, while the job runs on."""
    _must_be_saveable(job, work)
    if work.phase is not Phase.RUNNING:
        raise Conflict(
            f'job "{job.name}" ({job.id}) does not run: it is {work.phase}',
            why="an image of it is made while it runs",
            hint=f"onefleet why {job.id}",
        )
    return None if work.making else lifecycle.CheckpointOrdered()


def _wanting(want: Want) -> Verb:
    """Say what its owner wants of a job; saying it twice changes nothing."""

    async def verb(call: Call) -> Meaning:
        return meaning

    def meaning(state: State, job: Job, work: Work, now: Instant) -> lifecycle.Event | None:
        if work.want is Want.STOP and want is not Want.STOP:
            raise Conflict(
                f'job "{job.name}" ({job.id}) is being cancelled',
                why="that cannot be taken back",
                hint="submit it again",
            )
        if want in (Want.SUSPEND, Want.FREEZE):
            _must_be_saveable(job, work)
        return None if work.want is want else lifecycle.WantChanged(want)

    return verb


def _must_be_saveable(job: Job, work: Work) -> None:
    if not work.suspendable:
        raise Conflict(
            f'job "{job.name}" ({job.id}) cannot be suspended',
            why="no node of this fleet can save a job's state",
            hint="onefleet doctor says why",
        )


def _must_be_a_width(job: Job, demand: Demand, devices: int) -> None:
    """Raise InvalidRequest for a number of devices that the job can never run on."""
    low, high = demand.least, demand.most
    step = demand.devices_min if demand.workers > 1 else 1
    if low <= devices <= high and devices % step == 0:
        return
    steps = f" in steps of {step}" if step > 1 else ""
    raise InvalidRequest(
        f'job "{job.name}" ({job.id}) cannot run on {devices} devices',
        why=f"it was submitted for {low} to {high}{steps}",
        hint="submit it with --devices MIN..MAX to make it elastic" if low == high else "",
        param="devices",
    )


VERBS: Mapping[str, Verb] = {
    "suspend": _wanting(Want.SUSPEND),
    "freeze": _wanting(Want.FREEZE),
    "resume": _wanting(Want.RUN),
    "cancel": _wanting(Want.STOP),
    "checkpoint": _checkpoint,
    "migrate": _migrate,
    "scale": _scale,
}
