"""Following what a job prints, for ``logs -f``, ``run --watch`` and the tour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from onefleet.cli.job_verb import get_job
from onefleet.wire.api import JobView, LogChunk
from onefleet.wire.client import Client, segment

STREAMS = ("stdout", "stderr")
#: How long the pool may hold a question for more output. It bounds how late stderr is shown.
WAIT_MS = 1_000


@dataclass
class LogReader:
    """Reads the two streams of one of a job's workers from where it left off."""

    pool: Client
    job: str
    rank: int = 0
    offsets: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))

    def read(self, stream: str, wait_ms: int = 0) -> LogChunk:
        """The next piece of one stream; empty text when there is none within wait_ms."""
        query = f"stream={stream}&offset={self.offsets[stream]}&wait_ms={wait_ms}"
        query += f"&rank={self.rank}"
        chunk = self.pool.get(f"/api/v1/jobs/{segment(self.job)}/logs?{query}", LogChunk)
        self.offsets[stream] = chunk.next_offset
        return chunk

    def rest(self, stream: str) -> Iterator[str]:
        """All that is there now."""
        while (chunk := self.read(stream)).text:
            yield chunk.text


def follow(
    reader: LogReader,
    streams: tuple[str, ...],
    show: Callable[[str, str], None],
    moved: Callable[[JobView], None] | None = None,
    tick: Callable[[JobView], None] | None = None,
) -> JobView:
    """Show (stream, text) as it comes until the job has ended; return the job then.

    moved: called with the job whenever its phase changes. tick: called with it every round.
    """
    phase = ""
    while True:
        chunks = [
            (stream, reader.read(stream, WAIT_MS if index == 0 else 0))
            for index, stream in enumerate(streams)
        ]
        job = get_job(reader.pool, reader.job)
        changed = job.phase != phase and moved is not None
        # That it runs is told before what it printed, that it ended after that.
        if changed and moved is not None and job.outcome is None:
            moved(job)
        for stream, chunk in chunks:
            if chunk.text:
                show(stream, chunk.text)
        if changed and moved is not None and job.outcome is not None:
            moved(job)
        phase = job.phase
        if tick is not None:
            tick(job)
        if job.outcome is not None and all(c.ended and not c.text for _, c in chunks):
            return job
