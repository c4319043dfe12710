"""Processes without a cell: engines, and jobs on machines where nothing transparent works.

A save is cooperative: SIGTERM, a grace time in which the program writes its own checkpoint into
ONEFLEET_CHECKPOINT_DIR, and later the same command again, with the same folder. Its image is a
manifest alone: the state is the program's, in the worker's folder.
"""

from __future__ import annotations

from collections.abc import Sequence

from onefleet.domain.fleet import CheckpointMode
from onefleet.drivers.base import Capability
from onefleet.drivers.supervised import SupervisedDriver


class LocalDriver(SupervisedDriver):
    """Plain processes under a supervisor; saves by asking."""

    name = "local"

    async def probe(self) -> Capability:
        """See Driver.probe. Nothing has to be tried: it needs processes and signals only."""
        return Capability(
            mode=CheckpointMode.COOPERATIVE,
            reason="plain processes save themselves: SIGTERM, then the same command again",
            evidence="needs nothing but processes and signals",
        )

    async def probe_gpus(self, gpus: Sequence[str]) -> Capability:
        """See Driver.probe_gpus. What is on a GPU is the program's own affair, too."""
        return await self.probe()
