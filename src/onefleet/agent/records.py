"""What the agent must know of a worker after its own death: one small file in the worker's folder.

Written before the driver call that it is about, so that a restarted agent knows at least what may
be true; what is true the driver says. A folder without the file is of a worker that is over: its
output stays for a while, for its owner.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from onefleet.agent.protocol import Hold, WorkerKey
from onefleet.core.health import Remembered
from onefleet.domain.ids import DeviceId, Generation, ImageId, WorkId
from onefleet.domain.layout import Layout
from onefleet.drivers import image
from onefleet.drivers.base import Capability
from onefleet.wire.agent import Order

log = structlog.get_logger()

#: The record's name; drivers have files of their own beside it.
RECORD = "agent.json"
PROOF = "capability.json"
HEALTH = "health.json"
IDENTITY = "identity"
IMAGES = "images"
WORK = "work"
CHECKPOINT = "checkpoint"
#: What stays of a worker that is over: its output, what its program wrote, and what it saved of
#: itself, from which it goes on if it is started afresh.
KEPT = ("stdout", "stderr", WORK, CHECKPOINT)
#: How many such folders stay; the oldest go first.
RETIRED_MAX = 200


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """order: what its process was last started or restored with, and the devices that it has now.
    binding: those that it is being given instead, and may have already. image: what it was last
    saved as, or is being saved as. driver: the one that its process belongs to. hold: that it is
    brought into, or is in, until that is ended.
    """

    work_id: WorkId
    rank: int
    epoch: Generation
    driver: str
    order: Order
    binding: tuple[DeviceId, ...] = ()
    image: ImageId | None = None
    image_bytes: int = 0
    hold: Hold | None = None

    @property
    def key(self) -> WorkerKey:
        return WorkerKey(self.work_id, self.rank)


def write(folder: Path, record: Record) -> None:
    """Replace the record as a whole and make it durable. Raises OSError."""
    _replace(folder / RECORD, msgspec.json.encode(record))


def read(folder: Path) -> Record | None:
    """The record, or None where there is none. One that cannot be read is taken for none."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        log.error("a worker's record cannot be read", folder=str(folder), reason=str(error))
        return None


class _Proof(msgspec.Struct, frozen=True):
    boot: str
    capability: Capability
    gpus: Capability | None = None


def remember_proof(layout: Layout, capability: Capability, gpus: Capability) -> None:
    """Keep what was proved, so that the next agent need not wait for the proof; where there is
    no room for that, the next one proves it again."""
    try:
        _replace(layout.agent / PROOF, msgspec.json.encode(_Proof(_boot(), capability, gpus)))
    except OSError as error:
        log.warning("the proof is not kept", reason=str(error))


def recall_proof(layout: Layout) -> tuple[Capability | None, Capability | None]:
    """What an earlier agent proved since the machine started, of jobs and of their GPUs."""
    try:
        proof = msgspec.json.decode((layout.agent / PROOF).read_bytes(), type=_Proof)
    except (OSError, msgspec.DecodeError):
        return None, None
    return (proof.capability, proof.gpus) if proof.boot == _boot() else (None, None)


def remember_health(layout: Layout, devices: Sequence[Remembered]) -> None:
    """Keep which devices are not to be trusted, for the next agent; where there is no room for
    that, it learns it anew."""
    try:
        _replace(layout.agent / HEALTH, msgspec.json.encode(devices))
    except OSError as error:
        log.error("it is not kept which devices are out of use", reason=str(error))


def recall_health(layout: Layout) -> tuple[Remembered, ...]:
    """What an earlier agent knew; nothing where that cannot be read."""
    try:
        raw = (layout.agent / HEALTH).read_bytes()
        return msgspec.json.decode(raw, type=tuple[Remembered, ...])
    except FileNotFoundError:
        return ()
    except (msgspec.DecodeError, OSError) as error:
        log.error("it cannot be read which devices were out of use", reason=str(error))
        return ()


def identity(layout: Layout) -> str:
    """What tells this data folder from others; made by chance when it is first asked for."""
    path = layout.agent / IDENTITY
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        path.write_text(secrets.token_hex(16), encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def _replace(path: Path, content: bytes) -> None:
    """Write the file as a whole, durably. Raises OSError."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def root(layout: Layout) -> Path:
    """Where the workers' folders are."""
    return layout.agent / "workers"


def folders(layout: Layout) -> Sequence[Path]:
    """Of all workers, also of those that are over."""
    return subfolders(root(layout))


def all_records(layout: Layout) -> Sequence[tuple[Path, Record]]:
    """Every worker that is not over, by folder name."""
    found = []
    for folder in subfolders(root(layout)):
        record = read(folder)
        if record is not None and layout.worker(record.work_id, record.rank) == folder:
            found.append((folder, record))
    return found


def images(folder: Path) -> tuple[ImageId, ...]:
    """The whole images in a worker's folder, oldest first. Drivers name one when it is whole.

    One that lay in memory, and was lost with that, is none.
    """
    found = [f for f in subfolders(folder / IMAGES) if not f.name.endswith(image.PARTIAL)]
    found = [f for f in found if not image.is_lost(str(f))]
    return tuple(ImageId(f.name) for f in sorted(found, key=lambda f: (f.stat().st_mtime_ns, f)))


def prune(folder: Path, keep: Sequence[ImageId]) -> None:
    """Remove the images but for `keep`."""
    for found in subfolders(folder / IMAGES):
        if found.name not in keep:
            image.discard(str(found))


def retire(folder: Path) -> None:
    """Remove what was needed to run it. The record goes last, so that a torn try is repeated."""
    if not folder.is_dir():
        return
    prune(folder, ())
    for entry in sorted(folder.iterdir()):
        if entry.name not in (*KEPT, RECORD):
            _remove(entry)
    for name in (WORK, CHECKPOINT):
        if not any((folder / name).glob("*")):
            _remove(folder / name)
    (folder / RECORD).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def forget_oldest(layout: Layout, limit: int = RETIRED_MAX) -> int:
    """Remove the oldest folders of workers that are over, beyond the limit. Returns how many."""
    over = [f for f in subfolders(root(layout)) if not (f / RECORD).exists()]
    over.sort(key=lambda f: (f.stat().st_mtime_ns, f.name))
    gone = over[: max(len(over) - limit, 0)]
    for folder in gone:
        _remove(folder)
    return len(gone)


def subfolders(parent: Path) -> list[Path]:
    """The folders in a folder, by name; none where there is no such folder."""
    try:
        return sorted(f for f in parent.iterdir() if f.is_dir() and not f.is_symlink())
    except FileNotFoundError:
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
