"""Images whose files lie in memory: the quickest to come back from, as long as there is room.

Such an image occupies about what its processes did; only the cores are free by it. So it is made
only when that is asked for and there is room, within a part of the machine's memory; else the
files go to the disk. It is folded like any other, ahead of these. Then it is durable, and its files
go from memory as soon as somebody else needs the room.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from pathlib import Path

from onefleet.agent import records
from onefleet.agent.devices import memory_bytes
from onefleet.domain.layout import Layout
from onefleet.drivers import image as images
from onefleet.registry.blobs import folder_bytes

#: A file system in memory; everybody may write there.
SHM = Path("/dev/shm")  # noqa: S108
#: Of the machine's memory: what images may take, and what stays free beside them.
PART, FREE_PART = 4, 10
#: How much larger than its processes' memory an image may be.
_MARGIN_PERCENT = 10


def root(layout: Layout, shm: Path = SHM) -> Path:
    """Where they lie for this data folder; in it a folder a worker, as in the data folder."""
    of = hashlib.sha256(str(layout.root.absolute()).encode()).hexdigest()[:16]
    return shm / f"onefleet-{os.getuid()}-{of}"


def room_bytes(layout: Layout, shm: Path = SHM) -> int:
    """How many bytes may be added now; below zero when there is too much already."""
    total, available = memory_bytes()
    file_system = os.statvfs(shm)
    return min(
        total // PART - used_bytes(layout, shm),
        available - total // FREE_PART,
        file_system.f_bavail * file_system.f_frsize,
    )


def used_bytes(layout: Layout, shm: Path = SHM) -> int:
    """What all of them take."""
    return folder_bytes(root(layout, shm))


def place(layout: Layout, worker: str, image: str, memory: int, shm: Path = SHM) -> Path | None:
    """Where the files of this image may lie; None when there is no room for them.

    memory: what the worker's processes take now.
    """
    try:
        if memory * (100 + _MARGIN_PERCENT) // 100 > room_bytes(layout, shm):
            return None
        folder = root(layout, shm)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not own or stat.S_IMODE(found.st_mode) & 0o077:
        return None  # somebody else made it: everybody may write there
    return folder / worker / image


def sweep(layout: Layout, shm: Path = SHM) -> None:
    """Remove what no image leads to: somebody was killed at the wrong moment."""
    saves = [f.name for f in records.folders(layout) if (f / records.IMAGES).is_dir()]
    for worker in records.subfolders(root(layout, shm)):
        for files in records.subfolders(worker):
            image = records.root(layout) / worker.name / records.IMAGES / files.name
            links = (image, image.with_name(image.name + images.PARTIAL))
            if not any((link / images.MEMORY).is_symlink() for link in links):
                shutil.rmtree(files, ignore_errors=True)
        if worker.name not in saves:  # else a save may be about to use it
            shutil.rmtree(worker, ignore_errors=True)
    if not saves:
        with contextlib.suppress(OSError):
            root(layout, shm).rmdir()
