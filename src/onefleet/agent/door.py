"""The node's door: serves its workers' images, and what they printed, to who has a ticket.

Whole files go from the file to the socket within the kernel. A thread a connection: there are few,
and each is busy with a disk or waits. The door's key comes with the orders; before them nobody is
let in.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import NamedTuple

import msgspec

from onefleet.agent import records
from onefleet.domain.errors import Conflict, NotFound, OnefleetError
from onefleet.domain.ids import ImageId, WorkId
from onefleet.domain.layout import Layout
from onefleet.drivers import image as images
from onefleet.drivers import linux, process_tree, recipe, supervisor_files, transfer
from onefleet.drivers.chunk_store import ChunkStore
from onefleet.drivers.packs import DIGEST, digests_in
from onefleet.drivers.page_check import PAGES
from onefleet.wire.tickets import image_name, log_name, opens
from onefleet.wire.transfer import TICKET_HEADER, ImageFile, ImageFiles

#: A connection on which nothing happens for this long is closed.
QUIET_S = 30.0
#: Connections at one time; further ones are refused.
CONNECTIONS_MAX = 32
#: Chunks that one call may ask for.
CHUNKS_MAX = 1 << 16

_NAME = r"([A-Za-z0-9][A-Za-z0-9._-]{0,199})"
_IMAGE = re.compile(rf"/images/{_NAME}/(\d{{1,5}})/{_NAME}(?:/(files/{_NAME}|listing|chunks))?")
_LOG = re.compile(rf"/logs/{_NAME}/(\d{{1,5}})/(stdout|stderr)")
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-|-(\d{1,18}))")
_STREAMS = {"stdout": supervisor_files.STDOUT, "stderr": supervisor_files.STDERR}


class _Asked(NamedTuple):
    """name: what the ticket has to be for. path: of the file, or of the image's folder."""

    name: str
    path: Path
    answer: Callable[[Path], None]


