"""Microsoft's Philly training cluster: jobs with their run time, and Gavel's split into teams.

Two files tell of the same cluster. The job list (`timestamp,duration,num_gpus,gpu_time,cluster`)
has measured run times; Gavel's archive has a model and a number of steps instead, one file a
virtual cluster, so that its run times depend on the device.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO

from onefleet.domain.ids import Instant, Millis
from onefleet.sim.traces.lines import (
    GZIP_MAGIC,
    TORN,
    BadTrace,
    Line,
    Row,
    numbered,
    read_csv,
    unreadable,
)

PHILLY_COLUMNS = ("timestamp", "duration", "num_gpus", "gpu_time", "cluster")
DEVICES_MAX = 100_000
#: The widest difference between gpu_time and duration x num_gpus: what rounding explains.
GPU_TIME_SLACK_MS = 1_000

_GAVEL_CELLS = ("job type", "command", "step flag", "needs data", "steps", "arrival", "devices")
_MEMBER_BYTES_MAX, _ARCHIVE_BYTES_MAX = 64 << 20, 256 << 20


@dataclass(frozen=True, slots=True)
class TraceJob:
    """A training job that ran. arrived: since the first arrival of the trace. vc: its virtual
    cluster, which is a team."""

    arrived: Instant
    duration_ms: Millis
    devices: int
    vc: str


@dataclass(frozen=True, slots=True)
class StepJob:
    """A training job by its steps. job_type: model and batch size, as in `LM (batch size 10)`."""

    arrived: Instant
    job_type: str
    command: str
    needs_data: bool
    steps: int
    devices: int
    vc: str


def read_philly(path: Path) -> tuple[TraceJob, ...]:
    """The jobs in the order of their arrival (of the file, where two came in one second)."""
    found: list[tuple[int, TraceJob]] = []
    for row in read_csv(path, PHILLY_COLUMNS):
        at_ms = _timestamp_ms(row)
        duration_ms = row.seconds_ms("duration", least_ms=1)
        devices = row.whole("num_gpus", 1, DEVICES_MAX)
        device_ms = row.seconds_ms("gpu_time")
        if abs(device_ms - duration_ms * devices) > GPU_TIME_SLACK_MS * devices:
            row.line.bad("gpu_time = duration x num_gpus")
        vc = row.text("cluster")
        found.append((at_ms, TraceJob(Instant(0), Millis(duration_ms), devices, vc)))
    if not found:
        raise BadTrace(f"{path.name}:2", "at least one job", "nothing")
    first = min(at_ms for at_ms, _ in found)
    found.sort(key=lambda pair: pair[0])
    return tuple(
        TraceJob(Instant(at_ms - first), job.duration_ms, job.devices, job.vc)
        for at_ms, job in found
    )


def read_gavel(path: Path) -> tuple[StepJob, ...]:
    """All files of the archive, in the order of arrival; a file's name is its virtual cluster."""
    found: list[StepJob] = []
    data = _unpacked(path)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                name = PurePosixPath(member.name)
                if not member.isfile() or name.suffix != ".trace":
                    continue
                if member.size > _MEMBER_BYTES_MAX:
                    place = f"{path.name}!{member.name}:1"
                    raise BadTrace(place, f"at most {_MEMBER_BYTES_MAX} bytes", str(member.size))
                source = archive.extractfile(member)
                assert source is not None, "a regular file has bytes"
                found.extend(read_gavel_lines(source, f"{path.name}!{member.name}", name.stem))
            rest = data[archive.offset :]
    except tarfile.TarError as error:
        raise BadTrace(f"{path.name}:1", "a whole tar archive", str(error)) from error
    if not rest or rest.strip(b"\0"):  # tarfile takes a member's head that is damaged for the end
        where = f"no end of it behind the first {len(data) - len(rest)} bytes"
        raise BadTrace(f"{path.name}:1", "a whole tar archive", where)
    if not found:
        raise BadTrace(f"{path.name}:1", "a .trace file with a job", "none")
    found.sort(key=lambda job: job.arrived)  # stable: ties stay in the order of the teams
    return tuple(found)


def _unpacked(path: Path) -> bytes:
    """The archive, decompressed to its end, because its checksum is there."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            raw.seek(0)
            source = gzip.GzipFile(fileobj=raw) if packed else raw
            data = source.read(_ARCHIVE_BYTES_MAX + 1)
    except TORN as error:
        place = f"{path.name}:1"
        raise BadTrace(place, "compressed data that is whole", str(error)) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > _ARCHIVE_BYTES_MAX:
        raise BadTrace(f"{path.name}:1", f"at most {_ARCHIVE_BYTES_MAX} bytes in it", "more")
    return data


def read_gavel_lines(source: IO[bytes], file: str, vc: str) -> Iterator[StepJob]:
    """The jobs of one virtual cluster."""
    for line in numbered(source, file):
        yield _step_job(line, vc)


def _step_job(line: Line, vc: str) -> StepJob:
    cells = line.text.split("\t")
    if len(cells) != len(_GAVEL_CELLS):
        line.bad(f"{len(_GAVEL_CELLS)} cells between tabs", f"{len(cells)} cells")
    row = Row(line, dict(zip(_GAVEL_CELLS, cells, strict=True)))
    return StepJob(
        arrived=Instant(row.seconds_ms("arrival")),
        job_type=row.text("job type"),
        command=row.text("command"),
        needs_data=bool(row.whole("needs data", 0, 1)),
        steps=row.whole("steps", 1),
        devices=row.whole("devices", 1, DEVICES_MAX),
        vc=vc,
    )


def _timestamp_ms(row: Row) -> int:
    text = row.text("timestamp")
    try:
        at = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        row.line.bad("a time as in 2017-10-09 07:01:55 in column timestamp", text)
    return int(at.timestamp()) * 1000
