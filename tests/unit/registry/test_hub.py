from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from onefleet.domain.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    Unreachable,
    UpstreamFailed,
)
from onefleet.domain.ids import Instant
from onefleet.domain.layout import Layout
from onefleet.registry import gguf
from onefleet.registry.hub import Hub, HubFile, Listing, choose, list_files
from onefleet.registry.models import add_model

TINY = (Path(gguf.__file__).parent / "data" / "tiny.gguf").read_bytes()


@dataclass
class FakeHub:
    """A hub on loopback. cut: how many answers break off half way. seen: (path, headers)."""

    files: dict[str, bytes] = field(default_factory=dict)
    lies: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    status: int = 200
    ranges: bool = True
    elsewhere: str = ""
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    endpoint: str = ""

    def listing(self) -> bytes:
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(data)}
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry["blobId"] = self.lies.get(name, blob)
            if name.endswith((".gguf", ".safetensors")):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": self.lies.get(name, digest), "size": len(data)}
            siblings.append(entry)
        card = {"license": "mit"}
        return json.dumps({"sha": "c0ffee", "siblings": siblings, "cardData": card}).encode()


def handler_of(fake: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.seen.append((self.path, dict(self.headers)))
            if fake.status != 200:
                self.send_error(fake.status)
            elif self.path.startswith("/api/models/"):
                self.reply(200, fake.listing())
            elif fake.elsewhere and "/resolve/" in self.path:
                self.send_response(302)
                self.send_header("Location", fake.elsewhere + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.file(fake.files[self.path.split("/resolve/c0ffee/")[1]])

        def file(self, data: bytes) -> None:
            start, status = 0, 200
            if fake.ranges and (span := self.headers.get("Range")):
                start, status = int(span.removeprefix("bytes=").rstrip("-")), 206
            if fake.cut:
                fake.cut -= 1
                left = data[start:]
                self.reply(status, left[: len(left) // 2], claim=len(left))
                self.close_connection = True
                return
            self.reply(status, data[start:])

        def reply(self, status: int, body: bytes, claim: int = -1) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if claim < 0 else claim))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def hubs() -> Iterator[list[FakeHub]]:
    """Two fake hubs: the second stands for a storage host elsewhere."""
    fakes = [FakeHub(), FakeHub()]
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler_of(fake)) for fake in fakes]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for fake, server, thread in zip(fakes, servers, threads, strict=True):
        fake.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread.start()
    yield fakes
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()


