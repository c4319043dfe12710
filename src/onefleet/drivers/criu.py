"""Transparent saves: a worker in a cell, dumped and restored by criu.

The work is done by the worker's supervisor; here are the agent's side and the proof that it works
on this machine.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onefleet.domain.errors import OnefleetError
from onefleet.domain.fleet import CheckpointMode
from onefleet.domain.quantities import size
from onefleet.drivers.base import Capability, WorkerSpec
from onefleet.drivers.criu_setup import CriuTool, check, find_criu
from onefleet.drivers.gpu_look import look
from onefleet.drivers.gpu_support import open_limits
from onefleet.drivers.proof import GPU_COUNTER, prove
from onefleet.drivers.rights import rights
from onefleet.drivers.supervised import SupervisedDriver

DEVICE_CALLS = (sys.executable, "-P", "-m", "onefleet.drivers.device_calls")


class CriuDriver(SupervisedDriver):
    """Workers in cells; saves without the program's help."""

    name = "criu"

    def __init__(
        self,
        find: Callable[[], CriuTool],
        device_calls: Sequence[str] = DEVICE_CALLS,
        gpu_counter: Sequence[str] = GPU_COUNTER,
    ) -> None:
        """find: names the criu to use, or raises Unsupported; called until it has found one.

        device_calls: the command that makes the calls on GPUs, as `drivers.device_calls` does.
        gpu_counter: a program that proves that their state is saved, as `drivers.gpu_counter`.
        """
        super().__init__()
        self._find = find
        self._device_calls = list(device_calls)
        self._gpu_counter = list(gpu_counter)
        self._tool: CriuTool | None = None
        self._proved: tuple[str, Capability] | None = None
        self._probing = asyncio.Lock()

    async def probe(self) -> Capability:
        """See Driver.probe. A success is kept for this boot and this criu; a failure is not."""
        async with self._probing:
            key = f"{_boot()} {self._tool.version if self._tool else ''}"
            if self._proved is not None and self._proved[0] == key:
                return self._proved[1]
            capability = await self._try()
            if capability.mode is CheckpointMode.CRIU and self._tool is not None:
                self._proved = (f"{_boot()} {self._tool.version}", capability)
            return capability

    async def probe_gpus(self, gpus: Sequence[str]) -> Capability:
        """See Driver.probe_gpus."""
        found = await self.probe()
        if found.mode is not CheckpointMode.CRIU:
            return found
        began = time.monotonic()
        try:
            node = await asyncio.to_thread(look, self._device_calls, gpus)
            seen = {"CUDA_VISIBLE_DEVICES": gpus[0], "PATH": os.defpath}
            saved = await prove(self, self._gpu_counter, seen, gpus[:1])
        except OnefleetError as error:
            why = f"{error.what}: {error.why}" if error.why else error.what
            return Capability(CheckpointMode.NONE, reason=why, evidence=error.hint)
        took_ms = int((time.monotonic() - began) * 1000)
        limits = open_limits(node.driver, os.uname().machine)
        return Capability(
            CheckpointMode.CRIU,
            reason="",
            evidence=f"a counter on {node.products[gpus[0]]} was saved with {saved.size_bytes} "
            f"bytes and counted on: {took_ms} ms; driver {node.driver}; limits: "
            + ", ".join(limit.what for limit in limits),
        )

    async def start(self, spec: WorkerSpec) -> None:
        """See Driver.start. Raises Unsupported where there is no criu or no cell."""
        await self._find_tool()
        await super().start(spec)

    async def restore(self, spec: WorkerSpec, image: Path, *, hold: bool = False) -> None:
        """See Driver.restore. Raises UpstreamFailed for a torn, corrupt or foreign image."""
        await self._find_tool()
        await super().restore(spec, image, hold=hold)

    def _order(self) -> dict[str, Any]:
        assert self._tool is not None
        return {
            "criu": list(self._tool.command),
            "criu_version": self._tool.version,
            "device_calls": self._device_calls,
        }

    async def _find_tool(self) -> CriuTool:
        if self._tool is None:
            self._tool = await asyncio.to_thread(self._find)
        return self._tool

    async def _try(self) -> Capability:
        """`criu check`, then a counter saved and restored for real."""
        began = time.monotonic()
        try:
            tool = await self._find_tool()
            mine = rights()
            if mine.checks:
                await asyncio.to_thread(check, tool)
            saved = await prove(self)
        except OnefleetError as error:
            why = f"{error.what}: {error.why}" if error.why else error.what
            return Capability(CheckpointMode.NONE, reason=why, evidence=error.hint)
        took_ms = int((time.monotonic() - began) * 1000)
        evidence = (
            f"criu {tool.version} ({tool.source}) saved a counter of "
            f"{size(saved.size_bytes)}, restored it, and it counted on: {took_ms} ms"
        )
        if mine.user_namespace:
            limits = ", ".join(limit.what for limit in mine.limits)
            evidence += f"; as user {os.getuid()}, in a user namespace; limits: {limits}"
        return Capability(mode=CheckpointMode.CRIU, reason="", evidence=evidence)


def make_finder(managed: Path, given: Path | None) -> Callable[[], CriuTool]:
    """What CriuDriver asks for its criu; see `criu_setup.find_criu`."""
    return lambda: find_criu(managed, given)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
