"""Gets a worker's image from another node's agent, as far as it goes within a while.

In a hurry, as for a worker that is to run here, its files come as they are, if they are there
still: that is the fastest way on networks that are about as fast as disks. Nobody waits then for
the disk: they go into memory where there is room. Until they are folded, or the disk has them, a
crash of this machine loses them, and the node that they came from has them still. Else what comes
is the chunks that are not here yet, of which there are few when an earlier image of the work is
here.

What has come is kept, and the next call goes on from there, whichever node it asks: an image has
one content. It gets its name only when it is whole. Who finds that it hurries after all breaks the
call off.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from http import HTTPStatus
from pathlib import Path
from threading import Event, Lock

import msgspec
import xxhash

from onefleet.agent import memory_images, records
from onefleet.agent.protocol import WorkerKey
from onefleet.domain.errors import NotFound, OnefleetError, Unreachable, UpstreamFailed
from onefleet.domain.ids import ImageId
from onefleet.domain.layout import Layout
from onefleet.drivers import image as images
from onefleet.drivers import linux, recipe, transfer
from onefleet.drivers.chunk_store import ChunkStore
from onefleet.drivers.supervisor_files import sync_folder
from onefleet.registry.blobs import ensure_room, no_space_is_ours
from onefleet.wire.agent import Source
from onefleet.wire.transfer import TICKET_HEADER, ImageFile, ImageFiles, image_path

#: How long one call may take, so that other orders can come between.
SLICE_S = 5.0
#: How long a source may say nothing.
SILENCE_S = 10.0
#: While none of the sources can be reached, they are asked again, for a slice.
RETRY_S = 0.2
#: So often who makes an image is asked for more of it.
LOOK_S = 0.02
#: Chunks that are asked for at a time (16 MiB); what has come of them before a stop is lost.
_BATCH = 4_096
_CHUNK = 1 << 20
#: Lies in an image that is fetched when some of it came as it was being made.
_FOLLOWED = "followed"


class Errand:
    """One call to `fetch`, for who may want something else of it, from another thread.

    coming: the image is being made. It may yet come to nothing, and another get its name; so it
    is not whole here before it `counts`.
    """

    def __init__(self, coming: bool = False) -> None:
        self.broken = False
        self.counts = not coming
        self._lock = Lock()
        self._news = Event()
        self._socket: socket.socket | None = None

    def count(self) -> None:
        """From now on the image counts."""
        self.counts = True
        self._news.set()

    def break_off(self) -> None:
        """Have it return soon, as if its slice were over."""
        with self._lock:
            self.broken = True
            self._news.set()
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self, limit_s: float) -> None:
        """Until one of these two was called, or for so long."""
        self._news.wait(max(limit_s, 0))

    def waits_for(self, peer: socket.socket | None) -> None:
        """Which connection it has now. Raises Unreachable once it is broken off."""
        with self._lock:
            self._socket = peer
            if self.broken and peer is not None:
                raise Unreachable("it is not wanted any more like this")


def fetch(
    layout: Layout,
    key: WorkerKey,
    image: ImageId,
    sources: Sequence[Source],
    *,
    hurry: bool,
    slice_s: float = SLICE_S,
    errand: Errand | None = None,
    shm: Path = memory_images.SHM,
) -> bool:
    """Go on with it for at most a slice, or until the errand is broken off; whether it is whole.
    Blocking. shm: a file system in memory.

    Raises Unreachable when no source answers, NotFound when none has it, UpstreamFailed when what
    came is not what it should be (it is thrown away), StorageFull.
    """
    target = layout.worker(key.work_id, key.rank) / records.IMAGES / image
    if target.is_dir():
        return True
    errand = errand or Errand()
    deadline = time.monotonic() + slice_s
    failed: OnefleetError = NotFound(f"no node is known that has image {image}")
    while True:
        for source in sources:
            try:
                found = _Peer(source, image_path(key.work_id, key.rank, image), errand)
                with no_space_is_ours(layout.root, "fetching an image"), closing(found) as peer:
                    call = _Fetch(layout, key, target, errand, deadline, shm)
                    with linux.ahead_of_others() if hurry else nullcontext():
                        return call.run(peer, hurry)
            except (Unreachable, NotFound) as error:
                failed = error
            if errand.broken:
                return False
        counts = errand.counts
        if counts and (isinstance(failed, NotFound) or time.monotonic() + RETRY_S >= deadline):
            raise failed
        if time.monotonic() >= deadline:
            return False  # it is not being made yet
        errand.wait(RETRY_S if counts else LOOK_S)


class _Fetch:
    """One call's work with one source. Raises as `fetch`."""

    def __init__(
        self,
        layout: Layout,
        key: WorkerKey,
        target: Path,
        errand: Errand,
        deadline: float,
        shm: Path,
    ) -> None:
        self._layout = layout
        self._key = key
        self._target = target
        self._partial = target.with_name(target.name + images.PARTIAL)
        self._errand = errand
        self._deadline = deadline
        self._shm = shm
        self._sums: dict[str, _Sum] = {}

    def run(self, peer: _Peer, hurry: bool) -> bool:
        while True:
            counts = self._errand.counts
            there = peer.files()
            if hurry and there.raw:
                if not self._copy(peer, there):
                    return False
                if counts and not there.growing:
                    return self._conclude()
            elif counts:
                return _fetch_chunks(self._layout, self._key, peer, self._target, self._deadline)
            left_s = self._deadline - time.monotonic()
            if left_s <= 0 or self._errand.broken:
                return False
            if not self._errand.counts:
                self._errand.wait(min(LOOK_S, left_s) if there.growing else left_s)

    def _copy(self, peer: _Peer, there: ImageFiles) -> bool:
        """Get what is missing of the files that there are; whether that was done in time."""
        folder = self._place(peer, there)
        try:
            for file in there.files:
                if file.name == images.MANIFEST:
                    continue
                known = self._sums.setdefault(file.name, _Sum())
                if not peer.copy(file, folder, self._deadline, known, there.growing):
                    return False
        except OSError as error:
            if error.errno != errno.ENOSPC or folder == self._partial:
                raise
            self._discard()
            return False  # somebody else took the room in memory: the next call looks for another
        return True

    def _place(self, peer: _Peer, there: ImageFiles) -> Path:
        """Where its files go. What is here of another image of that name is thrown away."""
        manifest = self._partial / images.MANIFEST
        told = b"" if there.growing else peer.manifest()
        if manifest.exists() and manifest.read_bytes() != told:
            self._discard()
        size = max(sum(file.size for file in there.files), there.expected)
        if not self._partial.is_dir() or images.is_lost(str(self._partial)):
            worker = self._layout.worker(self._key.work_id, self._key.rank).name
            memory = memory_images.place(self._layout, worker, self._target.name, size, self._shm)
            images.begin(str(self._target), None if memory is None else str(memory))
        if there.growing:
            (self._partial / _FOLLOWED).touch()
        else:
            manifest.write_bytes(told)
        folder = Path(images.raw(str(self._partial)))
        if folder == self._partial:
            missing = max(size - _size(self._partial), 0)
            ensure_room(self._layout.root, missing, f"image {self._target.name}")
        return folder

    def _conclude(self) -> bool:
        """See that all is as it should be, and give it its name."""
        followed = self._partial / _FOLLOWED
        known = {name: found.digest for name, found in self._sums.items()}
        try:
            images.verify(str(self._partial), known)
        except (NotFound, UpstreamFailed):
            was_followed = followed.exists()
            self._discard()
            if was_followed:
                return False  # what was made first came to nothing: another has its name now
            raise
        followed.unlink(missing_ok=True)
        return _name(self._partial, self._target, durable=False)

    def _discard(self) -> None:
        images.discard_partial(str(self._target))
        self._sums.clear()


