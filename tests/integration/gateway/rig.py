"""A gateway on loopback with everything around it: a control plane, engines, raw clients.

All on one event loop and on real sockets. The control plane here answers the sync call with a
table that the test sets, and keeps what was reported. Engines are canned: each request is noted
and answered by a script of bytes and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from onefleet.domain.ids import Generation, Instant
from onefleet.domain.layout import Layout
from onefleet.domain.serving import Purpose
from onefleet.domain.tenancy import Role
from onefleet.domain.tiers import Tier
from onefleet.engines.base import Dialect
from onefleet.gateway.limits import GatewayLimits
from onefleet.gateway.process import GatewayProcess
from onefleet.wire.gateway import (
    DeploymentRoute,
    Endpoint,
    GatewayReport,
    KeyRoute,
    RouteTable,
    TenantRoute,
)

KEY = "sk-test-0123456789abcdef"
OTHER_KEY = "sk-other-0123456789abcdef"
TOKEN = "internal-token"

LIMITS = GatewayLimits(
    hold_ms=2_000, drain_ms=2_000, tick_ms=20, linger_ms=300, demand_every_ms=20, connect_ms=500
)

DIALECTS = {
    # plain requests can be left, as with vLLM
    "plain": Dialect(True, True, "/tokenize", "content", "/health", 0),
    # they cannot, as with llama.cpp
    "streams": Dialect(
        False, True, "/tokenize", "content", "/health", 5_000, (("return_progress", "true"),)
    ),
}


def key(text: str = KEY, tenant: str = "default", role: Role = Role.CALLER) -> KeyRoute:
    digest = sha256(text.encode()).hexdigest()
    return KeyRoute(digest=digest, key_id=f"key-{tenant}", tenant_id=tenant, role=role)


def deployment(name: str = "tiny", *ports: int, **changes: Any) -> DeploymentRoute:
    """A public chat deployment of the default tenant, one replica a port."""
    values: dict[str, Any] = {
        "deployment_id": f"dep-{name}",
        "name": name,
        "tenant_id": "default",
        "public": True,
        "model_id": "demo:tiny",
        "purpose": Purpose.CHAT,
        "tier": Tier.STANDARD,
        "engine": "plain",
        "slots": 16,
        "context_length": 2048,
        "replicas_max": 1,
        "created_at": Instant(1_700_000_000_000),
        "endpoints": tuple(
            Endpoint(replica_id=f"rep-{n}", host="127.0.0.1", port=port)
            for n, port in enumerate(ports)
        ),
    }
    return DeploymentRoute(**{**values, **changes})


@dataclass
class Asked:
    """A request as an engine or the control plane got it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    left_at: float = 0.0  # loop time at which the asker closed the connection
    sockname: tuple[str, int] = ("", 0)
    connection: int = 0

    @property
    def json(self) -> dict[str, Any]:
        decoded: dict[str, Any] = msgspec.json.decode(self.body)
        return decoded


Script = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    line, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = line.split(" ")
    headers = {}
    for text in lines:
        name, colon, value = text.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readline()).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, target, headers, body)


@dataclass
class Upstream:
    """A canned HTTP server. left: requests whose asker closed the connection before the answer."""

    script: Script
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    left: list[Asked] = field(default_factory=list)
    nodelay: list[bool] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _serving: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self, port: int = 0) -> Upstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        if self._serving:
            await asyncio.wait(self._serving, timeout=2)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._serving.append(task)
        with contextlib.suppress(ConnectionError):
            while (asked := await read_request(reader)) is not None:
                asked.connection = number
                self.asked.append(asked)
                answering = asyncio.ensure_future(self.script(asked, writer))
                gone = asyncio.ensure_future(_closed(reader))
                await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
                broken = answering.done() and isinstance(answering.exception(), ConnectionError)
                if broken or (gone.done() and not answering.done()):
                    asked.left_at = asyncio.get_running_loop().time()
                    self.left.append(asked)
                    answering.cancel()
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await answering
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
                if writer.is_closing() or reader.at_eof():
                    break
        writer.close()


