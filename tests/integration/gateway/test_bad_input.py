"""What the gateway says to requests that are wrong: a clear error, and no harm."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.integration.gateway.rig import (
    OTHER_KEY,
    Rig,
    Upstream,
    chat,
    request,
    serve,
)

from onefleet.domain.serving import Purpose

# --- bad input ----------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("chat/completions", b"{", 400, "invalid_json", None),
        ("chat/completions", b"", 400, "invalid_json", None),
        ("chat/completions", b"\xff\xfe", 400, "invalid_json", None),
        (
            "chat/completions",
            b'{"model":"tiny","messages":[{"role":"\xff"}]}',
            400,
            "invalid_json",
            None,
        ),
        ("chat/completions", b"[" * 100_000, 400, "invalid_request", None),
        ("chat/completions", b'{"model":' + b"[" * 100_000, 400, "invalid_request", "model"),
        ("chat/completions", b'{"x":' + b"[" * 100_000, 400, "invalid_json", None),
        ("chat/completions", b"[]", 400, "invalid_request", None),
        ("chat/completions", {"messages": MESSAGES}, 400, "invalid_request", "model"),
        ("chat/completions", {"model": 5, "messages": MESSAGES}, 400, "invalid_request", "model"),
        ("chat/completions", {"model": "tiny"}, 400, "invalid_request", "messages"),
        ("chat/completions", chat(messages=[]), 400, "invalid_request", "messages"),
        ("chat/completions", chat(messages="hi"), 400, "invalid_request", "messages"),
        ("chat/completions", chat(messages=[{}]), 400, "invalid_request", "messages[0].role"),
        ("chat/completions", {**chat(), "stream": "yes"}, 400, "invalid_request", "stream"),
        ("chat/completions", chat(max_tokens="x"), 400, "invalid_request", "max_tokens"),
        ("chat/completions", chat(max_tokens=0), 400, "invalid_request", "max_tokens"),
        ("chat/completions", chat(n=0), 400, "invalid_request", "n"),
        ("chat/completions", chat(n=1e9), 400, "invalid_request", "n"),
        ("chat/completions", chat(temperature="hot"), 400, "invalid_request", "temperature"),
        ("chat/completions", chat(model="nope"), 404, "model_not_found", "model"),
        ("chat/completions", chat(model="a" * 300), 404, "model_not_found", "model"),
        ("completions", {"model": "tiny"}, 400, "invalid_request", "prompt"),
        ("completions", {"model": "tiny", "prompt": 5}, 400, "invalid_request", "prompt"),
        ("completions", {"model": "tiny", "prompt": []}, 400, "invalid_request", "prompt"),
        ("completions", {"model": "tiny", "prompt": [1, "a"]}, 400, "invalid_request", "prompt"),
        (
            "completions",
            {"model": "tiny", "prompt": ["a"] * 3000},
            413,
            "request_too_large",
            "prompt",
        ),
        (
            "completions",
            {"model": "tiny", "prompt": "a", "echo": True, "logprobs": 1},
            400,
            "unsupported_parameter",
            "echo",
        ),
        ("embeddings", {"model": "tiny", "input": "a"}, 400, "model_not_supported", "model"),
        ("tokenize", {"prompt": 5}, 400, "invalid_request", "prompt"),
        ("tokenize", {"prompt": "a", "model": "no"}, 404, "model_not_found", "model"),
        ("detokenize", {"tokens": ["a"]}, 400, "invalid_request", None),
        ("responses", {"model": "tiny"}, 404, "unknown_url", None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_bodies(
    tmp_path: Path, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.send(request("POST", f"/v1/{path}", body))
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (status, code)
        if param is not None:
            assert reply.error["param"] == param
        assert reply.header("x-should-retry") == "false"
        client.send(request("GET", "/health"))  # the connection is as good as before
        assert (await client.reply()).status == 200
        assert not engine.asked

    serve(tmp_path, test)


def test_each_purpose_has_its_routes(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        purpose = pool.control.table.deployments[0].purpose
        asks = {
            "chat/completions": chat(),
            "completions": {"model": "tiny", "prompt": "a"},
            "embeddings": {"model": "tiny", "input": "a"},
        }
        for path, body in asks.items():
            reply = await pool.ask("POST", f"/v1/{path}", body)
            good = (
                path
                in {
                    Purpose.CHAT: ("chat/completions", "completions"),
                    Purpose.COMPLETION: ("completions",),
                    Purpose.EMBEDDING: ("embeddings",),
                }[purpose]
            )
            if good:
                assert reply.status != 400
            else:
                assert (reply.status, reply.error["code"]) == (400, "model_not_supported")
                assert f"its purpose is {purpose.value}" in reply.error["message"]

    for number, purpose in enumerate(Purpose):
        serve(tmp_path / str(number), test, purpose=purpose)


def test_keys(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        bad = [
            {},
            {"authorization": "Bearer sk-wrong"},
            {"authorization": "Bearer "},
            {"authorization": "Basic abc"},
            {"api-key": "sk-wrong"},
        ]
        for headers in bad:
            for path, body in (("/v1/models", None), ("/v1/chat/completions", chat())):
                method = "POST" if body else "GET"
                reply = await pool.ask(method, path, body, headers=headers, api_key=None)
                assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
                assert reply.header("x-should-retry") == "false"
        for headers in ({"api-key": OTHER_KEY}, {"Authorization": f"bearer {OTHER_KEY}"}):
            reply = await pool.ask("GET", "/v1/models", headers=headers, api_key=None)
            assert reply.status == 200
        for path in ("/health", "/ready", "/metrics"):
            assert (await pool.ask("GET", path, api_key=None)).status == 200
        # A large body of somebody unknown is not taken in.
        client = await pool.connect()
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n")
        client.send(b"content-length: 30000000\r\n\r\n")
        assert (await client.reply()).status == 401
        assert not engine.asked

    serve(tmp_path, test)


def test_request_ids(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        asks: list[tuple[str, str, Any]] = [
            ("GET", "/v1/models", None),
            ("GET", "/v1/nope", None),
            ("GET", "/api/v1/x", None),
            ("POST", "/v1/chat/completions", chat()),
            ("POST", "/v1/chat/completions", chat(stream=True)),
            ("POST", "/v1/chat/completions", b"{"),
        ]
        seen = []
        for method, path, body in asks:
            sane = {"x-request-id": "trace-1:a/b"}
            reply = await pool.ask(method, path, body, headers=sane)
            assert reply.header("x-request-id") == "trace-1:a/b"  # and only once
            for odd in ("a b", "x" * 200, "", "a\x7f"):
                try:
                    reply = await pool.ask(method, path, body, headers={"x-request-id": odd})
                except asyncio.IncompleteReadError:
                    continue
                if reply.status != 400:
                    ours = reply.header("x-request-id") or ""
                    assert ours.startswith("req-")
                    seen.append(ours)
        assert len(set(seen)) == len(seen)

    serve(tmp_path, test)


def test_embeddings_of_another_length_are_refused_rather_than_given_whole(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        body = {"model": "tiny", "input": "a", "dimensions": 64}
        reply = await pool.ask("POST", "/v1/embeddings", body)
        assert (reply.status, reply.error["code"]) == (400, "unsupported_parameter")
        assert reply.error["param"] == "dimensions"

    serve(tmp_path, test, purpose=Purpose.EMBEDDING)
