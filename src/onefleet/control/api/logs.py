"""What a job printed: read from its worker's files, which outlive its processes.

They are on the node where it ran last; if that is not the pool's own machine, its agent is asked.
"""

from __future__ import annotations

import asyncio
import http.client
import re
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from onefleet.control.api.existing import find_job
from onefleet.control.call import Call
from onefleet.control.pool import Pool
from onefleet.domain.errors import NotFound, Unreachable
from onefleet.domain.jobs import Job
from onefleet.domain.quantities import span
from onefleet.domain.work import Phase, Work
from onefleet.store.base import State
from onefleet.wire.agent import LOCAL_NODE, node_id
from onefleet.wire.api import LogChunk
from onefleet.wire.tickets import log_name
from onefleet.wire.transfer import TICKET_HEADER, log_path

#: The most of a log that one call answers.
CHUNK_BYTES_MAX = 256 << 10
WAIT_MS_MAX = 25_000
#: How often a log that is waited for is looked at.
LOOK_MS = 100
REMOTE_LOOK_MS = 500
#: How long another node may take to answer.
REMOTE_LIMIT_S = 10.0

_SPANS = re.compile(r"bytes (\d+)-/(\d+)")
_STREAMS = {"stdout": "stdout", "stderr": "stderr"}


async def job_logs(call: Call) -> LogChunk:
    """A piece of stdout or stderr of one of a job's workers (`rank`), from byte `offset` on
    (negative: before the end).

    Held for `wait_ms` while there is nothing new and the job has not ended.
    """
    stream = call.choice("stream", _STREAMS, "stdout")
    offset = call.integer("offset", 0, -CHUNK_BYTES_MAX)
    wait_ms = call.integer("wait_ms", 0, 0, WAIT_MS_MAX)
    pool = call.pool
    until = pool.clock.now() + wait_ms
    async with pool.changed.held():
        while True:
            version = pool.changed.version
            state = await pool.store.read()
            job = find_job(state, call.caller, call.path("id"))
            work = state.works[job.id]
            rank = _rank(call.integer("rank", 0), job, work.demand.workers)
            ended = work.phase is Phase.ENDED
            place = _place(pool, state, work, rank, stream)
            offset, raw, whole = await asyncio.to_thread(place.read, offset)
            left_ms = until - pool.clock.now()
            if raw or ended or left_ms <= 0 or pool.closing:
                text, used = _text(raw, last=ended and whole)
                return LogChunk(
                    text=text, offset=offset, next_offset=offset + used, ended=ended and whole
                )
            await pool.changed.wait(version, min(place.look_ms, left_ms))


def _rank(rank: int, job: Job, workers: int) -> int:
    """The rank that was asked for. Raises NotFound."""
    if rank >= workers:
        raise NotFound(
            f'job "{job.name}" ({job.id}) has no worker of rank {rank}',
            why=f"its ranks are {span(0, workers - 1)}",
            hint=f"onefleet logs --rank {workers - 1} {job.name}",
            param="rank",
        )
    return rank


class _Log(Protocol):
    """Where a log is. look_ms: how often it is looked at, if it is waited for."""

    @property
    def look_ms(self) -> int: ...

    def read(self, offset: int) -> tuple[int, bytes, bool]:
        """Where it was read from, what is there, and whether that is up to the end."""
        ...


def _place(pool: Pool, state: State, work: Work, rank: int, stream: str) -> _Log:
    ran_on = work.ran_on[rank] if work.ran_on else node_id(LOCAL_NODE)
    node = state.nodes.get(ran_on)
    if ran_on == node_id(LOCAL_NODE) or node is None or not node.address:
        return _File(pool.layout.worker(work.id, rank) / stream)
    return _Remote(
        node.name,
        node.address,
        log_path(work.id, rank, stream),
        pool.orders.ticket(ran_on, log_name(work.id, rank)),
    )


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    look_ms: int = LOOK_MS

    def read(self, offset: int) -> tuple[int, bytes, bool]:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                start = max(0, size + offset) if offset < 0 else offset
                file.seek(start)
                raw = file.read(CHUNK_BYTES_MAX)
                return start, raw, start + len(raw) >= size
        except FileNotFoundError:
            return max(0, offset), b"", True


@dataclass(frozen=True, slots=True)
class _Remote:
    """On another machine, behind the door of its agent."""

    node: str
    address: str
    path: str
    ticket: str
    look_ms: int = REMOTE_LOOK_MS

    def read(self, offset: int) -> tuple[int, bytes, bool]:
        host, _, port = self.address.rpartition(":")
        spans = f"bytes={offset}-" if offset >= 0 else f"bytes={offset}"
        connection = http.client.HTTPConnection(host, int(port), timeout=REMOTE_LIMIT_S)
        try:
            headers = {TICKET_HEADER: self.ticket, "range": spans}
            connection.request("GET", self.path, headers=headers)
            answer = connection.getresponse()
            if answer.status == HTTPStatus.NOT_FOUND:
                return max(0, offset), b"", True
            place = _SPANS.fullmatch(answer.headers.get("content-range", ""))
            if place is None:
                raise http.client.HTTPException(f"it gives {answer.status}")
            raw = answer.read(CHUNK_BYTES_MAX)
            start, size = int(place[1]), int(place[2])
            return start, raw, start + len(raw) >= size
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"node {self.node}, where the job printed this, does not answer",
                why=str(error) or type(error).__name__,
                hint="onefleet node list",
            ) from error
        finally:
            connection.close()


def _text(raw: bytes, last: bool) -> tuple[str, int]:
    """The text of some bytes, and how many of them it is: a cut character is left for later."""
    used = len(raw)
    if not last:
        for back in range(1, min(4, used) + 1):
            byte = raw[-back]
            if byte & 0xC0 == 0x80:
                continue  # inside a character
            needs = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4
            if byte >> 6 == 0b11 and needs > back:
                used -= back
            break
    return raw[:used].decode("utf-8", "replace"), used
