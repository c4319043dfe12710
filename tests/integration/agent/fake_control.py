"""A control plane that only keeps orders and reports, so that an agent can be tested alone."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from onefleet.domain.ids import Generation, NodeId
from onefleet.wire.agent import NodeOrders, NodeReport, Order, WorkerReport

TOKEN = "t" * 16


class FakeControl:
    """Serves /internal/agent/sync on a loopback port."""

    def __init__(self, layout_internal_file: Path, lease_ms: int = 60_000) -> None:
        self.lease_ms = lease_ms
        self.reports: list[NodeReport] = []
        self._orders: tuple[Order, ...] = ()
        self._generation = 1
        self._changed = threading.Condition()
        control = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                control.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()
        host, port = self._server.server_address[:2]
        layout_internal_file.parent.mkdir(parents=True, exist_ok=True)
        layout_internal_file.write_text(json.dumps({"host": host, "port": port, "token": TOKEN}))

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        assert handler.headers["x-onefleet-internal"] == TOKEN
        raw = handler.rfile.read(int(handler.headers["content-length"]))
        report = msgspec.json.decode(raw, type=NodeReport)
        with self._changed:
            self.reports.append(report)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._generation != report.seen, timeout=report.wait_ms / 1000
            )
            orders = NodeOrders(
                node_id=NodeId("n"), generation=Generation(self._generation),
                lease_ms=self.lease_ms, orders=self._orders,
            )  # fmt: skip
        try:
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(msgspec.json.encode(orders))
        except OSError:
            pass  # it broke off, because it has news

    def order(self, *orders: Order) -> None:
        with self._changed:
            self._orders = orders
            self._generation += 1
            self._changed.notify_all()

    def worker(self) -> WorkerReport | None:
        """What the newest report says of its only worker."""
        with self._changed:
            workers = self.reports[-1].workers if self.reports else ()
        return workers[0] if workers else None

    def wait(
        self, good: Callable[[WorkerReport | None], bool], limit_s: float = 60.0
    ) -> WorkerReport | None:
        """The report of the only worker, once it is as wanted."""
        deadline = time.monotonic() + limit_s
        with self._changed:
            while True:
                workers = self.reports[-1].workers if self.reports else ()
                worker = workers[0] if workers else None
                if self.reports and good(worker):
                    return worker
                left = deadline - time.monotonic()
                assert left > 0, f"not as wanted within {limit_s} s: {worker}"
                self._changed.wait(left)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
