"""A disk that fills up under a pool: it goes on serving, says so, and nothing of it is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.chaos import call
from tests.e2e.harness import Pool, pool, until
from tests.small_disk import small_disk

pytestmark = pytest.mark.e2e

DISK_MB = 64


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, leave: int = 0) -> None:
        with self._filler.open("ab", buffering=0) as file:
            while (free := self.free() - leave) > 0:
                try:
                    file.write(bytes(min(free, 1 << 20)))
                except OSError:
                    return

    def free(self) -> int:
        told = os.statvfs(self.folder)
        return told.f_bavail * told.f_frsize

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", f"{DISK_MB}m") as folder:
        yield Disk(folder)


def answers(it: Pool) -> bool:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    return call(it, "POST", "/v1/chat/completions", body)[0] == 200


def test_a_full_disk_is_told_and_survived(disk: Disk, undisturbed: str) -> None:
    disk.fill()
    full = Pool(disk.folder / "full").attempt("up", "--port", "0", "--detach")
    assert full.returncode == 1 and "cannot be" in full.stderr and "Traceback" not in full.stderr
    disk.empty()
    with pool(disk.folder / "data") as it:
        disk.fill(leave=1 << 20)
        refused = it.attempt("model", "add", "demo:tiny")
        assert refused.returncode == 1 and "full" in refused.stderr, refused.stderr
        disk.empty()
        it.run("model", "add", "demo:tiny")
        it.run("deploy", "demo:tiny", "--name", "tiny", "--wait")
        job = it.submit(name="steady")
        until("it prints", lambda: it.printed(job))
        disk.fill(leave=4 << 20)  # less than the job's image, enough for what it prints
        it.run("suspend", job)
        if it.job(job)["checkpoint"] == "criu":
            until("the save failed", lambda: "no space left" in it.job(job)["reason"])
        it.run("resume", job)
        ended = it.finished(job)
        assert (ended["outcome"], ended["attempts"], ended["lost_ms"]) == ("succeeded", 1, 0)
        assert it.digest(job) == undisturbed

        disk.fill()
        new = it.attempt("run", "--", "true")
        assert new.returncode == 1 and "could not be written" in new.stderr
        assert answers(it)
        before = {name: it.pid(name) for name in ("control", "gateway", "agent")}
        for pid in before.values():
            it.kill(pid)
        until("the pool serves on the full disk", lambda: answers(it))
        disk.empty()
        until("all are others", lambda: all(it.pid(n) not in (0, p) for n, p in before.items()))
        until("it takes work again", lambda: it.attempt("run", "--", "true").returncode == 0)
        assert it.json("model", "list")[0]["id"] == "demo:tiny"
