"""One pass over all saved images of a node: fold them, drop what is then superfluous, clean up.

usage: python -m onefleet.agent.archive DATA_FOLDER PARENT_PID [NODE SHARE]

It takes no input but what lies there, and every pass does all that is left to do, so that it can be
killed at any point and called at any time. A save leaves an image raw, because that is the
fastest way to free memory; this process then works with what nobody else wants of the cores and the
disk. Raw files of images that may be wanted soon stay for as long as there is much room. Where a
share is named, all that is folded is put there, too.

What it did goes to stdout, a JSON object a line, for the agent's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onefleet.agent import memory_images, records
from onefleet.agent.share import Share
from onefleet.domain.errors import NotFound, OnefleetError, UpstreamFailed
from onefleet.domain.layout import Layout
from onefleet.drivers import image as images
from onefleet.drivers import linux, recipe, supervisor_files
from onefleet.drivers.chunk_store import ChunkStore

#: Raw files may stay while they take less than this part of what is free on the disk.
RAW_PART = 10
#: What is told when files of images are in memory: somebody else may need that soon.
IN_MEMORY = "in_memory"
#: The least that the kernel's scheduler gives: about a seventieth of a core that others want, too.
_NICE = 19

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class RawCopy:
    """The raw files of a folded image. wanted: its worker is saved as this image."""

    path: Path
    size_bytes: int
    made_at_ms: int
    wanted: bool
    in_memory: bool = False


def superfluous(copies: Iterable[RawCopy], room_bytes: int) -> list[RawCopy]:
    """Those that are to go: nobody waits for them, or newer ones fill the room."""
    gone = []
    for copy in sorted(copies, key=lambda c: (-c.made_at_ms, c.path)):
        if copy.wanted and copy.size_bytes <= room_bytes:
            room_bytes -= copy.size_bytes
        else:
            gone.append(copy)
    return gone


def tidy(
    layout: Layout,
    tell: Tell,
    room_bytes: int | None = None,
    share: Share | None = None,
    shm: Path = memory_images.SHM,
) -> None:
    """Do the whole pass. room_bytes: what raw files may take on the disk; None: RAW_PART of what is
    free. shm: a file system in memory.

    What cannot be done for one work is told and does not keep the others waiting.
    """
    works: dict[str, list[Path]] = {}
    for folder in records.folders(layout):
        works.setdefault(folder.name.rpartition(".")[0], []).append(folder)
    for work, folders in works.items():
        with _told(tell, work):
            for image in sorted(_images(folders), key=lambda i: images.is_durable(str(i))):
                _fold(ChunkStore(layout.chunks(work)), image, tell)
    if room_bytes is None:
        room_bytes = shutil.disk_usage(layout.root).free // RAW_PART
    copies = [c for folders in works.values() for c in _raw_copies(folders)]
    _drop([c for c in copies if not c.in_memory], room_bytes)
    in_memory = [c for c in copies if c.in_memory]
    _drop(in_memory, sum(c.size_bytes for c in in_memory) + memory_images.room_bytes(layout, shm))
    memory_images.sweep(layout, shm)
    if left := memory_images.used_bytes(layout, shm):
        tell({"event": IN_MEMORY, "bytes": left})
    if share is not None:
        with _told(tell, "the share"):
            _put(share, works, tell)
    for store in records.subfolders(layout.chunk_stores):
        with _told(tell, store.name):
            _clean_up(layout, ChunkStore(store), tell)


def _drop(copies: Sequence[RawCopy], room_bytes: int) -> None:
    for copy in superfluous(copies, room_bytes):
        with contextlib.suppress(OnefleetError):  # pruned, or damaged: then it stays as it is
            images.drop_raw(str(copy.path))


def _fold(store: ChunkStore, image: Path, tell: Tell) -> None:
    """Fold a raw image, and see that it can be put together again before it counts as folded."""
    if images.is_folded(str(image)):
        return
    began, before = time.monotonic(), store.size_bytes
    try:
        files = images.verify(str(image))["files"]
        raw = Path(images.raw(str(image)))
        wanted = {name: entry.get("xxh3") for name, entry in files.items()}
        if not files or None in wanted.values():  # of an older agent
            return
        with store.writing() as writer:
            for afresh in (False, True):
                made = writer.fold({name: raw / name for name in files}, afresh=afresh)
                with contextlib.suppress(UpstreamFailed):  # a chunk that was here has decayed
                    if writer.checksums(made) == wanted:
                        break
            else:
                raise UpstreamFailed(f"image {image} cannot be folded", why="its chunks differ")
            recipe.write(image / recipe.NAME, made)
    except (NotFound, FileNotFoundError, UpstreamFailed):
        if image.exists():
            raise
        return  # pruned meanwhile
    tell(
        {
            "event": "folded",
            "image": f"{image.parent.parent.name}/{image.name}",
            "bytes": made.size_bytes,
            "stored": store.size_bytes - before,
            "ms": int((time.monotonic() - began) * 1000),
        }
    )


def _put(share: Share, works: Mapping[str, Sequence[Path]], tell: Tell) -> None:
    if not share.is_there:
        raise NotFound(f"{share.folder} is not there", why="it may not be mounted")
    for folders in works.values():
        for image in _images(folders):
            if images.is_folded(str(image)):
                began, worker = time.monotonic(), image.parent.parent.name
                stored = share.put(worker, image)
                if stored is not None:
                    took_ms = int((time.monotonic() - began) * 1000)
                    name = f"{worker}/{image.name}"
                    tell({"event": "shared", "image": name, "stored": stored, "ms": took_ms})
    share.forget(time.time())


def _clean_up(layout: Layout, store: ChunkStore, tell: Tell) -> None:
    """Remove what no image of the work names any more; the whole store when there is none.

    Its images are looked for now that nobody else writes: some may have been fetched since the pass
    began, which may be long ago on a busy machine.
    """
    with store.writing() as writer:
        folders = records.root(layout).glob(f"{store.folder.name}.*")
        paths = [image / recipe.NAME for image in _images(folders)]
        if not paths:
            shutil.rmtree(store.folder, ignore_errors=True)
        elif freed := writer.collect(paths):
            tell({"event": "freed", "work": store.folder.name, "bytes": freed})


def _images(folders: Iterable[Path]) -> list[Path]:
    return [f / records.IMAGES / i for f in folders for i in records.images(f)]


def _raw_copies(folders: Iterable[Path]) -> Iterable[RawCopy]:
    """Of images that are folded; what is half gone counts, too."""
    for folder in folders:
        state = supervisor_files.read_json(str(folder / supervisor_files.STATE))
        saved_as = state.get("image") if state.get("state") == "saved" else None
        for image in _images([folder]):
            if not images.is_folded(str(image)):
                continue
            with contextlib.suppress(OnefleetError):
                manifest = images.read(str(image))
                raw = Path(images.raw(str(image)))
                if any((raw / name).exists() for name in manifest["files"]):
                    yield RawCopy(
                        image,
                        images.total_bytes(manifest),
                        int(manifest.get("made_at_ms", 0)),
                        wanted=str(image) == saved_as,
                        in_memory=raw != image,
                    )


@contextlib.contextmanager
def _told(tell: Tell, work: str) -> Any:
    try:
        yield
    except OnefleetError as error:
        tell({"event": "not_kept", "of": work, "reason": f"{error.what}: {error.why}"})
    except OSError as error:
        tell({"event": "not_kept", "of": work, "reason": str(error)})


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Be the process; it ends with the agent."""
    root, parent, *more = arguments
    linux.die_with_parent(signal.SIGTERM)
    if os.getppid() != int(parent):
        return 1
    os.nice(_NICE)
    linux.name_process("onefleet-fold")
    layout = Layout(Path(root))
    tidy(layout, _say, share=Share(Path(more[1]), layout, more[0]) if more else None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
