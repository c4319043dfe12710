"""What clients get from engines, streamed or not: bytes, usage, errors, and who is told to stop."""

from __future__ import annotations

import asyncio
import base64
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.gateway.rig import (
    DONE,
    LIMITS,
    STREAM_HEAD,
    USAGE,
    Asked,
    Rig,
    Upstream,
    chat,
    chat_events,
    chunk,
    delta,
    event,
    request,
    say,
    serve,
    stream,
    whole,
)

from onefleet.domain.serving import Purpose

BOTH = pytest.mark.parametrize("engine_name", ["plain", "streams"])


def test_a_stream_is_passed_on_in_the_engines_bytes(tmp_path: Path) -> None:
    events = chat_events("Hel", "lo", '"usage":{ data: [DONE] "error"')

    async def test(pool: Rig, engine: Upstream) -> None:
        reply = await pool.ask("POST", "/v1/chat/completions", chat(stream=True))
        assert reply.body == b"".join(one for one in events if b'"usage":{"p' not in one)
        assert engine.asked[-1].json["stream_options"] == {"include_usage": True}
        asked = chat(stream=True, stream_options={"include_usage": True, "x": 1})
        reply = await pool.ask("POST", "/v1/chat/completions", asked)
        assert reply.body == b"".join(events)
        assert engine.asked[-1].json["stream_options"] == {"include_usage": True, "x": 1}
        await pool.until(lambda: pool.control.usage == (2, 14, 8, 6))

    serve(tmp_path, test, script=stream(events))


def test_events_split_and_joined_anyhow_come_out_whole(tmp_path: Path) -> None:
    events = chat_events("a", "b", "c" * 100)
    data = b"".join(events)

    async def test(pool: Rig, engine: Upstream) -> None:
        for size in (1, 7, 50, len(data)):
            engine.script = stream([data[i : i + size] for i in range(0, len(data), size)])
            reply = await pool.ask("POST", "/v1/chat/completions", chat(stream=True))
            assert reply.body == b"".join(one for one in events if b'"usage"' not in one)
        lines = data.replace(b"\n", b"\r\n")
        engine.script = stream([lines[i : i + 3] for i in range(0, len(lines), 3)])
        reply = await pool.ask("POST", "/v1/chat/completions", chat(stream=True))
        assert reply.body == b"".join(one for one in events if b'"usage"' not in one)

    serve(tmp_path, test)


