"""Gets a worker's image from another node's agent, as far as it goes within a while.

In a hurry, as for a worker that is to run here, its files come as they are, if they are there
still: that is the fastest way on networks that are about as fast as disks. Nobody waits then for
the disk: until that has them, or they are folded, a crash of this machine leaves an image that is
found to be torn, and the node that it came from has it still. Else what comes is the chunks that
are not here yet, of which there are few when an earlier image of the work is here.

What has come is kept, and the next call goes on from there, whichever node it asks: an image has
one content. It gets its name only when it is whole. Who finds that it hurries after all breaks the
call off.
"""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from threading import Lock

import msgspec

from onefleet.agent import records
from onefleet.agent.protocol import WorkerKey
from onefleet.domain.errors import NotFound, OnefleetError, Unreachable, UpstreamFailed
from onefleet.domain.ids import ImageId
from onefleet.domain.layout import Layout
from onefleet.drivers import image as images
from onefleet.drivers import recipe, transfer
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
#: Chunks that are asked for at a time (16 MiB); what has come of them before a stop is lost.
_BATCH = 4_096
_CHUNK = 1 << 20


class Errand:
    """One call to `fetch`, for who may want to break it off from another thread."""

    def __init__(self) -> None:
        self.broken = False
        self._lock = Lock()
        self._socket: socket.socket | None = None

    def break_off(self) -> None:
        """Have it return soon, as if its slice were over."""
        with self._lock:
            self.broken = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

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
) -> bool:
    """Go on with it for at most a slice, or until the errand is broken off; whether it is whole.
    Blocking.

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
                    return _fetch_from(layout, key, peer, target, hurry, deadline)
            except (Unreachable, NotFound) as error:
                failed = error
            if errand.broken:
                return False
        if isinstance(failed, NotFound) or time.monotonic() + RETRY_S >= deadline:
            raise failed
        time.sleep(RETRY_S)


def _fetch_from(
    layout: Layout, key: WorkerKey, peer: _Peer, target: Path, hurry: bool, deadline: float
) -> bool:
    there = peer.files()
    partial = target.with_name(target.name + images.PARTIAL)
    partial.mkdir(parents=True, exist_ok=True, mode=0o700)
    if hurry and there.raw:
        missing = sum(f.size for f in there.files) - _size(partial)
        ensure_room(layout.root, max(missing, 0), f"image {target.name}")
        if not all(peer.copy(file, partial, deadline) for file in there.files):
            return False
        _check(partial)
        return _name(partial, target, durable=False)
    manifest = next(f for f in there.files if f.name == images.MANIFEST)
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
        shutil.rmtree(partial)
        partial.mkdir(mode=0o700)
        peer.copy(manifest, partial, deadline + SILENCE_S)
        recipe.write(partial / recipe.NAME, made)
        return _name(partial, target, durable=True)


def _check(partial: Path) -> None:
    """Throw away what is not as it should be."""
    try:
        images.verify(str(partial))
    except (NotFound, UpstreamFailed):
        images.discard(str(partial))
        raise


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

    def copy(self, file: ImageFile, folder: Path, deadline: float) -> bool:
        """Get what is missing of one file; whether that was done in time."""
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
            while done < file.size:
                if time.monotonic() >= deadline:
                    return False
                with self._asking():
                    count = answer.readinto(buffer[: min(_CHUNK, file.size - done)])
                if not count:
                    raise Unreachable(f"node {self._source.node_id} broke off")
                out.write(buffer[:count])
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
