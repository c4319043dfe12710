"""A pool that is not there: a thread that answers the control API from canned views."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import pytest

from onefleet.domain import errors
from onefleet.wire import api

KEY = "ok-test-key"
NOW = 1_700_000_000_000

JOB = api.JobView(
    id="job-1",
    name="train",
    tenant="default",
    tier="standard",
    command=("python", "train.py"),
    want="run",
    phase="running",
    reason="",
    node="node-1",
    devices=("node-1/cpu1",),
    devices_min=1,
    devices_max=1,
    attempts=1,
    suspends=2,
    lost_ms=0,
    ran_ms=61_000,
    fraction=0.83,
    image_bytes=0,
    memory_bytes=55_000_000,
    checkpoint="criu",
    checkpoint_reason="",
    outcome=None,
    exit_code=None,
    why_ended="",
    submitted_at=NOW,
    started_at=NOW + 100,
    ended_at=None,
)
DEPLOYMENT = api.DeploymentView(
    id="dep-1",
    name="smollm2",
    tenant="default",
    model="demo:smollm2",
    kind="paygo",
    tier="standard",
    engine="llamacpp",
    replicas_min=1,
    replicas_max=1,
    replicas_wanted=1,
    replicas_ready=1,
    devices_per_replica=1,
    slots=4,
    context_length=2048,
    memory_bytes=400_000_000,
    active=0,
    waiting=0,
    state="ready",
    reason="",
    created_at=NOW,
)
MODEL = api.ModelView(
    id="demo:smollm2",
    family="smollm2",
    purpose="chat",
    revision="sha256:b179",
    format="gguf",
    size_bytes=98_362_432,
    parameters=134_515_008,
    context_length=8192,
    source="demo:smollm2",
    licence="Apache-2.0",
    created_at=NOW,
)
TENANT = api.TenantView(
    id="default",
    parent=None,
    tokens_per_minute=None,
    requests_per_minute=60,
    reservations={"cpu": 1},
    created_at=NOW,
    used={"cpu": {"basic": 9_000_000, "premium": 1_800_000}},
)
KEY_VIEW = api.KeyView(
    id="key-1",
    tenant="default",
    name="first",
    role="admin",
    hint="-key",
    created_at=NOW,
    revoked_at=None,
)
NODE = api.NodeView(
    id="node-1",
    name="box",
    state="ready",
    devices=2,
    devices_used=2,
    memory_bytes=24_000_000_000,
    memory_free_bytes=20_000_000_000,
    cpu_busy_permille=512,
    checkpoint="criu",
    checkpoint_reason="",
    lease_expires_at=NOW,
)
DEVICE = api.DeviceView(
    id="node-1/cpu1",
    node="node-1",
    kind="cpu",
    product="AMD EPYC",
    memory_bytes=12_000_000_000,
    simulated=False,
    holder="job-1",
    tier="standard",
)
RESERVATION = api.ReservationView(
    id="res-1",
    tenant="default",
    device_kind="cpu",
    product="",
    devices=2,
    starts_at=NOW,
    ends_at=None,
    within_ms=300_000,
    state="open",
    created_at=NOW,
)
LEDGER = api.LedgerView(
    id="job-1",
    name="train",
    tenant="default",
    tier="standard",
    promised_permille=700,
    kept_permille=830,
    state="kept",
    device_ms=61_000,
    hours=(api.HourView(begins_at=NOW, wanted_ms=100_000, got_ms=83_000),),
)
RECEIPT = api.ReceiptView(
    job="job-1",
    at=NOW,
    by="rep-1",
    reason="makes room for rep-1 (premium)",
    devices=1,
    lost_ms=0,
    back_at=NOW + 9_000,
)
SPARES = api.SparesView(id="gpu", wanted=2, nodes=("box",), note="two nodes: 1 is kept at most")
STATUS = api.StatusView(
    version="0.1.0",
    generation=42,
    started_at=NOW,
    nodes_ready=1,
    nodes=1,
    devices=2,
    devices_used=2,
    deployments=1,
    deployments_ready=1,
    jobs_running=1,
    jobs_waiting=0,
    jobs_suspended=0,
    gateway_seen_s=0.4,
    last_pass_at=NOW,
    last_pass_result="nothing to do",
)
WHY = api.WhyView(
    id="job-1",
    name="train",
    phase="pending",
    summary="waits for 1 cpu device",
    blockers=(
        api.BlockerView(gate="contention", text="both devices are held", holders=("rep-1",)),
        api.BlockerView(gate="quota", text="tenant default has 0 of 1 left"),
    ),
    history=("submitted",),
    deadline="in 1h00m; it is expected to be met",
    forecast=api.ForecastView(
        at=NOW,
        likely_at=NOW + 1_860_000,
        earliest_at=NOW + 1_200_000,
        latest_at=NOW + 7_800_000,
        alternatives=(
            api.AlternativeView(tier="", devices=4, starts_at=NOW, pushes_back=()),
            api.AlternativeView(
                tier="premium", devices=0, starts_at=NOW + 60_000, pushes_back=("job-17",)
            ),
        ),
    ),
)
UTILISATION = api.UtilisationView(
    since=NOW,
    until=NOW + 10_000,
    capacity_device_ms=20_000,
    held_device_ms={"standard.replica": 10_000, "standard.job": 6_000},
    suspends=1,
    resumes=1,
)
EVENT = api.EventView(
    sequence=7, at=NOW, kind="work.suspended", subject="job-1", text="for premium work"
)
REPLICA = api.ReplicaView(
    id="rep-1",
    deployment="smollm2",
    phase="running",
    node="node-1",
    devices=("node-1/cpu0",),
    reason="",
    memory_bytes=400_000_000,
    created_at=NOW,
)


JOB_VERBS = ("suspend", "freeze", "resume", "cancel", "checkpoint", "migrate", "scale")


class FakePool:
    """What a test sets up and looks at. views: path -> what GET answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.fail: dict[str, errors.OnefleetError] = {}
        self.logs = {"stdout": "step 1\nstep 2\n", "stderr": "a warning\n"}
        self.ended = True
        self.chat: list[str] = []
        self.model_error: api.ErrorDetail | None = None
        self.views: dict[str, Any] = {
            "/ready": {},
            "/api/v1/status": STATUS,
            "/api/v1/jobs": api.Page((JOB,)),
            "/api/v1/jobs/job-1": JOB,
            "/api/v1/jobs/train": JOB,
            "/api/v1/models": api.Page((MODEL,)),
            "/api/v1/models/demo:smollm2": MODEL,
            "/api/v1/deployments": api.Page((DEPLOYMENT,)),
            "/api/v1/deployments/smollm2": DEPLOYMENT,
            "/api/v1/tenants": api.Page((TENANT,)),
            "/api/v1/keys": api.Page((KEY_VIEW,)),
            "/api/v1/nodes": api.Page((NODE,)),
            "/api/v1/devices": api.Page((DEVICE,)),
            "/api/v1/replicas": api.Page((REPLICA,)),
            "/api/v1/why/job-1": WHY,
            "/api/v1/reservations": api.Page((RESERVATION,)),
            "/api/v1/spares": api.Page((SPARES,)),
            "/api/v1/ledger": api.Page((LEDGER,)),
            "/api/v1/jobs/job-1/ledger": LEDGER,
            "/api/v1/jobs/job-1/receipts": api.Page((RECEIPT,)),
            "/api/v1/utilisation": UTILISATION,
            "/api/v1/events": api.Page((EVENT,)),
        }
        self.made: dict[str, Any] = {
            "/api/v1/jobs": JOB,
            "/api/v1/models": MODEL,
            "/api/v1/deployments": DEPLOYMENT,
            "/api/v1/tenants": TENANT,
            "/api/v1/keys": msgspec.structs.replace(KEY_VIEW, key="ok-secret"),
            "/api/v1/code": api.CodeView(digest="sha256:c0de", size_bytes=99, files=1),
            "/api/v1/arrays": api.Page((JOB,)),
            "/api/v1/reservations": RESERVATION,
            "/api/v1/spares": SPARES,
            "/api/v1/nodes/box/drain": NODE,
            "/api/v1/nodes/box/undrain": NODE,
            "/api/v1/devices/node-1/cpu1/cordon": DEVICE,
            "/api/v1/devices/node-1/cpu1/uncordon": DEVICE,
            **{f"/api/v1/jobs/job-1/{verb}": JOB for verb in JOB_VERBS},
        }

    def log(self, query: dict[str, str]) -> api.LogChunk:
        offset = int(query.get("offset", "0"))
        text = self.logs[query.get("stream", "stdout")][offset:]
        end = offset + len(text)
        return api.LogChunk(text=text, offset=offset, next_offset=end, ended=self.ended)


