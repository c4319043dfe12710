"""What the verbs on jobs share: ask, and wait for what was asked where that is wanted."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

from onefleet.cli.boundary import say
from onefleet.cli.kinds import JOB
from onefleet.cli.options import Acting, Command
from onefleet.cli.times import Number
from onefleet.cli.waiting import wait_until
from onefleet.domain.errors import CallerError, NotFound, OnefleetError, TimedOut, UpstreamFailed
from onefleet.wire.api import ArrayAnswer, JobView
from onefleet.wire.client import Client, segment

HOW_LONG = "With --wait: how long, for all of them together."

Reached = Callable[[JobView, JobView], bool]


def _phase(*phases: str) -> Reached:
    return lambda before, now: now.phase in phases


#: Verb -> what it brings a job to, in words, and whether it is there: (as it was asked, as it is).
#: What has not begun, or is saved already, has nothing to be saved or to stand still.
_REACHED: dict[str, tuple[str, Reached]] = {
    "suspend": ("suspended", _phase("suspended", "pending", "ended")),
    "freeze": ("frozen", _phase("frozen", "suspended", "pending", "ended")),
    "resume": ("running", _phase("running", "ended")),
    "cancel": ("ended", _phase("ended")),
    "checkpoint": (
        "saved",
        lambda before, now: now.phase == "ended" or now.saved_at != before.saved_at,
    ),
    "migrate": ("running where it moved", lambda before, now: _moved(now)),
}


def _moved(now: JobView) -> bool:
    """Whether it is there. What its owner does not want to run goes there once that is so."""
    if now.want in ("suspend", "freeze"):
        return now.phase in ("suspended", "frozen", "pending", "ended")
    return now.phase == "ended" or (now.phase == "running" and not now.moving_to)


def _check_moved(before: JobView, now: JobView) -> None:
    """Raises UpstreamFailed for one that was brought back where it came from."""
    where = {device.partition("/")[0] for device in now.devices}
    if now.phase == "running" and before.moving_to and not where <= set(before.moving_to):
        raise UpstreamFailed(
            f"{now.name} did not move to {', '.join(dict.fromkeys(before.moving_to))}",
            why=f"it could not go on there, so it runs on {', '.join(sorted(where))}",
            hint=f"onefleet why {now.id}",
        )


def waits(command: Command) -> Command:
    """``--wait`` and ``--timeout``; passes `wait_s`, None when nothing is to be waited for."""

    @click.option("--wait", is_flag=True, help="Return when it has happened.")
    @click.option("--timeout", type=Number(0), default=60.0, metavar="S", help=HOW_LONG)
    @functools.wraps(command)
    def wrapped(*, wait: bool, timeout: float, **rest: Any) -> object:
        return command(wait_s=timeout if wait else None, **rest)

    return wrapped


def get_job(pool: Client, name: str) -> JobView:
    """A job by id or name. Raises NotFound."""
    return pool.get(f"/api/v1/jobs/{segment(name)}", JobView)


def job_verb(
    act: Acting,
    names: Sequence[str],
    verb: str,
    wait_s: float | None = None,
    body: msgspec.Struct | None = None,
) -> None:
    """POST the verb for each job, or all jobs of each array; with a time limit for all of them,
    return when all are there. One that is refused keeps none of the others from being asked, and
    one that takes too long none that is there from being told; the first error is raised at the
    end."""
    asked, errors, single = list[JobView](), list[OnefleetError](), len(names) == 1
    for name in names:
        try:
            found, is_array = _ask(act.pool, name, verb, body)
        except CallerError as error:
            errors.append(error)
            continue
        asked.extend(found)
        single = single and not is_array
    done: Sequence[JobView] = asked
    if wait_s is not None:
        done, late = all_reached(act.pool, asked, verb, wait_s)
        errors.extend(late)
    if single and done:
        act.done(JOB, done[0])
    elif done:
        act.done_many(JOB, done)
    for another in errors[1:]:
        say(another.lines())
    if errors:
        raise errors[0]


def all_reached(
    pool: Client,
    asked: Sequence[JobView],
    verb: str,
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[list[JobView], list[OnefleetError]]:
    """Wait until all are where the verb brings them; the time is for all of them together. The jobs
    that are there, and an error for each of the others."""
    what, reached = _REACHED[verb]
    began, done, late = clock(), list[JobView](), list[OnefleetError]()
    for job in asked:
        try:
            found = wait_until(
                functools.partial(get_job, pool, job.id),
                functools.partial(reached, job),
                lambda now: f"{now.name} to be {what}; {_where(now)}",
                wait_s,
                hint=f"onefleet why {job.id}",
                since=began,
                clock=clock,
                sleep=sleep,
            )
            if verb == "migrate":
                _check_moved(job, found)
        except (TimedOut, UpstreamFailed) as error:
            late.append(error)
        else:
            done.append(found)
    return done, late


def _where(job: JobView) -> str:
    return f"it is {job.phase}: {job.reason}" if job.reason else f"it is {job.phase}"


def _ask(
    pool: Client, name: str, verb: str, body: msgspec.Struct | None
) -> tuple[tuple[JobView, ...], bool]:
    """The jobs that were asked, and whether they are an array's. Raises CallerError."""
    try:
        return (pool.post(f"/api/v1/jobs/{segment(name)}/{verb}", body, JobView),), False
    except NotFound as missing:
        try:
            answer = pool.post(f"/api/v1/arrays/{segment(name)}/{verb}", body, ArrayAnswer)
        except NotFound as error:
            # There is such an array if what is not there is something that the body names.
            raise (error if error.param else missing) from None
    say(_told(answer, verb))
    return answer.data, True


def _told(answer: ArrayAnswer, verb: str) -> str:
    refused = len(answer.refused)
    total = len(answer.data) + answer.ended + refused
    text = f"{answer.name}: {verb} asked of {len(answer.data)} of {total} jobs"
    if answer.ended:
        text += f"; {answer.ended} had ended already"
    if refused:
        text += f"; {refused} cannot:"
    return "\n  ".join((text, *("; ".join(filter(None, (r.what, r.why))) for r in answer.refused)))
