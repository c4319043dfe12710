"""What the gateway adds: latency and CPU, beside the same engine asked directly.

Real processes on loopback: the simulated engine, the gateway with API keys, quotas and metering
on, and this load generator. Rounds of "direct" and "through the gateway" alternate, so that a
busy machine disturbs both. CPU is what the kernel counted for the gateway's threads
(/proc/PID/task/*/schedstat). Other work on the same cores can only raise it (caches, switches),
so the least of all rounds says what the gateway costs, and the median what it cost here; the
budget holds the least. Latencies are medians over rounds.

    python -m benchmarks.gateway            report to benchmarks/gateway.md, exit 1 over budget
    python -m benchmarks.gateway --quick    fewer rounds, report to the terminal only
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median

import msgspec
import uvloop

from benchmarks.load import cpu_us, load, quantile
from onefleet.domain.ids import Generation, Instant
from onefleet.domain.layout import Layout
from onefleet.domain.serving import Purpose
from onefleet.domain.tenancy import Role
from onefleet.domain.tiers import Tier
from onefleet.wire.gateway import DeploymentRoute, Endpoint, KeyRoute, RouteTable, TenantRoute

HERE = Path(__file__).resolve().parent
KEY = "sk-benchmark-0123456789abcdef0123456789abcdef"
ENGINE_START_S = 10

#: Tokens a second of a paced stream: each chunk is a write of its own.
PACE = 1_000


@dataclass(frozen=True)
class Case:
    """One kind of request. chunks: events of its answer that hold text."""

    name: str
    model: str
    streamed: bool
    chunks: int
    connections: int
    requests: int
    paced: bool = False

    def request(self, port: int) -> bytes:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": "x" * 200}],
            "max_tokens": self.chunks,
            "ignore_eos": True,
        }
        if self.streamed:
            body["stream"] = True
        if self.paced:
            body["simulate"] = {"decode_tokens_s": PACE}
        data = msgspec.json.encode(body)
        return (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n"
            b"authorization: Bearer %b\r\nuser-agent: benchmark\r\naccept: application/json\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (port, KEY.encode(), len(data), data)
        )


def cases(scale: float) -> list[Case]:
    def count(requests: int) -> int:
        return max(16, int(requests * scale))

    return [
        Case("plain, relayed", "plain", False, 16, 1, count(200)),
        Case("plain, relayed", "plain", False, 16, 16, count(800)),
        Case("plain, put together from a stream", "gathered", False, 16, 1, count(150)),
        Case("plain, put together from a stream", "gathered", False, 16, 16, count(480)),
        Case("stream of 16 chunks, written at once", "plain", True, 16, 1, count(200)),
        Case("stream of 16 chunks, written at once", "plain", True, 16, 16, count(800)),
        Case("stream of 16 chunks, written one by one", "plain", True, 16, 1, count(32), True),
        Case("stream of 16 chunks, written one by one", "plain", True, 16, 16, count(240), True),
        Case("stream of 80 chunks, written one by one", "plain", True, 80, 16, count(96), True),
    ]


@dataclass
class Result:
    """One value a round. Microseconds."""

    cpu: list[float] = field(default_factory=list)
    engine_cpu: list[float] = field(default_factory=list)
    added_p50: list[float] = field(default_factory=list)
    added_p99: list[float] = field(default_factory=list)
    added_first: list[float] = field(default_factory=list)
    direct_p50: list[float] = field(default_factory=list)


def table(port: int) -> RouteTable:
    """Two names for one engine: one whose plain answers are relayed, one that always streams."""
    routes = [
        DeploymentRoute(
            deployment_id=f"dep-{name}",
            name=name,
            tenant_id="default",
            public=True,
            model_id="simulated",
            purpose=Purpose.CHAT,
            tier=Tier.STANDARD,
            engine=engine,
            slots=64,
            context_length=8192,
            replicas_max=1,
            created_at=Instant(0),
            endpoints=(Endpoint(replica_id=f"rep-{name}", host="127.0.0.1", port=port),),
        )
        for name, engine in (("gathered", "llamacpp"), ("plain", "simulated"))
    ]
    return RouteTable(
        generation=Generation(1),
        keys=(
            KeyRoute(
                digest=sha256(KEY.encode()).hexdigest(),
                key_id="key-1",
                tenant_id="default",
                role=Role.CALLER,
            ),
        ),
        tenants=(
            TenantRoute(tenant_id="default", tokens_per_minute=10**12, requests_per_minute=10**9),
        ),
        deployments=tuple(routes),
    )


async def control(routes: RouteTable) -> asyncio.Server:
    """A control plane that has nothing new to say, and holds calls like a real one."""
    answer = msgspec.json.encode(routes)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*left):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                at = head.index(b"content-length:") + 15
                body = await reader.readexactly(int(head[at:].split(b"\r\n", 1)[0]))
                asked = msgspec.json.decode(body)
                if asked["wait_ms"] and asked["seen"]:
                    await asyncio.sleep(asked["wait_ms"] / 1000)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer))
                writer.write(answer)
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@contextlib.contextmanager
def started(command: list[str], port_file: Path) -> Iterator[tuple[int, int]]:
    """Start a process that writes a port file; give its process id and port; end it."""
    process = subprocess.Popen([sys.executable, "-m", *command, f"--port-file={port_file}"])
    try:
        deadline = time.monotonic() + ENGINE_START_S
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start")
            time.sleep(0.02)
        yield process.pid, int(port_file.read_text("ascii").split()[1])
    finally:
        process.terminate()
        process.wait(10)


async def measure(folder: Path, rounds: int, scale: float) -> dict[Case, Result]:
    engine_command = ["onefleet.engines.simulated_server", "--alias=plain", "--slots=64"]
    engine_command += ["--kv-tokens=0"]
    with started(engine_command, folder / "engine.port") as (engine, engine_port):
        server = await control(table(engine_port))
        layout = Layout(folder)
        layout.internal_file.parent.mkdir(parents=True)
        host, port = server.sockets[0].getsockname()[:2]
        layout.internal_file.write_bytes(
            msgspec.json.encode({"host": host, "port": port, "token": "benchmark"})
        )
        command = ["onefleet.gateway", f"--data-dir={folder}", "--port=0"]
        with started(command, folder / "gateway.port") as (gateway, gateway_port):
            await asyncio.sleep(0.5)  # for the first route table
            for other in (0, engine):
                # Woken by the gateway's writes, they do not take its core from it there and then.
                os.sched_setscheduler(other, os.SCHED_BATCH, os.sched_param(0))
            results = await _rounds(gateway, gateway_port, engine, engine_port, rounds, scale)
        server.close()
    return results


async def _rounds(
    gateway: int, port: int, engine: int, engine_port: int, rounds: int, scale: float
) -> dict[Case, Result]:
    results = {case: Result() for case in cases(scale)}
    for number in range(rounds + 1):
        for case, result in results.items():
            n = case.requests
            first, whole = await load(
                engine_port, case.request(engine_port), case.connections, n, case.streamed
            )
            before, engine_before = cpu_us(gateway), cpu_us(engine)
            first_through, through = await load(
                port, case.request(port), case.connections, n, case.streamed
            )
            if not number:
                continue  # the first round warms up
            result.cpu.append((cpu_us(gateway) - before) / n)
            result.engine_cpu.append((cpu_us(engine) - engine_before) / n)
            result.direct_p50.append(quantile(whole, 0.5) * 1e6)
            for values, share in ((result.added_p50, 0.5), (result.added_p99, 0.99)):
                values.append((quantile(through, share) - quantile(whole, share)) * 1e6)
            result.added_first.append((quantile(first_through, 0.5) - quantile(first, 0.5)) * 1e6)
    return results


def chunk_cost(results: dict[Case, Result]) -> float:
    """CPU microseconds of one relayed chunk: the slope from 16 to 80 chunks, each its own write."""
    by_length = {
        case.chunks: min(result.cpu)
        for case, result in results.items()
        if case.paced and case.connections == 16
    }
    return (by_length[80] - by_length[16]) / (80 - 16)


def report(results: dict[Case, Result], rounds: int) -> str:
    lines = [
        "| request | connections | CPU us, least | median | added p50 us | added p99 us |"
        " added first byte us | direct p50 us | engine CPU us, least |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, result in results.items():
        cells = [
            min(result.cpu),
            median(result.cpu),
            median(result.added_p50),
            median(result.added_p99),
            median(result.added_first),
            median(result.direct_p50),
            min(result.engine_cpu),
        ]
        figures = " | ".join(f"{value:.0f}" for value in cells)
        lines.append(f"| {case.name} | {case.connections} | {figures} |")
    lines.append("")
    lines.append(f"One relayed chunk costs {chunk_cost(results):.1f} us of CPU.")
    lines.append(
        "At 16 connections the load keeps every core busy, so latencies there are mostly queues."
    )
    lines.append(f"{rounds} rounds.")
    return "\n".join(lines)


def over_budget(results: dict[Case, Result]) -> list[str]:
    """What is over benchmarks/gateway.budget.toml, one line each."""
    budget = tomllib.loads((HERE / "gateway.budget.toml").read_text("utf-8"))
    over = []
    for name, limit in budget["cpu_us"].items():
        if name == "chunk":
            value = chunk_cost(results)
        else:
            text, connections = budget["cases"][name]
            value = next(
                min(result.cpu)
                for case, result in results.items()
                if case.name == text and case.connections == connections
            )
        if value > limit:
            over.append(f"{name}: {value:.1f} us of CPU, the budget is {limit}")
    return over


def machine() -> str:
    cpu = "unknown CPU"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("ascii").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    load1 = Path("/proc/loadavg").read_text("ascii").split()[0]
    return f"{cpu}, Python {platform.python_version()}, Linux {platform.release()}, load {load1}"


def main(arguments: list[str] | None = None) -> int:
    """Measure, report, and hold the result against the budget. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    rounds, scale = (2, 0.5) if options.quick else (options.rounds, 1.0)
    where = machine()
    with tempfile.TemporaryDirectory() as folder:
        results = uvloop.run(measure(Path(folder), rounds, scale))
    text = report(results, rounds)
    print(text)
    if options.quick:
        return 0
    intro = (__doc__ or "").split("\n\n    python")[0]
    stamp = time.strftime("%Y-%m-%d", time.gmtime())
    (HERE / "gateway.md").write_text(
        f"# {intro}\n\nMeasured {stamp} on {where}.\n\n{text}\n", "utf-8"
    )
    over = over_budget(results)
    for line in over:
        print(f"over budget: {line}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
