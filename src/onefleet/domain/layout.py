"""Where things lie under a pool's data folder. One place, so that no path is spelled twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """The data folder of a pool (or of one node's agent). Paths only; nothing is created."""

    root: Path

    @property
    def lock(self) -> Path:
        """Held by `onefleet up` for as long as the pool runs; a second `up` fails on it."""
        return self.root / "run" / "lock"

    @property
    def pool_file(self) -> Path:
        """JSON: how to reach the running pool (url, pids). Absent when it does not run."""
        return self.root / "run" / "pool.json"

    @property
    def internal_file(self) -> Path:
        """JSON, mode 0600: the control plane's loopback address and the internal token."""
        return self.root / "run" / "internal.json"

    @property
    def routes_file(self) -> Path:
        """The gateway's last route table."""
        return self.root / "run" / "routes.json"

    @property
    def usage_folder(self) -> Path:
        """The gateway's journal of usage that the control plane has not acknowledged yet."""
        return self.root / "run" / "usage"

    @property
    def logs(self) -> Path:
        """A log file a process: up.log, control.log, gateway.log, agent.log."""
        return self.root / "log"

    @property
    def credentials(self) -> Path:
        """The administrator's key, mode 0600, made by the first `up`."""
        return self.root / "credentials"

    @property
    def database(self) -> Path:
        return self.root / "pool.db"

    @property
    def blobs(self) -> Path:
        """Content-addressed files (weights, packaged code): <hex digest> in sha256/."""
        return self.root / "blobs" / "sha256"

    @property
    def downloads(self) -> Path:
        """Downloads under way; safe to delete when nothing runs."""
        return self.root / "downloads"

    @property
    def agent(self) -> Path:
        """The agent's own folder on this machine."""
        return self.root / "agent"

    @property
    def chunk_stores(self) -> Path:
        """The contents of saved images, in a folder a work."""
        return self.agent / "chunks"

    def chunks(self, work_id: str) -> Path:
        """The chunk store of one work's images on this node."""
        return self.chunk_stores / work_id

    @property
    def lease(self) -> Path:
        """Until when this node's jobs may run: see `drivers.lease`."""
        return self.agent / "lease"

    @property
    def criu(self) -> Path:
        """The managed copy of criu."""
        return self.root / "criu"

    def worker(self, work_id: str, rank: int) -> Path:
        """The folder of one worker: its supervisor's state, stdout, stderr, code, images."""
        return self.agent / "workers" / f"{work_id}.{rank}"
