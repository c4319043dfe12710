"""From an order to what its driver is to start: folder, command, environment, cores, gang."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from onefleet.agent import accelerators, records
from onefleet.agent.deciding import is_gang
from onefleet.agent.protocol import WorkerKey
from onefleet.config import child_environment
from onefleet.domain import gang
from onefleet.domain.errors import InvalidRequest
from onefleet.domain.fleet import Device
from onefleet.domain.gang import GangPlace
from onefleet.domain.ids import DeviceId, Digest
from onefleet.domain.layout import Layout
from onefleet.domain.serving import Purpose
from onefleet.drivers.base import WorkerSpec
from onefleet.engines.base import EngineProcess
from onefleet.engines.catalog import engine
from onefleet.registry import code
from onefleet.registry.blobs import blob_path
from onefleet.wire.agent import EngineSpec, GangSpec, JobSpec, Order

#: What a job sees of the environment that the pool was started in; the rest is its owner's own.
JOB_INHERITS = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
PORT_FILE = "port"


#: Sees to it that a package of code is in this data folder.
GetCode = Callable[[Layout, Digest], None]


def nothing_to_get(layout: Layout, digest: Digest) -> None:
    """Where the pool keeps code in this very folder."""


class Specs:
    """Of one node."""

    def __init__(
        self, layout: Layout, devices: Sequence[Device], get_code: GetCode = nothing_to_get
    ) -> None:
        self._layout = layout
        self._get_code = get_code
        self._devices = {device.id: device for device in devices}

    def of(self, key: WorkerKey, order: Order, driver: str) -> WorkerSpec:
        """What the driver is to start. Makes the worker's folder and unpacks its code. Blocking.

        Raises InvalidRequest for devices or an engine that are not here, NotFound for its code.
        """
        folder = self._layout.worker(key.work_id, key.rank)
        work = folder / records.WORK
        packed = order.job.code if order.job is not None else None
        digest = None if packed is None else Digest(packed)
        if not work.is_dir():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if digest is not None:
                self._get_code(self._layout, digest)
                code.unpack(self._layout, digest, work)
            else:
                work.mkdir()
        held = self.held(order.devices)
        place = _gang_place(key, order) if driver == "criu" else None
        if order.job is not None:
            command, environment = self._job(key, order.job, folder, held)
            environment |= _gang_environment(place, order)
        else:
            assert order.engine is not None, f"an order for {key} is of a job or of an engine"
            command, environment = self._engine(order.engine, folder, held)
        return WorkerSpec(
            folder=folder,
            command=command,
            work=work,
            environment=tuple(sorted(environment.items())),
            cpus=accelerators.cores(held),
            gpus=accelerators.gpus(held),
            takes_turns=is_gang(order),
            network=order.job.network if order.job else "host",
            gang=place,
            grace_ms=order.grace_ms,
            hold_ms=gang.HOLD_MS,
            lease=self._layout.lease if order.job else None,
            chunks=self._layout.chunks(key.work_id),
            origin=None if digest is None else blob_path(self._layout, digest),
        )

    def known(self, devices: Sequence[DeviceId]) -> list[Device]:
        """Those of these devices that the node has."""
        return [self._devices[d] for d in devices if d in self._devices]

    def held(self, devices: Sequence[DeviceId]) -> list[Device]:
        """These devices. Raises InvalidRequest when the node has not all of them."""
        held = self.known(devices)
        if len(held) != len(devices):
            raise InvalidRequest(
                f"this node has not all of the devices {', '.join(devices)}",
                why=f"it has {', '.join(self._devices)}",
            )
        return held

    def _job(
        self, key: WorkerKey, job: JobSpec, folder: Path, held: Sequence[Device]
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        inherited = child_environment()
        checkpoint = folder / records.CHECKPOINT
        checkpoint.mkdir(exist_ok=True)
        environment = {name: inherited[name] for name in JOB_INHERITS if name in inherited}
        # Last in the path: "python" works where the machine has none of its own.
        own = os.path.dirname(sys.executable)
        environment["PATH"] = f"{environment.get('PATH', os.defpath)}:{own}"
        environment |= {
            **gang.threads(job.width),
            "PYTHONUNBUFFERED": "1",
            **accelerators.environment(held, job.workers),
            **(_alone(key) if job.workers == 1 else {}),
            **dict(job.environment),
            "ONEFLEET_JOB_ID": str(key.work_id),
            "ONEFLEET_JOB_NAME": job.name,
            "ONEFLEET_CHECKPOINT_DIR": str(checkpoint),
            "RANK": str(key.rank),
            "WORLD_SIZE": str(job.workers),
        }
        if job.index is not None:
            environment["ONEFLEET_ARRAY_INDEX"] = str(job.index)
        return job.command, environment

    def _engine(
        self, spec: EngineSpec, folder: Path, held: Sequence[Device]
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        adapter = engine(spec.engine)
        process = EngineProcess(
            model_id=spec.model_id,
            served_name=spec.served_name,
            purpose=Purpose(spec.purpose),
            path=Path(spec.path),
            slots=spec.slots,
            context_length=spec.context_length,
            threads=max(len(held), 1),
            port_file=folder / PORT_FILE,
            cache_folder=folder / "cache",
            options=tuple(sorted(spec.options.items())),
        )
        reason = adapter.available()
        if reason:
            raise InvalidRequest(f"engine {spec.engine} cannot run on this node", why=reason)
        process.cache_folder.mkdir(exist_ok=True)
        seen = accelerators.environment(held, 1)
        environment = child_environment({**seen, **dict(adapter.environment(process))})
        return adapter.command(process), environment


def _gang_place(key: WorkerKey, order: Order) -> GangPlace | None:
    """Its place in a gang that has a network of its own; None for others."""
    if order.job is None or order.job.workers < 2 or order.job.network == "host":
        return None
    where = order.gang or GangSpec()
    return GangPlace(key.work_id, key.rank, order.job.workers, where.node, where.nodes)


def _gang_environment(place: GangPlace | None, order: Order) -> dict[str, str]:
    """What it is told of its gang."""
    assert order.job is not None
    if place is not None:
        return gang.environment(place)
    if order.job.workers < 2:
        return {}
    shared = GangPlace(order.work_id, order.rank, order.job.workers)
    master = order.gang.master if order.gang else ""
    return gang.shared_environment(shared, master or "127.0.0.1")


def _alone(key: WorkerKey) -> dict[str, str]:
    """Where one worker meets itself, so that a program for gangs runs. It has no local rank: by
    that, libraries know that they are to be distributed.
    """
    told = gang.shared_environment(GangPlace(key.work_id, 0, 1))
    return {name: told[name] for name in ("MASTER_ADDR", "MASTER_PORT")}