async def _closed(reader: asyncio.StreamReader) -> None:
    """Wait for the end of the stream without eating what is sent."""
    while not reader.at_eof() and reader.exception() is None:
        await asyncio.sleep(0.002)


def whole(body: bytes, status: str = "200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b" % (
        status.encode(),
        len(body),
        headers,
        body,
    )


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(**fields: Any) -> bytes:
    base = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "tiny",
        "choices": [],
    }
    return b"data: " + msgspec.json.encode({**base, **fields}) + b"\n\n"


def delta(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    piece: dict[str, Any] = {} if text is None else {"content": text}
    return event(choices=[{"index": 0, "delta": {**piece, **more}, "finish_reason": finish}])


USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
}
DONE = b"data: [DONE]\n\n"


def chat_events(*texts: str) -> list[bytes]:
    return [
        delta(None, role="assistant", content=""),
        *(delta(text) for text in texts),
        delta(None, "stop"),
        event(usage=USAGE),
        DONE,
    ]


def stream(events: list[bytes], pause: float = 0.0) -> Script:
    """A script that writes each event by itself."""

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for one in events:
            writer.write(chunk(one))
            await writer.drain()
            if pause:
                await asyncio.sleep(pause)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    return script


def say(data: bytes) -> Script:
    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return script


PLAIN_ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "tiny",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop"}
    ],
    "usage": USAGE,
}


async def engine_script(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Answers chat, streamed or not."""
    if asked.json.get("stream"):
        await stream(chat_events("a", "b"))(asked, writer)
    else:
        await say(whole(msgspec.json.encode(PLAIN_ANSWER)))(asked, writer)


@dataclass
class Reply:
    """An answer as a client got it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    complete: bool = True  # framed to its end

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} comes {len(values)} times"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        assert {"message", "type", "param", "code"} <= set(error)
        return error

    @property
    def events(self) -> list[str]:
        return [one.removeprefix("data: ") for one in self.body.decode().split("\n\n") if one]


class Client:
    """A raw HTTP/1.1 client, one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def close(self) -> None:
        self.writer.close()

    async def head(self) -> Reply:
        """The next head, interim answers skipped."""
        while True:
            head = await self.reader.readuntil(b"\r\n\r\n")
            line, *lines = head.decode("latin-1").split("\r\n")
            status = int(line.split(" ")[1])
            if status >= 200:
                break
        headers = []
        for text in lines:
            name, colon, value = text.partition(":")
            if colon:
                headers.append((name.lower(), value.strip()))
        return Reply(status, headers, b"")

    async def reply(self, head_only: bool = False) -> Reply:
        """The next answer, whole as far as it comes."""
        reply = await self.head()
        if head_only or reply.status in (204, 304):
            return reply
        length = reply.header("content-length")
        try:
            if reply.header("transfer-encoding") == "chunked":
                while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
                    reply.body += await self.reader.readexactly(size)
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
            elif length is not None:
                reply.body = await self.reader.readexactly(int(length))
            else:
                reply.body = await self.reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            reply.complete = False
        return reply

    async def closed(self) -> bool:
        """The server closed and sent nothing more."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 3) == b""
        except ConnectionError:
            return True


def request(
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    api_key: str | None = KEY,
) -> bytes:
    """The bytes of a request. body: bytes as they are, anything else as JSON."""
    lines = [f"{method} {path} HTTP/1.1", "host: test"]
    if api_key is not None:
        lines.append(f"authorization: Bearer {api_key}")
    data = b""
    if body is not None:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        lines += ["content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def chat(stream: bool = False, model: str = "tiny", **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "hi"}],
        **({"stream": True} if stream else {}),
        **more,
    }


