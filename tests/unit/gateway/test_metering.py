"""Usage is counted once, whatever happens to the process or the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from onefleet.gateway.limits import GatewayLimits
from onefleet.gateway.metering import Meter, Rows

LIMITS = GatewayLimits(journal_segment_bytes=64 * 1024)
ROW = (60_000, "default", "key-1", "dep-1")


def meter(folder: Path, limits: GatewayLimits = LIMITS) -> Meter:
    return Meter(folder, limits, lambda code, why: complaints.append(code))


complaints: list[str] = []


@pytest.fixture(autouse=True)
def _no_complaints() -> None:
    complaints.clear()


def drained(one: Meter) -> tuple[Rows, list[int]]:
    """All batches, acknowledged, added up; and their sequence numbers."""
    rows: Rows = {}
    numbers = []
    one.seal()
    while (batch := one.batch()) is not None:
        numbers.append(batch.sequence)
        for row, counts in batch.rows.items():
            old = rows.get(row, (0, 0, 0, 0))
            new = [a + b for a, b in zip(old, counts, strict=True)]
            rows[row] = (new[0], new[1], new[2], new[3])
        one.acknowledged(batch)
        one.seal()
    return rows, numbers


def test_requests_are_added_up(tmp_path: Path) -> None:
    one = meter(tmp_path)
    one.add(ROW, 10, 4, 3)
    one.add(ROW, 1, 0, 2)
    one.add((60_000, "other", "key-2", "dep-1"), 5, 0, 0)
    one.seal()
    batch = one.batch()
    assert batch is not None
    first, second = batch.reports()
    assert (first.tenant_id, first.requests, first.prompt_tokens) == ("default", 2, 11)
    assert (first.cached_tokens, first.completion_tokens) == (4, 5)
    assert second.tenant_id == "other"
    assert one.batch() is batch  # until it is acknowledged
    one.acknowledged(batch)
    assert one.batch() is None
    assert not one.pending
    one.close()


def test_a_killed_process_loses_nothing_and_numbers_go_on(tmp_path: Path) -> None:
    first = meter(tmp_path)
    first.add(ROW, 10, 0, 1)
    first.seal()
    first.add(ROW, 20, 0, 2)
    # Killed: nothing is closed or flushed.
    second = meter(tmp_path)
    assert second.gateway_id == first.gateway_id
    second.add(ROW, 40, 0, 4)
    rows, numbers = drained(second)
    assert rows == {ROW: (3, 70, 0, 7)}
    assert numbers == sorted(set(numbers))
    third = meter(tmp_path)
    assert not third.pending
    third.add(ROW, 1, 0, 1)
    rows, later = drained(third)
    assert later[0] > numbers[-1]  # a number is never used for another batch
    for one in (first, second, third):
        one.close()


def test_a_line_that_was_half_written_is_left_out(tmp_path: Path) -> None:
    first = meter(tmp_path)
    first.add(ROW, 10, 0, 1)
    (segment,) = tmp_path.glob("*.usage")
    data = segment.read_bytes().rstrip(b"\0")
    segment.write_bytes(data + b'[60000,"default","key')
    second = meter(tmp_path)
    rows, _ = drained(second)
    assert rows == {ROW: (1, 10, 0, 1)}
    broken = tmp_path / "0000000000000099.usage"
    broken.write_bytes(b"\xff\xfe garbage\n" + data)
    third = meter(tmp_path)
    rows, _ = drained(third)
    assert rows == {ROW: (1, 10, 0, 1)}
    for one in (first, second, third):
        one.close()


def test_the_journal_stays_small_while_nobody_takes_it(tmp_path: Path) -> None:
    one = meter(tmp_path)
    for number in range(20_000):
        one.add((60_000 * (number // 5_000), "default", f"key-{number % 3}", "dep-1"), 1, 0, 1)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 200_000
    again = meter(tmp_path)
    rows, _ = drained(again)
    assert sum(counts[0] for counts in rows.values()) == 20_000
    for each in (one, again):
        each.close()


def test_many_rows_go_on_in_further_segments(tmp_path: Path) -> None:
    one = meter(tmp_path)
    for number in range(5_000):
        one.add((60_000, "default", f"key-{number}", "dep-1"), 1, 0, 1)
    assert len(list(tmp_path.glob("*.usage"))) > 3
    again = meter(tmp_path)
    rows, numbers = drained(again)
    assert len(rows) == 5_000
    assert len(numbers) > 3
    assert list(tmp_path.glob("*.usage")) == [again._path(again._sequence)]
    for each in (one, again):
        each.close()


def test_a_full_disk_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        one = meter(tmp_path)
        one.add(ROW, 10, 0, 1)
        one.tick()
        assert set(complaints) == {"usage_journal_failed"}
    one.tick()  # there is room again: what was counted meanwhile is written
    one.add(ROW, 1, 0, 1)
    again = meter(tmp_path)
    rows, _ = drained(again)
    assert rows == {ROW: (2, 11, 0, 2)}
    for each in (one, again):
        each.close()
