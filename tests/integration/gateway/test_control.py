"""The gateway and the control plane: tables, usage, and what is passed on."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import uvloop
from tests.integration.gateway.rig import (
    KEY,
    LIMITS,
    STREAM_HEAD,
    TOKEN,
    Asked,
    Rig,
    Upstream,
    chat,
    chunk,
    deployment,
    engine_script,
    request,
    rig,
    say,
    serve,
    table,
    whole,
)

from onefleet.domain.ids import Generation
from onefleet.wire.gateway import RouteTable

# --- the control plane --------------------------------------------------------------------------


def test_without_a_table_it_is_alive_and_not_ready(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, table(), wait=False) as pool:
            pool.control.refuse = True
            pool.process.gateway.ready = False
            assert (await pool.ask("GET", "/health")).status == 200
            for path in ("/ready", "/v1/models"):
                reply = await pool.ask("GET", path)
                assert (reply.status, reply.header("retry-after")) == (503, "1")

    uvloop.run(main())


def test_it_serves_while_the_control_plane_is_away_and_loses_no_usage(tmp_path: Path) -> None:
    async def main() -> None:
        engine = await Upstream(engine_script).start()
        routes = table(deployment("tiny", engine.port))
        async with rig(tmp_path, routes) as pool:
            await pool.control.upstream.stop()
            for _ in range(3):
                assert (await pool.ask("POST", "/v1/chat/completions", chat())).status == 200
            reply = await pool.ask("GET", "/api/v1/status")
            assert (reply.status, reply.error["code"]) == (503, "unreachable")
        # A new process: the control plane is still away, or answers nonsense.
        async with rig(tmp_path, RouteTable(generation=Generation(0)), wait=False) as pool:
            pool.control.refuse = True
            assert (await pool.ask("GET", "/ready")).status == 200
            for _ in range(2):
                assert (await pool.ask("POST", "/v1/chat/completions", chat())).status == 200
            # The usage of both is handed over once it is back, and older tables change nothing.
            pool.control.refuse = False
            await pool.until(lambda: pool.control.usage[0] == 5, 6)
            assert pool.control.usage == (5, 35, 20, 15)
            await pool.until(lambda: not pool.process.gateway.meter.pending)
            assert (await pool.ask("GET", "/v1/models")).json["data"]
        async with rig(tmp_path, routes) as pool:
            await asyncio.sleep(0.1)
            assert pool.control.usage == (0, 0, 0, 0)
        await engine.stop()

    uvloop.run(main())


def test_a_batch_of_usage_is_repeated_under_its_number_until_acknowledged(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        pool.control.refuse = True
        await pool.ask("POST", "/v1/chat/completions", chat())

        def batches() -> list[int]:
            return [report.sequence for report in pool.control.reports if report.usage]

        await pool.until(lambda: len(batches()) >= 2, 5)
        await pool.ask("POST", "/v1/chat/completions", chat())
        pool.control.refuse = False
        await pool.until(lambda: pool.control.usage[0] == 2, 5)
        assert len(set(batches())) == 2
        names = {report.gateway_id for report in pool.control.reports}
        assert len(names) == 1

    serve(tmp_path, test, replace(LIMITS, usage_every_ms=50))


def test_a_wrong_table_changes_nothing(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        pool.control.upstream.script = say(whole(b'{"generation":"x"}'))
        pool.control.changed.set()  # the held call is answered, the next one wrongly
        await pool.until(lambda: not pool.process.sync.connected)
        assert (await pool.ask("POST", "/v1/chat/completions", chat())).status == 200

    serve(tmp_path, test)


def test_everything_else_is_passed_on_both_ways(tmp_path: Path) -> None:
    got: list[Asked] = []

    async def other(asked: Asked, writer: asyncio.StreamWriter) -> None:
        got.append(asked)
        body = asked.body if asked.method == "POST" else asked.target.encode()
        headers = b"x-request-id: control-1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n"
        await say(whole(body, "201 Created", headers))(asked, writer)

    async def test(pool: Rig, engine: Upstream) -> None:
        pool.control.other = other
        for path in ("/", "/api/v1/status?a=1&b=%20", "/static/x.css", "/jobs/1", "/console"):
            reply = await pool.ask(
                "GET", path, headers={"cookie": "c", "x-onefleet-internal": TOKEN, "te": "x"}
            )
            assert (reply.status, reply.body) == (201, path.encode())
            assert [v for k, v in reply.headers if k == "set-cookie"] == ["a=1", "b=2"]
            assert (reply.header("x-request-id") or "").startswith("req-")
            asked = got[-1].headers
            assert asked["cookie"] == "c"
            assert asked["authorization"] == f"Bearer {KEY}"
            assert asked["x-forwarded-for"] == "127.0.0.1"
            assert asked["x-request-id"] == reply.header("x-request-id")
            assert "x-onefleet-internal" not in asked
            assert "te" not in asked
        data = b"x" * 3_000_000
        reply = await pool.ask("POST", "/api/v1/code", data)
        assert reply.body == data
        client = await pool.connect()
        client.send(b"POST /api/v1/code HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        for start in range(0, len(data), 100_000):
            client.send(chunk(data[start : start + 100_000]))
            await asyncio.sleep(0)
        client.send(b"0\r\n\r\n")
        assert (await client.reply()).body == data
        client.send(request("DELETE", "/api/v1/keys/1"))
        assert (await client.reply()).status == 201
        head = await pool.ask("HEAD", "/api/v1/status")
        assert head.status == 201

    serve(tmp_path, test)


def test_the_internal_api_is_never_passed_on(tmp_path: Path) -> None:
    async def other(asked: Asked, writer: asyncio.StreamWriter) -> None:
        raise AssertionError(asked.target)

    async def test(pool: Rig, engine: Upstream) -> None:
        pool.control.other = other
        before = len(pool.control.reports)
        for path in (
            "/internal/gateway/sync",
            "/internal",
            "/INTERNAL/gateway/sync",
            "//internal/gateway/sync",
            "/./internal/gateway/sync",
            "/api/../internal/gateway/sync",
            "/api/%2e%2e/internal/gateway/sync",
            "/%69nternal/gateway/sync",
            "/%2569nternal/gateway/sync",
            "/api/..%2finternal/gateway/sync",
            "/api\\..\\internal",
            "http://test/internal/gateway/sync",
        ):
            headers = {"x-onefleet-internal": TOKEN}
            reply = await pool.ask("POST", path, {"gateway_id": "x"}, headers=headers)
            assert reply.status in (400, 404), path
        assert all(one.gateway_id != "x" for one in pool.control.reports[before:])

    serve(tmp_path, test)


def test_a_stream_of_the_control_plane_comes_as_it_is_written(tmp_path: Path) -> None:
    step = asyncio.Event()

    async def other(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(b"one\n"))
        await step.wait()
        writer.write(chunk(b"two\n") + b"0\r\n\r\n")

    async def test(pool: Rig, engine: Upstream) -> None:
        pool.control.other = other
        client = await pool.connect()
        client.send(request("GET", "/api/v1/events"))
        await client.reader.readuntil(b"one\n")
        step.set()
        await client.reader.readuntil(b"two\n\r\n0\r\n\r\n")
        step.clear()
        client.send(request("GET", "/api/v1/events"))
        await client.reader.readuntil(b"one\n")
        client.close()
        await pool.until(lambda: pool.control.upstream.left)

    serve(tmp_path, test)


def test_a_control_plane_that_dies_in_its_answer(tmp_path: Path) -> None:
    async def dies(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def half(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()

    async def test(pool: Rig, engine: Upstream) -> None:
        pool.control.other = dies
        for method in ("GET", "POST"):
            reply = await pool.ask(method, "/api/v1/jobs", {} if method == "POST" else None)
            assert (reply.status, reply.error["code"]) == (502, "upstream_failed")
        posts = [one for one in pool.control.upstream.asked if one.target == "/api/v1/jobs"]
        assert Counter(one.method for one in posts)["POST"] == 1  # never sent twice
        pool.control.other = half
        reply = await pool.ask("GET", "/api/v1/jobs")
        assert (reply.body, reply.complete) in ((b"half", False), (b"", False))

    serve(tmp_path, test)