@dataclass
class Control:
    """The control plane's side of the sync call; `other` answers everything else."""

    table: RouteTable
    upstream: Upstream = field(init=False)
    reports: list[GatewayReport] = field(default_factory=list)
    other: Script = field(default=say(whole(b'{"from":"control"}')))
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    refuse: bool = False

    def __post_init__(self) -> None:
        self.upstream = Upstream(self._script)

    async def _script(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.target != "/internal/gateway/sync":
            await self.other(asked, writer)
            return
        assert asked.headers["x-onefleet-internal"] == TOKEN
        report = msgspec.json.decode(asked.body, type=GatewayReport)
        self.reports.append(report)
        if self.refuse:
            await say(whole(b'{"error":"no"}', "500 Internal Server Error"))(asked, writer)
            return
        if report.wait_ms and report.seen == self.table.generation:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(report.wait_ms / 1000):
                    await self.changed.wait()
        await say(whole(msgspec.json.encode(self.table)))(asked, writer)

    def set(self, *deployments: DeploymentRoute) -> None:
        """A new generation of the table with these deployments."""
        self.table = msgspec.structs.replace(
            self.table,
            generation=Generation(self.table.generation + 1),
            deployments=deployments,
        )
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def usage(self) -> tuple[int, int, int, int]:
        """Requests, prompt, cached and completion tokens, each batch counted once."""
        batches = {report.sequence: report.usage for report in self.reports if report.usage}
        rows = [row for usage in batches.values() for row in usage]
        return (
            sum(row.requests for row in rows),
            sum(row.prompt_tokens for row in rows),
            sum(row.cached_tokens for row in rows),
            sum(row.completion_tokens for row in rows),
        )


@dataclass
class Rig:
    """A running gateway and all around it."""

    process: GatewayProcess
    control: Control
    port: int
    layout: Layout
    _clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26)
        client = Client(reader, writer)
        self._clients.append(client)
        return client

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> Reply:
        """One request over a connection of its own."""
        client = await self.connect()
        client.send(request(method, path, body, **more))
        reply = await asyncio.wait_for(client.reply(method == "HEAD"), 10)
        client.close()
        return reply

    async def until(self, true: Callable[[], Any], seconds: float = 3.0) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.002)


def table(*deployments: DeploymentRoute, **changes: Any) -> RouteTable:
    values: dict[str, Any] = {
        "generation": Generation(1),
        "keys": (key(), key(OTHER_KEY, "other")),
        "tenants": (TenantRoute(tenant_id="default"), TenantRoute(tenant_id="other")),
        "deployments": deployments,
    }
    return RouteTable(**{**values, **changes})


@contextlib.asynccontextmanager
async def rig(
    root: Path,
    routes: RouteTable,
    limits: GatewayLimits = LIMITS,
    tls: Any = None,
    wait: bool = True,
) -> AsyncIterator[Rig]:
    """Start a control plane and a gateway under `root`; end them after."""
    control = Control(routes)
    await control.upstream.start()
    layout = Layout(root)
    process = GatewayProcess(layout, "127.0.0.1", control.upstream.port, TOKEN, limits, DIALECTS)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.setblocking(False)
    await process.start(listener, tls)
    running = Rig(process, control, listener.getsockname()[1], layout)
    try:
        if wait:
            await running.until(lambda: process.gateway.ready)
        yield running
    finally:
        for client in running._clients:
            client.writer.transport.abort()
        await process.stop()
        await control.upstream.stop()


def serve(
    root: Path,
    test: Callable[[Rig, Upstream], Coroutine[Any, Any, None]],
    limits: GatewayLimits = LIMITS,
    script: Script = engine_script,
    **changes: Any,
) -> None:
    """Run `test` beside a gateway with one engine."""

    async def main() -> None:
        engine = await Upstream(script).start()
        try:
            async with rig(root, table(deployment("tiny", engine.port, **changes)), limits) as pool:
                await test(pool, engine)
        finally:
            await engine.stop()

    uvloop.run(main())
