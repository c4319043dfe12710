"""The gateway's calls to the control plane: two lanes, so that news never waits behind a poll.

The *poll* lane asks for the next route table and lets the control plane hold the call. The *push*
lane hands over usage and tells of changed demand at once; only it carries usage, one batch at a
time, and it is never given up half-way, so a batch is applied once. Both carry demand and both
answers are applied. While the control plane is away the last table is served.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec

from onefleet.domain.errors import Unreachable, UpstreamFailed, WorldError
from onefleet.gateway.app import Gateway
from onefleet.gateway.upstream import Upstream, UpstreamConnection
from onefleet.wire.gateway import GatewayReport, RouteTable

PATH = b"/internal/gateway/sync"

#: Beyond the time that the control plane may hold a call, an answer is given up.
_GRACE_MS = 5_000

_decode = msgspec.json.Decoder(RouteTable).decode
_encode = msgspec.json.Encoder().encode


class _Call:
    """One call that somebody waits for."""

    def __init__(self) -> None:
        self.link: UpstreamConnection | None = None
        self.answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._parts: list[bytes] = []

    def head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status

    def read(self, data: bytes, ended: bool) -> None:
        self._parts.append(data)
        if ended and not self.answer.done():
            self.answer.set_result((self._status, b"".join(self._parts)))

    def lost(self, connected: bool, started: bool, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(Unreachable("the control plane is away", why=reason))

    def drained(self) -> None:
        """The report is small; it is written at once."""

    def choked(self) -> None:
        """The same."""


class ControlSync:
    """Keeps the gateway's table and the control plane's knowledge of it fresh."""

    def __init__(self, gateway: Gateway, upstream: Upstream, token: str, routes_file: Path) -> None:
        self._gateway = gateway
        self._upstream = upstream
        self._token = token
        self._routes_file = routes_file
        self._news = asyncio.Event()
        self.connected = False

    def load(self) -> bool:
        """Serve by the table of an earlier process. False: there is none that can be read."""
        try:
            table = _decode(self._routes_file.read_bytes())
        except FileNotFoundError:
            return False
        except (OSError, msgspec.MsgspecError) as error:
            self._gateway.log.error(
                "routes_unreadable", path=str(self._routes_file), why=str(error)
            )
            return False
        self._gateway.apply(table)
        return True

    def tell(self) -> None:
        """Demand has changed: the control plane shall hear of it at once."""
        self._news.set()

    async def run(self) -> None:
        """Both lanes, until cancelled."""
        await asyncio.gather(self._poll(), self._push())

    async def finish(self) -> None:
        """Hand over what is left of the usage, once; it stays journaled if that fails."""
        try:
            async with asyncio.timeout(1):
                await self._hand_over()
        except (TimeoutError, WorldError):
            return

    async def _poll(self) -> None:
        limits = self._gateway.limits
        backoff = limits.sync_backoff_ms
        while True:
            try:
                await self._call(limits.poll_ms if self._gateway.generation else 0, 0, ())
                backoff = limits.sync_backoff_ms
                self._note(True, "")
            except WorldError as error:
                self._note(False, error.why)
                await asyncio.sleep(backoff / 1000)
                backoff = min(2 * backoff, limits.sync_backoff_most_ms)

    async def _push(self) -> None:
        limits = self._gateway.limits
        while True:
            try:
                async with asyncio.timeout(limits.usage_every_ms / 1000):
                    await self._news.wait()
            except TimeoutError:
                if not self._gateway.meter.pending:
                    continue
            self._news.clear()
            try:
                await self._hand_over()
                await asyncio.sleep(limits.demand_every_ms / 1000)
            except WorldError as error:
                self._note(False, error.why)
                await asyncio.sleep(limits.sync_backoff_ms / 1000)
                if any(one.waiting for one in self._gateway.demand()):
                    self._news.set()

    async def _hand_over(self) -> None:
        """Report demand now, and the oldest batches of usage."""
        meter = self._gateway.meter
        meter.seal()
        batch = meter.batch()
        if batch is None:
            await self._call(0, 0, ())
        while batch is not None:
            await self._call(0, batch.sequence, batch.reports())
            meter.acknowledged(batch)
            batch = meter.batch()

    async def _call(self, wait_ms: int, sequence: int, usage: tuple[object, ...]) -> None:
        """One call; its table is applied. Raises Unreachable or UpstreamFailed."""
        gateway = self._gateway
        report = GatewayReport(
            gateway_id=gateway.meter.gateway_id,
            seen=gateway.generation,
            wait_ms=wait_ms,
            demand=gateway.demand(),
            sequence=sequence,
            usage=usage,  # type: ignore[arg-type]  # UsageReports, or none
        )
        body = _encode(report)
        call = _Call()
        upstream = self._upstream
        upstream.ask(
            call,
            b"POST %b HTTP/1.1\r\nhost: %b:%d\r\ncontent-type: application/json\r\n"
            b"x-onefleet-internal: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (
                PATH,
                upstream.host.encode(),
                upstream.port,
                self._token.encode(),
                len(body),
                body,
            ),
        )
        try:
            async with asyncio.timeout((wait_ms + _GRACE_MS) / 1000):
                status, answer = await call.answer
        except TimeoutError as error:
            raise Unreachable("the control plane is away", why="it did not answer") from error
        finally:
            upstream.leave(call)
        if status != 200:
            raise UpstreamFailed(
                "the control plane refused a report", why=f"status {status}: {answer[:200]!r}"
            )
        try:
            table = _decode(answer)
        except msgspec.MsgspecError as error:
            raise UpstreamFailed("the control plane's table is wrong", why=str(error)) from error
        self._apply(table, answer)

    def _apply(self, table: RouteTable, text: bytes) -> None:
        gateway = self._gateway
        if gateway.ready and table.generation == gateway.generation:
            return
        if not gateway.apply(table):
            return
        fresh = self._routes_file.with_suffix(".new")
        try:
            self._routes_file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(handle, "wb") as file:
                file.write(text)
            os.replace(fresh, self._routes_file)
        except OSError as error:
            gateway.log.error("routes_not_saved", path=str(self._routes_file), why=str(error))

    def _note(self, connected: bool, why: str) -> None:
        if connected != self.connected:
            self.connected = connected
            if connected:
                self._gateway.log.info("control_connected")
            else:
                self._gateway.log.warning("control_away", why=why)
