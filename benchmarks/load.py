"""A load generator on raw protocols: closed loop, a fixed number of connections, cheap to run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import perf_counter


class Client(asyncio.Protocol):
    """Sends the same request again and again and times each answer.

    first: seconds to the first byte of the answer. whole: to its end.
    """

    def __init__(self, request: bytes, count: int, streamed: bool, done: asyncio.Future[None]):
        self._request = request
        self._left = count
        self._streamed = streamed
        self._done = done
        self._sent = 0.0
        self._length = -1
        self._buffer = b""
        self._begun = False
        self.first: list[float] = []
        self.whole: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            self.first.append(perf_counter() - self._sent)
            if not data.startswith(b"HTTP/1.1 200 "):
                self._fail(data)
                return
        if self._streamed:
            self._buffer = (self._buffer + data)[-7:]
            if self._buffer != b"\r\n0\r\n\r\n":
                return
        else:
            self._buffer += data
            if self._length < 0:
                end = self._buffer.find(b"\r\n\r\n")
                if end < 0:
                    return
                head = self._buffer[:end].lower()
                at = head.index(b"content-length:") + 15
                self._length = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
            if len(self._buffer) < self._length:
                return
        self.whole.append(perf_counter() - self._sent)
        self._left -= 1
        if self._left > 0:
            self._send()
        else:
            self._transport.close()
            if not self._done.done():
                self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError("the connection was closed"))

    def _send(self) -> None:
        self._begun = False
        self._buffer = b""
        self._length = -1
        self._sent = perf_counter()
        self._transport.write(self._request)  # type: ignore[attr-defined]

    def _fail(self, data: bytes) -> None:
        if not self._done.done():
            self._done.set_exception(RuntimeError(data[:300].decode("latin-1")))
        self._transport.close()


async def load(
    port: int, request: bytes, connections: int, count: int, streamed: bool
) -> tuple[list[float], list[float]]:
    """`count` requests over `connections`; return seconds to first byte and to the end, sorted."""
    loop = asyncio.get_running_loop()
    clients = []
    waits = []
    for number in range(connections):
        share = count // connections + (number < count % connections)
        done: asyncio.Future[None] = loop.create_future()
        client = Client(request, share, streamed, done)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
        clients.append(client)
        waits.append(done)
    await asyncio.gather(*waits)
    first = sorted(value for client in clients for value in client.first)
    whole = sorted(value for client in clients for value in client.whole)
    return first, whole


def cpu_us(pid: int) -> float:
    """Microseconds of CPU that a process's threads have used, in the kernel and outside of it."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        total += int(path.read_text("ascii").split()[0])
    return total / 1000


def quantile(values: list[float], share: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(len(values) * share))]
