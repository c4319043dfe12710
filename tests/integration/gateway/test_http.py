"""The gateway as an HTTP/1.1 server, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.gateway.rig import (
    DONE,
    KEY,
    LIMITS,
    Rig,
    Upstream,
    chat,
    delta,
    engine_script,
    request,
    say,
    serve,
    whole,
)

HOST = b"host: a\r\nauthorization: Bearer %b\r\n" % KEY.encode()


def test_a_connection_is_kept_and_answers_in_order(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        for _ in range(3):
            client.send(request("POST", "/v1/chat/completions", chat()))
            assert (await client.reply()).status == 200
        assert engine.connections == 1

    serve(tmp_path, test)


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.send(
            request("POST", "/v1/chat/completions", chat(stream=True))
            + request("GET", "/health")
            + request("POST", "/v1/chat/completions", chat(model="nope"))
            + request("GET", "/v1/models")
            + request("GET", "/health") * 2000
        )
        assert b"[DONE]" in (await client.reply()).body
        assert (await client.reply()).json == {"status": "ok"}
        assert (await client.reply()).status == 404
        assert (await client.reply()).json["object"] == "list"
        for _ in range(2000):
            assert (await client.reply()).status == 200

    serve(tmp_path, test)


def test_what_is_read_ahead_is_bounded(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.send(request("POST", "/v1/chat/completions", chat()))
        await pool.until(lambda: engine.asked)
        (connection,) = pool.process.gateway._connections
        client.send(request("GET", "/health") * 30_000)
        await asyncio.sleep(0.2)
        assert not connection._reading
        assert len(connection._ahead) < LIMITS.pipeline_bytes + 512 * 1024
        release.set()
        assert (await client.reply()).status == 200
        for _ in range(30_000):
            await client.head()
            await client.reader.readexactly(15)

    release = asyncio.Event()

    async def script(asked: Any, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await engine_script(asked, writer)

    serve(tmp_path, test, script=script)


def test_a_body_may_come_chunked_and_in_any_pieces(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        body = msgspec.json.encode(chat())
        chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
        data = (
            b"POST /v1/chat/completions HTTP/1.1\r\n"
            + HOST
            + b"transfer-encoding: chunked\r\n\r\n"
            + chunks
            + b"0\r\nx-trailer: 1\r\n\r\n"
        )
        client = await pool.connect()
        for size in (len(data), 97, 13):
            for start in range(0, len(data), size):
                client.send(data[start : start + size])
                await asyncio.sleep(0)
            assert (await client.reply()).status == 200
        assert engine.asked[-1].json["messages"] == chat()["messages"]

    serve(tmp_path, test)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        (b"/v1/chat/completions", KEY, 200),
        (b"/v1/chat/completions", "of-nobody", 401),
        (b"/api/v1/jobs", KEY, 200),  # passed on to the control plane
    ],
)
def test_a_last_request_may_send_its_body_later(
    tmp_path: Path, version: bytes, chunked: bool, path: bytes, key: str, status: int
) -> None:
    """Many clients say "connection: close" and send head and body each by itself."""
    if chunked and version == b"1.0":
        pytest.skip("HTTP/1.0 has no chunks")

    async def test(pool: Rig, engine: Upstream) -> None:
        body = msgspec.json.encode(chat())
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
        client = await pool.connect()
        client.send(
            b"POST %b HTTP/%b\r\nhost: a\r\nconnection: close\r\n" % (path, version)
            + b"authorization: Bearer %b\r\n%b\r\n\r\n" % (key.encode(), framing)
        )
        for piece in (body[:1], body[1:9], body[9:]):
            await asyncio.sleep(0.02)
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        client.send(b"0\r\n\r\n" if chunked else b"")
        async with asyncio.timeout(5):
            assert (await client.reply()).status == status

    serve(tmp_path, test)


def test_a_last_request_with_a_broken_body_is_refused_once(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\n"
            + HOST
            + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(3):
            await asyncio.sleep(0.02)
            client.send(b"nonsense\r\n")
        async with asyncio.timeout(5):
            assert (await client.reply()).status == 400
            assert await client.reader.read() == b""

    serve(tmp_path, test)


def test_expect_100_continue(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        body = msgspec.json.encode(chat())
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"expect: 100-continue\r\n"
        client = await pool.connect()
        client.send(head + b"content-length: %d\r\n\r\n" % len(body))
        line = await client.reader.readuntil(b"\r\n\r\n")
        assert line == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert (await client.reply()).status == 200
        client.send(head + b"content-length: 99999999999\r\n\r\n")
        refused = await client.reader.readuntil(b"\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 413 ")  # and no 100 before it

    serve(tmp_path, test)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\nhost: a\n\n", 400),
        (b"GET /health HTTP/1.1\r\nhost : a\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n", 400),
        (b"BREW /health HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /health HTTP/2.0\r\nhost: a\r\n\r\n", 505),
        (b"GET /health HTTP/0.9\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /a\xff HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS to a plain port
        (b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", 404),
        (b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 400_000, 431),  # never ends
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
        (b"GET /" + b"a" * 400_000, 414),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else None,
)
def test_bad_heads_are_refused_and_the_connection_is_closed(
    tmp_path: Path, data: bytes, status: int
) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.send(data)
        reply = await client.reply()
        assert reply.status == status
        assert reply.error["message"]
        assert reply.header("x-request-id")
        if status != 404:
            assert reply.header("connection") == "close"
            assert await client.closed()
        assert (await pool.ask("GET", "/health")).status == 200

    serve(tmp_path, test)


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc",
        b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"content-length: 3, 3\r\n\r\nabc",
        b"content-length: +3\r\n\r\nabc",
        b"content-length: 99999999999999999999999\r\n\r\nabc",
        b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
    ],
)
def test_nothing_can_be_smuggled(tmp_path: Path, framing: bytes) -> None:
    """Two readings of one request's end are refused, and nothing after it is answered."""

    async def test(pool: Rig, engine: Upstream) -> None:
        for path in (b"/v1/chat/completions", b"/api/v1/jobs"):
            client = await pool.connect()
            inner = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
            client.send(b"POST " + path + b" HTTP/1.1\r\n" + HOST + framing + inner)
            answers = await client.reader.read()
            assert answers.count(b"HTTP/1.1 ") <= 1
            assert b" 400 " in answers or not answers  # a body passed on is cut, not answered
            assert b'"object":"list"' not in answers

    serve(tmp_path, test)


