"""What all tests share: no test is judged by how fast the machine is."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("onefleet", deadline=None)
settings.load_profile("onefleet")


def pytest_xdist_auto_num_workers() -> int:
    """Of `-n auto`: three for two cores, as many tests wait for processes that they started."""
    return len(os.sched_getaffinity(0)) * 3 // 2 or 1
