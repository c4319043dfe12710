"""What ``suspend``, ``resume`` and ``cancel`` share: ask, and wait for it where that was asked."""

from __future__ import annotations

from onefleet.cli.kinds import JOB
from onefleet.cli.options import Acting
from onefleet.cli.waiting import wait_until
from onefleet.wire.api import JobView
from onefleet.wire.client import Client, segment

#: Phases that a verb brings a job to, in the end.
_REACHED = {
    "suspend": ("suspended", "ended"),
    "resume": ("running", "ended"),
    "cancel": ("ended",),
}


def get_job(pool: Client, name: str) -> JobView:
    """A job by id or name. Raises NotFound."""
    return pool.get(f"/api/v1/jobs/{segment(name)}", JobView)


def job_verb(act: Acting, name: str, verb: str, timeout_s: float | None) -> None:
    """POST the verb; with a time limit, return when the job is there."""
    job = act.pool.post(f"/api/v1/jobs/{segment(name)}/{verb}", None, JobView)
    if timeout_s is not None:
        job = wait_until(
            lambda: get_job(act.pool, job.id),
            lambda now: now.phase in _REACHED[verb],
            lambda now: f"{now.name} to be {_REACHED[verb][0]}; it is {now.phase}: {now.reason}",
            timeout_s,
            hint=f"onefleet why {job.id}",
        )
    act.done(JOB, job)
