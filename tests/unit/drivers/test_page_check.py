"""The check that goes on beside a restore: heard in any case, and never left behind."""

from __future__ import annotations

import os
import time

import pytest

from onefleet.drivers.page_check import PageCheck


def slow(_name: str) -> bool:
    time.sleep(1000)
    return True


def gone(name: str) -> bool:
    raise FileNotFoundError(2, "No such file or directory", name)


def test_it_says_the_first_that_is_wrong() -> None:
    assert PageCheck(["a", "b"], lambda name: True).wait() == ""
    wrong = PageCheck(["a", "b", "c"], lambda name: name == "a").wait()
    assert wrong == "b has been changed: its checksum differs"
    assert PageCheck(["a"], gone).wait() == "a cannot be read: No such file or directory"
    nothing = PageCheck([], slow)
    assert (nothing.pid, nothing.wait()) == (0, "")


def test_a_check_that_dies_found_nothing_good() -> None:
    check = PageCheck(["a"], slow)
    os.kill(check.pid, 9)
    assert check.wait() == "its pages could not be checked"
    assert PageCheck(["a"], lambda _name: 1 // 0 == 0).wait() == "its pages could not be checked"


def test_it_ends_when_nobody_waits_any_more() -> None:
    check = PageCheck(["a"], slow)
    pid = check.pid
    check.close()
    check.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)