class _Sum:
    """The checksum of a file's beginning, as far as it passed through here without a gap."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()
        self._size = 0

    def add(self, at: int, data: memoryview) -> None:
        if at == self._size:
            self._state.update(data)
            self._size += len(data)

    @property
    def digest(self) -> str:
        return self._state.hexdigest()


def _fetch_chunks(
    layout: Layout, key: WorkerKey, peer: _Peer, target: Path, deadline: float
) -> bool:
    partial = target.with_name(target.name + images.PARTIAL)
    listing = transfer.decoded(peer.listing())
    store = ChunkStore(layout.chunks(key.work_id))
    with store.writing() as writer:
        missing_chunks = store.missing(listing.digests)
        ensure_room(layout.root, len(missing_chunks) * recipe.CHUNK, f"image {target.name}")
        for at in range(0, len(missing_chunks), _BATCH):
            if time.monotonic() >= deadline:
                return False
            with peer.chunks(missing_chunks[at : at + _BATCH]) as stream:
                transfer.receive(writer, stream)
        made = transfer.adopt(writer, listing)
        images.discard_partial(str(target))
        partial.mkdir(parents=True, mode=0o700)
        (partial / images.MANIFEST).write_bytes(peer.manifest())
        recipe.write(partial / recipe.NAME, made)
        return _name(partial, target, durable=True)


def _name(partial: Path, target: Path, *, durable: bool) -> bool:
    """Give it its name.

    What is not to be durable is not even on its way to the disk then: whatever else is made durable
    meanwhile, as the records of a restore are, would wait for it in the file system's journal.
    """
    for entry in partial.iterdir() if durable else ():
        with entry.open("rb") as file:
            os.fsync(file.fileno())
    partial.rename(target)
    if durable:
        sync_folder(str(target.parent))
    return True


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.iterdir()) if folder.is_dir() else 0


class _Peer:
    """The agent that has the image. Whatever breaks a call to it off is Unreachable."""

    def __init__(self, source: Source, path: str, errand: Errand) -> None:
        host, _, port = source.address.rpartition(":")
        self._source = source
        self._path = path
        self._errand = errand
        self._connection = http.client.HTTPConnection(host, int(port), timeout=SILENCE_S)

    def close(self) -> None:
        self._errand.waits_for(None)
        self._connection.close()

    def files(self) -> ImageFiles:
        """What there is of the image. Raises NotFound."""
        try:
            return msgspec.json.decode(self._read(""), type=ImageFiles)
        except msgspec.DecodeError as error:
            who = self._source.node_id
            raise UpstreamFailed(f"node {who} answers nonsense", why=str(error)) from error

    def listing(self) -> bytes:
        return self._read("/listing")

    def manifest(self) -> bytes:
        return self._read(f"/files/{images.MANIFEST}")

    def _read(self, path: str) -> bytes:
        with self._asking():
            return self._call("GET", path).read()

    @contextmanager
    def chunks(self, digests: Sequence[bytes]) -> Iterator[http.client.HTTPResponse]:
        """The stream of these chunks."""
        with self._asking():
            answer = self._call("POST", "/chunks", body=b"".join(digests))
            try:
                yield answer
            except UpstreamFailed as error:  # broken off, or no such stream
                raise Unreachable(error.what, why=error.why) from error
            finally:
                answer.close()

    def copy(
        self, file: ImageFile, folder: Path, deadline: float, known: _Sum, growing: bool
    ) -> bool:
        """Get what is missing of one file; whether that was done in time.

        growing: it may be longer by now than `file` says, and all of that comes.
        """
        target = folder / os.path.basename(file.name)
        done = target.stat().st_size if target.exists() else 0
        if done > file.size:
            target.unlink()
            done = 0
        buffer = memoryview(bytearray(_CHUNK))
        with target.open("ab", buffering=0) as out:
            if done == file.size:
                return True
            with self._asking():
                answer = self._call("GET", f"/files/{file.name}", start=done)
            if not growing and answer.length != file.size - done:
                why = f"{file.name} has {answer.length} bytes more instead of {file.size - done}"
                raise Unreachable(f"node {self._source.node_id} gives another file", why=why)
            while answer.length:
                if time.monotonic() >= deadline:
                    return False
                with self._asking():
                    count = answer.readinto(buffer)
                if not count:
                    raise Unreachable(f"node {self._source.node_id} broke off")
                out.write(buffer[:count])
                known.add(done, buffer[:count])
                done += count
        answer.close()
        return True

    def _call(
        self, method: str, path: str, body: bytes | None = None, start: int = 0
    ) -> http.client.HTTPResponse:
        headers = {TICKET_HEADER: self._source.ticket}
        if start:
            headers["range"] = f"bytes={start}-"
        if self._connection.sock is None:
            self._connection.connect()
        self._errand.waits_for(self._connection.sock)
        self._connection.request(method, self._path + path, body, headers)
        answer = self._connection.getresponse()
        if answer.status >= 400:
            why = answer.read(1_000).decode("utf-8", "replace").strip()
            if answer.status == HTTPStatus.NOT_FOUND and not path:
                raise NotFound(f"node {self._source.node_id} does not have the image", why=why)
            raise Unreachable(f"node {self._source.node_id} gives {answer.status}", why=why)
        return answer

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (http.client.HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.errno in _OURS:
                raise
            why = str(error) or type(error).__name__
            raise Unreachable(f"node {self._source.node_id} broke off", why=why) from error


#: Errors of this node's disk, which may come up while another node is asked.
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
