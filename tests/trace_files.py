"""Writes trace values in the format of their trace, so that readers have something to read."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from onefleet.sim.traces import imitate
from onefleet.sim.traces.openb import NODE_COLUMNS, POD_COLUMNS, read_openb_nodes, read_openb_pods
from onefleet.sim.traces.philly import PHILLY_COLUMNS, read_gavel, read_philly
from onefleet.sim.traces.requests import (
    AIBRIX_COLUMNS,
    AZURE_COLUMNS,
    LMSYS_COLUMNS,
    read_aibrix,
    read_azure,
    read_lmsys,
    read_mooncake,
)

BEGAN = datetime(2017, 9, 4, 10, 30, 41, tzinfo=UTC)


@dataclass(frozen=True)
class Format:
    """lines: a small imitation's, header included. read: the reader of a file of them."""

    name: str
    suffix: str
    values: Callable[[int], Sequence[Any]]
    lines: Callable[[Sequence[Any]], list[str]]
    read: Callable[[Path], Sequence[Any]]

    def write(self, path: Path, lines: Iterable[str]) -> Path:
        """A file of these lines, compressed when the suffix says so."""
        text = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        if path.name.endswith(".gz"):
            text = gzip.compress(text)
        path.write_bytes(text)
        return path


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return [",".join(columns), *(",".join(str(cell) for cell in row) for row in rows)]


def _philly(jobs: Sequence[Any]) -> list[str]:
    return _csv(
        PHILLY_COLUMNS,
        (
            (
                (BEGAN + timedelta(milliseconds=j.arrived)).strftime("%Y-%m-%d %H:%M:%S"),
                j.duration_ms / 1000,
                j.devices,
                j.duration_ms * j.devices / 1000,
                j.vc,
            )
            for j in jobs
        ),
    )


def _nodes(nodes: Sequence[Any]) -> list[str]:
    return _csv(NODE_COLUMNS, ((n.name, n.cpu_milli, n.memory_mib, n.gpus, n.model) for n in nodes))


def _pods(pods: Sequence[Any]) -> list[str]:
    return _csv(
        POD_COLUMNS,
        (
            (
                p.name,
                p.cpu_milli,
                p.memory_mib,
                p.gpus,
                p.gpu_milli,
                "|".join(p.models),
                p.qos,
                p.phase,
                p.created_s,
                p.deleted_s,
                "" if p.scheduled_s is None else p.scheduled_s,
            )
            for p in pods
        ),
    )


def _azure(requests: Sequence[Any]) -> list[str]:
    first = requests[0].arrived
    return _csv(
        AZURE_COLUMNS,
        (
            (
                f"{BEGAN + timedelta(milliseconds=r.arrived - first):%Y-%m-%d %H:%M:%S.%f}0",
                r.prompt_tokens,
                r.output_tokens,
            )
            for r in requests
        ),
    )


def _lmsys(requests: Sequence[Any]) -> list[str]:
    return _csv(
        LMSYS_COLUMNS,
        ((f"{r.arrived / 1000:.6f}", r.client, r.prompt_tokens, r.output_tokens) for r in requests),
    )


def _aibrix(requests: Sequence[Any]) -> list[str]:
    return _csv(
        AIBRIX_COLUMNS,
        ((r.arrived, r.prompt_tokens, r.output_tokens, r.prompt_chars) for r in requests),
    )


def _mooncake(requests: Sequence[Any]) -> list[str]:
    return [
        json.dumps(
            {
                "timestamp": r.arrived,
                "input_length": r.prompt_tokens,
                "output_length": r.output_tokens,
                "hash_ids": list(r.blocks),
            }
        )
        for r in requests
    ]


def gavel_line(job: Any) -> str:
    """One job as Gavel writes it."""
    arrived = f"{job.arrived / 1000:.6f}"
    cells = (job.job_type, job.command, "-n", int(job.needs_data), job.steps, arrived, job.devices)
    return "\t".join(str(cell) for cell in cells)


def write_tar(path: Path, members: dict[str, list[str]]) -> Path:
    """A compressed archive of these files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, lines in members.items():
            data = "".join(f"{line}\n" for line in lines).encode()
            info = tarfile.TarInfo(f"seed=0/{name}.trace")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_gavel(path: Path, jobs: Sequence[Any]) -> Path:
    members: dict[str, list[str]] = {}
    for job in jobs:
        members.setdefault(job.vc, []).append(gavel_line(job))
    return write_tar(path, members)


FORMATS = (
    Format("philly", ".csv.gz", lambda n: imitate.philly(7, n, 3), _philly, read_philly),
    Format("openb nodes", ".csv.gz", lambda n: imitate.openb_nodes(7, n), _nodes, read_openb_nodes),
    Format("openb pods", ".csv", lambda n: imitate.openb_pods(7, n), _pods, read_openb_pods),
    Format("azure", ".csv.gz", lambda n: imitate.azure(7, n), _azure, read_azure),
    Format("lmsys", ".csv", lambda n: imitate.lmsys(7, n), _lmsys, read_lmsys),
    Format("aibrix", ".csv", lambda n: imitate.aibrix(7, n), _aibrix, read_aibrix),
    Format("mooncake", ".jsonl.gz", lambda n: imitate.mooncake(7, n), _mooncake, read_mooncake),
)
__all__ = ["FORMATS", "Format", "gavel_line", "read_gavel", "write_gavel", "write_tar"]