def _handler(fake: FakePool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(body)

        def _error(self, error: errors.OnefleetError) -> None:
            detail = api.ErrorDetail(
                message=error.what,
                type=error.fault,
                param=error.param,
                code=error.error_code,
                why=error.why,
                hint=error.hint,
            )
            self._send(error.status, msgspec.json.encode(api.ErrorBody(detail)))

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            query = {k: v[0] for k, v in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            fake.calls.append((self.command, path, body))
            known = self.headers.get("authorization") == f"Bearer {KEY}"
            if not known and path != "/ready":
                self._error(errors.Unauthenticated("not a key of this pool"))
            elif path in fake.fail:
                self._error(fake.fail[path])
            elif path == "/v1/chat/completions":
                lines = "".join(f"data: {line}\n\n" for line in fake.chat)
                self._send(200, lines.encode(), "text/event-stream")
            elif (self.command, path) == ("POST", "/api/v1/models"):
                step = api.ModelLine(progress=api.Progress(step="fetching", done=1, total=2))
                last = api.ModelLine(model=MODEL)
                if fake.model_error is not None:
                    last = api.ModelLine(error=fake.model_error)
                lines = b"\n".join(map(msgspec.json.encode, (step, last)))
                self._send(200, lines, "application/x-ndjson")
            elif path.endswith("/logs"):
                self._send(200, msgspec.json.encode(fake.log(query)))
            else:
                table = fake.views if self.command == "GET" else fake.made
                view = {} if self.command == "DELETE" else table.get(path)
                if view is None:
                    self._error(errors.NotFound(f"no {path}", why="unknown", hint="onefleet ps"))
                else:
                    self._send(200, msgspec.json.encode(view))

        do_GET = do_POST = do_DELETE = _serve

    return Handler


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakePool]:
    """A running fake pool on the data folder `tmp_path`."""
    pool = FakePool()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(pool))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    (tmp_path / "run").mkdir()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    (tmp_path / "run" / "pool.json").write_text(json.dumps({"url": url, "pids": {}}))
    (tmp_path / "credentials").write_text(KEY + "\n")
    yield pool
    server.shutdown()
    server.server_close()
    thread.join()


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command line in this process: (exit code, stdout, stderr)."""
    from onefleet.cli.main import main

    monkeypatch.setenv("ONEFLEET_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("ONEFLEET_KEY", raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