class Door:
    """Listens from when it is made. Raises Conflict when the address cannot be had."""

    def __init__(self, layout: Layout, host: str = "127.0.0.1", port: int = 0) -> None:
        self.key = ""
        self.layout = layout
        try:
            self._server = _Server((host, port), self)
        except OSError as error:
            raise Conflict(
                f"this node cannot listen at {host}:{port}",
                why=error.strerror or str(error),
                hint="give another address with --listen HOST:PORT",
            ) from error
        listens_at = self._server.server_address
        self.address = f"{host}:{listens_at[1]}"
        poll = {"poll_interval": 0.05}
        self._thread = Thread(target=self._server.serve_forever, kwargs=poll, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more. Who is being served is not waited for."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], door: Door) -> None:
        self.door = door
        self._open = 0
        self._lock = Lock()
        super().__init__(address, _Visit)

    def verify_request(self, request: object, client_address: object) -> bool:
        """Whether there is room for another connection."""
        return self._open < CONNECTIONS_MAX

    def count(self, more: int) -> None:
        """So many connections more."""
        with self._lock:
            self._open += more

    def handle_error(self, request: object, client_address: object) -> None:
        """A peer that leaves is no news."""


class _Visit(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = QUIET_S
    server: _Server

    def setup(self) -> None:
        self.server.count(1)
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def finish(self) -> None:
        self.server.count(-1)
        super().finish()

    def do_GET(self) -> None:
        self._visit()

    def do_POST(self) -> None:
        self._visit()

    def _visit(self) -> None:
        asked, key = self._asked(), self.server.door.key
        shown = self.headers.get(TICKET_HEADER, "")
        if asked is None or not key or not opens(key, asked.name, shown):
            self.close_connection = True  # what else it sends is not read
            self._refuse(HTTPStatus.FORBIDDEN, "no ticket for that")
            return
        try:
            asked.answer(asked.path)
        except (NotFound, FileNotFoundError, NotADirectoryError):
            self._refuse(HTTPStatus.NOT_FOUND, "it is not on this node")
        except (OnefleetError, ValueError) as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))

    def _asked(self) -> _Asked | None:
        layout = self.server.door.layout
        if found := _IMAGE.fullmatch(self.path):
            work_id, rank, image, part, file = found.groups()
            name = image_name(WorkId(work_id), int(rank), ImageId(image))
            path = layout.worker(work_id, int(rank)) / records.IMAGES / image
            if part == "chunks":
                return _Asked(name, path, self._chunks) if self.command == "POST" else None
            if self.command != "GET":
                return None
            if file == images.MANIFEST:
                return _Asked(name, path / file, self._send)
            if file:
                there = path if path.is_dir() else _growing(path)
                return _Asked(name, Path(images.raw(str(there))) / file, self._send)
            return _Asked(name, path, self._listing if part else self._list)
        found = _LOG.fullmatch(self.path)
        if found and self.command == "GET":
            work_id, rank, stream = found.groups()
            path = layout.worker(work_id, int(rank)) / _STREAMS[stream]
            return _Asked(log_name(WorkId(work_id), int(rank)), path, self._send)
        return None

    # --- answers -------------------------------------------------------------------------------

    def _list(self, folder: Path) -> None:
        """The manifest, and the files that it names if they are all there."""
        if not folder.is_dir() and (partial := _growing(folder)).is_dir():
            self._whole(msgspec.json.encode(_pages(partial)), "application/json")
            return
        manifest = images.read(str(folder))
        raw = images.is_raw(str(folder), manifest)
        sizes = {images.MANIFEST: (folder / images.MANIFEST).stat().st_size}
        if raw:
            sizes |= {name: int(entry["size"]) for name, entry in manifest["files"].items()}
        files = tuple(ImageFile(name=name, size=size) for name, size in sizes.items())
        self._whole(msgspec.json.encode(ImageFiles(files=files, raw=raw)), "application/json")

    def _listing(self, folder: Path) -> None:
        self._whole(self._content(folder).encoded(), "application/octet-stream")

    def _content(self, folder: Path) -> transfer.Listing:
        if images.is_folded(str(folder)):
            return transfer.listing(self._store(folder), folder / recipe.NAME)
        return transfer.listing_of_files(self._files(folder))

    def _chunks(self, folder: Path) -> None:
        size = int(self.headers.get("content-length", "0"))
        if size > CHUNKS_MAX * DIGEST:
            self.close_connection = True
            raise ValueError(f"at most {CHUNKS_MAX} chunks can be had at a time")
        wanted = digests_in(self.rfile.read(size))
        if images.is_folded(str(folder)):
            stream = transfer.export(self._store(folder), wanted)
        else:
            files = self._files(folder)
            stream = transfer.export_files(files, transfer.listing_of_files(files), wanted)
        self.close_connection = True  # its end is the end of the connection
        self.send_response_only(HTTPStatus.OK)
        self.send_header("connection", "close")
        self.end_headers()
        for part in stream:
            self.wfile.write(part)

    def _store(self, folder: Path) -> ChunkStore:
        worker = folder.parent.parent.name
        return ChunkStore(self.server.door.layout.chunks(WorkId(worker.rpartition(".")[0])))

    def _files(self, folder: Path) -> dict[str, Path]:
        raw = Path(images.raw(str(folder)))
        return {name: raw / name for name in images.read(str(folder))["files"]}

    def _send(self, path: Path) -> None:
        """The file, or the rest of it."""
        with ExitStack() as stack:
            stack.enter_context(linux.ahead_of_others())  # copies in no hurry come by chunks
            try:
                file = stack.enter_context(open(path, "rb", buffering=0, opener=_no_link))
            except OSError as error:  # a folder, for one
                raise NotFound(f"{path.name} cannot be read", why=str(error)) from error
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise NotFound(f"{path.name} is no file")
            size = about.st_size
            wanted = _RANGE.fullmatch(self.headers.get("range", ""))
            start = 0
            if wanted:
                start = max(size - int(wanted[2]), 0) if wanted[2] else min(int(wanted[1]), size)
            status = HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK
            kind = "application/octet-stream"
            self._head(status, size - start, kind, f"bytes {start}-/{size}")
            if start < size:
                self.connection.sendfile(file, start, size - start)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._whole(text.encode(), "text/plain", status)

    def _whole(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._head(status, len(body), kind)
        self.wfile.write(body)

    def _head(self, status: HTTPStatus, length: int, kind: str, spans: str = "") -> None:
        self.send_response_only(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(length))
        if spans:
            self.send_header("content-range", spans)
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is noted of a visit."""


def _growing(image: Path) -> Path:
    return image.with_name(image.name + images.PARTIAL)


def _pages(partial: Path) -> ImageFiles:
    """What there is of an image that is being made. Its other files are written more than once."""
    pages = sorted(Path(images.raw(str(partial))).glob(f"{PAGES}*"))
    worker = partial.parent.parent
    root = supervisor_files.read_json(str(worker / supervisor_files.STATE)).get("pid") or 0
    return ImageFiles(
        files=tuple(ImageFile(name=p.name, size=p.stat().st_size) for p in pages),
        raw=True,
        growing=True,
        expected=process_tree.memory_bytes(process_tree.tree(root)),
    )


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
