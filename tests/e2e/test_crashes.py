"""Any one process may die at any moment: nothing that was acknowledged is lost."""

from __future__ import annotations

import pytest

from tests.e2e.harness import Pool, told_by, until

pytestmark = pytest.mark.e2e


def answers(it: Pool) -> bool:
    """Whether the deployment answers, with the client's own retries."""
    said = it.client(max_retries=8, timeout=30).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=2
    )
    return bool(said.choices)


@pytest.mark.parametrize("process", ["control", "gateway", "agent"])
def test_a_killed_process_comes_back_and_the_job_goes_on(
    serving: Pool, undisturbed: str, process: str
) -> None:
    job = serving.submit(name=f"through-{process}")
    until("the job runs", lambda: serving.phase(job) == "running")
    before = serving.pid(process)
    serving.kill(before)
    until("it is another process", lambda: serving.pid(process) not in (0, before))
    assert answers(serving)
    ended = serving.finished(job)
    assert (ended["outcome"], ended["attempts"]) == ("succeeded", 1)
    assert serving.digest(job) == undisturbed


def test_a_killed_engine_is_replaced(serving: Pool) -> None:
    assert answers(serving)
    (before, *_) = serving.engine_pids()
    serving.kill(before)
    assert until("the pool serves again", lambda: _tries(serving))
    assert before not in serving.engine_pids()


def _tries(it: Pool) -> bool:
    import openai

    try:
        return answers(it)
    except openai.APIError:
        return False


def test_a_killed_job_says_so(serving: Pool) -> None:
    job = serving.submit(name="victim")
    until("the job runs", lambda: serving.phase(job) == "running")
    found = [p for p in serving.processes() if job in told_by(p)]
    workers = until(
        "its process shows", lambda: [c for p in found for c in p.children(recursive=True)] or None
    )
    deepest = [p for p in workers if "job.py" in " ".join(p.cmdline())]
    serving.kill(deepest[-1].pid)
    ended = serving.ended(job)
    assert ended["outcome"] == "failed"
    assert ended["exit_code"] == 137
    assert ended["why_ended"]


def test_everything_at_once_comes_back(serving: Pool, undisturbed: str) -> None:
    job = serving.submit(name="through-all")
    until("the job runs", lambda: serving.phase(job) == "running")
    pids = {name: serving.pid(name) for name in ("control", "gateway", "agent")}
    for pid in pids.values():
        serving.kill(pid)
    until("all are others", lambda: all(serving.pid(n) not in (0, pid) for n, pid in pids.items()))
    assert answers(serving)
    ended = serving.finished(job)
    assert (ended["outcome"], ended["attempts"]) == ("succeeded", 1)
    assert serving.digest(job) == undisturbed