def add(source: str, layout: Layout, access: Hub) -> tuple[object, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    model = asyncio.run(
        add_model(source, None, layout, Instant(7), lambda a, b: told.append((a, b)), access)
    )
    return model, told


def test_a_gguf_model_is_loaded(hubs: list[FakeHub], tmp_path: Path) -> None:
    hub, layout = hubs[0], Layout(tmp_path)
    hub.files = {"README.md": b"hello", "m-Q8_0.gguf": TINY, "m-mmproj.gguf": b"x"}
    model, told = add("hf:org/name", layout, Hub(hub.endpoint))
    assert (model.id, model.licence, model.created_at) == ("hf:org/name", "mit", 7)
    assert model.revision == "sha256:" + hashlib.sha256(TINY).hexdigest()
    assert Path(model.path).read_bytes() == TINY
    assert told[-1] == (len(TINY), len(TINY))
    assert [path for path, _ in hub.seen] == [
        "/api/models/org/name?blobs=true",
        "/org/name/resolve/c0ffee/m-Q8_0.gguf",
    ]
    assert [path for path in layout.downloads.iterdir() if path.suffix != ".lock"] == []


def test_a_folder_is_loaded_and_converted(
    hubs: list[FakeHub], tmp_path: Path, llama_folder: object
) -> None:
    folder = llama_folder()
    hub = hubs[0]
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    model, _ = add("hf:org/name", Layout(tmp_path / "pool"), Hub(hub.endpoint))
    assert (model.shape.architecture, model.shape.layers) == ("llama", 2)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on(
    hubs: list[FakeHub], tmp_path: Path, ranges: bool
) -> None:
    hub = hubs[0]
    hub.files, hub.cut, hub.ranges = {"m.gguf": TINY}, 2, ranges
    model, _ = add("hf:org/name/m.gguf", Layout(tmp_path), Hub(hub.endpoint))
    assert Path(model.path).read_bytes() == TINY
    spans = [headers.get("Range") for path, headers in hub.seen if "/resolve/" in path]
    assert spans[0] is None and len(spans) == 3
    half = len(TINY) // 2
    assert spans[1] == f"bytes={half}-"


def test_the_next_call_goes_on_where_the_last_gave_up(hubs: list[FakeHub], tmp_path: Path) -> None:
    hub, layout = hubs[0], Layout(tmp_path)
    hub.files, hub.cut = {"m.gguf": TINY}, 6
    with pytest.raises(Unreachable, match="broke off 6 times"):
        add("hf:org/name", layout, Hub(hub.endpoint))
    hub.seen.clear()
    model, _ = add("hf:org/name", layout, Hub(hub.endpoint))
    assert Path(model.path).read_bytes() == TINY
    [span] = [headers["Range"] for path, headers in hub.seen if "/resolve/" in path]
    assert int(span.removeprefix("bytes=").rstrip("-")) > len(TINY) * 0.9


def test_a_file_that_is_not_what_the_hub_lists_is_refused(
    hubs: list[FakeHub], tmp_path: Path
) -> None:
    hub, layout = hubs[0], Layout(tmp_path)
    hub.files, hub.lies = {"m.gguf": TINY}, {"m.gguf": "0" * 64}
    with pytest.raises(UpstreamFailed, match="not what the hub lists"):
        add("hf:org/name", layout, Hub(hub.endpoint))
    assert not layout.blobs.exists()


def test_the_token_goes_to_the_hub_and_nowhere_else(hubs: list[FakeHub], tmp_path: Path) -> None:
    hub, storage = hubs
    hub.files = storage.files = {"m.gguf": TINY}
    hub.elsewhere = storage.endpoint
    add("hf:org/name", Layout(tmp_path), Hub(hub.endpoint, "secret"))
    assert all(headers["Authorization"] == "Bearer secret" for _, headers in hub.seen)
    assert storage.seen and all("Authorization" not in headers for _, headers in storage.seen)
    assert "secret" not in repr(Hub(hub.endpoint, "secret"))


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, Forbidden), (403, Forbidden), (404, NotFound), (500, Unreachable), (429, Unreachable)],
)
def test_refusals_have_errors_of_their_own(
    hubs: list[FakeHub], status: int, error: type[Exception]
) -> None:
    hubs[0].status = status
    with pytest.raises(error) as caught:
        list_files(Hub(hubs[0].endpoint), "org/name")
    assert caught.value.hint


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="does not answer") as caught:
        add("hf:org/name", Layout(tmp_path), Hub("http://127.0.0.1:9"))
    assert "HF_ENDPOINT" in caught.value.hint


def test_a_hub_that_is_none(hubs: list[FakeHub]) -> None:
    with pytest.raises(InvalidRequest, match="is no hub"):
        list_files(Hub("file:///etc"), "org/name")


def listing_of(*names: str) -> Listing:
    files = tuple(HubFile(name, 1, "", "") for name in names)
    return Listing("org/name", "c0ffee", "", files)


def test_the_obvious_quantisation_is_chosen() -> None:
    listing = listing_of("a-Q8_0.gguf", "a-Q4_K_M.gguf", "a-F16.gguf", "a-00001-of-00002.gguf")
    assert [file.name for file in choose(listing, "")] == ["a-Q4_K_M.gguf"]
    assert [file.name for file in choose(listing, "a-F16.gguf")] == ["a-F16.gguf"]


def test_without_an_obvious_file_the_names_are_told() -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(listing_of("a.gguf", "b.gguf"), "")
    assert "a.gguf, b.gguf" in caught.value.hint
    with pytest.raises(NotFound, match="no GGUF file c"):
        choose(listing_of("a.gguf"), "c.gguf")
    with pytest.raises(InvalidRequest, match="neither"):
        choose(listing_of("pytorch_model.bin"), "")


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a/../../b"])
def test_a_listing_that_would_write_elsewhere_is_refused(hubs: list[FakeHub], name: str) -> None:
    hubs[0].files = {name: b"x"}
    with pytest.raises(UpstreamFailed, match="cannot be read"):
        list_files(Hub(hubs[0].endpoint), "org/name")
