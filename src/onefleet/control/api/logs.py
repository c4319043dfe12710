"""What a job printed: read from its worker's files, which outlive its processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from onefleet.control.api.existing import find_job
from onefleet.control.call import Call
from onefleet.domain.work import Phase
from onefleet.wire.api import LogChunk

#: The most of a log that one call answers.
CHUNK_BYTES_MAX = 256 << 10
WAIT_MS_MAX = 25_000
#: How often a log that is waited for is looked at.
LOOK_MS = 100

_STREAMS = {"stdout": "stdout", "stderr": "stderr"}


async def job_logs(call: Call) -> LogChunk:
    """A piece of a job's stdout or stderr, from byte `offset` on (negative: before the end).

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
            ended = state.works[job.id].phase is Phase.ENDED
            path = pool.layout.worker(job.id, 0) / stream
            offset, raw, whole = await asyncio.to_thread(_read, path, offset)
            left_ms = until - pool.clock.now()
            if raw or ended or left_ms <= 0 or pool.closing:
                text, used = _text(raw, last=ended and whole)
                return LogChunk(
                    text=text, offset=offset, next_offset=offset + used, ended=ended and whole
                )
            await pool.changed.wait(version, min(LOOK_MS, left_ms))


def _read(path: Path, offset: int) -> tuple[int, bytes, bool]:
    """Where it was read from, what is there, and whether that is up to the end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size + offset) if offset < 0 else offset
            file.seek(start)
            raw = file.read(CHUNK_BYTES_MAX)
            return start, raw, start + len(raw) >= size
    except FileNotFoundError:
        return max(0, offset), b"", True


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
