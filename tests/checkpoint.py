"""One managed criu for all test processes, made on first use in the user's cache."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from onefleet.domain.errors import OnefleetError
from onefleet.drivers.criu_setup import CriuTool, setup_criu


def criu_home() -> Path:
    """Where the tests' managed criu is: ONEFLEET_CRIU_HOME, else the user's cache."""
    named = os.environ.get("ONEFLEET_CRIU_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else cache / "onefleet" / "criu"


def make_criu() -> CriuTool:
    """The tool, made if it is missing. Raises OnefleetError where this machine cannot have it."""
    home = criu_home()
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.parent / "criu.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return setup_criu(home, None, lambda _what, _share: None)


def criu_or_skip() -> CriuTool:
    """The same; skips with the reason."""
    try:
        return make_criu()
    except (OnefleetError, OSError) as error:
        pytest.skip(f"no criu here: {error.lines() if isinstance(error, OnefleetError) else error}")
