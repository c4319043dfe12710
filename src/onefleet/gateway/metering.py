"""What was used, by whom: added up a minute, journaled, and handed over to the control plane once.

Each request is written to the journal before its last byte goes out, by a copy into a mapped file:
no system call, and the kernel keeps it when this process is killed. The open segment is sealed
into a batch with its sequence number when it is handed over; the batch is handed over again, with
the same number, until it is acknowledged. The numbers go on where an earlier process stopped.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from onefleet.domain.ids import Instant
from onefleet.gateway.limits import GatewayLimits
from onefleet.wire.gateway import UsageReport

MINUTE_MS = 60_000

_SUFFIX = ".usage"
_IDENTITY = "gateway-id"

#: minute, tenant, key, deployment -> requests, prompt, cached and completion tokens
Row = tuple[int, str, str, str]
Counts = tuple[int, int, int, int]
Rows = dict[Row, Counts]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[int, str, str, str, int, int, int, int]).decode


class Batch:
    """Usage that is handed over together. It is not changed any more."""

    __slots__ = ("path", "rows", "sequence")

    def __init__(self, sequence: int, rows: Rows, path: Path) -> None:
        self.sequence = sequence
        self.rows = rows
        self.path = path

    def reports(self) -> tuple[UsageReport, ...]:
        return tuple(
            UsageReport(
                minute=Instant(minute),
                tenant_id=tenant,
                key_id=key,
                deployment_id=deployment,
                requests=requests,
                prompt_tokens=prompt,
                cached_tokens=cached,
                completion_tokens=completion,
            )
            for (minute, tenant, key, deployment), (requests, prompt, cached, completion) in sorted(
                self.rows.items()
            )
        )


class Meter:
    """The usage of one gateway. Where the disk is full it counts in memory only, and says so."""

    def __init__(
        self, folder: Path, limits: GatewayLimits, complain: Callable[[str, str], None]
    ) -> None:
        """complain: takes a code and a line when the journal cannot be written."""
        self._folder = folder
        self._limits = limits
        self._complain = complain
        self._sealed: deque[Batch] = deque()
        self._rows: Rows = {}
        self._map: mmap.mmap | None = None
        self._at = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.gateway_id = self._identity()
        self._sequence, empty = self._recover()
        self._open()
        for path in empty:
            path.unlink(missing_ok=True)

    def add(self, row: Row, prompt: int, cached: int, completion: int) -> None:
        """One request was answered, whole or in part."""
        counts = self._rows.get(row)
        if counts is None:
            self._rows[row] = (1, prompt, cached, completion)
        else:
            self._rows[row] = (
                counts[0] + 1,
                counts[1] + prompt,
                counts[2] + cached,
                counts[3] + completion,
            )
        if self._map is not None:
            self._write(_encode((*row, 1, prompt, cached, completion)) + b"\n")

    @property
    def pending(self) -> bool:
        """There is usage that is not acknowledged."""
        return bool(self._rows or self._sealed)

    def seal(self) -> None:
        """Make a batch of what was counted so far, unless an older one waits already."""
        if not self._sealed and self._rows:
            self._seal()

    def batch(self) -> Batch | None:
        """The oldest batch that is not acknowledged."""
        return self._sealed[0] if self._sealed else None

    def acknowledged(self, batch: Batch) -> None:
        """The control plane has it: forget it."""
        if self._sealed and self._sealed[0] is batch:
            self._sealed.popleft()
            batch.path.unlink(missing_ok=True)

    def tick(self) -> None:
        """Try again to open a journal that could not be opened."""
        if self._map is None:
            self._open()

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None

    # --- inside

    def _write(self, line: bytes) -> None:
        end = self._at + len(line)
        if self._map is None or end > len(self._map):
            self._full()
            return
        self._map[self._at : end] = line
        self._at = end

    def _full(self) -> None:
        """The open segment has no room: write it anew, added up, and seal it if it is still long.

        What did not fit is in the rows already.
        """
        self._open()
        limits = self._limits
        if self._at > limits.journal_segment_bytes // 2:
            if len(self._sealed) < limits.journal_batches:
                self._seal()
            else:
                self._complain("usage_journal_full", f"{len(self._sealed)} batches wait")

    def _seal(self) -> None:
        path = self._path(self._sequence)
        self._sealed.append(Batch(self._sequence, self._rows, path))
        if self._map is not None:
            self.close()
            os.truncate(path, self._at)
        self._rows = {}
        self._sequence += 1
        self._open()

    def _open(self) -> None:
        """Open the segment of the current sequence, holding the rows counted so far."""
        path = self._path(self._sequence)
        held = b"".join(_encode((*row, *counts)) + b"\n" for row, counts in self._rows.items())
        size = max(self._limits.journal_segment_bytes, 2 * len(held))
        self.close()
        fresh = path.with_suffix(".new")
        try:
            handle = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                # Blocks are taken now: a mapped write to a full disk would be a fatal signal.
                os.posix_fallocate(handle, 0, size)
                self._map = mmap.mmap(handle, size)
                self._map[: len(held)] = held
                os.replace(fresh, path)
            finally:
                os.close(handle)
        except OSError as error:
            if self._map is not None:
                self._map.close()
                self._map = None
            self._complain("usage_journal_failed", f"{path}: {error.strerror or error}")
            return
        self._at = len(held)

    def _recover(self) -> tuple[int, list[Path]]:
        """Take over an earlier process's segments: the next sequence, and segments without rows."""
        highest = 0
        empty = []
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if not path.stem.isdigit():
                continue
            highest = int(path.stem)
            rows = _read(path)
            if rows:
                self._sealed.append(Batch(highest, rows, path))
            else:
                empty.append(path)
        return highest + 1, empty

    def _identity(self) -> str:
        path = self._folder / _IDENTITY
        if path.is_file() and (text := path.read_text("ascii").strip()):
            return text
        text = f"gateway-{secrets.token_hex(6)}"
        path.write_text(text + "\n", "ascii")
        return text

    def _path(self, sequence: int) -> Path:
        return self._folder / f"{sequence:016d}{_SUFFIX}"


def _read(path: Path) -> Rows:
    """The rows of a segment. A line that the process died in the middle of is left out."""
    rows: Rows = {}
    for line in path.read_bytes().split(b"\0", 1)[0].split(b"\n")[:-1]:
        try:
            minute, tenant, key, deployment, *counts = _decode(line)
        except msgspec.DecodeError:
            continue
        row = (minute, tenant, key, deployment)
        old = rows.get(row, (0, 0, 0, 0))
        new = [before + more for before, more in zip(old, counts, strict=True)]
        rows[row] = (new[0], new[1], new[2], new[3])
    return rows
