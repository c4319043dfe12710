"""All drivers of this machine by name: the agent asks here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onefleet.domain.layout import Layout
from onefleet.drivers.base import Driver
from onefleet.drivers.criu import CriuDriver, make_finder
from onefleet.drivers.local import LocalDriver


def create_drivers(layout: Layout, criu_path: Path | None = None) -> Mapping[str, Driver]:
    """ "criu" (cells, transparent saves) and "local" (plain processes, cooperative saves).

    criu_path: the criu to use instead of the system's or the managed copy. Nothing is started
    and nothing is looked for until a driver is used.
    """
    return {
        "criu": CriuDriver(make_finder(layout.criu, criu_path)),
        "local": LocalDriver(),
    }
