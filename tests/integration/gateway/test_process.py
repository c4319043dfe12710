"""The gateway as a process of its own, with the simulated engine and the real OpenAI client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import openai
import pytest
from tests.integration.gateway.rig import KEY, TOKEN, Control, deployment, table

from onefleet.domain.layout import Layout
from onefleet.domain.serving import Purpose

Running = tuple[subprocess.Popen[bytes], int]


@contextlib.contextmanager
def started(
    module: str, *flags: str, port_file: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process of ours and its port; it is ended after."""
    port_file.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", module, *flags, f"--port-file={port_file}"],
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 20
        while not port_file.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process, int(port_file.read_text("ascii").split()[1])
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(20)
        assert process.stderr is not None
        process.stderr.close()


class ControlThread:
    """The rig's control plane on a loop of its own."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._do(control.upstream.start())

    def _do(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)  # type: ignore[arg-type]

    def stop(self) -> None:
        async def end() -> None:
            await self.control.upstream.stop()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class Pool:
    folder: Path
    control: Control

    def gateway(self) -> contextlib.AbstractContextManager[Running]:
        return started(
            "onefleet.gateway",
            f"--data-dir={self.folder}",
            "--port=0",
            port_file=self.folder / "gateway.port",
        )


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """A control plane and a simulated engine; deployments "tiny", "gathered" and "embed"."""
    engine = started(
        "onefleet.engines.simulated_server",
        "--alias=tiny",
        "--context=512",
        port_file=tmp_path / "engine.port",
    )
    with engine as (_, port):
        routes = table(
            deployment("tiny", port, engine="simulated", context_length=512),
            deployment("gathered", port, engine="llamacpp", context_length=512),
            deployment("embed", port, engine="simulated", purpose=Purpose.EMBEDDING),
        )
        thread = ControlThread(Control(routes))
        layout = Layout(tmp_path)
        layout.internal_file.parent.mkdir(parents=True, exist_ok=True)
        internal = {"host": "127.0.0.1", "port": thread.control.upstream.port, "token": TOKEN}
        layout.internal_file.write_bytes(msgspec.json.encode(internal))
        try:
            yield Pool(tmp_path, thread.control)
        finally:
            thread.stop()


def client(port: int, key: str = KEY, retries: int = 2) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=retries, timeout=20
    )


MESSAGES = [{"role": "user", "content": "hello there"}]


def wait_ready(ask: openai.OpenAI) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            ask.models.list()
            return
        except openai.APIStatusError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_openai_client(pool: Pool) -> None:
    with pool.gateway() as (_, port), client(port) as ask:
        wait_ready(ask)
        assert {one.id for one in ask.models.list()} == {"tiny", "gathered", "embed"}
        assert ask.models.retrieve("tiny").owned_by == "default"
        for model in ("tiny", "gathered"):
            raw = ask.chat.completions.with_raw_response.create(
                model=model, messages=MESSAGES, max_completion_tokens=8
            )
            plain = raw.parse()
            assert raw.headers["x-request-id"] == plain._request_id
            assert plain.choices[0].message.content
            assert plain.usage is not None
            assert plain.usage.completion_tokens == 8
            assert plain.usage.prompt_tokens_details is not None
            assert plain.usage.prompt_tokens_details.cached_tokens is not None
            chunks = list(
                ask.chat.completions.create(
                    model=model, messages=MESSAGES, max_completion_tokens=8, stream=True
                )
            )
            text = "".join(one.choices[0].delta.content or "" for one in chunks)
            assert text == plain.choices[0].message.content
            assert chunks[-1].choices[0].finish_reason == "length"
            assert len({one.id for one in chunks}) == 1
            with_usage = list(
                ask.chat.completions.create(
                    model=model,
                    messages=MESSAGES,
                    max_tokens=4,
                    stream=True,
                    stream_options={"include_usage": True},
                )
            )
            assert with_usage[-1].choices == []
            assert with_usage[-1].usage is not None
            assert with_usage[-1].usage.completion_tokens == 4
            done = ask.completions.create(model=model, prompt="once", max_tokens=3)
            assert done.choices[0].text
            pieces = list(
                ask.completions.create(model=model, prompt="once", max_tokens=3, stream=True)
            )
            assert "".join(one.choices[0].text for one in pieces) == done.choices[0].text
        for value in ("text", ["a", "b"], [1, 2, 3], [[1, 2], [3]]):
            vectors = ask.embeddings.create(model="embed", input=value).data  # asks for base64
            numbers = ask.embeddings.create(
                model="embed", input=value, encoding_format="float"
            ).data
            assert len(vectors) == len(numbers)
            assert vectors[0].embedding == pytest.approx(numbers[0].embedding, abs=1e-6)


def requests_of(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return answer.read().decode()  # type: ignore[no-any-return]


def test_errors_are_the_clients_exceptions(pool: Pool) -> None:
    with pool.gateway() as (_, port), client(port) as ask:
        wait_ready(ask)
        with pytest.raises(openai.NotFoundError) as missing:
            ask.chat.completions.create(model="nope", messages=MESSAGES)
        assert missing.value.code == "model_not_found"
        assert missing.value.param == "model"
        assert missing.value.request_id
        with pytest.raises(openai.BadRequestError):
            ask.chat.completions.create(model="tiny", messages=[])
        with pytest.raises(openai.BadRequestError) as too_long:
            ask.chat.completions.create(
                model="gathered", messages=[{"role": "user", "content": "word " * 5_000}]
            )
        assert too_long.value.code == "context_length_exceeded"
        with client(port, "sk-wrong") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        told = requests_of(port)
        for code in ("model_not_found", "context_length_exceeded", "invalid_api_key"):
            assert f'errors_total{{code="{code}"}} 1.0' in told  # none of these was tried again
        for model in ("tiny", "gathered"):
            with pytest.raises(openai.InternalServerError):
                ask.with_options(max_retries=0).chat.completions.create(
                    model=model, messages=MESSAGES, extra_body={"simulate": {"error_status": 500}}
                )
        with pytest.raises(openai.RateLimitError):
            ask.with_options(max_retries=0).chat.completions.create(
                model="tiny", messages=MESSAGES, extra_body={"simulate": {"error_status": 429}}
            )
        with pytest.raises(openai.APIError) as cut:
            list(
                ask.chat.completions.create(
                    model="tiny",
                    messages=MESSAGES,
                    stream=True,
                    extra_body={"simulate": {"cut_after": 3, "decode_tokens_s": 200}},
                )
            )
        assert "did not finish its answer" in cut.value.message


def test_kill_minus_nine_loses_no_usage_and_nobody_is_needed(pool: Pool) -> None:
    # The control plane refuses usage, so that all of it is in the journal when the process dies.
    with pool.gateway() as (process, port), client(port) as ask:
        wait_ready(ask)
        pool.control.refuse = True
        for _ in range(5):
            ask.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
        process.kill()
        process.wait(10)
    with pool.gateway() as (_, port), client(port) as ask:
        # It serves at once by the table on disk: the control plane still refuses.
        ask.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
        pool.control.refuse = False
        deadline = time.monotonic() + 10
        while pool.control.usage[0] < 6:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert pool.control.usage[3] == 12


def test_sigterm_ends_it_with_zero_and_hands_usage_over(pool: Pool) -> None:
    with pool.gateway() as (process, port), client(port) as ask:
        wait_ready(ask)
        answer = ask.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            stream=True,
            max_tokens=20,
            extra_body={"simulate": {"decode_tokens_s": 40}},
        )
        first = next(answer)
        process.send_signal(signal.SIGTERM)
        rest = list(answer)  # half a second of answer goes on
        assert rest[-1].choices[0].finish_reason
        assert first.id == rest[-1].id
        assert process.wait(10) == 0
        assert pool.control.usage[0] == 1


def test_a_listening_socket_can_be_handed_over(pool: Pool) -> None:
    """As the launcher does it: the port survives the process, and connections wait in it."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "onefleet.gateway", f"--data-dir={pool.folder}"]
        command.append(f"--listen-fd={listener.fileno()}")
        with client(port, retries=0) as ask:
            for _ in range(2):
                process = subprocess.Popen(
                    command, pass_fds=(listener.fileno(),), stderr=subprocess.DEVNULL
                )
                try:
                    wait_ready(ask)
                    ask.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
                finally:
                    os.kill(process.pid, signal.SIGKILL)
                    process.wait(10)


def test_without_a_pool_it_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onefleet.gateway", f"--data-dir={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7
    assert done.stderr.splitlines()[0].startswith("error: ")
    assert done.stderr.splitlines()[2] == "try: onefleet up"
