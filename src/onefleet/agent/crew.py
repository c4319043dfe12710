"""Carries out what the worker machine decides: orders become driver calls in a worker's folder."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import assert_never

import structlog
from msgspec import structs

from onefleet.agent import accelerators, archivist, fetching, memory_images, records
from onefleet.agent.deciding import hurries
from onefleet.agent.devices import nvidia_driver
from onefleet.agent.protocol import (
    Act,
    Adopted,
    Discard,
    Done,
    Fetch,
    Finish,
    Freeze,
    Hold,
    HoldKind,
    Pin,
    Prune,
    Restore,
    Save,
    Start,
    StatusSeen,
    Stop,
    Thaw,
    Verb,
    WorkerKey,
)
from onefleet.agent.records import Record
from onefleet.agent.share import Share
from onefleet.agent.specs import PORT_FILE, GetCode, Specs, nothing_to_get
from onefleet.domain.errors import InvalidRequest, OnefleetError, StorageFull
from onefleet.domain.fleet import CheckpointMode, Device
from onefleet.domain.ids import NO_GENERATION, DeviceId, Generation, ImageId, Instant
from onefleet.domain.layout import Layout
from onefleet.drivers import image as images
from onefleet.drivers import lease, supervisor_files
from onefleet.drivers.base import Capability, Driver, WorkerState, WorkerStatus
from onefleet.engines.catalog import engine
from onefleet.wire.agent import Order

log = structlog.get_logger()

#: A command that could not be started, as shells number it.
CANNOT_START = 127
#: Exit codes from here on are of processes that a signal ended.
KILLED = 128
#: What leaves images to fold, or to clean up after.
_CHANGES_IMAGES = (Verb.SAVE, Verb.RESTORE, Verb.FETCH, Verb.PRUNE, Verb.DISCARD)
#: How much of an engine's stderr is searched for its reason, and how long that may be.
TAIL_BYTES = 8_192
COMPLAINT_MAX = 300


class Crew:
    """This node's drivers and worker folders. Methods may run at once for different workers."""

    def __init__(
        self,
        layout: Layout,
        drivers: Mapping[str, Driver],
        devices: Sequence[Device],
        share: Share | None = None,
        get_code: GetCode = nothing_to_get,
    ) -> None:
        self._layout = layout
        self._drivers = drivers
        self._specs = Specs(layout, devices, get_code)
        self._records: dict[WorkerKey, Record] = {}
        self._job_driver = "local"
        self.capability = Capability(CheckpointMode.NONE, "not tried yet", "")
        self._gpus = accelerators.GpuProof(devices, nvidia_driver())
        self._share = share
        self.fetches: dict[WorkerKey, fetching.Errand] = {}  # under way
        self.archivist = archivist.Archivist(archivist.command(layout, share))

    async def prepare(self) -> bool:
        """Clean up after workers that are over, and recall how jobs can be saved here.

        False when that was never proved since the machine started: `prove` it first.
        """
        gone = await asyncio.to_thread(records.forget_oldest, self._layout)
        if gone:
            log.info("removed the output of the oldest workers", folders=gone)
        known, gpus = records.recall_proof(self._layout)
        if known is None or known.mode is not CheckpointMode.CRIU or "criu" not in self._drivers:
            return False
        self._job_driver, self.capability = "criu", known
        self._gpus.capability = gpus or self._gpus.capability
        return True

    async def prove(self) -> None:
        """Find out how jobs can be saved here, by doing it; takes a second or two."""
        driver, capability = "local", await self._drivers["local"].probe()
        if "criu" in self._drivers:
            proved = await self._drivers["criu"].probe()
            if proved.mode is CheckpointMode.CRIU:
                driver, capability = "criu", proved
            elif proved.reason:
                capability = replace(capability, reason=proved.reason)
        self._job_driver, self.capability = driver, capability
        await self._gpus.prove(self._drivers[driver])
        proofs = self.capability, self._gpus.capability
        await asyncio.to_thread(records.remember_proof, self._layout, *proofs)
        log.info("jobs are saved by", driver=self._job_driver, reason=self.capability.reason)

    def keep_ready(self, on: bool) -> None:
        """Have jobs start and come back as quickly as they can, or no more."""
        for name, driver in self._drivers.items():
            driver.keep_ready(on and name == self._job_driver)

    def folder(self, key: WorkerKey) -> Path:
        return self._layout.worker(key.work_id, key.rank)

    def record(self, key: WorkerKey) -> Record | None:
        return self._records.get(key)

    def mode(self, key: WorkerKey) -> CheckpointMode:
        """How this worker can be saved."""
        record = self._records.get(key)
        if record is None or record.order.job is None:
            return CheckpointMode.NONE
        criu = record.driver == "criu"
        return CheckpointMode.CRIU if criu else CheckpointMode.COOPERATIVE

    def why_not_criu(self, key: WorkerKey) -> str:
        """What of this worker's devices keeps criu from saving it; empty when nothing does."""
        record = self._records.get(key)
        if record is None or record.order.job is None or record.driver == "criu":
            return ""
        held = self._specs.known(record.order.devices)
        return self._gpus.why_not(held, record.order.job.workers)

    def renew(self, until: Instant) -> None:
        """The jobs here may run until then, by the clock of `drivers.lease`."""
        try:
            lease.write(str(self._layout.lease), until)
        except OSError as error:  # they will stand still; nothing else is safe
            log.error("the lease cannot be written", reason=str(error))

    # --- what an agent before this one left ------------------------------------------------------

    async def adopt(self) -> Sequence[Adopted]:
        """Every worker that is not over, as its driver sees it now."""
        known: dict[Path, str] = {}
        for name, driver in sorted(self._drivers.items()):
            for folder in await driver.adopt(records.root(self._layout)):
                known[folder] = name
        found = []
        for folder, record in records.all_records(self._layout):
            self._records[record.key] = record
            status = None
            if folder in known:
                _, status = await self.status(record.key, record.epoch)
            found.append(_adopted(folder, record, status))
        self.archivist.hint()
        return found

    async def status(self, key: WorkerKey, epoch: Generation) -> tuple[StatusSeen, WorkerStatus]:
        """What is true of a worker now."""
        record = self._records[key]
        try:
            status = await self._drivers[record.driver].status(self.folder(key))
        except OnefleetError as error:
            status = WorkerStatus(WorkerState.ENDED, reason=error.what)
        if status.state is WorkerState.ENDED:
            status = await asyncio.to_thread(self._explained, key, record, status)
        seen = StatusSeen(
            key, epoch, status.state, status.exit_code, status.reason,
            status.image_bytes, status.lost_ms,
        )  # fmt: skip
        return seen, status

    def _explained(self, key: WorkerKey, record: Record, status: WorkerStatus) -> WorkerStatus:
        """The end of a worker, for an engine that failed by itself with its own words."""
        failed = status.exit_code is not None and 0 < status.exit_code < KILLED
        if record.order.engine is not None and failed:
            stderr = str(self.folder(key) / supervisor_files.STDERR)
            told = supervisor_files.tail(stderr, TAIL_BYTES)
            said = engine(record.order.engine.engine).complaint(told)[:COMPLAINT_MAX]
            status = replace(status, reason=f"{status.reason}: {said}" if said else status.reason)
        log.info(
            "ended", worker=self.folder(key).name, exit_code=status.exit_code, reason=status.reason
        )
        return status

    async def quiet(self, limit_s: float) -> bool:
        """Wait until no supervisor is left: one ends a moment after its last answer."""
        locks = [f / supervisor_files.LOCK for f, _ in records.all_records(self._layout)]
        deadline = time.monotonic() + limit_s
        while any(supervisor_files.is_locked(str(lock)) for lock in locks):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    # --- effects ---------------------------------------------------------------------------------

    async def perform(self, act: Act) -> Done:
        """Do it; the outcome, good or bad, as the event that answers it."""
        try:
            done = await self._perform(act)
            if act.verb in _CHANGES_IMAGES:
                self.archivist.hint()
            return done
        except OnefleetError as error:
            exit_code = CANNOT_START if isinstance(error, InvalidRequest) else None
            text = f"{error.what}: {error.why}" if error.why else error.what
        except OSError as error:
            full = StorageFull(f"no space left in {self._layout.root}").what
            exit_code, text = None, full if error.errno == errno.ENOSPC else str(error)
        log.warning("failed", verb=act.verb, worker=self.folder(act.key).name, reason=text)
        return Done(act.key, act.verb, error=text, exit_code=exit_code)

    async def _perform(self, act: Act) -> Done:
        log.info(act.verb, worker=self.folder(act.key).name)
        match act:
            case Start(order=order):
                return await self._start(act, order)
            case Restore():
                return await self._restore(act)
            case Save():
                return await self._save(act)
            case Finish():
                await self._finish(act)
            case Freeze():
                await self.driver(act.key).freeze(self.folder(act.key))
            case Thaw(devices=devices):
                await self._bind(act.key, devices)
                gpus = accelerators.gpus(self._specs.known(devices))
                await self.driver(act.key).thaw(self.folder(act.key), gpus)
            case Pin(devices=devices):
                await self._bind(act.key, devices)
            case Fetch():
                return await self._fetch(act)
            case Stop(grace_ms=grace_ms):
                return await self._stop(act, grace_ms)
            case Prune(keep=keep):
                await asyncio.to_thread(records.prune, self.folder(act.key), keep)
            case Discard():
                await asyncio.to_thread(records.retire, self.folder(act.key))
                self._records.pop(act.key, None)
            case _:
                assert_never(act)
        return Done(act.key, act.verb)

    async def _start(self, act: Start, order: Order) -> Done:
        driver = self._job_driver if order.job else "local"
        held = self._specs.held(order.devices)
        if order.job and (why := self._gpus.why_not(held, order.job.workers)):
            log.info("is to save itself", worker=self.folder(act.key).name, reason=why)
            driver = "local"
        spec = await asyncio.to_thread(self._specs.of, act.key, order, driver)
        (spec.folder / PORT_FILE).unlink(missing_ok=True)
        record = Record(
            work_id=order.work_id, rank=order.rank, epoch=order.epoch, driver=driver, order=order
        )
        await self._keep(record)
        await self._drivers[driver].start(spec)
        return Done(act.key, act.verb)

    async def _restore(self, act: Restore) -> Done:
        order, image = act.order, act.image
        before = self._records.get(act.key)
        folder = self.folder(act.key)
        if image not in records.images(folder) and not await self._take(folder, image):
            return Done(act.key, Verb.RESTORE, error=f"image {image} is not on this node")
        driver = await asyncio.to_thread(images.kind, str(folder / records.IMAGES / image))
        if driver not in self._drivers:
            told = f"image {image} is of driver {driver}, which this node does not have"
            return Done(act.key, Verb.RESTORE, error=told)
        spec = await asyncio.to_thread(self._specs.of, act.key, order, driver)
        record = Record(
            work_id=order.work_id, rank=order.rank, epoch=order.epoch, driver=driver, order=order,
            image=image, image_bytes=before.image_bytes if before else 0,
            hold=Hold(HoldKind.RESTORE, image) if act.hold else None,
        )  # fmt: skip
        await self._keep(record)
        path = folder / records.IMAGES / image
        await self._drivers[driver].restore(spec, path, hold=act.hold)
        return Done(act.key, act.verb)

    async def _take(self, folder: Path, image: ImageId) -> bool:
        """Get an image that is not here from the share; False when it is not there either."""
        if self._share is None:
            return False
        taken = await asyncio.to_thread(self._share.take, folder.name, image)
        if taken:
            log.info("taken from the share", worker=folder.name, image=image)
        return taken

    async def _save(self, act: Save) -> Done:
        record, folder = self._records[act.key], self.folder(act.key)
        kind = HoldKind.MAKING if act.runs_on else HoldKind.SAVE
        record = structs.replace(record, hold=Hold(kind, act.image) if act.hold else None)
        if not act.runs_on:
            record = structs.replace(record, image=act.image, image_bytes=0)
        await self._keep(record)
        (folder / records.IMAGES).mkdir(exist_ok=True)
        path = folder / records.IMAGES / act.image
        driver, memory = self._drivers[record.driver], None
        if act.in_memory:
            took = (await driver.status(folder)).memory_bytes
            memory = await asyncio.to_thread(
                memory_images.place, self._layout, folder.name, act.image, took
            )
        try:
            saved = await driver.save(
                folder,
                path,
                hold=act.hold,
                leave_running=act.runs_on,
                memory=memory,
                limit_ms=act.limit_ms,
            )
        except OnefleetError as error:
            status = await driver.status(folder)
            if act.runs_on or status.state is not WorkerState.ENDED:
                raise
            told, code = status.reason or error.what, status.exit_code
            return Done(act.key, act.verb, error=told, exit_code=code, over=True)
        if not act.runs_on:
            await self._keep(structs.replace(record, image_bytes=saved.size_bytes))
        log.info("saved", worker=folder.name, bytes=saved.size_bytes, frozen_ms=saved.frozen_ms)
        return Done(
            act.key,
            act.verb,
            image_bytes=saved.size_bytes,
            lost_ms=saved.lost_ms,
            took_ms=saved.frozen_ms,
        )

    async def _finish(self, act: Finish) -> None:
        """End a hold; from then on the record has none, so that no later agent ends it again."""
        record = self._records[act.key]
        await self._drivers[record.driver].finish(self.folder(act.key), act.commit)
        saves = record.hold is not None and record.hold.kind is HoldKind.SAVE
        image = None if saves and not act.commit else record.image
        await self._keep(structs.replace(record, hold=None, image=image))

    async def _bind(self, key: WorkerKey, devices: tuple[DeviceId, ...]) -> None:
        """See that it has these devices and no others, whatever was under way before."""
        record, folder = self._records[key], self.folder(key)
        if devices == record.order.devices and not record.binding:
            return
        driver, held = self._drivers[record.driver], self._specs.held(devices)
        binding = tuple(dict.fromkeys((*record.binding, *devices)))
        await self._keep(structs.replace(record, binding=binding))
        if (gpus := accelerators.gpus(held)) and devices != record.order.devices:
            # Of a gang, it is put on them when its turn comes; another when it is thawed.
            await driver.off(folder, gpus)
        if cpus := accelerators.cores(held):
            await driver.pin(folder, cpus)
        order = structs.replace(record.order, devices=devices)
        await self._keep(structs.replace(record, order=order, binding=()))

    async def _fetch(self, act: Fetch) -> Done:
        """Some of an image; meanwhile it is noted to whom it belongs."""
        order, folder = act.order, self.folder(act.key)
        kept: list[Awaitable[None]] = []
        if act.key not in self._records:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            record = Record(
                work_id=order.work_id, rank=order.rank, epoch=NO_GENERATION,
                driver=self._job_driver, order=order,
            )  # fmt: skip
            kept.append(asyncio.create_task(self._keep(record)))
        errand = self.fetches[act.key] = fetching.Errand(order.coming)
        try:
            whole = await self._take(folder, act.image) or await asyncio.to_thread(
                fetching.fetch, self._layout, act.key, act.image, order.sources,
                hurry=hurries(order), errand=errand,
            )  # fmt: skip
        finally:
            del self.fetches[act.key]
            await asyncio.gather(*kept)
        return Done(act.key, act.verb, more=not whole)

    async def _stop(self, act: Stop, grace_ms: int) -> Done:
        driver, folder = self.driver(act.key), self.folder(act.key)
        await driver.stop(folder, grace_ms)
        status = await driver.status(folder)
        return Done(act.key, act.verb, exit_code=status.exit_code)

    def driver(self, key: WorkerKey) -> Driver:
        """The one that this worker was started by."""
        return self._drivers[self._records[key].driver]

    async def _keep(self, record: Record) -> None:
        folder = self.folder(record.key)
        await asyncio.to_thread(records.write, folder, record)
        self._records[record.key] = record


def _adopted(folder: Path, record: Record, status: WorkerStatus | None) -> Adopted:
    """A worker that an agent before this one left, as the machine is told of it."""
    log.info("adopted", worker=folder.name, state=status.state if status else "only files")
    return Adopted(
        record.key,
        is_job=record.order.job is not None,
        epoch=record.epoch,
        grace_ms=record.order.grace_ms,
        state=status.state if status else None,
        exit_code=status.exit_code if status else None,
        reason=status.reason if status else "",
        image=record.image,
        images=records.images(folder),
        image_bytes=status.image_bytes if status else record.image_bytes,
        lost_ms=status.lost_ms if status else 0,
        devices=record.order.devices,
        binding=record.binding,
        milli=record.order.milli,
        hold=record.hold,
    )