def test_head_options_and_other_methods(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.send(request("HEAD", "/v1/models") + request("GET", "/health"))
        head = await client.reply(head_only=True)
        assert head.status == 200
        assert int(head.header("content-length") or 0) > 10
        assert (await client.reply()).json == {"status": "ok"}  # no body came between
        for method in ("HEAD", "GET"):
            client.send(request(method, "/metrics"))
            reply = await client.reply(head_only=method == "HEAD")
            assert reply.status == 200
        client.send(request("OPTIONS", "/v1/models"))
        reply = await client.reply()
        assert (reply.status, reply.header("allow")) == (200, "GET, HEAD, OPTIONS")
        client.send(request("DELETE", "/v1/chat/completions"))
        reply = await client.reply()
        assert (reply.status, reply.header("allow")) == (405, "OPTIONS, POST")
        assert reply.error["code"] == "method_not_allowed"

    serve(tmp_path, test)


def test_http_10(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.send(b"GET /health HTTP/1.0\r\n\r\n")
        reply = await client.reply()
        assert (reply.status, reply.header("connection")) == (200, "close")
        assert await client.closed()
        client = await pool.connect()
        client.send(b"GET /health HTTP/1.0\r\nconnection: keep-alive\r\n\r\n" * 2)
        for _ in range(2):
            assert (await client.reply()).header("connection") == "keep-alive"
        body = msgspec.json.encode(chat(stream=True))
        client = await pool.connect()
        client.send(
            b"POST /v1/chat/completions HTTP/1.0\r\n"
            + HOST
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )
        reply = await client.reply()
        assert reply.header("transfer-encoding") is None
        assert reply.body.endswith(DONE)  # framed by the end of the connection

    serve(tmp_path, test)


def test_connection_close_is_honoured(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        for streamed in (False, True):
            client = await pool.connect()
            ask = request("POST", "/v1/chat/completions", chat(streamed), {"connection": "close"})
            client.send(ask + request("GET", "/health"))
            reply = await client.reply()
            assert (reply.status, reply.header("connection")) == (200, "close")
            assert await client.closed()

    serve(tmp_path, test)


def test_an_upgrade_is_declined(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        upgrade = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c"}
        client = await pool.connect()
        client.send(request("GET", "/health", None, upgrade) + request("GET", "/health"))
        assert (await client.reply()).status == 200
        assert (await client.reply()).status == 200
        client.send(request("POST", "/v1/chat/completions", chat(), upgrade))
        assert (await client.reply()).status == 501
        assert await client.closed()

    serve(tmp_path, test)


def test_a_target_may_be_a_whole_url(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        assert (await pool.ask("GET", "http://test/health")).json == {"status": "ok"}
        assert (await pool.ask("GET", "/health?x=1")).json == {"status": "ok"}
        assert (await pool.ask("OPTIONS", "*")).status == 404

    serve(tmp_path, test)


def test_a_body_over_the_limit(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        big = b" " * 5_000
        for framing in (
            b"content-length: 5000\r\n\r\n" + big,
            b"transfer-encoding: chunked\r\n\r\n" + b"1388\r\n" + big + b"\r\n0\r\n\r\n",
        ):
            client = await pool.connect()
            client.send(b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + framing)
            reply = await client.reply()
            assert reply.status == 413
            assert "body_bytes is 1000 bytes" in reply.error["message"]
            assert reply.header("x-should-retry") == "false"
        # Far over it: answered at once, while the client still sends.
        client = await pool.connect()
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST)
        client.send(b"content-length: 5000000\r\n\r\n" + b" " * 2_000_000)
        reply = await client.reply()
        assert (reply.status, reply.header("connection")) == (413, "close")

    serve(tmp_path, test, replace(LIMITS, body_bytes=1_000))


def test_endless_trailers_and_chunk_extensions_are_cut_off(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n"
        for endless in (b"\r\n0\r\nx: " + b"y" * 400_000, b"\r\n1;" + b"y" * 400_000):
            client = await pool.connect()
            client.send(head + endless)
            assert (await client.reply()).status == 431

    serve(tmp_path, test)


def test_slow_clients_are_timed_out(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        slow_head = await pool.connect()
        slow_head.send(b"GET /health HT")
        slow_body = await pool.connect()
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
        slow_body.send(head + b"content-length: 10\r\n\r\n{")
        idle = await pool.connect()
        for client, name in ((slow_head, "header_ms"), (slow_body, "body_idle_ms")):
            reply = await client.reply()
            assert reply.status == 408
            assert name in reply.error["message"]
            assert await client.closed()
        assert await idle.closed()

    serve(tmp_path, test, replace(LIMITS, header_ms=100, body_idle_ms=100, idle_ms=150))


def test_a_drip_of_a_body_is_timed_out(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
        client.send(head + b"content-length: 1000\r\n\r\n{")
        reply = asyncio.ensure_future(client.reply())
        while not reply.done():
            client.send(b" ")
            await asyncio.sleep(0.02)
        assert "body_ms" in reply.result().error["message"]

    serve(tmp_path, test, replace(LIMITS, body_idle_ms=100, body_ms=300))


def test_too_many_connections(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        clients = [await pool.connect() for _ in range(3)]
        over = await pool.connect()
        reply = await over.reply()
        assert (reply.status, reply.header("retry-after")) == (503, "1")
        assert "the limit connections is 3" in reply.error["message"]
        clients[0].close()
        await pool.until(lambda: len(pool.process.gateway._connections) < 3)
        assert (await pool.ask("GET", "/health")).status == 200

    serve(tmp_path, test, replace(LIMITS, connections=3))


def test_half_closed_clients_get_their_answers(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        for body in (chat(), chat(stream=True)):
            client = await pool.connect()
            client.send(request("POST", "/v1/chat/completions", body) + request("GET", "/health"))
            client.writer.write_eof()
            assert (await client.reply()).status == 200
            assert (await client.reply()).status == 200
            assert await client.closed()
        assert not engine.left

    async def script(asked: Any, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        await engine_script(asked, writer)

    serve(tmp_path, test, script=script)


def test_a_slow_reader_holds_the_engine_back(tmp_path: Path) -> None:
    """64 MiB are offered; what is in flight stays within socket and transport buffers."""
    piece = delta("x" * 65_000)
    total = 1_000
    written = 0

    async def script(asked: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(total):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            written += 1
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))
        await writer.drain()

    async def test(pool: Rig, engine: Upstream) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", pool.port))
            await loop.sock_sendall(
                sock, request("POST", "/v1/chat/completions", chat(stream=True))
            )
            await asyncio.sleep(0.4)
            held = written
            assert held < 300  # of 1000: the rest waits at the engine
            await asyncio.sleep(0.2)
            assert written == held
            received = 0
            tail = b""
            while not tail.endswith(b"0\r\n\r\n"):
                data = await asyncio.wait_for(loop.sock_recv(sock, 1 << 20), 5)
                assert data
                received += len(data)
                tail = (tail + data)[-64:]
            assert received > total * 65_000

    serve(tmp_path, test, script=script)


def test_a_client_that_reads_nothing_is_cut_off(tmp_path: Path) -> None:
    async def script(asked: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        piece = delta("x" * 65_000)
        while True:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()

    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.writer.transport.pause_reading()
        client.send(request("POST", "/v1/chat/completions", chat(stream=True)))
        await pool.until(lambda: engine.left, 5)
        assert not pool.process.gateway._connections

    serve(tmp_path, test, replace(LIMITS, stall_ms=300), script)


def test_nodelay_on_both_legs(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.send(request("POST", "/v1/chat/completions", chat()))
        assert (await client.reply()).status == 200
        gateway = pool.process.gateway
        (connection,) = gateway._connections
        (target,) = gateway._targets.values()
        (upstream,) = target.engines[0].upstream._idle
        for transport in (connection.transport, upstream.transport):
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1

    serve(tmp_path, test)


def test_an_event_is_passed_on_when_it_comes(tmp_path: Path) -> None:
    """No Nagle, no buffering: each of 20 events reaches the client before the next is written."""

    async def script(asked: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(20):
            piece = delta(f"<{number}>")
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.wait_for(seen[number].wait(), 1)
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))

    seen = [asyncio.Event() for _ in range(20)]

    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.send(request("POST", "/v1/chat/completions", chat(stream=True)))
        for number in range(20):
            await client.reader.readuntil(b"<%d>" % number)
            seen[number].set()
        await client.reader.readuntil(b"0\r\n\r\n")

    serve(tmp_path, test, script=script)


def test_an_answer_without_a_length_ends_with_its_connection(tmp_path: Path) -> None:
    async def script(asked: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + msgspec.json.encode({"a": 1})
        )
        await writer.drain()
        writer.close()

    async def test(pool: Rig, engine: Upstream) -> None:
        reply = await pool.ask("POST", "/v1/chat/completions", chat())
        assert (reply.status, reply.json) == (200, {"a": 1})

    serve(tmp_path, test, script=script)


def test_an_interim_answer_of_an_engine_is_skipped(tmp_path: Path) -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b'{"a":1}')

    async def test(pool: Rig, engine: Upstream) -> None:
        for _ in range(2):
            assert (await pool.ask("POST", "/v1/chat/completions", chat())).json == {"a": 1}
        assert engine.connections == 1

    serve(tmp_path, test, script=say(data))