def test_unknown_fields_reach_the_engine_and_known_ones_are_adapted(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        body = chat(max_completion_tokens=5, foo={"bar": [1, 2.5, None]}, user="u")
        assert (await pool.ask("POST", "/v1/chat/completions", body)).status == 200
        asked = engine.asked[-1].json
        assert asked["foo"] == {"bar": [1, 2.5, None]}
        assert asked["max_tokens"] == 5
        assert "max_completion_tokens" not in asked
        assert asked["stream"] is False
        assert asked["model"] == "tiny"
        assert "authorization" not in engine.asked[-1].headers  # keys stay here

    serve(tmp_path, test)


@BOTH
def test_plain_answers(tmp_path: Path, engine_name: str) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        reply = await pool.ask("POST", "/v1/chat/completions", chat())
        assert engine.asked[-1].json["stream"] is (engine_name == "streams")
        answer = reply.json
        assert answer["object"] == "chat.completion"
        assert answer["id"] == "chatcmpl-1"
        assert answer["usage"] == USAGE
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": "ab"}
        assert choice["finish_reason"] == "stop"
        assert reply.header("x-pool-replica") == "rep-0"
        await pool.until(lambda: pool.control.usage == (1, 7, 4, 3))

    serve(tmp_path, test, engine=engine_name)


def test_tool_calls_logprobs_reasoning_and_choices_are_put_together(tmp_path: Path) -> None:
    def tool(index: int, **function: str) -> bytes:
        call: dict[str, Any] = {"index": index, "function": function}
        if "name" in function:
            call |= {"id": f"call-{index}", "type": "function"}
        return delta(None, tool_calls=[call])

    logprob = {"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": []}
    second = event(choices=[{"index": 1, "delta": {"content": "two"}, "finish_reason": "stop"}])
    events = [
        delta(None, role="assistant", content=None),
        delta(None, reasoning_content="think"),
        tool(0, name="get", arguments=""),
        tool(0, arguments='{"a"'),
        tool(1, name="put", arguments="{}"),
        tool(0, arguments=":1}"),
        event(
            choices=[
                {"index": 0, "delta": {}, "logprobs": {"content": [logprob]}, "finish_reason": None}
            ]
        ),
        second,
        delta(None, "tool_calls"),
        event(usage=USAGE),
        event(usage=USAGE),
        DONE,
    ]

    async def test(pool: Rig, engine: Upstream) -> None:
        reply = await pool.ask("POST", "/v1/chat/completions", chat(n=2))
        one, two = reply.json["choices"]
        assert one["finish_reason"] == "tool_calls"
        assert one["message"]["content"] is None
        assert one["message"]["reasoning_content"] == "think"
        assert [
            (call["id"], call["type"], call["function"]) for call in one["message"]["tool_calls"]
        ] == [
            ("call-0", "function", {"name": "get", "arguments": '{"a":1}'}),
            ("call-1", "function", {"name": "put", "arguments": "{}"}),
        ]
        assert one["logprobs"]["content"] == [logprob]
        assert two["message"]["content"] == "two"
        # One report a choice: completions are added up, the prompt is counted once.
        assert reply.json["usage"]["prompt_tokens"] == 7
        assert reply.json["usage"]["completion_tokens"] == 6

    serve(tmp_path, test, script=stream(events), engine="streams")


# What llama.cpp really writes for two prompts: a null event, and usage beside the last choice.
LLAMA_TOKEN = (
    b'data: {"choices":[{"text":"one","index":0,"logprobs":{"content":[{"id":1,"token":"one",'
    b'"bytes":[1],"logprob":-1.5,"top_logprobs":[{"id":1,"token":"one","bytes":[1],"logprob":-1.5},'
    b'{"id":2,"token":"two","bytes":[2],"logprob":-2.5}]}]},"finish_reason":null}],"created":1,'
    b'"model":"tiny","object":"text_completion","id":"cmpl-1"}\n\n'
)
LLAMA_COMPLETION = [
    b"data: null\n\n",
    LLAMA_TOKEN,
    LLAMA_TOKEN,
    b'data: {"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"created":1'
    b',"model":"tiny","object":"text_completion","usage":{"completion_tokens":2,"prompt_tokens":1,'
    b'"total_tokens":3,"prompt_tokens_details":{"cached_tokens":0}},"id":"cmpl-1","timings":{}}\n\n',
    b'data: {"choices":[{"text":"two","index":1,"logprobs":null,"finish_reason":"stop"}],"created":'
    b'1,"model":"tiny","object":"text_completion","usage":{"completion_tokens":3,"prompt_tokens":2,'
    b'"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}},"id":"cmpl-1","timings":{}}\n\n',
    DONE,
]
LEGACY = {
    "tokens": ["one", "one"],
    "token_logprobs": [-1.5, -1.5],
    "top_logprobs": [{"one": -1.5, "two": -2.5}] * 2,
    "text_offset": [0, 3],
}
COMPLETION = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 3, "logprobs": 2}


