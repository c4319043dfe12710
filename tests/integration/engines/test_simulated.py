"""The simulated engine's process: the same HTTP as a real one, and every fault on demand."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

MESSAGES: list[Any] = [{"role": "user", "content": "What is the capital of France? " * 10}]

Running = Any
StartEngine = Callable[..., Running]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.005)


def stats(engine: Running) -> Any:
    return engine.get("/simulated/stats")


def stream_of(engine: Running, simulate: dict[str, Any] | None = None, **more: Any) -> Any:
    return engine.client.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, extra_body={"simulate": simulate or {}}, **more
    )


def talk(engine: Running, data: bytes, *, ends: bytes = b"") -> bytes:
    """Send raw bytes; return what comes until `ends`, or until the connection is closed."""
    with socket.create_connection((engine.host, engine.port), timeout=10) as connection:
        connection.sendall(data)
        got = b""
        while not (ends and got.count(ends)):
            part = connection.recv(65536)
            if not part:
                return got
            got += part
        return got


def test_the_openai_client_is_served(start_engine: StartEngine) -> None:
    engine = start_engine("simulated")
    client = engine.client
    plain = client.chat.completions.create(model="m", messages=MESSAGES)
    assert plain.system_fingerprint == "simulated"
    assert plain.choices[0].finish_reason == "stop"
    chunks = list(stream_of(engine, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content, "the same prompt gets the same answer"
    assert {chunk.system_fingerprint for chunk in chunks} == {"simulated"}
    usage = chunks[-1].usage
    assert usage is not None and chunks[-1].choices == []
    assert (usage.prompt_tokens, usage.completion_tokens) == (79, 16)
    assert usage.prompt_tokens_details.cached_tokens == 64
    done = client.completions.create(model="m", prompt="hello", max_tokens=5)
    assert done.choices[0].finish_reason == "length"
    assert len(engine.post("/tokenize", {"content": done.choices[0].text})["tokens"]) == 5
    [model] = client.models.list()
    assert model.owned_by == "simulated"
    assert engine.get("/health") == {"status": "ok", "simulated": True}


def test_embeddings_come_as_numbers_and_as_base64(start_engine: StartEngine) -> None:
    engine = start_engine("simulated", embedding_length=8)
    packed = engine.client.embeddings.create(model="m", input=["a b", "c"])
    plain = engine.client.embeddings.create(model="m", input=["a b"], encoding_format="float")
    assert [round(x, 5) for x in packed.data[0].embedding] == [
        round(x, 5) for x in plain.data[0].embedding
    ]
    ids = engine.post("/tokenize", {"content": "a b"})["tokens"]
    by_ids = engine.client.embeddings.create(model="m", input=ids, encoding_format="float")
    assert by_ids.data[0].embedding == plain.data[0].embedding
    assert len(packed.data) == 2


def test_it_keeps_the_speed_that_it_was_told(start_engine: StartEngine) -> None:
    engine = start_engine("simulated", decode_tokens_s=200, tokens=41)
    begin = time.monotonic()
    assert len(list(stream_of(engine))) == 43
    assert time.monotonic() - begin >= 0.2


def test_slots_make_requests_wait(start_engine: StartEngine) -> None:
    engine = start_engine("simulated", slots=1, decode_tokens_s=20)
    streams = [stream_of(engine)]
    next(iter(streams[0]))
    blocked = socket.create_connection((engine.host, engine.port))
    body = json.dumps({"prompt": "hello", "max_tokens": 1}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    blocked.sendall(head + body)
    until(lambda: stats(engine)["waiting"] == 1)
    streams[0].close()
    assert b'"finish_reason":"length"' in blocked.recv(65536)
    blocked.close()
    assert stats(engine)["cancelled"] == 1


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_is_counted_and_stops_the_work(start_engine: StartEngine, stream: bool) -> None:
    engine = start_engine("simulated", decode_tokens_s=10)
    body = json.dumps({"messages": MESSAGES, "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    with socket.create_connection((engine.host, engine.port)) as connection:
        connection.sendall(head % len(body) + body)
        until(lambda: stats(engine)["running"] == 1)
    until(lambda: stats(engine)["running"] == 0)
    seen = stats(engine)
    assert (seen["cancelled"], seen["finished"], seen["kv_blocks_used"]) == (1, 0, 0)


def test_leaving_after_the_end_is_no_cancellation(start_engine: StartEngine) -> None:
    engine = start_engine("simulated")
    for _ in range(3):
        list(stream_of(engine))
    seen = stats(engine)
    assert (seen["finished"], seen["cancelled"]) == (3, 0)


def chunks_before_the_end(stream: Any) -> tuple[int, Exception | None]:
    count = 0
    try:
        for chunk in stream:
            count += bool(chunk.choices and chunk.choices[0].delta.content)
    except Exception as error:  # noqa: BLE001  # the client's HTTP library has errors of its own
        return count, error
    return count, None


@pytest.mark.parametrize("speed", [0, 500])
def test_a_cut_stream_ends_after_its_tokens(start_engine: StartEngine, speed: int) -> None:
    engine = start_engine("simulated", decode_tokens_s=speed)
    count, error = chunks_before_the_end(stream_of(engine, {"cut_after": 5}))
    assert count == 5 and error is not None
    with pytest.raises(openai.APIConnectionError):
        engine.client.chat.completions.create(
            model="m", messages=MESSAGES, extra_body={"simulate": {"cut_after": 5}}
        )
    assert stats(engine)["running"] == 0


@pytest.mark.parametrize("speed", [0, 500])
def test_a_process_told_to_die_dies_in_the_stream(start_engine: StartEngine, speed: int) -> None:
    engine = start_engine("simulated", decode_tokens_s=speed)
    count, error = chunks_before_the_end(stream_of(engine, {"die_after": 3}))
    assert count == 3 and error is not None
    assert engine.process.wait(timeout=10) == 70


def test_a_stalled_stream_says_nothing_more(start_engine: StartEngine) -> None:
    engine = start_engine("simulated")
    stream = stream_of(engine, {"stall_after": 2}, timeout=0.5)
    seen = 0
    with pytest.raises(Exception, match="timed out"):
        for chunk in stream:
            seen += bool(chunk.choices[0].delta.content)
    assert seen == 2
    until(lambda: stats(engine)["cancelled"] == 1)


def test_a_status_is_answered_as_told(start_engine: StartEngine) -> None:
    engine = start_engine("simulated")
    for status, error in ((429, openai.RateLimitError), (500, openai.InternalServerError)):
        with pytest.raises(error, match="simulated failure"):
            list(stream_of(engine, {"error_status": status}))
    with pytest.raises(openai.APIConnectionError):
        list(stream_of(engine, {"refuse": True}))
    with pytest.raises(openai.BadRequestError, match="unknown field"):
        list(stream_of(engine, {"explode": True}))


def test_faults_of_the_process_hold_unless_a_request_says_otherwise(
    start_engine: StartEngine,
) -> None:
    engine = start_engine("simulated", error_status=503)
    with pytest.raises(openai.InternalServerError):
        list(stream_of(engine))
    body = b'{"prompt":"x"}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-simulate: error_status=418\r\n"
    answer = talk(engine, head + b"content-length: 14\r\n\r\n" + body, ends=b"simulated_error")
    assert answer.startswith(b"HTTP/1.1 418 ")


def test_a_delay_comes_before_the_first_byte(start_engine: StartEngine) -> None:
    engine = start_engine("simulated")
    begin = time.monotonic()
    list(stream_of(engine, {"delay_ms": 150}))
    assert time.monotonic() - begin >= 0.15


def test_too_long_a_prompt_is_refused(start_engine: StartEngine) -> None:
    engine = start_engine("simulated", context_length=64)
    with pytest.raises(openai.BadRequestError) as caught:
        list(stream_of(engine))
    assert caught.value.code == "context_length_exceeded"


def test_a_slow_start_a_failed_start_and_a_closed_port(start_engine: StartEngine) -> None:
    begin = time.monotonic()
    start_engine("simulated", start_ms=300)
    assert time.monotonic() - begin >= 0.3
    failed = start_engine("simulated", fail=1, ready=False)
    assert failed.process.wait(timeout=10) == 1
    assert failed.stderr.read_text().startswith("error: ")
    closed = start_engine("simulated", refuse=1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((closed.host, closed.port), timeout=5)


@pytest.mark.parametrize("blocked", [False, True])
def test_it_ends_when_told(start_engine: StartEngine, blocked: bool) -> None:
    if blocked:  # by its parent, and inherited
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    engine = start_engine("simulated", decode_tokens_s=1)
    if blocked:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    stream = stream_of(engine)
    next(iter(stream))
    engine.process.terminate()
    assert engine.process.wait(timeout=10) == 0
    assert not engine.port_file.exists()
    stream.close()


# --- HTTP ---------------------------------------------------------------------------------------

ONE = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 30\r\n\r\n"
    b'{"prompt":"hi","max_tokens":1}'
)


def test_pipelined_requests_are_answered_in_order(start_engine: StartEngine) -> None:
    for speed in (0, 500):
        engine = start_engine("simulated", decode_tokens_s=speed, kv_tokens=0)
        last = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        answer = talk(engine, ONE * 20 + last)
        assert answer.count(b"HTTP/1.1 200 OK") == 21
        numbers = [int(part.split(b'"')[0]) for part in answer.split(b'"id":"sim-')[1:]]
        assert numbers == sorted(numbers) and len(numbers) == 20
        assert answer.endswith(b'{"status":"ok","simulated":true}')


def test_a_chunked_body_and_expect_are_understood(start_engine: StartEngine) -> None:
    engine = start_engine("simulated")
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"
    chunks = b'7\r\n{"promp\r\n7\r\nt":"h"}\r\n0\r\n\r\n'
    data = head + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n" + chunks
    answer = talk(engine, data)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"404"),
        (b"GET /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"405"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nlong: " + b"y" * 70_000 + b"\r\n\r\n", b"413"),
        (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b'content-length: 9\r\n\r\n{"prompt"',
            b"400",
        ),
        (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b'content-length: 22\r\n\r\n{"prompt":["a","b"]}  ',
            b"400",
        ),
        (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b'content-length: 24\r\n\r\n{"prompt":[99999999999]}',
            b"400",
        ),
    ],
)
def test_bad_requests_have_a_status_of_their_own(
    start_engine: StartEngine, data: bytes, status: bytes
) -> None:
    engine = start_engine("simulated")
    answer = talk(engine, data)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b'"error"' in answer and engine.process.poll() is None
