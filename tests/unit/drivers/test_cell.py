"""Who belongs to a worker, in a cell whose processes come and go while they are looked at."""

from __future__ import annotations

import pytest

from onefleet.drivers import process_tree
from onefleet.drivers.cell import ROOT_PID, Cell, outside


def test_descendants_of_the_root_are_the_workers() -> None:
    assert outside({ROOT_PID: 0, 105: ROOT_PID, 106: 105, 107: 106}) == []


def test_what_the_first_process_has_or_came_from_outside_is_not() -> None:
    assert outside({ROOT_PID: 0, 105: 1, 106: 105, 200: 0}) == [105, 106, 200]


def test_a_parent_that_ended_meanwhile_makes_no_stranger_of_its_child() -> None:
    assert outside({ROOT_PID: 0, 106: 105}) == []


def test_processes_that_end_while_they_are_looked_at_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one read last ended after the processes were listed, as a busy shell's do."""
    looks = {
        ROOT_PID: [["S", "0"], ["S", "0"]],
        105: [["Z", "100"], ["Z", "100"]],
        106: [["S", "105"], ["S", "105"]],
        107: [["S", "106"], []],
        108: [[], []],
    }
    monkeypatch.setattr(process_tree, "stat_fields", lambda pid, proc: looks[pid].pop(0))
    cell = Cell.__new__(Cell)
    cell.init = 0
    monkeypatch.setattr(cell, "pids", lambda: sorted(looks))
    assert cell.strangers() == []