def test_llama_completions_streamed(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        asked = {**COMPLETION, "stream": True, "stream_options": {"include_usage": True}}
        reply = await pool.ask("POST", "/v1/completions", asked)
        *choices, usage, done = reply.events
        assert done == "[DONE]"
        decoded = [msgspec.json.decode(one) for one in choices]
        shapes = [one["choices"][0]["logprobs"] for one in decoded[:2]]
        assert {key: shapes[0][key] + shapes[1][key] for key in LEGACY} == LEGACY
        assert all("usage" not in one for one in decoded)
        last = msgspec.json.decode(usage)
        assert last["choices"] == []
        assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (3, 5)
        assert last["id"] == "cmpl-1"
        reply = await pool.ask("POST", "/v1/completions", {**COMPLETION, "stream": True})
        assert b"usage" not in reply.body
        await pool.until(lambda: pool.control.usage == (2, 6, 2, 10))

    serve(tmp_path, test, script=stream(LLAMA_COMPLETION), engine="streams")


def test_llama_completions_plain(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        reply = await pool.ask("POST", "/v1/completions", COMPLETION)
        one, two = reply.json["choices"]
        assert (one["text"], one["finish_reason"], one["logprobs"]) == ("oneone", "length", LEGACY)
        assert (two["text"], two["finish_reason"]) == ("two", "stop")
        assert reply.json["object"] == "text_completion"
        assert reply.json["usage"]["total_tokens"] == 8

    serve(tmp_path, test, script=stream(LLAMA_COMPLETION), engine="streams")


def test_progress_stays_inside(tmp_path: Path) -> None:
    progress = event(
        choices=[{"index": 0, "delta": {"role": "assistant", "content": None}}],
        prompt_progress={"total": 32, "processed": 16},
    )

    async def test(pool: Rig, engine: Upstream) -> None:
        reply = await pool.ask("POST", "/v1/chat/completions", chat(stream=True))
        assert b"prompt_progress" not in reply.body
        assert engine.asked[-1].json["return_progress"] is True
        plain = await pool.ask("POST", "/v1/chat/completions", chat())
        assert plain.json["choices"][0]["message"]["content"] == "ab"

    serve(
        tmp_path,
        test,
        script=stream([progress, progress, *chat_events("a", "b")]),
        engine="streams",
    )


def test_empty_choices_and_comments_pass(tmp_path: Path) -> None:
    """As Azure's prompt_filter_results, and the keep-alives of others."""
    first = event(prompt_filter_results=[{"prompt_index": 0}])

    async def test(pool: Rig, engine: Upstream) -> None:
        reply = await pool.ask("POST", "/v1/chat/completions", chat(stream=True))
        assert reply.body.startswith(first)

    serve(tmp_path, test, script=stream([first, b": ping\n\n", *chat_events("a")]))


# --- endings ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("politely", [True, False])
def test_leaving_stops_the_engine_at_once(
    tmp_path: Path, engine_name: str, streamed: bool, politely: bool
) -> None:
    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.json["stream"]:
            writer.write(STREAM_HEAD + chunk(delta("a")))
        await asyncio.sleep(30)

    async def leave(pool: Rig, engine: Upstream) -> float:
        """Seconds from leaving until the engine is left."""
        loop = asyncio.get_running_loop()
        engine.asked.clear()
        engine.left.clear()
        client = await pool.connect()
        client.send(request("POST", "/v1/chat/completions", chat(streamed)))
        if streamed:
            await client.reader.readuntil(b'"content":"a"')
        else:
            await pool.until(lambda: engine.asked)
            await asyncio.sleep(0.05)
        left = loop.time()
        if politely:
            client.close()
        else:
            client.writer.transport.abort()
        await pool.until(lambda: engine.left)
        return engine.left[0].left_at - left

    async def test(pool: Rig, engine: Upstream) -> None:
        took = [await leave(pool, engine)]
        while min(took) >= 0.1 and len(took) < 4:  # another process may have had the core
            took.append(await leave(pool, engine))
        assert min(took) < 0.1
        await pool.until(lambda: not pool.process.gateway.busy)
        assert pool.process.gateway.metrics.left == len(took)
        assert all(report.active == 0 for report in pool.process.gateway.demand())
        if engine_name == "streams" or streamed:
            await pool.until(lambda: pool.control.usage[3] == len(took))  # what came is metered

    serve(tmp_path, test, script=script, engine=engine_name)


def broken(events: list[bytes], tail: bytes = b"") -> Any:
    """A stream whose connection breaks after these events, and perhaps part of one."""

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + b"".join(chunk(one) for one in events))
        if tail:
            writer.write(chunk(tail))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    return script


BEGUN = chat_events("a", "b")[:3]


@pytest.mark.parametrize(
    "script",
    [
        broken(chat_events("a", "b")[:3]),
        broken(chat_events("a", "b")[:3], b'data: {"id":"half'),
        stream(BEGUN, 0.02),  # ends in order, but without [DONE]
        stream([*BEGUN, b'data: {"usage":{broken\n\n', DONE], 0.02),
        stream([*BEGUN, b'data: {"error":{"message":"oops","code":500}}\n\n', DONE], 0.02),
        stream([*BEGUN, b'error: {"error":{"message":"oops"}}\n\n', DONE], 0.02),
        stream([BEGUN[0], b"".join(BEGUN[1:]) + b'data: {"error":"oops"}\n\n' + DONE], 0.02),
    ],
    ids=["reset", "half an event", "no end", "not JSON", "error", "old error", "in one read"],
)
def test_a_stream_that_breaks_ends_by_one_error_event(tmp_path: Path, script: Any) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        client = await pool.connect()
        client.send(request("POST", "/v1/chat/completions", chat(stream=True)))
        reply = await client.reply()
        assert reply.status == 200
        assert reply.complete  # the framing is whole, so that the event is seen
        *events, last = reply.events
        assert "[DONE]" not in reply.body.decode()
        assert reply.body.count(b'"error"') == 1
        error = msgspec.json.decode(last)["error"]
        assert {"message", "type", "param", "code"} <= set(error)
        assert error["code"] == "upstream_failed"
        assert len(events) == 3
        assert await client.closed()
        await pool.until(lambda: pool.control.usage[0] == 1)
        _, prompt, _, completion = pool.control.usage
        assert prompt > 0  # estimated: the engine did not come to say
        assert completion == 3

    serve(tmp_path, test, script=script)


@pytest.mark.parametrize(
    "script",
    [
        broken([]),
        broken(chat_events("a", "b")[:3]),
        stream(chat_events("a")[:3]),
        stream([b"data: {broken\n\n"]),
    ],
)
def test_a_plain_answer_that_breaks_is_a_502(tmp_path: Path, script: Any) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        reply = await pool.ask("POST", "/v1/chat/completions", chat())
        assert reply.status == 502
        assert reply.error["code"] == "upstream_failed"

    serve(tmp_path, test, script=script, engine="streams")


def test_an_engine_that_closes_without_an_answer_is_a_502(tmp_path: Path) -> None:
    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def test(pool: Rig, engine: Upstream) -> None:
        for streamed in (True, False):
            reply = await pool.ask("POST", "/v1/chat/completions", chat(streamed))
            assert reply.status == 502
            assert "x-should-retry" not in dict(reply.headers)

    serve(tmp_path, test, script=script)


def test_garbage_for_an_answer_is_a_502(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        for data in (b"SMTP ready\r\n", whole(b"{broken"), b"HTTP/1.1 200 OK\r\nx y\r\n\r\n"):
            engine.script = say(data)
            reply = await pool.ask("POST", "/v1/chat/completions", chat())
            assert reply.status == 502, data

    serve(tmp_path, test)


def test_a_silent_engine_is_given_up(tmp_path: Path) -> None:
    async def silent(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def stalls(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(delta("a")))
        await asyncio.sleep(30)

    async def test(pool: Rig, engine: Upstream) -> None:
        reply = await pool.ask("POST", "/v1/chat/completions", chat(stream=True))
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        assert "first_byte_ms" in reply.error["message"]
        engine.script = stalls
        reply = await pool.ask("POST", "/v1/chat/completions", chat(stream=True))
        assert "quiet_ms" in reply.events[-1]
        assert "[DONE]" not in reply.events
        await pool.until(lambda: len(engine.left) == 2)

    serve(tmp_path, test, replace(LIMITS, first_byte_ms=100, quiet_ms=150), silent)


def test_a_quiet_stream_is_kept_alive_by_comments(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        reply = await pool.ask("POST", "/v1/chat/completions", chat(stream=True))
        assert reply.events[-1] == "[DONE]"
        assert 2 <= reply.events.count(":") <= 8
        assert b"".join(chat_events("a")[:3]) in reply.body.replace(b":\n\n", b"")

    script = stream(chat_events("a"), 0.15)
    serve(tmp_path, test, replace(LIMITS, comment_ms=60), script)


def test_an_answer_over_the_limit_is_a_502(tmp_path: Path) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        endless = stream([b"data: " + b"x" * 3_000] * 4)
        for script, streamed in (
            (say(whole(b"[" + b" " * 20_000 + b"]")), False),
            (endless, True),
        ):
            engine.script = script
            reply = await pool.ask("POST", "/v1/chat/completions", chat(streamed))
            assert reply.status == 502
            assert "limit" in reply.error["message"]

    serve(tmp_path, test, replace(LIMITS, answer_bytes=10_000, event_bytes=10_000))


# --- an engine's refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (
            "400 Bad Request",
            {"error": {"code": 400, "message": "too big", "type": "exceed_context_size_error"}},
            400,
            "context_length_exceeded",
        ),
        (
            "400 Bad Request",
            {"error": {"message": "This model's maximum context length is 2048 tokens"}},
            400,
            "context_length_exceeded",
        ),
        ("400 Bad Request", {"error": {"message": "bad grammar"}}, 400, "invalid_request"),
        ("404 Not Found", {"detail": "Not Found"}, 400, "invalid_request"),
        ("422 Unprocessable", {"detail": [{"loc": ["x"]}]}, 400, "invalid_request"),
        ("401 Unauthorized", {"error": "no"}, 502, "upstream_failed"),
        ("500 Internal Server Error", "not JSON", 502, "upstream_failed"),
        ("501 Not Implemented", {"error": {"message": "no"}}, 501, "unsupported"),
        ("503 Service Unavailable", {"error": {"message": "Loading"}}, 503, "overloaded"),
    ],
)
@BOTH
def test_refusals_of_an_engine_in_our_words(
    tmp_path: Path, engine_name: str, status: str, body: Any, expected: int, code: str
) -> None:
    async def test(pool: Rig, engine: Upstream) -> None:
        for streamed in (False, True):
            reply = await pool.ask("POST", "/v1/chat/completions", chat(streamed))
            assert (reply.status, reply.error["code"]) == (expected, code)
            assert (reply.header("x-should-retry") == "false") is (expected in (400, 501))
        assert len(engine.asked) == 2
        await asyncio.sleep(0.05)
        assert pool.control.usage == (0, 0, 0, 0)

    serve(tmp_path, test, script=say(whole(msgspec.json.encode(body), status)), engine=engine_name)


def test_an_engines_429_is_passed_on_once_with_its_times(tmp_path: Path) -> None:
    body = b'{"error":{"message":"slow down","type":"x","param":null,"code":"rate"}}'
    headers = b"retry-after-ms: 1500\r\nx-request-id: engine-1\r\n"

    async def test(pool: Rig, engine: Upstream) -> None:
        reply = await pool.ask("POST", "/v1/chat/completions", chat())
        assert reply.status == 429
        assert reply.header("retry-after-ms") == "1500"
        assert reply.header("retry-after") == "2"
        assert reply.error["message"].startswith("slow down")
        assert reply.error["code"] == "rate_limit_exceeded"
        assert (reply.header("x-request-id") or "").startswith("req-")
        assert len(engine.asked) == 1

    serve(tmp_path, test, script=say(whole(body, "429 Too Many Requests", headers)))


# --- other routes -------------------------------------------------------------------------------


def test_embeddings_in_both_encodings_whatever_the_engine_gives(tmp_path: Path) -> None:
    numbers = [0.25, -1.0, 3.5]
    packed = base64.b64encode(struct.pack("<3f", *numbers)).decode()

    def answer(embedding: Any) -> Any:
        data = [{"object": "embedding", "index": 0, "embedding": embedding}]
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        return say(
            whole(
                msgspec.json.encode({"object": "list", "data": data, "usage": usage, "model": "m"})
            )
        )

    async def test(pool: Rig, engine: Upstream) -> None:
        for given in (numbers, packed):
            engine.script = answer(given)
            for wanted, expected in (("base64", packed), ("float", numbers), (None, numbers)):
                for value in ("text", ["a", "b"], [1, 2, 3], [[1, 2], [3]]):
                    body = {"model": "tiny", "input": value}
                    if wanted is not None:
                        body["encoding_format"] = wanted
                    reply = await pool.ask("POST", "/v1/embeddings", body)
                    assert reply.json["data"][0]["embedding"] == expected
                    assert engine.asked[-1].json["input"] == value
        await pool.until(lambda: pool.control.usage == (24, 120, 0, 0))

    serve(tmp_path, test, purpose=Purpose.EMBEDDING)


def test_tokenize_and_detokenize_in_every_dialect(tmp_path: Path) -> None:
    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.target == "/tokenize":
            assert asked.json["content"] == "hi there"
            body: Any = {"tokens": [5, 6]}
        else:
            assert asked.json["tokens"] == [5, 6]
            body = {"content": "hi there"}
        await say(whole(msgspec.json.encode(body)))(asked, writer)

    async def test(pool: Rig, engine: Upstream) -> None:
        for path in ("/tokenize", "/v1/tokenize"):
            for field in ("prompt", "content", "text"):
                for model in ({}, {"model": "tiny"}):
                    reply = await pool.ask("POST", path, {field: "hi there", **model})
                    assert reply.json == {"tokens": [5, 6], "count": 2, "max_model_len": 2048}
        for path in ("/detokenize", "/v1/detokenize"):
            reply = await pool.ask("POST", path, {"tokens": [5, 6]})
            assert reply.json["prompt"] == "hi there"
        reply = await pool.ask("POST", "/tokenize", {"model": "tiny"})
        assert (reply.status, reply.error["param"]) == (400, "prompt")

    serve(tmp_path, test, script=script)
