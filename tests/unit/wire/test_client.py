"""The HTTP client against a real socket."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from onefleet.domain import errors
from onefleet.wire.api import CodeView, ErrorBody, ErrorDetail, NewTenant, Page
from onefleet.wire.client import Client, error_of, segment, with_query


class Answers(http.server.BaseHTTPRequestHandler):
    """Echoes what it gets; some paths fail in a known way."""

    seen: list[tuple[str, str, dict[str, str]]]

    def do_GET(self) -> None:
        self.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path == "/drop":
            self.close_connection = True
            return
        if self.path == "/broken":
            return self.answer(200, b"{")
        if self.path == "/missing":
            detail = ErrorDetail(
                message="no model 'x'", type="t", param="model", code="model_not_found",
                why="w", hint="h",
            )  # fmt: skip
            return self.answer(404, msgspec.json.encode(ErrorBody(detail)))
        if self.path == "/busy":
            return self.answer(503, b"<html>", retry="1.5")
        if self.path == "/events":
            return self.answer(200, b"data: {}\n\n: ping\n\ndata: [DONE]\n\n", "text/event-stream")
        if self.path == "/lines":
            return self.answer(200, b'{"a":1}\n\n{"a":2}\n')
        if self.path == "/code":
            view = CodeView(digest="sha256:0", size_bytes=len(body), files=1)
            return self.answer(200, msgspec.json.encode(view))
        if self.command == "DELETE":
            return self.answer(204, b"")
        return self.answer(200, body or b'{"data":["x"]}')

    do_POST = do_DELETE = do_GET

    def answer(self, status: int, body: bytes, kind: str = "x", retry: str = "") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        if retry:
            self.send_header("retry-after", retry)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Answers.seen = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_bodies_go_both_ways_with_the_key_and_the_token(server: str) -> None:
    client = Client(server, key="k", internal_token="t")
    sent = NewTenant(id="a", reservations={"cpu": 1})
    assert client.post("/p", sent, NewTenant) == sent
    assert client.get("/g", Page[str], {"a": 1, "b": None, "c": True}) == Page(("x",))
    assert client.delete("/d", type(None)) is None
    assert [(m, p) for m, p, _ in Answers.seen] == [
        ("POST", "/p"), ("GET", "/g?a=1&c=true"), ("DELETE", "/d"),
    ]  # fmt: skip
    head = Answers.seen[0][2]
    assert head["authorization"] == "Bearer k" and head["x-onefleet-internal"] == "t"


def test_an_error_body_comes_back_as_the_error(server: str) -> None:
    with pytest.raises(errors.NotFound) as caught:
        Client(server).get("/missing", Page[str])
    error = caught.value
    assert (error.what, error.why, error.hint) == ("no model 'x'", "w", "h")
    assert (error.param, error.error_code) == ("model", "model_not_found")
    with pytest.raises(errors.WorldError) as busy:
        Client(server).post("/busy", None, type(None))
    assert busy.value.retry_after_ms == 1500 and "<html>" in busy.value.why


def test_streams_are_lines(server: str) -> None:
    client = Client(server)
    assert list(client.lines("POST", "/events", NewTenant(id="a"))) == [b"{}", b"[DONE]"]
    assert list(client.lines("GET", "/lines")) == [b'{"a":1}', b'{"a":2}']


def test_a_file_is_uploaded_as_it_is(server: str, tmp_path: Path) -> None:
    file = tmp_path / "x.tar"
    file.write_bytes(b"1" * 100_000)
    assert Client(server).upload("/code", file, CodeView).size_bytes == 100_000


def test_an_answer_that_breaks_its_schema_is_named(server: str) -> None:
    with pytest.raises(errors.UpstreamFailed):
        Client(server).get("/broken", Page[str])


def test_only_reads_are_tried_again(server: str) -> None:
    with pytest.raises(errors.Unreachable):
        Client(server).post("/drop", None, type(None))
    assert len(Answers.seen) == 1
    with pytest.raises(errors.Unreachable):
        Client(server).get("/drop", Page[str])
    assert len(Answers.seen) == 4


def test_nobody_there_names_the_address() -> None:
    with pytest.raises(errors.Unreachable) as caught:
        Client("http://127.0.0.1:9").post("/x", None, type(None))
    assert "http://127.0.0.1:9" in caught.value.what and "onefleet up" in caught.value.hint
    with pytest.raises(errors.InvalidRequest):
        Client("nonsense").get("/x", Page[str])


@pytest.mark.parametrize(
    "kind",
    [
        errors.InvalidRequest, errors.Unauthenticated, errors.Forbidden, errors.NotFound,
        errors.Conflict, errors.StaleGeneration, errors.TooLarge, errors.Infeasible,
        errors.QuotaExceeded, errors.Unreachable, errors.Overloaded, errors.UpstreamFailed,
        errors.TimedOut, errors.Unsupported, errors.StorageFull, errors.InternalError,
    ],
)  # fmt: skip
def test_each_class_of_the_tree_survives_the_wire(kind: type[errors.OnefleetError]) -> None:
    detail = ErrorDetail(message="m", type="t", param=None, code=kind.code)
    error = error_of(kind.status, msgspec.json.encode(ErrorBody(detail)))
    assert type(error) is kind or (type(error).exit_code, error.error_code) == (
        kind.exit_code, kind.code,
    )  # fmt: skip


def test_paths() -> None:
    assert with_query("/a", {"b": "c d"}) == "/a?b=c+d"
    assert segment("demo:a/b") == "demo:a%2Fb"


def test_importing_it_is_cheap() -> None:
    heavy = ("http.client", "msgspec", "ssl")
    code = f"import sys, onefleet.wire.client; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
