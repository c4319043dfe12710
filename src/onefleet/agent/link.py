"""An agent's line to its control plane: on the pool's own machine by the internal token, from a
machine that has joined by the key of its node.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onefleet.domain.errors import Unreachable, UpstreamFailed
from onefleet.domain.ids import Digest
from onefleet.domain.layout import Layout
from onefleet.registry.blobs import adopt, blob_path, hash_file, no_space_is_ours
from onefleet.wire import internal
from onefleet.wire.agent import NodeOrders, NodeReport
from onefleet.wire.client import Client

#: How long the control plane may take over an answer, beyond the time that it may hold it.
PATIENCE_S = 10.0
#: How long code is asked for again while nothing answers, and how often: a control plane that was
#: killed is back by then.
CODE_PATIENCE_S = 30.0
CODE_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Link:
    """Calls raise OnefleetError. joined: the pool's folder is not this machine's own."""

    client: Client
    joined: bool

    def sync(self, report: NodeReport) -> NodeOrders:
        """Tell what is true; get what shall be. May be held for the report's wait_ms."""
        path = "/api/v1/node/sync" if self.joined else "/internal/agent/sync"
        return self.client.post(path, report, NodeOrders)

    def abort(self) -> None:
        """End the calls that other threads have under way."""
        self.client.abort()

    def get_code(
        self,
        layout: Layout,
        digest: Digest,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Have the package of a job's code here. Blocking.

        A pool that is away for a moment is waited for: a restore that fails for want of the code
        would be held against the image.
        """
        until = clock() + CODE_PATIENCE_S
        while self.joined and not blob_path(layout, digest).is_file():
            try:
                self._fetch_code(layout, digest)
            except Unreachable:
                if clock() >= until:
                    raise
                sleep(CODE_PAUSE_S)

    def _fetch_code(self, layout: Layout, digest: Digest) -> None:
        layout.downloads.mkdir(parents=True, exist_ok=True)
        with no_space_is_ours(layout.root, "fetching code"):
            handle, name = tempfile.mkstemp(prefix="code.", dir=layout.downloads)
            try:
                with os.fdopen(handle, "wb") as file:
                    self.client.download(f"/api/v1/node/code/{digest}", file)
                found = hash_file(Path(name))
                if found != digest.removeprefix("sha256:"):
                    told = f"the code package {digest[:19]}... came damaged"
                    raise UpstreamFailed(told, why=f"its bytes have the digest {found[:12]}...")
                adopt(layout, Path(name), found)
            finally:
                Path(name).unlink(missing_ok=True)


def local(layout: Layout, wait_ms: int) -> Link:
    """Of the pool's own machine. Raises Unreachable when the pool's file is not there."""
    address = internal.read(layout.internal_file)
    timeout_s = wait_ms / 1000 + PATIENCE_S
    return Link(Client(address.url, internal_token=address.token, timeout_s=timeout_s), False)


def joined(url: str, key: str, wait_ms: int) -> Link:
    """Of a machine that has joined the pool at this address."""
    return Link(Client(url, key, timeout_s=wait_ms / 1000 + PATIENCE_S), True)
